"""Ours: a prior of roofline and earlier tables, corrected by a Gaussian process as launches come in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from search_features import resemblance
from search_replay import Seen
from search_tables import Problem

from autotune.domain.surrogate import Beliefs, condition, similarity

Floats = NDArray[np.float64]

BELIEFS = Beliefs(offset=0.3, slope=0.3, spread=0.6, own=0.2, noise=0.02)
MISS, MISS_SLOPE, MOST_MISS = 0.5, 3.0, 3.0
"""How far below the best a miss stands: by how far interactivity stayed below the SLA's, in logarithms."""
MISS_NOISE = 0.7


class Autotune:
    """Launches what is expected to be best, after all that was seen."""

    def __init__(self, problem: Problem, prior: Floats) -> None:
        self._problem, self._prior = problem, prior
        self._covariance = BELIEFS.covariance(prior, similarity(*resemblance(problem)))

    def choose(self, seen: Sequence[Seen]) -> int:
        launched = np.array([one.index for one in seen], dtype=np.int64)
        observed, noise = self._observed(seen)
        expected = condition(self._prior, self._covariance, launched, observed, noise).mean.copy()
        expected[launched] = -np.inf
        return int(np.argmax(expected))

    def _observed(self, seen: Sequence[Seen]) -> tuple[Floats, Floats]:
        """Logarithms of what launches showed as shares of the best of them; their noise."""
        sla = self._problem.sla
        values = np.array([one.best_at(sla) for one in seen])
        met = values > 0
        top = values.max(initial=0.0)
        observed = np.empty(len(seen))
        for k, one in enumerate(seen):
            if met[k]:
                observed[k] = np.log(values[k] / top)
            else:
                missed = np.log(sla / one.interactivity.max())
                depth = min(MISS + MISS_SLOPE * missed, MOST_MISS)
                observed[k] = -depth if top else self._prior[one.index] - MISS
        return observed, np.where(met, BELIEFS.noise, MISS_NOISE)
