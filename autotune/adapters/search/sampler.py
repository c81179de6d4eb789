"""A sampler of Optuna's: mixed spaces with conditions, several objectives, priors, and what does not run.

What it knows is in the study's trials alone, so that it goes on where another process left off. How it
chooses is told in ``domain/search/choosing.py``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
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

from autotune.domain.search.choosing import Foresight, Launch, next_point
from autotune.domain.search.curves import SeenLevels

Floats = NDArray[np.float64]
Params = Mapping[str, Any]
Applies = Callable[[str, Params], bool]
"""Whether a parameter is decided at all, given those before it."""
Points = Callable[[Sequence[Params]], Sequence[Params]]
"""Points to choose among, given the best so far of each objective."""
Costs = Callable[[Sequence[Params]], Floats]
"""What a second of each point's launch costs, in any unit."""
Foresee = Callable[[Sequence[Params]], Sequence[Mapping[str, Foresight]]]
"""What priors say of points: for each objective, by the prior's name."""

LEVELS_ATTR = "levels"
"""Trial attribute: what load levels showed, by objective."""
SECONDS_ATTR = "seconds"
"""Trial attribute: how long its launch took."""

RANDOM_POINTS, NEIGHBOURS = 300, 150


class SurrogateSampler(BaseSampler):
    """Suggests the point that priors and earlier trials let expect most of.

    Objectives are best as positive figures to be maximised, 0 for a trial that missed; others are made so.
    A trial with a violated constraint is one that does not run. ``points`` gives the points there are;
    without it some are drawn from the ranges that trials had, of the parameters that ``applies`` admits. The
    same seed and the same trials give the same suggestion.
    """

    def __init__(
        self,
        *,
        seed: int,
        points: Points | None = None,
        foresee: Foresee | None = None,
        costs: Costs | None = None,
        applies: Applies | None = None,
    ) -> None:
        self._seed, self._points, self._foresee, self._costs = seed, points, foresee, costs
        self._applies = applies or (lambda _name, _params: True)
        self._chosen: tuple[int, Params] = (-1, {})

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:  # noqa: ARG002
        """None: a point is chosen whole, and given out a parameter at a time."""
        return {}

    def sample_relative(
        self,
        study: Study,  # noqa: ARG002
        trial: FrozenTrial,  # noqa: ARG002
        search_space: dict[str, BaseDistribution],  # noqa: ARG002
    ) -> dict[str, Any]:
        """Nothing, see ``infer_relative_search_space``."""
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The chosen point's value; one at random of a parameter that it lacks."""
        if self._chosen[0] != trial.number:
            self._chosen = trial.number, self._choose(study, trial.number)
        value = self._chosen[1].get(param_name)
        if _holds(param_distribution, value):
            return value
        named = int.from_bytes(param_name.encode()[-4:], "little")
        return _drawn(param_distribution, np.random.default_rng((self._seed, trial.number, named)))

    def _choose(self, study: Study, number: int) -> Params:
        past = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        rng = np.random.default_rng((self._seed, number))
        offered = self._offered(study, past, rng)
        tried = {_key(trial.params) for trial in study.get_trials(deepcopy=False)}
        fresh = {key: point for point in offered if (key := _key(point)) not in tried}
        if not fresh:
            return {}
        if not past:
            return list(fresh.values())[int(rng.integers(len(fresh)))]
        known = {_key(trial.params): trial.params for trial in past}
        points = [*fresh.values(), *known.values()]
        places = {key: len(fresh) + place for place, key in enumerate(known)}
        values = np.array([trial.values for trial in past]).T
        worth = np.array([_positive(*each) for each in zip(values, study.directions, strict=True)]).T
        launches = [
            Launch(
                index=places[_key(trial.params)],
                objectives=tuple(own),
                runs=all(value <= 0 for value in (trial.constraints or {}).values()),
                levels=levels_of(trial),
                seconds=trial.user_attrs.get(SECONDS_ATTR),
            )
            for trial, own in zip(past, worth, strict=True)
        ]
        foresights = self._foresee(points) if self._foresee else [{}] * len(study.directions)
        costs = self._costs(points) if self._costs else None
        return points[next_point(points, launches, foresights, among=range(len(fresh)), costs=costs)]

    def _offered(
        self, study: Study, past: Sequence[FrozenTrial], rng: np.random.Generator
    ) -> Sequence[Params]:
        best = _best(past, study.directions)
        if self._points is not None:
            return self._points(best)
        space: dict[str, BaseDistribution] = {}
        for trial in past:
            space |= trial.distributions
        if not space:
            return []
        drawn = [self._valid({n: _drawn(d, rng) for n, d in space.items()}) for _ in range(RANDOM_POINTS)]
        return [*drawn, *self._near(best, space, rng)]

    def _near(
        self, best: Sequence[Params], space: Mapping[str, BaseDistribution], rng: np.random.Generator
    ) -> Iterable[dict[str, Any]]:
        """The best of each objective with one or two parameters drawn anew."""
        names = list(space)
        for turn in range(NEIGHBOURS if best else 0):
            kept = best[turn % len(best)]
            anew = set(rng.choice(len(names), size=min(1 + turn % 2, len(names)), replace=False).tolist())
            yield self._valid(
                {
                    name: kept[name]
                    if k not in anew and _holds(space[name], kept.get(name))
                    else _drawn(space[name], rng)
                    for k, name in enumerate(names)
                }
            )

    def _valid(self, point: Params) -> dict[str, Any]:
        """The point without what its conditions rule out."""
        valid: dict[str, Any] = {}
        for name, value in point.items():
            if self._applies(name, valid):
                valid[name] = value
        return valid


def levels_as_json(levels: Mapping[int, SeenLevels]) -> str:
    """Levels as they are kept with a trial."""
    return json.dumps({sla: [e.concurrency.tolist(), e.figures.tolist()] for sla, e in levels.items()})


def levels_of(trial: FrozenTrial) -> dict[int, SeenLevels]:
    """Levels that are kept with a trial."""
    kept = json.loads(trial.user_attrs.get(LEVELS_ATTR, "{}"))
    return {int(sla): SeenLevels(*map(np.array, each)) for sla, each in kept.items()}


def _best(past: Sequence[FrozenTrial], directions: Sequence[StudyDirection]) -> list[Params]:
    """The best point of each objective."""
    best: list[Params] = []
    for place, direction in enumerate(directions):
        sign = 1 if direction is StudyDirection.MAXIMIZE else -1
        trial = max(past, key=lambda t, k=place, s=sign: s * t.values[k], default=None)  # type: ignore[misc]
        best += [trial.params] if trial else []
    return best


def _positive(values: Floats, direction: StudyDirection) -> Floats:
    """Values as figures of which more is better, and 0 is a miss; those that are not so by their order."""
    if direction is StudyDirection.MAXIMIZE and (values >= 0).all():
        return values
    signed = values if direction is StudyDirection.MAXIMIZE else -values
    scale = float(signed.std()) or 1.0
    return np.exp((signed - np.median(signed)) / scale)


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


def _key(params: Params) -> frozenset[tuple[str, str]]:
    return frozenset((name, repr(value)) for name, value in params.items())
