"""What people use today, on the same candidates: random, Optuna's TPE and GP, a forest with EI, transfer."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import TrialState, create_trial
from search_replay import Seen
from search_tables import Problem
from sklearn.ensemble import RandomForestRegressor

from autotune.domain.search.choosing import expected_improvement

Floats = NDArray[np.float64]

STARTUP = 5
"""Launches at random before a forest is asked."""
TREES = 30


class Given:
    """Launches in an order that was settled before, whatever they show: random search, a static ranking."""

    def __init__(self, order: Sequence[int]) -> None:
        self._order = [int(index) for index in order]

    def choose(self, seen: Sequence[Seen]) -> int:
        return self._order[len(seen)]


class Sampled:
    """An Optuna sampler: what it suggests goes to the nearest candidate that was not launched yet."""

    def __init__(self, problem: Problem, sampler: BaseSampler) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._problem = problem
        self._distributions, self._params, self._points = _as_space(problem)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)

    def choose(self, seen: Sequence[Seen]) -> int:
        if seen:
            self._tell(seen[-1])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial = self._study.ask(self._distributions)
        asked = np.array([_place(self._distributions[n], trial.params[n]) for n in self._distributions])
        self._study.tell(trial, state=TrialState.FAIL)
        strings = np.array([isinstance(d, CategoricalDistribution) for d in self._distributions.values()])
        steps = np.abs(self._points - asked)
        distance = np.where(strings, steps > 0, steps).sum(axis=1)
        distance[[one.index for one in seen]] = np.inf
        return int(np.argmin(distance))

    def _tell(self, last: Seen) -> None:
        value = last.best_at(self._problem.sla)
        params = self._params[last.index]
        self._study.add_trial(create_trial(params=params, distributions=self._distributions, value=value))


def _as_space(
    problem: Problem,
) -> tuple[dict[str, BaseDistribution], list[dict[str, int | str]], Floats]:
    """Dimensions that differ, parameters of each candidate, and its place in each dimension, 0 to 1."""
    distributions: dict[str, BaseDistribution] = {}
    params: list[dict[str, int | str]] = [{} for _ in problem.candidates]
    for name in problem.candidates[0].knobs:
        values = [c.knobs[name] for c in problem.candidates]
        distinct = sorted(set(values), key=lambda value: (isinstance(value, str), value))
        if len(distinct) == 1:
            continue
        named = any(isinstance(value, str) for value in distinct)
        distributions[name] = (
            CategoricalDistribution([str(value) for value in distinct])
            if named
            else IntDistribution(0, len(distinct) - 1)
        )
        for own, value in zip(params, values, strict=True):
            own[name] = str(value) if named else distinct.index(value)
    points = [[_place(distributions[name], own[name]) for name in distributions] for own in params]
    return distributions, params, np.array(points).reshape(len(params), -1)


def _place(distribution: BaseDistribution, value: int | str) -> float:
    if isinstance(distribution, IntDistribution):
        return float(value) / max(distribution.high, 1)
    assert isinstance(distribution, CategoricalDistribution)
    return float(distribution.choices.index(value))


class ForestWithImprovement:
    """As SMAC does: a random forest of what was launched, and the most expected improvement by its trees."""

    def __init__(self, problem: Problem, seed: int) -> None:
        distributions, params, points = _as_space(problem)
        columns = []
        for column, (name, distribution) in zip(points.T, distributions.items(), strict=True):
            if isinstance(distribution, CategoricalDistribution):
                columns += [[float(own[name] == choice) for own in params] for choice in distribution.choices]
            else:
                columns.append(list(column))
        self._inputs = np.array(columns).T
        self._sla, self._seed = problem.sla, seed
        self._start = np.random.default_rng((problem.seed, seed)).permutation(len(params))[:STARTUP]

    def choose(self, seen: Sequence[Seen]) -> int:
        if len(seen) < len(self._start):
            return int(self._start[len(seen)])
        launched = [one.index for one in seen]
        values = np.array([one.best_at(self._sla) for one in seen])
        left = np.setdiff1d(np.arange(len(self._inputs)), launched)
        forest = RandomForestRegressor(TREES, random_state=self._seed, n_jobs=1)
        forest.fit(self._inputs[launched], values)
        votes = np.array([tree.predict(self._inputs[left]) for tree in forest.estimators_])
        spread = votes.std(axis=0) + 1e-9 * max(values.max(), 1.0)
        return int(left[np.argmax(expected_improvement(votes.mean(axis=0), spread, values.max()))])


def find_torch() -> bool:
    """Whether Optuna's GP can run: it needs torch, of this environment or of an installed engine's."""
    try:
        import torch  # noqa: PLC0415
    except ImportError:
        if not (folder := _engine_packages()):
            return False
        sys.path.append(str(folder))  # after our own packages: only what is missing comes from there
        try:
            import torch  # noqa: F401, PLC0415
        except ImportError:
            return False
    return True


def _engine_packages() -> Path | None:
    from autotune.adapters.engines.environments import engines_home  # noqa: PLC0415

    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    found = sorted(engines_home().glob(f"vllm-*/lib/{version}/site-packages/torch/__init__.py"))
    return found[-1].parents[1] if found else None
