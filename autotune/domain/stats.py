"""Intervals for figures whose observations are not independent: requests share queues and batches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.90
"""Level of every two-sided interval; its lower end is a one-sided 95 % bound."""
BLOCKS = 20
"""Blocks a window is cut into: long against a queue's memory, and enough of them to resample."""
RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Interval:
    """A two-sided interval at CONFIDENCE."""

    low: float
    high: float


def proportion_interval(good: NDArray[np.float64], offered: NDArray[np.float64]) -> Interval:
    """Interval of ``sum(good) / sum(offered)`` from counts by block of time.

    Wilson's score interval at an effective sample size: the count divided by the design effect (Kish 1965),
    the between-block variance over a binomial's, never below 1. Unlike a bootstrap it does not collapse to a
    point when every request is good: nothing offered gives [0, 1].
    """
    total = float(offered.sum())
    if total == 0:
        return Interval(0.0, 1.0)
    share = float(good.sum()) / total
    used = offered > 0
    blocks = int(used.sum())
    effect = 1.0
    if 0 < share < 1 and blocks > 1:
        residual = good[used] - share * offered[used]
        variance = float((residual**2).sum()) * blocks / (blocks - 1) / total**2
        effect = max(1.0, variance / (share * (1 - share) / total))
    count = total / effect
    z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * float(np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)))
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def requests_to_show(share: float) -> int:
    """Fewest independent requests, every one good, whose interval lies at or above ``share``."""
    z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    return math.ceil(share * z**2 / (1 - share))


def ratio_interval(above: NDArray[np.float64], below: NDArray[np.float64], *, seed: int = 0) -> Interval:
    """Interval of ``sum(above) / sum(below)`` by resampling blocks of time (block bootstrap, percentile).

    Resampled sums vary as n-1 in n of what fresh ones would; the spread is widened by sqrt(n / (n - 1)).
    """
    count = len(above)
    pick = np.random.default_rng(seed).integers(0, count, (RESAMPLES, count))
    centre = float(above.sum() / below.sum())
    resampled = above[pick].sum(axis=1) / below[pick].sum(axis=1)
    widened = centre + (resampled - centre) * np.sqrt(count / (count - 1))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(widened, [tail, 1 - tail])
    return Interval(max(0.0, float(low)), float(high))
