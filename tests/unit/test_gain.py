"""By how much one beats another: how often the interval holds, and what it says."""

from __future__ import annotations

import numpy as np
import pytest

from autotune.domain.measuring.stats import STUDENT_T, Interval
from autotune.domain.search.gain import gain_of

BLOCKS = 20


def figure(rng: np.random.Generator, mean: float, relative: float) -> tuple[float, Interval]:
    """A mean of blocks, and the interval of a repeat as it is estimated from them (5 degrees of freedom)."""
    error = mean * relative
    seen = error * np.sqrt(rng.chisquare(5) / 5)
    value = rng.normal(mean, error)
    half = STUDENT_T * np.sqrt(2) * seen
    return value, Interval(max(0.0, value - half), value + half)


@pytest.mark.parametrize("relative", [0.01, 0.05, 0.1])
@pytest.mark.parametrize("ratio", [0.8, 1.0, 1.5])
def test_the_interval_of_a_ratio_holds_the_true_one_in_nine_of_ten_cases(
    relative: float, ratio: float
) -> None:
    rng, held, runs = np.random.default_rng(0), 0, 1500
    for _ in range(runs):
        one, other = figure(rng, 100 * ratio, relative), figure(rng, 100, relative)
        gain = gain_of(*one, *other)
        held += gain.interval.low <= ratio <= gain.interval.high
    # Two estimates of 5 degrees each have more together, so that 90 % is the least.
    assert 0.89 <= held / runs <= 0.955


def test_equals_are_seldom_said_to_differ() -> None:
    rng, runs = np.random.default_rng(1), 1500
    said = [gain_of(*figure(rng, 1, 0.05), *figure(rng, 1, 0.05)).shown for _ in range(runs)]
    assert np.mean(said) < 0.06


def test_a_gain_is_told_in_per_cent() -> None:
    gain = gain_of(1.2, Interval(1.1, 1.3), 1.0, Interval(0.95, 1.05))
    assert gain.shown
    assert gain.describe() == "+20 % [+12, +29]"
    assert not gain_of(1.05, Interval(0.9, 1.2), 1.0, Interval(0.95, 1.05)).shown
    with pytest.raises(ValueError, match="nothing that is not above 0"):
        gain_of(1.0, Interval(1.0, 1.0), 0.0, Interval(0.0, 0.0))
