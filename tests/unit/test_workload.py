"""Workloads: what they say of themselves, and what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from autotune.domain.load.arrivals import GammaArrivals, RampArrivals
from autotune.domain.load.lengths import FixedLength, LogNormalLength, distribution
from autotune.domain.load.level import Level
from autotune.domain.load.workload import CHAT_MESSAGE_TOKENS, CHAT_TOKENS, Conversations, Workload

seeds = st.integers(0, 2**32 - 1)
DRAWN = {"input_tokens": 10, "output_tokens": 5}
TRACE = {"trace": "t.csv", "longest": 4000}
PAIRS = {"lengths": "l.csv", "longest": 4000}


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


def test_a_number_is_a_fixed_length() -> None:
    assert distribution(7) == FixedLength(tokens=7)
    assert distribution(7).draw(3, np.random.default_rng(0)).tolist() == [7, 7, 7]


@pytest.mark.parametrize(
    ("parts", "longest"),
    [
        (
            {"input_tokens": {"median": 100, "sigma": 1.0, "high": 900}, "output_tokens": {"tokens": 100}},
            1000,
        ),
        (TRACE, 4000),
        ({**DRAWN, "conversations": {"turns": 4, "system_tokens": 100}}, 160),
        ({**DRAWN, "conversations": {"turns": {"median": 2, "sigma": 1, "high": 9}}, "longest": 50}, 50),
        ({**DRAWN, "api": "chat"}, 15 + CHAT_TOKENS + 2 * CHAT_MESSAGE_TOKENS),
    ],
)
def test_a_workload_knows_the_context_its_longest_request_needs(parts: dict[str, Any], longest: int) -> None:
    assert Workload.model_validate(parts).longest_tokens == longest


def test_arrivals_are_poisson_or_the_traces_own_unless_said_otherwise() -> None:
    assert Workload.model_validate(DRAWN).pacing == "poisson"
    assert Workload.model_validate(PAIRS).pacing == "poisson"
    assert Workload.model_validate(TRACE).pacing == "trace"
    assert Workload.model_validate({**TRACE, "arrivals": "poisson"}).pacing == "poisson"
    bursty = Workload.model_validate({**DRAWN, "arrivals": {"gamma": {"cv": 2.0}}})
    assert isinstance(bursty.pacing, GammaArrivals)
    ramp = {"low": 0.5, "high": 1.5, "period": "60s"}
    rising = Workload.model_validate({**DRAWN, "arrivals": {"ramp": ramp}}).pacing
    assert isinstance(rising, RampArrivals)
    assert rising.ramp.period == 60.0


def test_real_text_is_known_as_such() -> None:
    assert not Workload.model_validate(DRAWN).has_real_text
    assert Workload.model_validate({**DRAWN, "prompts": {"text": "books"}}).has_real_text


WRONG: list[tuple[dict[str, Any], str]] = [
    ({**DRAWN, "input_tokens": 0}, "greater than 0"),
    ({**DRAWN, "output_tokens": -1}, "greater than 0"),
    ({**DRAWN, "name": "a b"}, "pattern"),
    ({**DRAWN, "x": 1}, "Extra inputs"),
    ({**DRAWN, "output_tokens": {"median": 8, "sigma": 1, "low": 9, "high": 8}}, "low 9 is above high 8"),
    ({}, "lengths come from nowhere"),
    ({"input_tokens": 5}, "lengths come from input_tokens"),
    ({**DRAWN, **TRACE}, "lengths come from input_tokens, output_tokens, trace"),
    ({**PAIRS, **TRACE}, "lengths come from lengths, trace"),
    ({"trace": "t.csv"}, "give longest"),
    ({**DRAWN, "length_scale": 2}, "a file's lengths"),
    ({**DRAWN, "longest": 100}, "lower the lengths' high"),
    ({**DRAWN, "arrivals": "trace"}, "no trace"),
    ({**PAIRS, "arrivals": "trace"}, "no trace"),
    ({**TRACE, "conversations": {"turns": 2}}, "its own turns"),
    ({**DRAWN, "conversations": {"turns": 2}, "longest": 14}, "less than the 15 tokens of one turn"),
    ({**DRAWN, "prefix_hits": {"expected": 1.5}}, "less than or equal to 1"),
    ({**DRAWN, "temperature": -1}, "greater than or equal to 0"),
]


@pytest.mark.parametrize(("parts", "why"), WRONG)
def test_a_workload_refuses_what_makes_no_sense(parts: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        Workload.model_validate(parts)


@pytest.mark.parametrize(
    "parts",
    [
        {**DRAWN, "conversations": {"turns": 3, "think_time": "1500ms"}, "api": "chat"},
        {**TRACE, "length_scale": 0.5, "arrivals": {"ramp": {"low": 0, "high": 2, "period": "1m"}}},
        {**PAIRS, "prompts": {"text": "books"}, "prefix_hits": {"expected": 0.3}},
    ],
)
def test_the_database_gives_back_the_same_workload(parts: dict[str, Any]) -> None:
    workload = Workload.model_validate(parts)
    assert Workload.model_validate_json(workload.model_dump_json()) == workload


def test_conversations_think_not_at_all_unless_said() -> None:
    assert Conversations.model_validate({"turns": 2}).think_time == 0


def test_a_level_is_open_or_closed() -> None:
    assert Level("w", rate_rps=12.5).label == "12.5 req/s"
    assert Level("w", concurrency=32).label == "32 concurrent"
    with pytest.raises(ValueError, match="open loop"):
        Level("w")
    with pytest.raises(ValueError, match="open loop"):
        Level("w", rate_rps=1.0, concurrency=1)
