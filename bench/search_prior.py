"""What earlier tables teach of a problem: forests of other models, with the roofline and without.

A problem's own model is never among what its forests learn from. Our prior is the roofline's forecast plus a
share of what a forest predicts of its error; the static transfer, a baseline, is a forest alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from search_features import Shapes, features, forecasts
from search_tables import Problem
from sklearn.ensemble import ExtraTreesRegressor

Floats = NDArray[np.float64]

WORST = -3.0
"""Logarithm of a share of the best, below which nothing is told apart: what misses the SLA stands there."""
CORRECTION = 0.3
"""The share of a forest's correction that is believed: it saw few models."""


@dataclass(frozen=True, slots=True)
class _Lesson:
    model: str
    plain: Floats
    full: Floats
    share: Floats
    error: Floats


def _log_share(problem: Problem) -> Floats:
    with np.errstate(divide="ignore"):
        return np.maximum(np.log(problem.truth / problem.truth.max()), WORST)


def _relative(forecast: Floats) -> Floats:
    return np.maximum(forecast - forecast.max(), WORST)


@dataclass(slots=True)
class Library:
    """Problems to learn from; gives a prior for any problem, learned from other models than its own."""

    shapes: Shapes
    known: Sequence[Problem]
    lessons: list[_Lesson] = field(init=False)
    _forests: dict[tuple[str, str], ExtraTreesRegressor | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.lessons = [self._lesson(problem) for problem in self.known]

    def prior(self, problem: Problem) -> Floats:
        """The expected logarithm of every candidate's share of the best."""
        expected = forecasts(problem, self.shapes)
        base = _relative(expected.at_sla)
        forest = self._forest(problem.model, "error")
        if forest is None:
            return base
        share = CORRECTION if expected.known else 1.0
        return base + share * forest.predict(features(problem, expected, self.shapes))

    def transfer(self, problem: Problem) -> Floats:
        """The same by a forest that knows no roofline, and is all there is."""
        forest = self._forest(problem.model, "share")
        plain = features(problem, None, self.shapes)
        return np.zeros(len(plain)) if forest is None else forest.predict(plain)

    def _lesson(self, problem: Problem) -> _Lesson:
        expected = forecasts(problem, self.shapes)
        share = _log_share(problem)
        return _Lesson(
            problem.model,
            features(problem, None, self.shapes),
            features(problem, expected, self.shapes),
            np.exp(share),
            share - _relative(expected.at_sla),
        )

    def _forest(self, without: str, target: str) -> ExtraTreesRegressor | None:
        """The forest for a problem of the model ``without``; None where there is nothing to learn from."""
        if (without, target) not in self._forests:
            lessons = [lesson for lesson in self.lessons if lesson.model != without]
            self._forests[without, target] = _fit(lessons, target) if lessons else None
        return self._forests[without, target]


def _fit(lessons: Sequence[_Lesson], target: str) -> ExtraTreesRegressor:
    own = target == "share"
    inputs = np.vstack([lesson.plain if own else lesson.full for lesson in lessons])
    outputs = np.concatenate([lesson.share if own else lesson.error for lesson in lessons])
    # A problem of many candidates counts for more than one of few, but not in proportion.
    weights = np.concatenate([np.full(len(lesson.share), len(lesson.share) ** -0.5) for lesson in lessons])
    forest = ExtraTreesRegressor(
        300, min_samples_leaf=2 if own else 10, max_features=0.4, random_state=0, n_jobs=1
    )
    return forest.fit(inputs, outputs, sample_weight=weights)
