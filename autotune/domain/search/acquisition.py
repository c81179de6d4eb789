"""Which point is worth the next launch, given what is expected there and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import erf, pi, sqrt

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_erf = np.vectorize(erf, otypes=[np.float64])


@dataclass(frozen=True, slots=True)
class Outlook:
    """What one objective may be at each point: mean, standard deviation; and the best value so far."""

    mean: Floats
    spread: Floats
    best: float

    def expected_improvement(self) -> Floats:
        """Expected improvement over the best so far, of normally distributed values (Jones et al. 1998)."""
        z = (self.mean - self.best) / self.spread
        density = np.exp(-0.5 * z * z) / sqrt(2 * pi)
        below: Floats = 0.5 * (1 + _erf(z / sqrt(2)))
        return self.spread * (z * below + density)


def most_to_gain(outlooks: Sequence[Outlook], runs: Floats) -> int:
    """The point for the next launch: of the objective with the most to gain, the point that gains it most.

    Gains are shares of each objective's best so far, so that objectives of any unit compare; ``runs`` is the
    probability that a point runs at all. Of an objective that nothing meets yet the unit is what it may be.
    """
    gains = []
    for outlook in outlooks:
        unit = (
            outlook.best if outlook.best > 0 else float(np.max(np.abs(outlook.mean)) + outlook.spread.max())
        )
        gains.append(runs * outlook.expected_improvement() / unit)
    leading = max(gains, key=lambda gain: float(gain.max()))
    return int(np.argmax(leading))
