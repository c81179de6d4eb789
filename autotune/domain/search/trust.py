"""How far priors are believed: what launches have shown of each.

Every prior has a scale and a spread, both learned: measured = scale x predicted x exp(noise). The scale is
pulled from 1 by launches, the spread starts at what priors are known for; priors count by agreement and
precision. Agreement says whether a prior ranks at all: concordant less discordant pairs of launches, pulled
towards a start that a few pairs outweigh. One that ranks no better than chance is not asked again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import exp, log, sqrt
from statistics import median

SCALE_DEVIATION, RELATIVE_DEVIATION = log(3), log(1000)
"""Before any launch: a prior may well be off by a factor of 3 throughout, which costs no rank; a relative one
knows no scale at all."""
SPREAD, RELATIVE_SPREAD = log(1.5), log(2.25)
SPREAD_LAUNCHES = 2.0
"""The spread that a prior starts with counts as so many launches; a relative one weighs a quarter then."""
AGREEING_PAIRS, PAIRS = 1.5, 2.0
"""A prior starts with so many concordant pairs of so many: agreement 0.5, and 0 after a discordant one."""
LEAST_AGREEMENT = -0.25
"""Below it a prior is not followed: three launches that it ranked the wrong way round take it there."""
SAME = 0.03
"""Launches whose objectives differ by less than this share are no pair: that is noise."""


@dataclass(frozen=True, slots=True)
class Observed:
    """A launch: its objective, 0 where it missed or could not run, and what each prior had predicted."""

    measured: float
    predicted: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What launches have shown of one prior.

    ``scale`` multiplies what it predicts; ``spread`` is the deviation of the logarithm that remains.
    ``agreement`` is between -1 and 1, 0 for chance. ``error`` is the median factor, above 1, between
    predicted and measured as they stand (of a relative prior: at its scale); None before any launch.
    """

    scale: float
    spread: float
    agreement: float
    error: float | None
    launches: int

    @property
    def weight(self) -> float:
        """What it counts for beside other priors."""
        return (1 + self.agreement) / self.spread**2

    @property
    def believed(self) -> bool:
        """Whether it may rank better than chance, as far as is known."""
        return self.agreement > LEAST_AGREEMENT


def learned(prior: str, observed: Sequence[Observed], *, relative: bool = False) -> Learned:
    """What launches show of a prior; those that it had said nothing of are passed over."""
    known = [(o.predicted[prior], o.measured) for o in observed if o.predicted.get(prior) is not None]
    ratios = [
        log(measured) - log(predicted) for predicted, measured in known if measured > 0 and predicted > 0
    ]
    deviation, spread = (RELATIVE_DEVIATION, RELATIVE_SPREAD) if relative else (SCALE_DEVIATION, SPREAD)
    shift = sum(ratios) / spread**2 / (len(ratios) / spread**2 + 1 / deviation**2)
    squares = sum((ratio - shift) ** 2 for ratio in ratios) + SPREAD_LAUNCHES * spread**2
    concordant, pairs = _pairs(known)
    return Learned(
        scale=exp(shift),
        spread=sqrt(squares / (len(ratios) + SPREAD_LAUNCHES)),
        agreement=2 * (AGREEING_PAIRS + concordant) / (PAIRS + pairs) - 1,
        error=exp(median(abs(r - shift if relative else r) for r in ratios)) if ratios else None,
        launches=len(known),
    )


def _pairs(known: Sequence[tuple[float, float]]) -> tuple[float, int]:
    """Concordant pairs, halves where the prior sees no difference, and pairs that differ as measured."""
    concordant, pairs = 0.0, 0
    for (predicted, measured), (other_predicted, other_measured) in combinations(known, 2):
        if abs(measured - other_measured) <= SAME * max(measured, other_measured):
            continue
        pairs += 1
        sign = (predicted - other_predicted) * (measured - other_measured)
        concordant += 1.0 if sign > 0 else 0.5 if sign == 0 else 0.0
    return concordant, pairs
