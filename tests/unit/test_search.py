"""What every search promises, checked on Optuna's (in memory and in SQLite) and on the fake one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from fakes import FakeSearch
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import TrialState

from autotune.adapters.search.study import FEASIBILITY, OptunaSearch, baseline_sampler, open_study
from autotune.domain.configs.config import EngineConfig
from autotune.domain.configs.space import Branch, SearchSpace
from autotune.domain.studies.ports import Outcome, Search

BASE = EngineConfig(engine="fake", context_length=2048)
SMALL = SearchSpace.model_validate(
    {
        "dimensions": {
            "max_num_seqs": ["default", 8],
            "speculation": ["default", "ngram"],
            "speculative_tokens": {"low": 2, "high": 5, "step": 2, "when": {"speculation": "ngram"}},
        }
    }
)
"""Six configurations: two without speculation, four with."""
OBJECTIVES = Outcome(objectives=(1.5, 0.0))
INFEASIBLE = Outcome(objectives=(0.0, 0.0), feasible=False)
NOT_JUDGED = Outcome(objectives=(), scored=False)

Make = Callable[..., Search]
"""Makes a search over branches; a space alone is that of BASE."""


def optuna_study(storage: BaseStorage | None = None) -> optuna.Study:
    """The study of one process; with a storage it is the same study in each."""
    tpe = baseline_sampler("tpe", seed=1)
    return open_study("small", storage or InMemoryStorage(), slas=["fast", "slow"], sampler=tpe)


def optuna_search(
    study: optuna.Study, *parts: SearchSpace | Branch, known: Mapping[int, Outcome] | None = None
) -> OptunaSearch:
    return OptunaSearch(study, branches(*(parts or (SMALL,))), known=known or {})


def branches(*parts: SearchSpace | Branch) -> list[Branch]:
    return [part if isinstance(part, Branch) else Branch(BASE, part) for part in parts]


def sqlite(folder: Path) -> BaseStorage:
    return optuna.storages.get_storage(f"sqlite:///{folder}/studies.db")


@pytest.fixture(params=["fake", "memory", "sqlite"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    match request.param:
        case "fake":
            return lambda *parts: FakeSearch(branches(*parts))
        case "memory":
            return lambda *parts: optuna_search(optuna_study(), *parts)
        case _:
            return lambda *parts: optuna_search(optuna_study(sqlite(tmp_path)), *parts)


def exhaust(search: Search, outcome: Outcome = OBJECTIVES) -> list[EngineConfig]:
    """Every configuration that the search suggests until it has none left."""
    configs = []
    while (suggestion := search.ask()) is not None:
        configs.append(suggestion.config)
        search.tell(suggestion.number, outcome)
    return configs


@pytest.mark.parametrize("outcome", [OBJECTIVES, INFEASIBLE, NOT_JUDGED])
def test_every_configuration_is_suggested_once_and_then_none(make: Make, outcome: Outcome) -> None:
    configs = exhaust(make(SMALL), outcome)
    expected = [SMALL.config_at(BASE, point).key for point in SMALL.points()]
    assert sorted(config.key for config in configs) == sorted(expected)


def test_each_engine_has_its_own_space_and_words(make: Make) -> None:
    other = Branch(
        EngineConfig(engine="other", context_length=4096),
        SearchSpace.model_validate({"dimensions": {"max_num_seqs": ["default", 16, 32]}}),
    )
    configs = exhaust(make(SMALL, other))
    assert len({config.key for config in configs}) == len(configs) == 6 + 3
    assert {c.max_num_seqs for c in configs if c.engine == "other"} == {None, 16, 32}
    assert {(c.engine, c.context_length) for c in configs} == {("fake", 2048), ("other", 4096)}


def test_conditions_are_respected(make: Make) -> None:
    for config in exhaust(make(SMALL)):
        assert (config.speculative_tokens in {2, 4}) == (config.speculation == "ngram")


def test_suggestions_have_the_bases_words(make: Make) -> None:
    assert {config.context_length for config in exhaust(make(SMALL))} == {2048}


def test_two_points_that_are_one_configuration_are_tried_once(make: Make) -> None:
    doubled = SearchSpace.model_validate({"dimensions": {"context_length": ["default", 2048, 4096]}})
    assert sorted(config.context_length or 0 for config in exhaust(make(doubled))) == [2048, 4096]


def test_what_was_begun_is_not_suggested(make: Make) -> None:
    search = make(SMALL)
    begun = BASE.replaced({"max_num_seqs": 8})
    search.tell(search.begin(begun).number, OBJECTIVES)
    assert begun.key not in {config.key for config in exhaust(search)}


def test_a_configuration_outside_of_the_space_may_be_begun(make: Make) -> None:
    search = make(SMALL)
    outside = EngineConfig(engine="fake", max_num_seqs=99, dtype="float16", extra_args=("--x",))
    suggestion = search.begin(outside)
    assert suggestion.config == outside
    search.tell(suggestion.number, OBJECTIVES)
    assert len(exhaust(search)) == 6


def test_a_configuration_may_be_begun_again_as_a_final(make: Make) -> None:
    search = make(SMALL)
    first, second = search.begin(BASE), search.begin(BASE)
    assert first.number != second.number
    search.tell(second.number, OBJECTIVES)
    search.tell(first.number, OBJECTIVES)


def test_a_space_without_dimensions_has_one_configuration(make: Make) -> None:
    assert exhaust(make(SearchSpace(dimensions={}))) == [BASE]


def test_a_large_space_is_searched_without_being_listed(make: Make) -> None:
    large = SearchSpace.model_validate(
        {
            "dimensions": {
                "max_num_seqs": {"low": 1, "high": 1000},
                "max_num_batched_tokens": {"low": 256, "high": 1 << 20, "log": True},
                "block_size": [16, 32, 64],
            }
        }
    )
    search = make(large)
    keys = []
    for number in range(12):
        suggestion = search.ask()
        assert suggestion is not None
        keys.append(suggestion.config.key)
        search.tell(suggestion.number, Outcome(objectives=(float(number), 1.0)))
    assert len(set(keys)) == 12


# What is Optuna's alone: how trials lie in its storage, and what another process makes of them.


def trial_of(study: optuna.Study, number: int) -> optuna.trial.FrozenTrial:
    return study.get_trials(deepcopy=False)[number]


def test_objectives_are_stored_by_sla() -> None:
    study = optuna_study()
    search = optuna_search(study)
    search.tell(search.begin(BASE).number, OBJECTIVES)
    trial = trial_of(study, 0)
    assert (trial.state, trial.values) == (TrialState.COMPLETE, [1.5, 0.0])
    assert study.metric_names == ["fast", "slow"]
    assert [d.name for d in study.directions] == ["MAXIMIZE", "MAXIMIZE"]
    assert trial.constraints[FEASIBILITY] < 0


def test_infeasible_is_complete_with_a_violated_constraint_and_finite_values() -> None:
    study = optuna_study()
    search = optuna_search(study)
    search.tell(search.begin(BASE).number, INFEASIBLE)
    trial = trial_of(study, 0)
    assert (trial.state, trial.values) == (TrialState.COMPLETE, [0.0, 0.0])
    assert trial.constraints[FEASIBILITY] > 0


def test_what_was_not_judged_is_failed_so_that_no_sampler_reads_it() -> None:
    study = optuna_study()
    search = optuna_search(study)
    search.tell(search.begin(BASE).number, NOT_JUDGED)
    assert trial_of(study, 0).state is TrialState.FAIL


@pytest.mark.parametrize(
    ("words", "params"),
    [
        ({}, {"max_num_seqs": "default", "speculation": "default"}),
        ({"max_num_seqs": 8}, {"max_num_seqs": 8, "speculation": "default"}),
        (
            {"speculation": "ngram", "speculative_tokens": 4},
            {"max_num_seqs": "default", "speculation": "ngram", "speculative_tokens": 4},
        ),
        ({"max_num_seqs": 99}, {"speculation": "default"}),
    ],
)
def test_samplers_learn_of_what_was_begun_as_far_as_it_is_in_the_space(
    words: dict[str, Any], params: dict[str, Any]
) -> None:
    study = optuna_study()
    suggestion = optuna_search(study).begin(BASE.replaced(words))
    assert trial_of(study, suggestion.number).params == params


def test_the_configuration_is_stored_with_its_trial() -> None:
    study = optuna_study()
    suggestion = optuna_search(study).begin(BASE.replaced({"max_num_seqs": 8}))
    stored = json.loads(trial_of(study, suggestion.number).user_attrs["configuration"])
    assert stored == {"engine": "fake", "max_num_seqs": 8, "context_length": 2048}


def test_another_process_goes_on_where_the_first_stopped(tmp_path: Path) -> None:
    first = optuna_search(optuna_study(sqlite(tmp_path)))
    before = []
    for _ in range(3):
        suggestion = first.ask()
        assert suggestion is not None
        first.tell(suggestion.number, OBJECTIVES)
        before.append(suggestion.config.key)
    after = [config.key for config in exhaust(optuna_search(optuna_study(sqlite(tmp_path))))]
    assert len(before + after) == len(set(before + after)) == 6


def test_what_was_not_judged_may_be_suggested_again_by_another_process() -> None:
    storage = InMemoryStorage()
    first = optuna_search(optuna_study(storage))
    first.tell(first.begin(BASE).number, NOT_JUDGED)
    assert BASE.key in {config.key for config in exhaust(optuna_search(optuna_study(storage)))}


@pytest.mark.parametrize(
    ("known", "state", "values"),
    [
        ({}, TrialState.FAIL, None),
        ({0: NOT_JUDGED}, TrialState.FAIL, None),
        ({0: OBJECTIVES}, TrialState.COMPLETE, [1.5, 0.0]),
        ({0: INFEASIBLE}, TrialState.COMPLETE, [0.0, 0.0]),
    ],
)
def test_a_trial_left_open_is_closed_with_what_is_known(
    known: dict[int, Outcome], state: TrialState, values: Sequence[float] | None
) -> None:
    storage = InMemoryStorage()
    optuna_search(optuna_study(storage)).begin(BASE)
    study = optuna_study(storage)
    search = optuna_search(study, known=known)
    trial = trial_of(study, 0)
    assert (trial.state, trial.values) == (state, values)
    judged_keys = {BASE.key} if state is TrialState.COMPLETE else set()
    assert {config.key for config in exhaust(search)} & {BASE.key} == {BASE.key} - judged_keys


def test_a_trial_left_waiting_is_not_taken_for_another() -> None:
    """A process killed between queueing a point and opening its trial leaves the point in the queue."""
    storage = InMemoryStorage()
    optuna_study(storage).enqueue_trial({"max_num_seqs": "default", "speculation": "default"})
    study = optuna_study(storage)
    search = optuna_search(study)
    suggestion = search.begin(BASE.replaced({"max_num_seqs": 8}))
    assert trial_of(study, suggestion.number).params["max_num_seqs"] == 8
    assert trial_of(study, 0).state is TrialState.FAIL
