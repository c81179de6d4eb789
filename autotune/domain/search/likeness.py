"""How alike points of a search space are: what a launch of one tells of another.

Most of it is by single words: the share of words that two points have in common, so that what a word did in
one place is expected of it everywhere. The rest is by all of them together, which neighbours alone have in
common.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, log2
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from autotune.domain.configs.space import DEFAULT

Floats = NDArray[np.float64]
Point = Mapping[str, Any]
"""Values by word; a word that is left out is at the engine's default."""

BY_WORD = 0.8
"""The share of single words in the whole."""
DOUBLINGS = 2.0
"""So many doublings between two numbers leave 1/e of what they have in common."""
TO_DEFAULT = 0.2
"""What a number has in common with a default that is not known."""


@dataclass(frozen=True, slots=True)
class Likeness:
    """How alike every two of some points are, [points, points] each, 0 to 1: 1 of a point with itself.

    ``by_word`` is the share of words that they have in common, ``together`` falls with each that they have
    not.
    """

    by_word: Floats
    together: Floats

    @property
    def whole(self) -> Floats:
        """Both."""
        return BY_WORD * self.by_word + (1 - BY_WORD) * self.together


def likeness(points: Sequence[Point]) -> Likeness:
    """Compare points by the words that they differ in."""
    names = sorted({name for point in points for name in point})
    columns = ([None if p.get(name) == DEFAULT else p.get(name) for p in points] for name in names)
    total, words = np.zeros((len(points), len(points))), 0
    for column in columns:
        if (by_word := _of_word(column)) is not None:
            total += by_word
            words += 1
    return Likeness(total / words, np.exp(total - words)) if words else Likeness(total + 1, total + 1)


def _of_word(values: Sequence[Any]) -> Floats | None:
    """Likeness by one word; None for one that all points have alike."""
    distinct = list(dict.fromkeys(values))
    if len(distinct) == 1:
        return None
    table = np.array([[alike(one, other) for other in distinct] for one in distinct])
    places = np.array([distinct.index(value) for value in values])
    found: Floats = table[np.ix_(places, places)]
    return found


def alike(one: Any, other: Any) -> float:
    """How alike two values of a word are, 0 to 1; None is a default that is not known."""
    if one == other:
        return 1.0
    if is_number(one) and is_number(other):
        return nearness(one, other)
    return TO_DEFAULT if None in {one, other} and (is_number(one) or is_number(other)) else 0.0


def nearness(one: float, other: float) -> float:
    """How near two positive numbers are, 0 to 1."""
    return exp(-abs(log2(one / other)) / DOUBLINGS)


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a positive number, and no flag."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
