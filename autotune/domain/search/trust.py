"""How far priors are believed: what launches have shown of each, and what all of them say together.

Every prior has a scale and a spread, both learned: measured = scale x predicted x exp(noise). The scale is
pulled from 1 by launches, the spread starts at what priors are known for; priors are combined by precision.
Agreement says whether a prior ranks at all: concordant less discordant pairs of launches, pulled towards a
start that a few pairs outweigh. One that ranks no better than chance is not asked again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import exp, inf, log, sqrt
from statistics import median

SCALE_DEVIATION, RELATIVE_DEVIATION = log(3), log(1000)
"""Before any launch: a prior may well be off by a factor of 3 throughout, which costs no rank; a relative one
knows no scale at all."""
SPREAD = log(1.5)
SPREAD_LAUNCHES = 2.0
"""So many launches is the spread that a prior starts with worth."""
AGREEING_PAIRS, PAIRS = 1.5, 2.0
"""A prior starts with so many concordant pairs of so many: agreement 0.5, and 0 after a discordant one."""
LEAST_AGREEMENT = 0.0
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

    ``scale`` multiplies what it predicts; ``spread`` is the deviation of the logarithm that remains, and
    ``scale_deviation`` that of the scale itself. ``agreement`` is between -1 and 1, 0 for chance. ``error``
    is the median factor, above 1, between predicted and measured as they stand (of a relative prior: at its
    scale); None before any launch.
    """

    scale: float
    spread: float
    scale_deviation: float
    agreement: float
    error: float | None
    launches: int

    @property
    def believed(self) -> bool:
        """Whether it ranks better than chance, as far as is known."""
        return self.agreement > LEAST_AGREEMENT


def learned(prior: str, observed: Sequence[Observed], *, relative: bool = False) -> Learned:
    """What launches show of a prior; those that it had said nothing of are passed over."""
    known = [(o.predicted[prior], o.measured) for o in observed if o.predicted.get(prior) is not None]
    ratios = [
        log(measured) - log(predicted) for predicted, measured in known if measured > 0 and predicted > 0
    ]
    precision = len(ratios) / SPREAD**2 + 1 / (RELATIVE_DEVIATION if relative else SCALE_DEVIATION) ** 2
    shift = sum(ratios) / SPREAD**2 / precision
    squares = sum((ratio - shift) ** 2 for ratio in ratios) + SPREAD_LAUNCHES * SPREAD**2
    concordant, pairs = _pairs(known)
    return Learned(
        scale=exp(shift),
        spread=sqrt(squares / (len(ratios) + SPREAD_LAUNCHES)),
        scale_deviation=sqrt(1 / precision),
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


@dataclass(frozen=True, slots=True)
class Belief:
    """What all priors say of a configuration together: mean and deviation of the objective's logarithm."""

    log_mean: float
    deviation: float


UNTRIED = learned("", ())
"""What is thought of a prior that no launch has shown anything of."""


def combined(predicted: Mapping[str, float], trust: Mapping[str, Learned]) -> Belief | None:
    """Priors that are believed, each at its scale, weighed by precision and agreement; None where none is.

    0, a miss foreseen, is a mean of minus infinity: it comes last, whoever says so.
    """
    shown = {name: trust.get(name, UNTRIED) for name in predicted}
    believed = {name: each for name, each in shown.items() if each.believed}
    if not believed:
        return None
    if any(predicted[name] <= 0 for name in believed):
        return Belief(-inf, max(each.spread for each in believed.values()))
    weights = {name: each.agreement / each.spread**2 for name, each in believed.items()}
    means = {name: log(predicted[name]) + log(each.scale) for name, each in believed.items()}
    mean = sum(weights[name] * means[name] for name in believed) / sum(weights.values())
    nearest = min(believed.values(), key=lambda each: each.spread)
    return Belief(mean, sqrt(nearest.spread**2 + nearest.scale_deviation**2))
