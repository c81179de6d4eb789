"""By how much the recommended configuration beats another."""

from __future__ import annotations

from dataclasses import dataclass

from autotune.domain.measuring.stats import Interval
from autotune.domain.recommending.recommendation import Standing
from autotune.domain.search.gain import gain_of


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
    """Compare two standings, of one study or of two; None where different power bases rank them.

    So it is where one of them is worth nothing.
    """
    ours, theirs = best.figures, other.figures
    if ours.power_basis is not theirs.power_basis or min(ours.objective, theirs.objective) <= 0:
        return None
    gain = gain_of(ours.objective, ours.objective_interval, theirs.objective, theirs.objective_interval)
    measure = "tokens_per_joule" if ours.power_basis.ranks else "goodput_tok_per_s"
    return Advantage(measure, gain.ratio, gain.interval)
