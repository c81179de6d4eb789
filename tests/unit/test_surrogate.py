"""What launches teach of candidates that were not launched."""

from __future__ import annotations

import numpy as np

from autotune.domain.search.surrogate import Beliefs, condition

ALIKE = np.exp(-np.abs(np.subtract.outer([0.0, 0.1, 5.0], [0.0, 0.1, 5.0])))
PRIOR = np.array([0.0, -0.1, -0.2])
SEEN, NOISE = np.array([0]), np.array([0.02])


def covariance(*, offset: float = 1.0, spread: float = 0.5) -> np.ndarray:
    beliefs = Beliefs(offset=offset, spread=spread, own=0.1, noise=0.02)
    return beliefs.covariance(ALIKE)


def test_nothing_seen_leaves_the_forecast() -> None:
    posterior = condition(PRIOR, covariance(), np.array([], dtype=np.int64), np.array([]), np.array([]))
    assert posterior.mean.tolist() == PRIOR.tolist()


def test_a_disappointment_lowers_what_resembles_it_most() -> None:
    posterior = condition(PRIOR, covariance(offset=0.0), SEEN, np.array([-2.0]), NOISE)
    lost = PRIOR - posterior.mean
    assert lost[1] > 5 * lost[2]
    assert np.all(posterior.variance < np.diag(covariance(offset=0.0)))


def test_an_error_common_to_all_changes_no_order() -> None:
    posterior = condition(PRIOR, covariance(offset=5.0, spread=0.01), SEEN, np.array([-2.0]), NOISE)
    assert np.argsort(posterior.mean).tolist() == np.argsort(PRIOR).tolist()


def test_values_that_err_alike_are_each_corrected_as_if_alone() -> None:
    both = np.column_stack([PRIOR, 2 * PRIOR])
    posterior = condition(both, covariance(), SEEN, np.array([[0.5, -0.5]]), NOISE)
    for column, observed in enumerate((0.5, -0.5)):
        alone = condition(both[:, column], covariance(), SEEN, np.array([observed]), NOISE)
        assert np.allclose(posterior.mean[:, column], alone.mean)
