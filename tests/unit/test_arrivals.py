"""Arrivals: ascending, within the level, at the level's rate, and as bursty as they say."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from autotune.domain.load.arrivals import (
    Arrivals,
    Gamma,
    GammaArrivals,
    Ramp,
    RampArrivals,
    arrivals_due_s,
    gamma_due_s,
    poisson_due_s,
    ramp_due_s,
    scaled_due_s,
)

seeds = st.integers(0, 2**32 - 1)
rates = st.floats(0.1, 200.0)
durations = st.floats(0.1, 20.0)
RAMP = Ramp.model_validate({"low": 0.25, "high": 1.75, "period": "10s"})

kinds: st.SearchStrategy[Arrivals] = st.one_of(
    st.just("poisson"),
    st.builds(lambda cv: GammaArrivals(gamma=Gamma(cv=cv)), st.floats(0.1, 5.0)),
    st.builds(
        lambda x, s: RampArrivals(ramp=Ramp.model_validate({"low": 1 - x, "high": 1 + x, "period": f"{s}s"})),
        st.floats(0.0, 1.0),
        st.integers(1, 100),
    ),
)


@given(kinds, rates, durations, seeds)
def test_arrivals_are_ascending_and_within_the_duration(
    arrivals: Arrivals, rate: float, duration_s: float, seed: int
) -> None:
    due_s = arrivals_due_s(arrivals, rate, duration_s, np.random.default_rng(seed))
    assert (np.diff(due_s) >= 0).all()
    assert ((due_s >= 0) & (due_s < duration_s)).all()


@given(kinds, st.integers(200, 5000), seeds)
def test_arrivals_have_the_rate(arrivals: Arrivals, expected: int, seed: int) -> None:
    """Within 5 standard deviations of the count, over whole periods of a ramp."""
    duration_s = 3 * arrivals.ramp.period if isinstance(arrivals, RampArrivals) else 7.0
    cv = arrivals.gamma.cv if isinstance(arrivals, GammaArrivals) else 1.0
    # The count of so few gaps, were they burstier, is far from normal.
    assume(cv <= 2)
    due_s = arrivals_due_s(arrivals, expected / duration_s, duration_s, np.random.default_rng(seed))
    assert abs(len(due_s) - expected) < 5 * max(cv, 0.2) * math.sqrt(expected) + cv**2 + 1


def counts(draw: Callable[[np.random.Generator], NDArray[np.float64]]) -> list[int]:
    return [len(draw(np.random.default_rng(seed))) for seed in range(2000)]


def test_poisson_arrivals_scatter_as_a_poisson_process() -> None:
    drawn = counts(lambda rng: poisson_due_s(50.0, 2.0, rng))
    assert np.mean(drawn) == pytest.approx(100.0, abs=1.0)
    assert np.var(drawn) == pytest.approx(100.0, rel=0.15)
    gaps_s = np.diff(poisson_due_s(50.0, 400.0, np.random.default_rng(0)))
    assert np.std(gaps_s) == pytest.approx(np.mean(gaps_s), rel=0.05)


@pytest.mark.parametrize("cv", [0.3, 1.0, 3.0])
def test_gamma_gaps_have_their_burstiness(cv: float) -> None:
    gaps_s = np.diff(gamma_due_s(50.0, 2000.0, np.random.default_rng(0), cv=cv))
    assert np.mean(gaps_s) == pytest.approx(1 / 50.0, rel=0.05)
    assert np.std(gaps_s) / np.mean(gaps_s) == pytest.approx(cv, rel=0.05)


@pytest.mark.parametrize("cv", [0.3, 3.0])
def test_gamma_arrivals_are_stationary_from_the_first_moment(cv: float) -> None:
    """A process that began with an arrival would have too many, bursty, or too few at its beginning."""
    short = counts(lambda rng: gamma_due_s(10.0, 0.05, rng, cv=cv))
    assert np.mean(short) == pytest.approx(0.5, abs=5 * float(np.std(short)) / math.sqrt(len(short)))


def test_gamma_of_cv_1_is_poisson() -> None:
    drawn = counts(lambda rng: gamma_due_s(50.0, 2.0, rng, cv=1.0))
    assert np.mean(drawn) == pytest.approx(100.0, abs=1.0)
    assert np.var(drawn) == pytest.approx(100.0, rel=0.15)


def test_a_ramp_rises_from_low_to_high_and_falls_back() -> None:
    due_s = ramp_due_s(1000.0, 100.0, np.random.default_rng(0), ramp=RAMP)
    by_phase = np.histogram(due_s % 10.0, bins=10)[0] / 10 / 1000.0
    # The mean of each tenth of the wave: straight up for five seconds, straight down for five.
    rising = [0.4, 0.7, 1.0, 1.3, 1.6]
    assert by_phase == pytest.approx([*rising, *reversed(rising)], rel=0.05)


@given(
    st.lists(st.floats(0, 1e5), min_size=3, max_size=60),
    st.floats(0.1, 100.0),
)
def test_a_trace_keeps_its_order_and_relative_gaps(arrivals: list[float], rate: float) -> None:
    arrival_s = np.sort(arrivals)
    assume(arrival_s[-1] - arrival_s[0] > 1e-3)
    count = len(arrival_s) - 1
    due_s = scaled_due_s(arrival_s, rate, 2 * count / rate)
    assert len(due_s) == count
    assert due_s[0] == 0
    # The trace's stretch of ``count`` requests lasts as long as that many last at the rate.
    factor = count / rate / (arrival_s[-1] - arrival_s[0])
    assert np.diff(due_s) == pytest.approx(np.diff(arrival_s[:-1]) * factor, abs=1e-6 * count / rate)
    assert ((due_s >= 0) & (due_s <= count / rate * (1 + 1e-9))).all()


def test_a_scaled_trace_ends_with_the_level() -> None:
    due_s = scaled_due_s(np.arange(11.0), 5.0, 1.0)
    assert due_s == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8])


def test_a_trace_without_a_span_is_spread_evenly() -> None:
    assert scaled_due_s(np.full(5, 3.0), 2.0, 10.0) == pytest.approx([0.0, 0.5, 1.0, 1.5])


@pytest.mark.parametrize(("rate", "duration_s"), [(0.0, 1.0), (-1.0, 1.0), (1.0, 0.0)])
def test_a_rate_and_a_duration_are_positive(rate: float, duration_s: float) -> None:
    rng = np.random.default_rng(0)
    draws: tuple[Callable[[], NDArray[np.float64]], ...] = (
        lambda: poisson_due_s(rate, duration_s, rng),
        lambda: gamma_due_s(rate, duration_s, rng, cv=1.0),
        lambda: ramp_due_s(rate, duration_s, rng, ramp=RAMP),
        lambda: scaled_due_s(np.arange(3.0), rate, duration_s),
    )
    for draw in draws:
        with pytest.raises(ValueError, match="must be positive"):
            draw()


def test_a_traces_arrivals_are_not_drawn() -> None:
    with pytest.raises(ValueError, match="not drawn"):
        arrivals_due_s("trace", 1.0, 1.0, np.random.default_rng(0))


@pytest.mark.parametrize(("low", "high"), [(0.5, 1.6), (1.5, 0.5), (0.0, 1.0)])
def test_a_ramp_rises_about_the_levels_rate(low: float, high: float) -> None:
    with pytest.raises(ValidationError, match="1 - x"):
        Ramp.model_validate({"low": low, "high": high, "period": "1s"})
