"""Traffic: columns that stay together however they are sorted, cut, scaled and replayed."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.domain.load.traffic import Traffic

Row = tuple[float, int, int, list[int], int]

rows = st.lists(
    st.tuples(
        st.floats(0, 1e4),
        st.integers(1, 1000),
        st.integers(1, 1000),
        st.lists(st.integers(0, 2**62), max_size=4),
        st.integers(-1, 3),
    ),
    min_size=1,
    max_size=20,
)


def traffic_of(given: list[Row]) -> Traffic:
    at_s, inputs, outputs, blocks, talks = zip(*given, strict=True)
    return Traffic.of(
        np.array(inputs),
        np.array(outputs),
        arrival_s=np.array(at_s),
        blocks=(
            np.array(list(itertools.chain(*blocks)), dtype=np.int64),
            np.cumsum([len(keys) for keys in blocks]),
            16.0,
        ),
        conversation=np.array(talks),
    )


def blocks_of(traffic: Traffic) -> list[list[int]]:
    return [keys.tolist() for keys in np.split(traffic.block, traffic.block_end[:-1])]


@given(rows)
def test_requests_are_put_in_order_of_arrival_with_all_that_is_theirs(given: list[Row]) -> None:
    traffic = traffic_of(given)
    given = sorted(given, key=lambda row: row[0])
    assert traffic.input_tokens.tolist() == [row[1] for row in given]
    assert traffic.output_tokens.tolist() == [row[2] for row in given]
    assert traffic.arrival_s == pytest.approx(np.array([row[0] - given[0][0] for row in given]))
    # Keys are numbered anew; which are equal stays.
    new = blocks_of(traffic)
    old = [row[3] for row in given]
    assert [len(keys) for keys in new] == [len(keys) for keys in old]
    pairs = set(zip(itertools.chain(*old), itertools.chain(*new), strict=True))
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
    assert {b for _, b in pairs} == set(range(len(pairs)))
    talks = list(zip((row[4] for row in given), traffic.conversation.tolist(), strict=True))
    assert all((a == -1) == (b == -1) for a, b in talks)
    assert len(set(talks)) == len({a for a, _ in talks}) == len({b for _, b in talks})


@given(rows, st.integers(0, 19), st.integers(1, 60))
def test_a_segment_wraps_around_as_new_traffic(given: list[Row], start: int, count: int) -> None:
    traffic = traffic_of(given)
    start %= len(traffic)
    segment = traffic.segment(start, count)
    rows = (start + np.arange(count)) % len(traffic)
    assert (segment.input_tokens == traffic.input_tokens[rows]).all()
    assert segment.arrival_s is not None
    assert segment.arrival_s[0] == 0
    assert (np.diff(segment.arrival_s) >= 0).all()
    laps = (start + np.arange(count)) // len(traffic)
    seen: dict[int, int] = {}
    for lap, keys in zip(laps.tolist(), blocks_of(segment), strict=True):
        assert all(seen.setdefault(key, lap) == lap for key in keys)
    for row, keys in zip(rows, blocks_of(segment), strict=True):
        assert len(keys) == traffic.blocks[row]
    talks = {(c, lap) for c, lap in zip(segment.conversation.tolist(), laps.tolist(), strict=True) if c >= 0}
    assert len(talks) == len({c for c, _ in talks})


def test_laps_keep_the_mean_rate() -> None:
    one = np.ones(4, dtype=np.int64)
    traffic = Traffic.of(one, one, arrival_s=np.array([0.0, 1.0, 5.0, 6.0]))
    assert traffic.segment(0, 12).rate_rps == pytest.approx(traffic.rate_rps, rel=0.01)
    assert traffic.segment(2, 4).arrival_s == pytest.approx(np.array([0.0, 1.0, 3.0, 4.0]))


@given(rows, st.floats(0.01, 10), st.integers(2, 2000))
def test_requests_longer_than_the_longest_are_left_out(given: list[Row], scale: float, longest: int) -> None:
    traffic = traffic_of(given)
    scaled = [max(round(x * scale), 1) + max(round(y * scale), 1) for _, x, y, _, _ in given]
    short = sum(tokens <= longest for tokens in scaled)
    if not short:
        with pytest.raises(ValueError, match=f"shortest has {min(scaled)}"):
            traffic.fitting(scale=scale, longest=longest)
        return
    fitted = traffic.fitting(scale=scale, longest=longest)
    assert len(fitted) == short
    assert fitted.left_out == pytest.approx(1 - short / len(given))
    assert (fitted.input_tokens + fitted.output_tokens <= longest).all()
    assert fitted.block_tokens == pytest.approx(16 * scale)


def test_requests_without_tokens_are_left_out() -> None:
    traffic = Traffic.of(np.array([5, 0, 7]), np.array([1, 1, 0]))
    assert traffic.input_tokens.tolist() == [5]
    assert traffic.left_out == pytest.approx(2 / 3)
    assert traffic.fitting(scale=1, longest=9).left_out == pytest.approx(2 / 3)


def test_what_traffic_is_like() -> None:
    arrival_s = np.array([0.0, 1.0, 2.0, 5.0])
    blocks = (np.array([1, 2, 1, 2, 1, 9]), np.array([2, 4, 5, 6]), 10.0)
    traffic = Traffic.of(
        np.array([20, 25, 8, 12]),
        np.ones(4, dtype=np.int64),
        arrival_s=arrival_s,
        blocks=blocks,
        conversation=np.array([4, 4, -1, 8]),
    )
    assert traffic.rate_rps == pytest.approx(3 / 5)
    assert traffic.gap_cv == pytest.approx(np.std([1, 1, 3]) / np.mean([1, 1, 3]))
    # The second finds two blocks, the third one that is longer than itself, the fourth none.
    assert traffic.prefix_share == pytest.approx((20 + 8) / 65)
    assert traffic.turns.tolist() == [2, 1]


def test_lengths_alone_have_no_rate() -> None:
    traffic = Traffic.of(np.array([3, 4]), np.array([1, 2]))
    assert np.isnan(traffic.rate_rps)
    assert np.isnan(traffic.gap_cv)
    assert traffic.prefix_share == 0
    assert traffic.turns.tolist() == []
    assert traffic.segment(1, 3).arrival_s is None


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"input_tokens": np.array([1, 0])}, "at least one token"),
        ({"input_tokens": np.array([1])}, "every column"),
        ({"arrival_s": np.array([1.0, 0.0])}, "in order"),
        ({"block_end": np.array([1, 3])}, "divide the blocks"),
        ({"block_end": np.array([3, 2])}, "divide the blocks"),
    ],
)
def test_columns_must_fit_together(wrong: dict[str, Any], why: str) -> None:
    sound: dict[str, Any] = {
        "input_tokens": np.array([5, 6]),
        "output_tokens": np.array([1, 2]),
        "arrival_s": np.array([0.0, 1.0]),
        "block": np.array([0, 1]),
        "block_end": np.array([1, 2]),
        "conversation": np.array([-1, -1]),
    }
    assert len(Traffic(**sound)) == 2
    with pytest.raises(ValueError, match=why):
        Traffic(**(sound | wrong))


def test_no_requests_are_no_traffic() -> None:
    with pytest.raises(ValueError, match="at least one request"):
        Traffic.of(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
