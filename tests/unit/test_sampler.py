"""What the sampler of our own promises: the same study by the same seed, bounds, conditions, failures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.adapters.search.sampler import (
    LEVELS_ATTR,
    SECONDS_ATTR,
    SurrogateSampler,
    levels_as_json,
    levels_of,
)
from autotune.adapters.search.study import Naming, OptunaSearch
from autotune.domain.configs.config import EngineConfig
from autotune.domain.configs.space import Branch, SearchSpace
from autotune.domain.search.choosing import Launch, likely_seconds, next_point
from autotune.domain.search.curves import SeenLevels
from autotune.domain.studies.ports import Outcome


def study_of(sampler: SurrogateSampler, *, objectives: int = 1) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(directions=["maximize"] * objectives, sampler=sampler)


def conditional(trial: optuna.Trial) -> float:
    speculates = trial.suggest_categorical("speculation", ["none", "ngram"]) == "ngram"
    seqs = trial.suggest_int("max_num_seqs", 8, 256, log=True)
    share = trial.suggest_float("share", 0.5, 0.9)
    tokens = trial.suggest_int("tokens", 1, 7, step=2) if speculates else 0
    return seqs**0.5 - 10 * (share - 0.7) ** 2 + 5 * tokens


def test_the_same_seed_gives_the_same_study() -> None:
    studies = [study_of(SurrogateSampler(seed=3)) for _ in range(2)]
    for study in studies:
        study.optimize(conditional, n_trials=8)
    first, second = ([trial.params for trial in study.trials] for study in studies)
    assert first == second


@settings(max_examples=3, deadline=None)
@given(low=st.integers(1, 50), span=st.integers(0, 40), step=st.integers(1, 7), seed=st.integers(0, 99))
def test_bounds_and_steps_are_obeyed(low: int, span: int, step: int, seed: int) -> None:
    high = low + span // step * step

    def objective(trial: optuna.Trial) -> float:
        stepped = trial.suggest_int("stepped", low, high, step=step)
        doubled = trial.suggest_int("doubled", low, high + 1, log=True)
        assert low <= stepped <= high
        assert (stepped - low) % step == 0
        assert low <= doubled <= high + 1
        return float(stepped + doubled)

    study_of(SurrogateSampler(seed=seed)).optimize(objective, n_trials=5)


def test_conditions_are_obeyed_and_a_token_count_is_found() -> None:
    def applies(name: str, before: Any) -> bool:
        return name != "tokens" or before.get("speculation") == "ngram"

    study = study_of(SurrogateSampler(seed=1, applies=applies))
    study.optimize(conditional, n_trials=14)
    assert all(("tokens" in t.params) == (t.params["speculation"] == "ngram") for t in study.trials)
    assert study.best_trial.params["speculation"] == "ngram"


def test_failures_teach_about_neighbours() -> None:
    study = study_of(SurrogateSampler(seed=2))
    failed = []
    for _ in range(20):
        trial = study.ask()
        batch = trial.suggest_int("batch", 1, 64)
        trial.suggest_int("other", 1, 8)
        failed.append(batch > 40)
        trial.set_constraint("runs", 1.0 if batch > 40 else -1.0)
        study.tell(trial, 0.0 if batch > 40 else float(batch))
    assert sum(failed[10:]) < 10 * 24 / 64


def test_of_given_candidates_none_is_launched_twice() -> None:
    points = [{"a": a, "b": b} for a in range(4) for b in ("x", "y")]
    study = study_of(SurrogateSampler(seed=4, points=lambda _best: points), objectives=2)

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        a = trial.suggest_int("a", 0, 3)
        return float(a), float(trial.suggest_categorical("b", ["x", "y"]) == "y")

    study.optimize(objective, n_trials=8)
    assert len({(trial.params["a"], trial.params["b"]) for trial in study.trials}) == 8


def test_the_objective_with_most_to_gain_decides() -> None:
    points = [{"a": a, "b": b} for a in (1, 2, 4) for b in (1, 2, 4)]
    # Of the first objective ``a`` gains nothing; of the second it has doubled each time.
    launches = [Launch(index=k, objectives=(1.0, 2.0 ** (2 * k))) for k in (0, 3)]
    chosen = next_point(points, launches, [{}, {}], among=[k for k in range(9) if k not in {0, 3}])
    assert points[chosen]["a"] == 4


def test_levels_are_kept_with_a_trial() -> None:
    study = study_of(SurrogateSampler(seed=0))
    trial = study.ask()
    seen = SeenLevels(np.array([1.0, 8.0]), np.array([[0.1, 0.2], [3.0, 4.0]]))
    trial.set_user_attr(LEVELS_ATTR, levels_as_json({1: seen}))
    kept = levels_of(study.trials[0])
    assert list(kept) == [1]
    assert np.array_equal(kept[1].figures, seen.figures)
    assert np.array_equal(kept[1].concurrency, seen.concurrency)


def test_parameters_of_several_engines_are_told_apart() -> None:
    space = SearchSpace.model_validate({"dimensions": {"eager": [False, True]}})
    naming = Naming.of([Branch(EngineConfig(engine=engine), space) for engine in ("vllm", "sglang")])
    config = EngineConfig(engine="sglang", eager=True)
    params = naming.params_of(config)
    assert params == {"engine": "sglang", "sglang/eager": True}
    assert naming.config_of(params) == config


@pytest.mark.parametrize("trials", [0, 1])
def test_the_first_suggestions_need_no_model(trials: int) -> None:
    study = study_of(SurrogateSampler(seed=0))
    study.optimize(conditional, n_trials=trials + 1)
    assert len(study.trials) == trials + 1


def test_of_points_that_promise_the_same_the_quicker_launch_is_next() -> None:
    points = [{"a": a, "b": b} for a in ("x", "y", "z") for b in ("p", "q")]
    with_p, with_q = (Launch(index=k, objectives=(1.0,), seconds=60.0) for k in (0, 1))
    for slow, quick in ((with_q, "p"), (with_p, "q")):
        launches = [replace(each, seconds=600.0) if each is slow else each for each in (with_p, with_q)]
        assert points[next_point(points, launches, [{}], among=[2, 3])]["b"] == quick
    # What failed at once says nothing of how long one that runs takes.
    died = [with_p, Launch(index=1, objectives=(0.0,), runs=False, seconds=1.0)]
    assert likely_seconds(died, np.eye(6)) == pytest.approx(np.full(6, 60.0))


def test_how_long_a_launch_took_is_kept_with_its_trial() -> None:
    space = SearchSpace.model_validate({"dimensions": {"eager": [False, True]}})
    study = study_of(SurrogateSampler(seed=0))
    search = OptunaSearch(study, [Branch(EngineConfig(engine="vllm"), space)], known={})
    suggestion = search.ask()
    assert suggestion is not None
    search.tell(suggestion.number, Outcome(objectives=(1.0,), seconds=42.0))
    assert study.trials[0].user_attrs[SECONDS_ATTR] == 42.0
