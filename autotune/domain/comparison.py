"""By how much the recommended configuration beats another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autotune.domain.recommendation import Candidate, Standing, standing
from autotune.domain.sla import Sla
from autotune.domain.stats import Interval
from autotune.domain.study import StudySpec


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
    """Compare two standings; None where different power bases rank them, or the other is worth nothing.

    The ends are the worst of one against the best of the other: wider than an interval at the level of each.
    """
    ours, theirs = best.figures, other.figures
    if ours.power_basis is not theirs.power_basis or not theirs.objective > 0:
        return None
    above, below = ours.objective_interval, theirs.objective_interval
    interval = Interval(above.low / below.high, above.high / below.low if below.low > 0 else math.inf)
    measure = "tokens_per_joule" if ours.power_basis.ranks else "goodput_tok_per_s"
    return Advantage(measure, ours.objective / theirs.objective, interval)


def runner_up(study: StudySpec, sla: Sla, best: Standing, candidates: Sequence[Candidate]) -> Standing | None:
    """The standing on the same node that comes next; finals alone where the best was in them."""
    others = (standing(each, sla, study) for each in candidates if each != best.candidate)
    eligible = (
        each
        for each in others
        if each and each.may_win and each.launch.node == best.launch.node and each.confirmed == best.confirmed
    )
    return max(eligible, key=lambda each: each.figures.objective, default=None)
