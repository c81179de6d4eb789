"""Intervals for figures whose observations are not independent: requests share queues and batches.

Both kinds work on sums by block of time. Neighbouring blocks may hang together still, so a variance is the
largest of those over blocks as they are, merged by two and by four; and since it is estimated from few
blocks, Student's t stands where a normal quantile would. By simulation these 90 % intervals cover
92-96 % for independent requests, 87-92 % where runs of two or so share their fate, and 70-90 % where runs of
five to ten do: what takes as long as the window cannot be seen in it (tests/unit/test_stats.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CONFIDENCE = 0.90
"""Level of every two-sided interval; its lower end is a one-sided 95 % bound."""
BLOCKS = 20
"""Blocks that a window is cut into."""
STUDENT_T = 1.729
"""Quantile of Student's t at 0.95 with BLOCKS - 1 degrees of freedom."""
MERGES = (1, 2, 4)


@dataclass(frozen=True, slots=True)
class Interval:
    """A two-sided interval at CONFIDENCE."""

    low: float
    high: float


def proportion_interval(good: Floats, offered: Floats) -> Interval:
    """Interval of ``sum(good) / sum(offered)`` from counts by block.

    Wilson's score interval at an effective sample size: the count divided by the design effect (Kish 1965),
    the variance between blocks over a binomial's, never below 1. Unlike a bootstrap it does not collapse to
    a point when every request is good. Nothing offered gives [0, 1].
    """
    total = float(offered.sum())
    if total == 0:
        return Interval(0.0, 1.0)
    share = float(good.sum()) / total
    effect = 1.0
    if 0 < share < 1:
        effect = max(1.0, _ratio_variance(good, offered) / (share * (1 - share) / total))
    count, t = total / effect, STUDENT_T
    centre = (share + t**2 / (2 * count)) / (1 + t**2 / count)
    half = t / (1 + t**2 / count) * math.sqrt(share * (1 - share) / count + t**2 / (4 * count**2))
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def requests_to_show(share: float) -> int:
    """Fewest requests, every one good, whose interval lies at or above ``share``."""
    return math.ceil(share * STUDENT_T**2 / (1 - share))


def ratio_interval(above: Floats, below: Floats) -> Interval:
    """Interval of ``sum(above) / sum(below)`` from sums by block (linearised variance of a ratio)."""
    centre = float(above.sum() / below.sum())
    half = STUDENT_T * math.sqrt(_ratio_variance(above, below))
    return Interval(max(0.0, centre - half), centre + half)


def _ratio_variance(above: Floats, below: Floats) -> float:
    """Variance of a ratio of sums: the largest over the block lengths tried (Cochran 1977, ch. 6)."""
    residual = above - above.sum() / below.sum() * below
    return max(_merged_variance(residual, merge) for merge in MERGES) / float(below.sum()) ** 2


def _merged_variance(residual: Floats, merge: int) -> float:
    merged = np.add.reduceat(residual, np.arange(0, len(residual), merge))
    count = len(merged)
    return float((merged**2).sum()) * count / (count - 1) if count > 1 else 0.0
