"""Forecast load curves, how far what launches show is off them, and what they promise once corrected.

All figures are logarithms. An *error* of a forecast has a number for every figure, the latencies first and
the value sought last: by how much it is above what was forecast at the same concurrency. It belongs to a
configuration and changes slowly along its curve, so that a launch, met or missed, tells where the curves of
its neighbours lie.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CONCURRENCIES = tuple(2.0**k for k in range(14))
NEAR = 0.7
"""Levels count by how near they are to the SLA: a step of so much is 1/e."""
MISSED_SLOPE = 4.0
"""The value falls by so much of what the SLA is missed by, so that misses have an order."""

NOTHING = -50.0
"""Figures of a point that is foreseen to serve nothing, as one that does not fit."""

Excess = Callable[[Floats], Floats]
"""By how much latencies [kinds, ...] exceed an SLA, [...]: above 0 it is missed. Grows with each of them."""


@dataclass(frozen=True, slots=True)
class SeenLevels:
    """What a launch showed: its levels' concurrency [levels], and ``figures`` [kinds + 1, levels]."""

    concurrency: Floats
    figures: Floats


@dataclass(frozen=True, slots=True)
class Curves:
    """Figures at CONCURRENCIES, [kinds + 1, points, concurrencies]; NaN for a point without a forecast."""

    figures: Floats

    def says_of(self, index: int) -> bool:
        """Whether there is a forecast of a point at all, of more than nothing."""
        return bool(self.figures[-1, index, 0] > NOTHING)

    def best_at(self, excess: Excess, errors: Floats) -> Floats:
        """The best value within an SLA if forecasts are off by ``errors`` [points, kinds + 1]; [points].

        Minus infinity for a point that is foreseen to serve nothing.
        """
        off = errors.T[:, :, None]
        beyond = np.maximum.accumulate(excess(self.figures[:-1] + off[:-1]), axis=1)
        most = np.maximum.accumulate(self.figures[-1], axis=1)
        rows, last = np.arange(len(most)), most.shape[1] - 1
        inside = np.clip((beyond <= 0).sum(axis=1) - 1, 0, last)
        after = np.minimum(inside + 1, last)
        step = beyond[rows, after] - beyond[rows, inside]
        share = np.divide(-beyond[rows, inside], step, out=np.zeros(len(rows)), where=step > 0)
        share = np.clip(share, 0.0, 1.0)
        within = (1 - share) * most[rows, inside] + share * most[rows, after]
        missed = self.figures[-1][:, 0] - MISSED_SLOPE * beyond[:, 0]
        found: Floats = np.where(beyond[:, 0] > 0, missed, within) + errors[:, -1]
        return np.where(self.figures[-1, :, 0] <= NOTHING, -np.inf, found)

    def error(self, index: int, seen: SeenLevels, excess: Excess) -> Floats:
        """How far a point's levels are off its forecast, [kinds + 1]; those near the SLA count for most."""
        at, grid = np.log(seen.concurrency), np.log(CONCURRENCIES)
        expected = np.array([np.interp(at, grid, kind[index]) for kind in self.figures])
        near = np.exp(-np.abs(excess(seen.figures[:-1])) / NEAR)
        found: Floats = np.average(seen.figures - expected, axis=1, weights=near)
        return found
