"""Which points of a search space are likely to run, by those that did and those that could not.

A failure has a culprit: a value that no point had that ran, or a number further out than any that ran; what
several failures share is the more suspect. And it speaks against its nearest neighbours, whatever the cause.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotune.domain.search.likeness import Point, is_number, nearness

Floats = NDArray[np.float64]

OTHER = 0.3
"""Weight of causes that are no value of the point, beside one suspect of weight 1."""
UNLIKE = 0.3
"""What neighbours' votes are held against: so much likeness in all leaves a chance of a half."""


def chances_to_run(
    points: Sequence[Point], ran: Sequence[int], failed: Sequence[int], neighbours: Floats
) -> Floats:
    """Chance of each point to run, [points]; 1 before any failure.

    ``ran`` and ``failed`` are places of points, ``neighbours`` [points, points] how near they are, 0 to 1.
    """
    against = neighbours[:, list(failed)].sum(axis=1)
    known = against + neighbours[:, list(ran)].sum(axis=1)
    chances: Floats = _without_culprits(points, ran, failed) * (1 - against / (known + UNLIKE))
    return chances


def _without_culprits(points: Sequence[Point], ran: Sequence[int], failed: Sequence[int]) -> Floats:
    cleared: dict[str, set[Any]] = defaultdict(set)
    for place in ran:
        for word, value in points[place].items():
            cleared[word].add(value)
    suspected = [list(_suspects(points[place], cleared)) for place in failed]
    blame = Counter(suspect.cause for suspects in suspected for suspect in suspects)
    chances = np.ones(len(points))
    for suspects in suspected:
        total = OTHER + sum(blame[suspect.cause] for suspect in suspects)
        blamed = np.zeros(len(points))
        for suspect in suspects:
            blamed += blame[suspect.cause] / total * np.array([suspect.share(point) for point in points])
        chances *= 1 - np.minimum(blamed, 1.0)
    return chances


@dataclass(frozen=True, slots=True)
class _Suspect:
    """A value that never ran; of a number ``ran`` is the nearest that did, if any did."""

    word: str
    value: Any
    ran: float | None = None

    @property
    def cause(self) -> Hashable:
        """What it has in common with suspects of other failures."""
        return (self.word, self.value) if self.ran is None else (self.word, self.ran < self.value)

    def share(self, point: Point) -> float:
        """How much of it a point has, 0 to 1: of numbers all from the one that failed on."""
        other = point.get(self.word)
        if other == self.value:
            return 1.0
        if not (is_number(other) and is_number(self.value)):
            return 0.0
        if self.ran is None:
            return nearness(other, self.value)
        return min(max(log(other / self.ran) / log(self.value / self.ran), 0.0), 1.0)


def _suspects(failed: Point, cleared: Mapping[str, set[Any]]) -> Iterable[_Suspect]:
    """Values that never ran, of numbers those outside the range that did."""
    for word, value in failed.items():
        others = cleared.get(word, set())
        numbers = [other for other in others if is_number(other)]
        if value in others:
            continue
        if not is_number(value) or not numbers:
            yield _Suspect(word, value)
        elif not min(numbers) < value < max(numbers):
            yield _Suspect(word, value, max(numbers) if value > max(numbers) else min(numbers))
