"""Latencies of requests, and what a level shows as a whole."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_measurements import measurement, request

from autotune.domain.load.level import Level
from autotune.domain.measuring.measurement import (
    CLIENT_CPU_LIMIT,
    CLIENT_LAG_LIMIT_S,
    ClientHealth,
    RequestRecord,
    RequestTable,
)
from autotune.domain.measuring.power import Window

WINDOW = Window(0.0, 100.0)


def test_latencies_count_from_due_and_not_from_sent() -> None:
    table = RequestTable.of(
        [
            RequestRecord(
                due_s=10.0,
                sent_s=10.5,
                finished_s=13.1,
                chunk_s=(11.0, 11.5, 13.0),
                output_tokens=3,
                status=200,
            )
        ]
    )
    assert table.ttft_s == pytest.approx([1.0])
    assert table.e2e_s == pytest.approx([3.0])
    assert table.tpot_s == pytest.approx([1.0])
    assert table.stall_s == pytest.approx([1.5])


def test_tpot_leaves_out_the_tokens_of_the_first_chunk() -> None:
    """A prefill's one token, and four more in two chunks over the next two seconds."""
    table = RequestTable.of([RequestRecord(due_s=0.0, chunk_s=(1.0, 2.0, 3.0), output_tokens=5)])
    assert table.tpot_s == pytest.approx([0.5])
    assert table.chunk_tokens == pytest.approx([1.0, 2.0, 2.0])


def test_one_chunk_has_no_tpot_and_no_stall_and_none_has_no_latency() -> None:
    table = RequestTable.of(
        [RequestRecord(due_s=0.0, chunk_s=(1.0,), output_tokens=1), RequestRecord(due_s=0.0, error="timeout")]
    )
    assert table.ok.tolist() == [True, False]
    assert np.isnan(table.tpot_s).all()
    assert table.stall_s[0] == 0.0
    assert math.isnan(table.stall_s[1])
    assert math.isnan(table.ttft_s[1])


@given(
    st.lists(
        st.tuples(
            st.floats(0, 100),
            st.lists(st.floats(0.001, 10), max_size=6),
            st.integers(0, 20),
        ),
        max_size=12,
    )
)
def test_the_table_agrees_with_each_record_by_itself(drawn: list[tuple[float, list[float], int]]) -> None:
    records = [
        RequestRecord(due_s=due, chunk_s=tuple(due + np.cumsum(gaps)) if gaps else (), output_tokens=tokens)
        for due, gaps, tokens in drawn
    ]
    table = RequestTable.of(records)
    assert len(table) == len(records)
    assert table.chunks.tolist() == [len(r.chunk_s) for r in records]
    for i, r in enumerate(records):
        stall = max((b - a for a, b in zip(r.chunk_s, r.chunk_s[1:], strict=False)), default=0.0)
        expected = [r.chunk_s[0] - r.due_s, r.chunk_s[-1] - r.due_s, stall] if r.chunk_s else [math.nan] * 3
        assert [table.ttft_s[i], table.e2e_s[i], table.stall_s[i]] == pytest.approx(expected, nan_ok=True)
    owned = np.bincount(table.chunk_owner, weights=table.chunk_tokens, minlength=len(records))
    assert owned == pytest.approx([r.output_tokens if r.chunk_s else 0 for r in records])


def test_requests_count_where_they_were_due_and_tokens_where_they_came() -> None:
    records = [request(99.99, ttft_s=5.0), request(100.0), request(-0.01), request(50.0)]
    level = measurement(records, level=Level("w", rate_rps=1.0), window=WINDOW)
    assert level.due_in_window.tolist() == [True, False, False, True]
    assert level.throughput_tok_per_s == pytest.approx(10 / 100.0)  # five each of the third and the fourth
    assert level.sustained_rps == pytest.approx(2 / 100.0)


def test_failed_requests_sustain_nothing() -> None:
    records = [request(10.0, error="HTTP 503"), request(20.0)]
    level = measurement(records, level=Level("w", rate_rps=1.0), window=WINDOW)
    assert level.sustained_rps == pytest.approx(1 / 100.0)
    nothing = measurement(records[:1], level=Level("w", rate_rps=1.0), window=WINDOW)
    assert nothing.sustained_rps == 0.0
    assert math.isnan(nothing.ttft_p99_s)


def queueing(rate_rps: float, served_rps: float, rng: np.random.Generator) -> list[RequestRecord]:
    """A single server with exponential service, first come first served."""
    free_s, records = 0.0, []
    for due_s in np.sort(rng.uniform(-20.0, 100.0, rng.poisson(rate_rps * 120.0))):
        free_s = max(free_s, due_s) + rng.exponential(1 / served_rps)
        records.append(request(float(due_s), ttft_s=free_s - due_s))
    return records


def test_a_queue_that_grows_is_oversaturated_and_one_that_fluctuates_is_not() -> None:
    rng = np.random.default_rng(0)
    verdicts = {
        load: sum(
            measurement(
                queueing(10 * load, 10.0, rng), level=Level("w", rate_rps=10 * load), window=WINDOW
            ).oversaturated
            for _ in range(50)
        )
        for load in (0.5, 0.8, 1.5)
    }
    assert verdicts[0.5] == 0
    assert verdicts[0.8] <= 1
    assert verdicts[1.5] == 50


def test_requests_that_never_finish_stay_in_flight() -> None:
    stuck = [RequestRecord(due_s=float(i), sent_s=float(i), error="engine died") for i in range(100)]
    assert measurement(stuck, level=Level("w", rate_rps=1.0), window=WINDOW).oversaturated


def test_a_closed_loop_level_is_never_oversaturated() -> None:
    records = [request(float(i), ttft_s=1000.0) for i in range(100)]
    assert not measurement(records, level=Level("w", concurrency=4), window=WINDOW).oversaturated


@pytest.mark.parametrize("late", ["lag_p99_s", "loop_lag_p99_s"])
def test_a_late_client_was_the_limit(late: str) -> None:
    def health(lag_s: float) -> ClientHealth:
        return replace(ClientHealth(lag_p99_s=0.0, cpu_share=0.1), **{late: lag_s})

    assert health(CLIENT_LAG_LIMIT_S * 1.01).was_limit
    assert not health(CLIENT_LAG_LIMIT_S * 0.99).was_limit


def test_a_client_that_used_up_its_core_was_the_limit() -> None:
    assert ClientHealth(lag_p99_s=0.0, cpu_share=CLIENT_CPU_LIMIT + 0.01).was_limit
    assert not ClientHealth(lag_p99_s=0.0, cpu_share=CLIENT_CPU_LIMIT - 0.01).was_limit


RECORDS = st.lists(
    st.builds(
        RequestRecord,
        due_s=st.floats(0, 100),
        chunk_s=st.lists(st.floats(0, 100), max_size=4).map(tuple),
        output_tokens=st.integers(0, 9),
        error=st.sampled_from(["", "timeout"]),
    ),
    max_size=12,
)


@given(RECORDS, st.integers(1, 4))
def test_tables_split_and_put_together_are_the_whole_in_due_order(
    records: list[RequestRecord], parts: int
) -> None:
    whole = RequestTable.of(sorted(records, key=lambda r: r.due_s))
    joined = RequestTable.concat(
        [whole.take(np.arange(part, len(records), parts, dtype=np.int64)) for part in range(parts)]
    )
    order = np.argsort(joined.due_s, kind="stable")
    assert (np.diff(joined.due_s) >= 0).all()
    key = lambda t, i: (t.due_s[i], t.chunks[i], t.output_tokens[i], t.error[i])  # noqa: E731
    assert sorted(key(joined, i) for i in order) == sorted(key(whole, i) for i in range(len(whole)))
    assert joined.chunk_s.sum() == pytest.approx(whole.chunk_s.sum())
    owned = [joined.chunk_s[joined.chunk_owner == i].tolist() for i in range(len(joined))]
    expected = [list(r.chunk_s) for r in records]
    assert sorted(owned) == sorted(expected)
