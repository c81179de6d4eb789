"""Ours: a prior of roofline and earlier tables, corrected by a Gaussian process as launches come in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from search_features import resemblance
from search_prior import Prior
from search_replay import Seen
from search_tables import Problem

from autotune.domain.search.surrogate import Beliefs, condition, similarity

Floats = NDArray[np.float64]

BELIEFS = Beliefs(offset=0.6, slope=0.0, spread=0.4, own=0.15, noise=0.05)
"""Of the errors of forecasts."""
UNKNOWN = Beliefs(offset=0.3, slope=0.3, spread=0.6, own=0.2, noise=0.02)
"""Of shares of the best, where there is no forecast."""
MISS, MISS_SLOPE, MOST_MISS = 0.5, 3.0, 3.0
"""How far below the best a miss stands: by how far interactivity stayed below the SLA's, in logarithms."""
MISS_NOISE = 0.7


class Autotune:
    """Launches what is best if every forecast is as far off as those of its neighbours were.

    The most likely value is compared, not the expected one: on the steep side of an SLA a wide guess of the
    error would make each doubtful candidate look like the winner.
    """

    def __init__(self, problem: Problem, prior: Prior) -> None:
        self._problem, self._prior = problem, prior
        beliefs = UNKNOWN if prior.forecasts is None else BELIEFS
        self._covariance = beliefs.covariance(prior.expected, similarity(*resemblance(problem)))

    def choose(self, seen: Sequence[Seen]) -> int:
        return int(np.argmax(self.expected(seen)))

    def expected(self, seen: Sequence[Seen]) -> Floats:
        """Logarithm of each candidate's value after what was seen; minus infinity for those launched."""
        launched = np.array([one.index for one in seen], dtype=np.int64)
        observed, noise = self._observed(seen)
        learned = condition(self._prior.errors, self._covariance, launched, observed, noise)
        expected = self._prior.values(learned.mean)
        expected[launched] = -np.inf
        return expected

    def _observed(self, seen: Sequence[Seen]) -> tuple[Floats, Floats]:
        """Errors of the forecasts of what was launched, [launches, 2], and their noise."""
        known = self._prior.forecasts
        if known is not None:
            sla = self._problem.sla
            found = [known.error(one.index, one, sla) for one in seen]
            return np.array(found).reshape(-1, 2), np.full(len(seen), BELIEFS.noise)
        shares, noise = self._shares(seen)
        indices = [one.index for one in seen]
        return np.column_stack([np.zeros(len(seen)), shares - self._prior.shares[indices]]), noise

    def _shares(self, seen: Sequence[Seen]) -> tuple[Floats, Floats]:
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
                observed[k] = -depth if top else self._prior.shares[one.index] - MISS
        return observed, np.where(met, UNKNOWN.noise, MISS_NOISE)
