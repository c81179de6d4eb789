"""By how much one configuration beats another, and who wins where that is within the noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

from autotune.domain.measuring.stats import Interval


@dataclass(frozen=True, slots=True)
class Gain:
    """Ratio of two objectives with its 90 % interval: 1.2 is a fifth more."""

    ratio: float
    interval: Interval

    @property
    def shown(self) -> bool:
        """Whether the interval leaves out that the first is no better."""
        return self.interval.low > 1

    def describe(self) -> str:
        """For people, in per cent: ``+20 % [+8, +33]``."""
        low, value, high = (
            100 * (share - 1) for share in (self.interval.low, self.ratio, self.interval.high)
        )
        return f"{value:+.0f} % [{low:+.0f}, {high:+.0f}]"


def gain_of(value: float, repeat: Interval, over: float, over_repeat: Interval) -> Gain:
    """The ratio of two measured figures, each with the interval in which a repeat of it would fall.

    Delta method on logarithms: relative variances of independent figures add up. A figure lies about its mean
    more narrowly than a repeat lies about the figure, by the root of two. Raises ValueError for a figure that
    is not above 0.
    """
    if value <= 0 or over <= 0:
        raise ValueError(f"{value:g} and {over:g}: nothing that is not above 0 has a ratio")
    # The lower end is cut off at 0 where a figure is very uncertain; the upper end never is.
    halves = ((repeat.high - value) / value, (over_repeat.high - over) / over)
    half = math.hypot(*halves) / math.sqrt(2)
    ratio = value / over
    return Gain(ratio, Interval(ratio * math.exp(-half), ratio * math.exp(half)))
