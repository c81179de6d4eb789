"""What earlier tables teach of a problem: forests of other models, with the roofline and without.

A problem's own model, or accelerator, is never among what its forests learn from. Our priors are the
roofline's forecast of each candidate's curve, with a share of what a forest predicts of its error, and what
another forest expects of it as a share of the best; the static transfer, a baseline, is that forest alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from search_features import features
from search_forecasts import Shapes, excess_of, forecasts, seen_levels
from search_tables import Problem, Track
from sklearn.ensemble import ExtraTreesRegressor

from autotune.domain.search.choosing import ByCurve, ByObjective, Foresight

Floats = NDArray[np.float64]

WORST = -3.0
"""Logarithm of a share of the best, below which nothing is told apart: what misses the SLA stands there."""
CURVE = "roofline"
"""Name of the prior that is a forecast curve."""
CORRECTION = 0.5
"""The share of a forest's correction that is believed: it saw few models."""
LEAVES = {"share": 2, "error": 10}
"""Fewest configurations in a leaf of a forest."""


class LeaveOut(StrEnum):
    """What a problem shares with none of those that its prior is learned from."""

    MODEL = "model"
    HARDWARE = "hardware"

    def of(self, problem: Problem) -> str:
        """The problem's own; empty where it is of all hardware."""
        return problem.model if self is LeaveOut.MODEL else problem.hardware


@dataclass(frozen=True, slots=True)
class _Lesson:
    """What one problem teaches: inputs and outputs, without the roofline and, where there is one, with it."""

    left_out: str
    share: tuple[Floats, Floats]
    error: tuple[Floats, Floats] | None


def _log_share(problem: Problem) -> Floats:
    with np.errstate(divide="ignore"):
        return np.maximum(np.log(problem.truth / problem.truth.max()), WORST)


@dataclass(slots=True)
class Library:
    """Problems to learn from; gives a prior for any problem, learned from others than its own model."""

    shapes: Shapes
    known: Sequence[Problem]
    leave_out: LeaveOut = LeaveOut.MODEL
    lessons: list[_Lesson] = field(init=False)
    _forests: dict[tuple[str, str], ExtraTreesRegressor | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.lessons = [self._lesson(problem) for problem in self.known]

    def priors(self, problem: Problem) -> dict[str, Foresight]:
        """What is expected of every candidate: by its forecast curve, by the share of the best, or by both.

        Both where joules are measured: of watts forecasts know all-in constants alone.
        """
        priors: dict[str, Foresight] = {}
        expected = forecasts(problem, self.shapes)
        if expected is not None:
            errors = np.zeros((len(problem.candidates), 2))
            forest = self._forest(self.leave_out.of(problem), "error")
            if forest is not None:
                errors = CORRECTION * forest.predict(features(problem, expected, self.shapes))
            priors[CURVE] = ByCurve(expected, excess_of(problem.sla), errors)
        if expected is None or problem.track is Track.ENERGY:
            share = np.log(np.maximum(self.transfer(problem), np.exp(WORST)))
            priors["earlier"] = ByObjective(share, relative=True)
        return priors

    def transfer(self, problem: Problem) -> Floats:
        """What a forest that knows no roofline expects of every candidate, as a share of the best."""
        forest = self._forest(self.leave_out.of(problem), "share")
        inputs = features(problem, None, self.shapes)
        return np.zeros(len(inputs)) if forest is None else forest.predict(inputs)

    def _lesson(self, problem: Problem) -> _Lesson:
        share = features(problem, None, self.shapes), np.exp(_log_share(problem))
        expected = forecasts(problem, self.shapes)
        error = None
        if expected is not None:
            excess = excess_of(problem.sla)
            errors = [expected.error(k, seen_levels(c), excess) for k, c in enumerate(problem.candidates)]
            error = features(problem, expected, self.shapes), np.array(errors)
        return _Lesson(self.leave_out.of(problem), share, error)

    def _forest(self, without: str, target: Literal["share", "error"]) -> ExtraTreesRegressor | None:
        """The forest for a problem of ``without``; None where there is nothing to learn from."""
        if (without, target) not in self._forests:
            others = [lesson for lesson in self.lessons if lesson.left_out not in {"", without}]
            told = [lesson.share if target == "share" else lesson.error for lesson in others]
            lessons = [each for each in told if each is not None]
            self._forests[without, target] = _fit(lessons, LEAVES[target]) if lessons else None
        return self._forests[without, target]


def _fit(lessons: Sequence[tuple[Floats, Floats]], leaf: int) -> ExtraTreesRegressor:
    inputs = np.vstack([inputs for inputs, _ in lessons])
    outputs = np.concatenate([outputs for _, outputs in lessons])
    # A problem of many candidates counts for more than one of few, but not in proportion.
    weights = np.concatenate([np.full(len(inputs), len(inputs) ** -0.5) for inputs, _ in lessons])
    forest = ExtraTreesRegressor(300, min_samples_leaf=leaf, max_features=0.4, random_state=0, n_jobs=1)
    return forest.fit(inputs, outputs, sample_weight=weights)
