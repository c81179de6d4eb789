"""Forests of scikit-learn: what a few trials in a mixed space tell of the points between them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import ExtraTreesRegressor

Floats = NDArray[np.float64]

TREES = 30
_LEAST_SPREAD = 1e-3
"""Standard deviation, as a share of that of all observations, that agreeing trees are not believed below."""


class Forest:
    """Randomised trees; their disagreement is the uncertainty (Hutter et al. 2011, SMAC)."""

    def __init__(self, points: Floats, values: Floats, *, seed: int) -> None:
        """Learn ``values`` at ``points``, [trials, coordinates]."""
        self._floor = _LEAST_SPREAD * float(values.std()) + 1e-12
        # bootstrap: without it trees agree wherever there is a trial, and doubt only in between.
        self._trees = ExtraTreesRegressor(
            TREES, bootstrap=True, max_features=0.5, random_state=seed, n_jobs=1
        )
        self._trees.fit(points, values)

    def predict(self, points: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation at each point."""
        # Trees themselves take single precision, unchecked: a check per tree costs more than its answer.
        narrow = np.ascontiguousarray(points, dtype=np.float32)
        votes = np.array([tree.tree_.predict(narrow)[:, 0] for tree in self._trees.estimators_])
        return votes.mean(axis=0), np.maximum(votes.std(axis=0), self._floor)
