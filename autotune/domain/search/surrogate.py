"""What launches so far tell of those that could be next: a Gaussian process on top of a prior's forecast.

All values are logarithms. A forecast gives every candidate a mean; launches correct it, for the candidate and
for what resembles it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_JITTER = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Beliefs:
    """How far a forecast is trusted, in units of the (logarithmic) value.

    ``offset`` is how wrong it may be by a factor common to all candidates, ``spread`` how wrong for each by
    what it shares with its neighbours, ``own`` by what it shares with none, ``noise`` of one observation.
    """

    offset: float
    spread: float
    own: float
    noise: float

    def covariance(self, similarity: Floats) -> Floats:
        """Prior covariance of the candidates; ``similarity`` is 1 on its diagonal."""
        return self.offset**2 + self.spread**2 * similarity + self.own**2 * np.eye(len(similarity))


@dataclass(frozen=True, slots=True)
class Posterior:
    """Normal distributions of the candidates' values; of several columns, ``variance`` is that of each."""

    mean: Floats
    variance: Floats


def condition(
    mean: Floats, covariance: Floats, seen: NDArray[np.int64], observed: Floats, noise: Floats
) -> Posterior:
    """Distributions after observations of the candidates ``seen``, ``noise`` the standard error of each.

    ``mean`` [candidates] and ``observed`` [seen] may have columns alike: values that err with one covariance.
    """
    variance = np.diag(covariance)
    if not len(seen):
        return Posterior(mean, variance)
    gram = covariance[np.ix_(seen, seen)] + np.diag(noise**2 + _JITTER)
    gain = np.linalg.solve(gram, covariance[seen]).T
    told = np.einsum("ij,ji->i", gain, covariance[seen])
    return Posterior(mean + gain @ (observed - mean[seen]), variance - told)
