"""Intervals and trends of figures whose observations are not independent: requests share queues and batches.

Intervals work on sums by block of time, ten blocks or more, all of one length. Their variance is that of a
circular block bootstrap (Politis and Romano 1992), which for a linear figure has a closed form, so nothing
is drawn and the same data always give the same interval. What takes longer than a quarter of a window cannot
be seen in it. How often they hold by simulation: docs/design/intervals.md, ``python bench/coverage.py``.
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
"""Blocks that a window is cut into where nothing else is said."""
STRETCHES = 4
"""Stretches of neighbouring blocks that a bootstrap sample is made of."""
STUDENT_T = 2.015
"""Quantile of Student's t at 0.95 with 5 degrees of freedom.

Stretches stay a quarter of the window however many blocks there are, so one value serves all ("fixed-b",
Kiefer and Vogelsang 2005). For independent blocks it should be 1.94 by simulation; 5 is the next below.
"""
LEAST_DESIGN_EFFECT = 2.0
"""Requests under load count for no more than a half as many independent ones.

Few failures cannot show how far they hang together, and none show nothing; simulated engines have design
effects of 1 to 3 where a plain queue is at half its capacity, and over 10 everywhere else.
"""
TREND_POINTS = 10
"""Means that a series is reduced to before a trend is looked for."""
TREND_T = 2.306
"""Quantile of Student's t at 0.975 with TREND_POINTS - 2 degrees of freedom."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A two-sided interval at CONFIDENCE."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Figure:
    """An estimate and its interval; ``interval.high`` of a cost is infinite where goodput may be 0."""

    value: float
    interval: Interval

    def times(self, factor: float) -> Figure:
        """The same in another unit."""
        return Figure(self.value * factor, Interval(self.interval.low * factor, self.interval.high * factor))

    def inverse(self) -> Figure:
        """Its reciprocal, for a value above 0."""
        low = self.interval.low
        return Figure(1 / self.value, Interval(1 / self.interval.high, 1 / low if low > 0 else math.inf))


@dataclass(frozen=True, slots=True)
class Trend:
    """Slope of a series from one value to the next, and whether a steady series would seldom show it.

    Steady ones rise significantly in 2 to 5 % of cases, 7 % where 20 values are correlated by 0.8.
    """

    slope: float
    significant: bool


def proportion_interval(good: Floats, offered: Floats) -> Interval:
    """Where the true share lies, from counts by block: confidence to certify by, not a forecast.

    Wilson's score interval at an effective sample size: the count divided by the design effect (Kish 1965),
    the bootstrap's variance over a binomial's. Unlike a bootstrap's quantiles it does not collapse to a
    point when every request is good. Nothing offered gives [0, 1]; raises ValueError for under 4 blocks.
    """
    total = float(offered.sum())
    if total == 0:
        return Interval(0.0, 1.0)
    share = float(good.sum()) / total
    effect = LEAST_DESIGN_EFFECT
    if 0 < share < 1:
        effect = max(effect, _ratio_variance(good, offered) / (share * (1 - share) / total))
    count, t = total / effect, STUDENT_T
    centre = (share + t**2 / (2 * count)) / (1 + t**2 / count)
    half = t / (1 + t**2 / count) * math.sqrt(share * (1 - share) / count + t**2 / (4 * count**2))
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def requests_to_show(share: float) -> int:
    """Fewest requests, every one good, whose interval lies at or above ``share``."""
    return math.ceil(LEAST_DESIGN_EFFECT * share * STUDENT_T**2 / (1 - share))


def ratio_interval(above: Floats, below: Floats) -> Interval:
    """Where the long-run mean of ``sum(above) / sum(below)`` lies, from sums by block.

    Raises ValueError for under 4 blocks.
    """
    return _about(float(above.sum() / below.sum()), STUDENT_T * math.sqrt(_ratio_variance(above, below)))


def repeat_interval(ratio: float, above: Floats, below: Floats) -> Interval:
    """Where a repeat of the same length, with load drawn anew, finds ``ratio``: wider than confidence by √2.

    ``above`` by block says how ``ratio`` scatters and need not sum to its numerator. Count a request's
    tokens in the block in which it came due: arrivals by block are independent, while service spreads their
    scatter over more time than a window may show. Raises ValueError for under 4 blocks.
    """
    return _about(ratio, STUDENT_T * math.sqrt(2 * _ratio_variance(above, below)))


def trend(values: Floats) -> Trend:
    """Fit a line to equally spaced values, allowing for each hanging on the one before, even wholly.

    Generalised least squares on TREND_POINTS means with first-order autoregressive errors (Prais and Winsten
    1954), their correlation corrected for its bias in short detrended series (Roy, Falk and Fuller 2004). At
    correlation 1 this asks whether the steps have a mean. Fewer than TREND_POINTS values never show one.
    """
    if len(values) < TREND_POINTS or np.ptp(values) == 0:
        return Trend(0.0, significant=False)
    means = np.array([part.mean() for part in np.array_split(values, TREND_POINTS)])
    at = np.array([part.mean() for part in np.array_split(np.arange(len(values)), TREND_POINTS)])
    at -= at.mean()
    correlation = _correlation(means - means.mean() - at * (at @ means) / (at @ at))
    one = _whitened(np.ones(TREND_POINTS), correlation)
    line_alone = _without(one, _whitened(at, correlation))
    y_alone = _without(one, _whitened(means, correlation))
    weight = line_alone @ line_alone
    slope = float(line_alone @ y_alone / weight)
    residual = y_alone - slope * line_alone
    error = math.sqrt(residual @ residual / (TREND_POINTS - 2) / weight)
    return Trend(slope, significant=abs(slope) > TREND_T * error)


def _about(centre: float, half: float) -> Interval:
    return Interval(max(0.0, centre - half), centre + half)


def _ratio_variance(above: Floats, below: Floats) -> float:
    """Bootstrap variance of a ratio of sums, linearised (Cochran 1977, ch. 6).

    A sample is STRETCHES stretches drawn from all that begin at any block and run on, round the end, for a
    quarter of the window. Residuals sum to 0, so stretches vary too little by their share of the window.
    """
    blocks = len(above)
    if blocks < STRETCHES:
        raise ValueError(f"an interval takes at least {STRETCHES} blocks of time, not {blocks}")
    length = blocks // STRETCHES
    residual = above - above.sum() / below.sum() * below
    sums = np.concatenate([[0.0], np.cumsum(np.concatenate([residual, residual[: length - 1]]))])
    stretches = sums[length:] - sums[:-length]
    variance = float((stretches**2).mean()) * blocks / length
    return variance / (1 - length / blocks) / float(below.sum()) ** 2


def _correlation(residual: Floats) -> float:
    """Correlation of neighbours about a fitted line, in [0, 1]; estimates fall short by (2 + 4 rho) / n."""
    count = len(residual)
    scale = float(residual[1:] @ residual[1:] + residual[:-1] @ residual[:-1]) / 2
    found = float(residual[1:] @ residual[:-1]) / scale if scale > 0 else 0.0
    return min(max((count * found + 2) / (count - 4), 0.0), 1.0)


def _without(one: Floats, series: Floats) -> Floats:
    """Take the constant out of a whitened series; at correlation 1 it vanished, and there is none to take."""
    return series - one * (one @ series) / max(float(one @ one), 1e-12)


def _whitened(series: Floats, correlation: float) -> Floats:
    """What each value adds to what the one before foretells."""
    first = series[:1] * math.sqrt(1 - correlation**2)
    return np.concatenate([first, series[1:] - correlation * series[:-1]])
