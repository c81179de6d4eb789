"""Workloads and the plans drawn from them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from autotune.domain.workload import (
    FixedLength,
    Level,
    LogNormalLength,
    Workload,
    plan_load,
    poisson_due_s,
)

seeds = st.integers(0, 2**32 - 1)
rates = st.floats(0.1, 200.0)
durations = st.floats(0.1, 20.0)


@given(rates, durations, seeds)
def test_poisson_arrivals_are_ascending_and_within_the_duration(
    rate: float, duration_s: float, seed: int
) -> None:
    due_s = poisson_due_s(rate, duration_s, np.random.default_rng(seed))
    assert (np.diff(due_s) >= 0).all()
    assert ((due_s >= 0) & (due_s < duration_s)).all()


def test_poisson_arrivals_have_the_rate_and_the_scatter_of_a_poisson_process() -> None:
    counts = [len(poisson_due_s(50.0, 2.0, np.random.default_rng(seed))) for seed in range(2000)]
    assert np.mean(counts) == pytest.approx(100.0, abs=1.0)
    assert np.var(counts) == pytest.approx(100.0, rel=0.15)
    gaps_s = np.diff(poisson_due_s(50.0, 400.0, np.random.default_rng(0)))
    assert np.std(gaps_s) == pytest.approx(np.mean(gaps_s), rel=0.05)


@pytest.mark.parametrize(("rate", "duration_s"), [(0.0, 1.0), (-1.0, 1.0), (1.0, 0.0)])
def test_a_rate_and_a_duration_are_positive(rate: float, duration_s: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        poisson_due_s(rate, duration_s, np.random.default_rng(0))


@given(st.integers(1, 5000), st.floats(0.01, 3.0), st.integers(1, 100), st.integers(100, 9000), seeds)
def test_log_normal_lengths_keep_their_limits(
    median: int, sigma: float, low: int, high: int, seed: int
) -> None:
    lengths = LogNormalLength(median=median, sigma=sigma, low=low, high=high)
    drawn = lengths.draw(200, np.random.default_rng(seed))
    assert ((drawn >= low) & (drawn <= high)).all()
    assert lengths.longest == high


def test_log_normal_lengths_have_their_median_and_sigma() -> None:
    lengths = LogNormalLength(median=400, sigma=0.5, high=100_000)
    drawn = lengths.draw(20_000, np.random.default_rng(0))
    assert np.median(drawn) == pytest.approx(400, rel=0.02)
    assert np.std(np.log(drawn)) == pytest.approx(0.5, rel=0.02)


@settings(max_examples=40, deadline=None)
@given(rates, st.floats(0.1, 3.0), seeds, st.integers(50, 5000))
def test_an_open_plan_is_in_due_order_with_the_workloads_lengths(
    rate: float, duration_s: float, seed: int, vocab_size: int
) -> None:
    workload = Workload(input_tokens=LogNormalLength(median=8, sigma=0.7, high=20), output_tokens=6)
    plan = plan_load(
        workload, Level("w", rate_rps=rate), duration_s=duration_s, vocab_size=vocab_size, seed=seed
    )
    due_s = [request.due_s for request in plan.requests]
    assert due_s == sorted(due_s)
    assert all(0 <= due < duration_s for due in due_s)
    assert all(1 <= len(request.prompt) <= 20 for request in plan.requests)
    assert {request.output_tokens for request in plan.requests} <= {6}
    ids = set(itertools.chain.from_iterable(request.prompt for request in plan.requests))
    assert all(min(1000, vocab_size // 10) <= token < vocab_size for token in ids)
    assert plan.concurrency is None


def test_the_same_seed_gives_the_same_plan_and_another_another() -> None:
    workload = Workload(input_tokens=16, output_tokens=LogNormalLength(median=8, sigma=1.0, high=64))
    level = Level("w", rate_rps=20.0)
    one, same, other = (
        plan_load(workload, level, duration_s=2.0, vocab_size=5000, seed=seed) for seed in (3, 3, 4)
    )
    assert one == same
    assert one.requests != other.requests


def test_no_two_prompts_share_a_beginning() -> None:
    workload = Workload(input_tokens=32, output_tokens=1)
    plan = plan_load(workload, Level("w", rate_rps=100.0), duration_s=5.0, vocab_size=50_000, seed=0)
    beginnings = [request.prompt[:16] for request in plan.requests]
    assert len(set(beginnings)) == len(beginnings) > 300


def test_a_closed_plan_has_no_due_times_and_plenty_of_requests() -> None:
    workload = Workload(input_tokens=2, output_tokens=1)
    plan = plan_load(workload, Level("w", concurrency=4), duration_s=2.0, vocab_size=100, seed=0)
    assert plan.concurrency == 4
    assert len(plan.requests) > 4 * 2
    assert {request.due_s for request in plan.requests} == {0.0}


def test_a_workload_knows_the_context_its_longest_request_needs() -> None:
    workload = Workload(
        input_tokens=LogNormalLength(median=100, sigma=1.0, high=900), output_tokens=FixedLength(tokens=100)
    )
    assert workload.longest_tokens == 1000


@pytest.mark.parametrize("wrong", [{"input_tokens": 0}, {"output_tokens": -1}, {"name": "a b"}, {"x": 1}])
def test_a_workload_refuses_what_makes_no_sense(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Workload.model_validate({"input_tokens": 1, "output_tokens": 1, **wrong})


def test_a_level_is_open_or_closed() -> None:
    assert Level("w", rate_rps=12.5).label == "12.5 req/s"
    assert Level("w", concurrency=32).label == "32 concurrent"
    with pytest.raises(ValueError, match="open loop"):
        Level("w")
    with pytest.raises(ValueError, match="open loop"):
        Level("w", rate_rps=1.0, concurrency=1)
