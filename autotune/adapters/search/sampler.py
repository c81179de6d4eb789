"""A sampler of Optuna's: mixed spaces with conditions, several objectives, and what does not run.

Forests forecast every objective and the probability that a point runs; the next trial is the one expected to
gain most for the objective with the most to gain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from autotune.adapters.search.forest import Forest
from autotune.domain.search.acquisition import Outlook, most_to_gain

Floats = NDArray[np.float64]
Params = Mapping[str, Any]
Applies = Callable[[str, Params], bool]
"""Whether a parameter is decided at all, given those before it."""

STARTUP_TRIALS = 5
RANDOM_POINTS, NEIGHBOURS = 300, 150
_TRUNK, _FAILED = 4, 0.05
"""Parents of neighbours: the best so many; the least probability that a point is taken to run."""


class ForestSampler(BaseSampler):
    """Suggests by forests; the same seed and the same trials give the same suggestion.

    ``candidates`` are the only points there are, if given. ``applies`` tells which parameters a point has,
    in the order of the study's; without it every one counts.
    """

    def __init__(
        self,
        *,
        seed: int,
        startup_trials: int = STARTUP_TRIALS,
        candidates: Sequence[Params] | None = None,
        applies: Applies | None = None,
    ) -> None:
        self._seed = seed
        self._startup_trials = startup_trials
        self._candidates = candidates
        self._applies = applies or (lambda _name, _params: True)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:  # noqa: ARG002
        """Every parameter that a judged trial had, as it was last, but those of a single value."""
        space: dict[str, BaseDistribution] = {}
        for past in _judged(study):
            space |= past.distributions
        return {name: distribution for name, distribution in space.items() if not distribution.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Choose a point; parameters that the trial does not ask for are not used."""
        if not search_space:
            return {}
        past = _judged(study)
        rng = np.random.default_rng((self._seed, trial.number))
        points = self._points(past, search_space, rng, study.directions)
        chosen = int(rng.integers(len(points)))
        if len(past) >= self._startup_trials:
            chosen = self._chosen(past, points, search_space, study.directions)
        return {name: value for name, value in points[chosen].items() if name in search_space}

    def sample_independent(
        self,
        study: Study,  # noqa: ARG002
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Draw a parameter that no judged trial had; of given candidates, always of the same one."""
        if self._candidates is not None:
            own = np.random.default_rng((self._seed, trial.number)).integers(len(self._candidates))
            value = self._candidates[int(own)].get(param_name)
            if _holds(param_distribution, value):
                return value
        named = int.from_bytes(param_name.encode()[-4:], "little")
        return _drawn(param_distribution, np.random.default_rng((self._seed, trial.number, named)))

    def _points(
        self,
        past: Sequence[FrozenTrial],
        space: Mapping[str, BaseDistribution],
        rng: np.random.Generator,
        directions: Sequence[StudyDirection],
    ) -> list[dict[str, Any]]:
        tried = {_key(trial.params, space) for trial in past}
        if self._candidates is not None:
            given = [dict(point) for point in self._candidates]
            return [point for point in given if _key(point, space) not in tried] or given
        drawn = [self._valid({n: _drawn(d, rng) for n, d in space.items()}) for _ in range(RANDOM_POINTS)]
        drawn += self._near(past, space, rng, directions)
        fresh = {_key(point, space): point for point in drawn}
        return [point for key, point in fresh.items() if key not in tried] or drawn

    def _near(
        self,
        past: Sequence[FrozenTrial],
        space: Mapping[str, BaseDistribution],
        rng: np.random.Generator,
        directions: Sequence[StudyDirection],
    ) -> list[dict[str, Any]]:
        """The best of each objective with one or two parameters drawn anew."""
        running = [trial for trial in past if _runs(trial)]
        if not running or not space:
            return []
        parents = []
        for k, direction in enumerate(directions):
            parents += sorted(running, key=lambda t, k=k, d=direction: -_signed(t.values[k], d))[:_TRUNK]  # type: ignore[misc]
        near, names = [], list(space)
        for turn in range(NEIGHBOURS):
            point = {n: _drawn(d, rng) for n, d in space.items()}
            kept = dict(parents[turn % len(parents)].params)
            anew = set(rng.choice(len(names), size=min(1 + turn % 2, len(names)), replace=False).tolist())
            mixed = {
                name: point[name]
                if k in anew or name not in kept or not _holds(space[name], kept[name])
                else kept[name]
                for k, name in enumerate(names)
            }
            near.append(self._valid(mixed))
        return near

    def _valid(self, point: Params) -> dict[str, Any]:
        """The point without what its conditions rule out."""
        valid: dict[str, Any] = {}
        for name, value in point.items():
            if self._applies(name, valid):
                valid[name] = value
        return valid

    def _chosen(
        self,
        past: Sequence[FrozenTrial],
        points: Sequence[Params],
        space: Mapping[str, BaseDistribution],
        directions: Sequence[StudyDirection],
    ) -> int:
        known = np.array([encoded(trial.params, space) for trial in past])
        offered = np.array([encoded(point, space) for point in points])
        running = np.array([_runs(trial) for trial in past])
        runs = np.ones(len(points))
        if not running.all():
            runs = np.maximum(
                Forest(known, running.astype(float), seed=self._seed).predict(offered)[0], _FAILED
            )
        if not running.any():
            return int(np.argmax(runs))
        outlooks = []
        for k, direction in enumerate(directions):
            values = np.array(
                [_signed(t.values[k], direction) for t, ran in zip(past, running, strict=True) if ran]
            )
            mean, spread = Forest(known[running], values, seed=self._seed + 1 + k).predict(offered)
            outlooks.append(Outlook(mean, spread, float(values.max())))
        return most_to_gain(outlooks, runs)


def encoded(params: Params, space: Mapping[str, BaseDistribution]) -> list[float]:
    """Coordinates of a point: 0 to 1 in a range, a flag per choice; -1 for what the point does not have."""
    row: list[float] = []
    for name, distribution in space.items():
        value = params.get(name)
        if isinstance(distribution, CategoricalDistribution):
            row += [float(value is not None and value == choice) for choice in distribution.choices]
            continue
        assert isinstance(distribution, IntDistribution | FloatDistribution)
        if value is None:
            row.append(-1.0)
        else:
            low, high, at = float(distribution.low), float(distribution.high), float(value)
            if distribution.log:
                low, high, at = math.log(low), math.log(high), math.log(at)
            row.append((at - low) / (high - low) if high > low else 0.0)
    return row


def _drawn(distribution: BaseDistribution, rng: np.random.Generator) -> Any:
    """A value of a distribution, within its bounds and on its steps."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(rng.integers(len(distribution.choices)))]
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    low, high = distribution.low, distribution.high
    if distribution.log:
        value = math.exp(rng.uniform(math.log(low), math.log(high)))
    elif distribution.step is not None:
        steps = math.floor((high - low) / distribution.step + 1e-9)
        value = low + int(rng.integers(steps + 1)) * distribution.step
    else:
        value = rng.uniform(low, high)
    value = min(max(value, low), high)
    return round(value) if isinstance(distribution, IntDistribution) else float(value)


def _holds(distribution: BaseDistribution, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    if value is None:
        return False
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    return bool(distribution.low <= value <= distribution.high)


def _judged(study: Study) -> list[FrozenTrial]:
    """Trials that tell something, in order: those that ran, and those that cannot."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _runs(trial: FrozenTrial) -> bool:
    return all(value <= 0 for value in (trial.constraints or {}).values())


def _signed(value: float, direction: StudyDirection) -> float:
    return value if direction is StudyDirection.MAXIMIZE else -value


def _key(params: Params, space: Mapping[str, BaseDistribution]) -> tuple[tuple[str, str], ...]:
    return tuple((name, repr(params[name])) for name in (space or params) if name in params)
