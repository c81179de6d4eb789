"""By how much the recommended configuration beats another."""

from __future__ import annotations

from dataclasses import dataclass

from autotune.domain.recommendation import Standing, gain_between
from autotune.domain.stats import Interval


@dataclass(frozen=True, slots=True)
class Advantage:
    """One standing's objective over another's, on the measure that ranks both."""

    measure: str
    ratio: float
    interval: Interval

    @property
    def shown(self) -> bool:
        """Whether the whole interval lies above 1."""
        return self.interval.low > 1


def advantage(best: Standing, other: Standing) -> Advantage | None:
    """Compare two standings; None where different power bases rank them, or the other is worth nothing."""
    if (gain := gain_between(best, other)) is None:
        return None
    measure = "tokens_per_joule" if best.figures.power_basis.ranks else "goodput_tok_per_s"
    return Advantage(measure, gain.ratio, gain.interval)
