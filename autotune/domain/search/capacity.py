"""What is believed of a capacity: a distribution over loads, sharpened by every level measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autotune.domain.judging.sla import Sla, keeping_requests
from autotune.domain.measuring.measurement import Floats, Measurement
from autotune.domain.measuring.stats import LEAST_DESIGN_EFFECT

OCTAVES_BELOW, OCTAVES_ABOVE = 10, 4
"""How far from where it is expected a capacity may lie: a strict SLA's is a small share of saturation."""
PER_OCTAVE = 24
STEEPNESS = np.array([3.0, 6.0, 12.0, 24.0, 48.0])
"""How fast failures grow with load, as powers of it: a short queue's is low, a large batch's knee is high."""
SURPRISE = 0.02
"""Chance that a level is no matter of capacity at all: attainment need not be monotone in load."""
TAIL = 3
"""Degrees of freedom of Student's t: an expectation may be far off, and a level or two must undo it."""
OVERLOAD_MARGIN, OVERLOAD_WIDTH = 1.1, 0.05
"""No capacity lies above what an overloaded engine sustains, by more than its windows are noisy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """Where a capacity is thought to lie before it is measured; ``spread`` is of its natural logarithm."""

    rps: float
    spread: float


@dataclass(frozen=True, slots=True)
class CapacityBelief:
    """Chance that a capacity is at least each of some rates, which ascend; requests per second."""

    rate_rps: Floats
    at_least: Floats

    def chance_of(self, rate_rps: float) -> float:
        """Chance that capacity is at least a rate."""
        return float(np.interp(math.log(rate_rps), np.log(self.rate_rps), self.at_least))

    def quantile(self, share: float) -> float:
        """The rate that capacity lies below with a chance of ``share``."""
        below = 1 - self.at_least
        return float(np.exp(np.interp(share, below, np.log(self.rate_rps))))


def believed_capacity(levels: Sequence[Measurement], sla: Sla, expected: Expectation) -> CapacityBelief:
    """Believe what open-loop levels show of an SLA's capacity: the load at which its share is just kept.

    Failures are taken to grow as a power of load, whose exponent is summed out; counts are binomial at the
    design effect of requests under load. An SLA's capacity is the least of its goals'.
    """
    step = np.arange(-OCTAVES_BELOW * PER_OCTAVE, OCTAVES_ABOVE * PER_OCTAVE + 1) / PER_OCTAVE
    rate_rps = expected.rps * np.exp2(step)
    prior = (1 + (step * math.log(2) / expected.spread) ** 2 / TAIL) ** (-(TAIL + 1) / 2)
    at_least = np.ones(len(step))
    for goal in range(len(sla.goals())):
        chances = np.ones((len(STEEPNESS), len(step)))
        for level in levels:
            seen = _likelihood(level, sla, goal, rate_rps)
            chances = chances * (SURPRISE + (1 - SURPRISE) * seen)
        weight = prior * chances.sum(axis=0)
        weight = weight / weight.sum()
        at_least = at_least * np.cumsum(weight[::-1])[::-1]
    return CapacityBelief(rate_rps, at_least)


def _likelihood(level: Measurement, sla: Sla, goal: int, capacity_rps: Floats) -> Floats:
    """How well each steepness and capacity explain a level, 1 for the best any could; (steepness, rates)."""
    offered_rps = level.level.rate_rps or level.sustained_rps
    if level.oversaturated:
        limit_rps = min(offered_rps, OVERLOAD_MARGIN * level.sustained_rps) or offered_rps
        likely = 1 / (1 + np.exp(np.clip(np.log(capacity_rps / limit_rps) / OVERLOAD_WIDTH, -50, 50)))
        return np.broadcast_to(likely, (len(STEEPNESS), len(capacity_rps)))
    bounds, share = sla.goals()[goal]
    due = level.due_in_window
    offered = float(due.sum()) / LEAST_DESIGN_EFFECT
    kept = float((keeping_requests(level.requests, bounds) & due).sum()) / LEAST_DESIGN_EFFECT
    if not offered:
        return np.ones((len(STEEPNESS), len(capacity_rps)))
    load = np.log(offered_rps / capacity_rps)[None, :] * STEEPNESS[:, None]
    fails = np.clip((1 - share) * np.exp(np.clip(load, -50, 50)), 1e-3, 1 - 1e-3)
    likely = kept * np.log1p(-fails) + (offered - kept) * np.log(fails)
    found = np.clip(kept / offered, 1e-3, 1 - 1e-3)
    best = kept * np.log(found) + (offered - kept) * np.log1p(-found)
    return np.asarray(np.exp(np.minimum(likely - best, 0.0)))
