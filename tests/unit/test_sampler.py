"""What the sampler of our own promises: the same study by the same seed, bounds, conditions, failures."""

from __future__ import annotations

from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.adapters.search.sampler import ForestSampler
from autotune.domain.search.acquisition import Outlook, most_to_gain


def study_of(sampler: ForestSampler, *, objectives: int = 1) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(directions=["maximize"] * objectives, sampler=sampler)


def conditional(trial: optuna.Trial) -> float:
    speculates = trial.suggest_categorical("speculation", ["none", "ngram"]) == "ngram"
    seqs = trial.suggest_int("max_num_seqs", 8, 256, log=True)
    share = trial.suggest_float("share", 0.5, 0.9)
    tokens = trial.suggest_int("tokens", 1, 7, step=2) if speculates else 0
    return seqs**0.5 - 10 * (share - 0.7) ** 2 + 5 * tokens


def test_the_same_seed_gives_the_same_study() -> None:
    studies = [study_of(ForestSampler(seed=3)) for _ in range(2)]
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

    study_of(ForestSampler(seed=seed, startup_trials=2)).optimize(objective, n_trials=5)


def test_conditions_are_obeyed_and_a_token_count_is_found() -> None:
    def applies(name: str, before: Any) -> bool:
        return name != "tokens" or before.get("speculation") == "ngram"

    study = study_of(ForestSampler(seed=1, applies=applies))
    study.optimize(conditional, n_trials=14)
    assert all(("tokens" in t.params) == (t.params["speculation"] == "ngram") for t in study.trials)
    assert study.best_trial.params["speculation"] == "ngram"


def test_failures_teach_about_neighbours() -> None:
    study = study_of(ForestSampler(seed=2))
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
    study = study_of(ForestSampler(seed=4, candidates=points, startup_trials=2), objectives=2)

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        a = trial.suggest_int("a", 0, 3)
        return float(a), float(trial.suggest_categorical("b", ["x", "y"]) == "y")

    study.optimize(objective, n_trials=8)
    tried = [(trial.params["a"], trial.params["b"]) for trial in study.trials]
    assert len(set(tried[1:])) == 7
    assert set(tried) <= {(point["a"], point["b"]) for point in points}


def test_the_objective_with_most_to_gain_decides() -> None:
    still = Outlook(np.array([1.0, 0.5]), np.array([1e-6, 1e-6]), best=1.0)
    open_one = Outlook(np.array([5.0, 20.0]), np.array([1.0, 1.0]), best=10.0)
    assert most_to_gain([still, open_one], np.ones(2)) == 1
    assert most_to_gain([still, open_one], np.array([1.0, 1e-9])) == 0


@pytest.mark.parametrize("trials", [0, 1])
def test_the_first_suggestions_need_no_model(trials: int) -> None:
    study = study_of(ForestSampler(seed=0))
    study.optimize(conditional, n_trials=trials + 1)
    assert len(study.trials) == trials + 1
