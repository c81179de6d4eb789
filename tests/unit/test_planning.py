"""Plans: the level's rate, the workload's lengths, and prompts that share what they should and no more."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.domain.load import planning
from autotune.domain.load.level import Level
from autotune.domain.load.load_plan import LoadPlan, PlannedRequest
from autotune.domain.load.planning import USUAL_TPOT_S, plan_load, planned_prefix_share
from autotune.domain.load.prompts import RandomTokens, Segment, shared_tokens
from autotune.domain.load.traffic import Traffic
from autotune.domain.load.workload import Workload

seeds = st.integers(0, 2**32 - 1)
OPEN = Level("w", rate_rps=20.0)
CLOSED = Level("w", concurrency=4)
TALKS: dict[str, Any] = {
    "input_tokens": {"median": 30, "sigma": 0.5, "high": 100},
    "output_tokens": {"median": 20, "sigma": 0.5, "high": 60},
    "conversations": {"turns": {"median": 4, "sigma": 0.4, "high": 9}, "think_time": "2s"},
}


def plan(
    parts: dict[str, Any],
    level: Level = OPEN,
    *,
    duration_s: float = 10.0,
    seed: int = 0,
    traffic: Traffic | None = None,
) -> LoadPlan:
    workload = Workload.model_validate(parts)
    source = RandomTokens(5000, seed)
    return plan_load(workload, level, duration_s=duration_s, seed=seed, prompts=source, traffic=traffic)


def tokens(request: PlannedRequest) -> int:
    return sum(segment.tokens for segment in request.prompt)


def traffic(blocks: list[list[int]], inputs: list[int], *, talks: list[int] | None = None) -> Traffic:
    """Requests a second apart, in blocks of 10 tokens."""
    count = len(inputs)
    return Traffic.of(
        np.array(inputs),
        np.arange(1, count + 1),
        arrival_s=np.arange(float(count)),
        blocks=(
            np.array(list(itertools.chain(*blocks)), dtype=np.int64),
            np.cumsum([len(b) for b in blocks]),
            10.0,
        ),
        conversation=np.array(talks) if talks else None,
    )


@settings(max_examples=40, deadline=None)
@given(st.floats(0.1, 200.0), st.floats(0.1, 3.0), seeds)
def test_an_open_plan_is_in_due_order_with_the_workloads_lengths(
    rate: float, duration_s: float, seed: int
) -> None:
    lengths = {"input_tokens": {"median": 8, "sigma": 0.7, "high": 20}, "output_tokens": 6}
    drawn = plan(lengths, Level("w", rate_rps=rate), duration_s=duration_s, seed=seed)
    due_s = [request.due_s for request in drawn.requests]
    assert due_s == sorted(due_s)
    assert all(0 <= due < duration_s for due in due_s)
    assert all(1 <= tokens(request) <= 20 for request in drawn.requests)
    assert {request.output_tokens for request in drawn.requests} <= {6}
    assert drawn.concurrency is None


@pytest.mark.parametrize("level", [OPEN, CLOSED])
@pytest.mark.parametrize(
    "parts",
    [
        {"input_tokens": 16, "output_tokens": {"median": 8, "sigma": 1.0, "high": 64}},
        TALKS,
        {"trace": "t", "longest": 100},
        {"trace": "t", "longest": 100, "arrivals": {"gamma": {"cv": 2}}},
        {"lengths": "t", "longest": 100},
    ],
)
def test_the_same_seed_gives_the_same_plan_and_another_another(parts: dict[str, Any], level: Level) -> None:
    real = traffic([[1], [1, 2], [], [1, 2]], [11, 22, 9, 25]) if {"trace", "lengths"} & set(parts) else None
    one, same, other = (plan(parts, level, seed=seed, traffic=real) for seed in (3, 3, 4))
    assert one == same
    assert one.requests != other.requests
    assert one.requests


def test_a_plan_says_how_requests_are_put() -> None:
    made = plan({"input_tokens": 8, "output_tokens": 1, "api": "chat", "temperature": 0.7})
    assert (made.api, made.temperature) == ("chat", 0.7)


def test_no_two_prompts_share_a_beginning() -> None:
    made = plan({"input_tokens": 32, "output_tokens": 1}, Level("w", rate_rps=100.0), duration_s=5.0)
    beginnings = {tuple(made.prompts.token_ids(request.prompt)[:16]) for request in made.requests}
    assert len(beginnings) == len(made.requests) > 300
    assert planned_prefix_share(made, block_tokens=1) == 0


def test_a_closed_plan_has_no_due_times_and_plenty_of_requests() -> None:
    made = plan({"input_tokens": 2, "output_tokens": 1}, CLOSED, duration_s=2.0)
    assert made.concurrency == 4
    assert len(made.requests) == 4 * (1 + 154)  # each of 4 users one after another, 13 ms each, for 2 s
    assert {request.due_s for request in made.requests} == {0.0}


@pytest.mark.parametrize(
    "parts", [{"input_tokens": 2, "output_tokens": 1}, TALKS | {"output_tokens": 1}], ids=["single", "talks"]
)
def test_a_closed_plan_of_short_answers_stays_small_enough_to_draw(
    monkeypatch: pytest.MonkeyPatch, parts: dict[str, Any]
) -> None:
    monkeypatch.setattr(planning, "MOST_CLOSED_REQUESTS", 500)
    made = plan(parts, Level("w", concurrency=64), duration_s=135.0)
    assert len(made.requests) == pytest.approx(500, rel=0.2)


def test_traffic_belongs_to_a_workload_with_a_file() -> None:
    for parts, real in (({"trace": "t", "longest": 9}, None), (TALKS, traffic([[]], [5]))):
        with pytest.raises(ValueError, match="belongs to a workload with a file"):
            plan(parts, traffic=real)


def test_lengths_of_a_file_stay_in_pairs() -> None:
    real = Traffic.of(np.array([10, 20, 30]), np.array([1, 2, 3]))
    made = plan({"lengths": "l", "longest": 100}, traffic=real)
    pairs = {(tokens(request), request.output_tokens) for request in made.requests}
    assert pairs == {(10, 1), (20, 2), (30, 3)}
    assert planned_prefix_share(made, block_tokens=1) == 0


# Conversations


def sent_s(made: LoadPlan) -> list[float]:
    """When each request is sent by an engine that takes what was planned for."""
    at_s: list[float] = []
    for request in made.requests:
        if request.after is None:
            at_s.append(request.due_s)
        else:
            before = made.requests[request.after]
            ended_s = at_s[request.after] + USUAL_TPOT_S * before.output_tokens
            at_s.append(max(request.due_s, ended_s + request.think_s))
    return at_s


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_a_later_turn_holds_all_before_it_and_something_new(seed: int) -> None:
    made = plan(TALKS | {"conversations": {"turns": 3, "system_tokens": 7, "system_prompts": 2}}, seed=seed)
    due_s = [request.due_s for request in made.requests]
    assert due_s == sorted(due_s)
    for index, request in enumerate(made.requests):
        assert request.prompt[0].role == "system"
        assert request.prompt[0].tokens == 7
        assert request.prompt[0].key in {0, 1}
        turn = (len(request.prompt) - 1) // 2
        assert [s.role for s in request.prompt[1:]] == ["user", "assistant"] * turn + ["user"]
        if request.after is not None:
            before = made.requests[request.after]
            assert request.after < index
            assert request.prompt[: len(before.prompt)] == before.prompt
            assert request.prompt[-2].tokens == before.output_tokens
            assert len(request.prompt) == len(before.prompt) + 2
    own = Counter(r.prompt[1].key for r in made.requests if r.after is None)
    assert max(own.values()) == 1


def test_conversations_ask_at_the_levels_rate_from_the_first_second() -> None:
    at_s = np.concatenate([sent_s(plan(TALKS, duration_s=20.0, seed=seed)) for seed in range(20)])
    rates = np.histogram(at_s, bins=[0, 5, 10, 15, 20])[0] / 5 / 20
    assert rates == pytest.approx(np.full(4, 20.0), rel=0.1)


def test_conversations_begin_as_their_arrivals_say() -> None:
    spec = TALKS | {"conversations": {"turns": 1}}
    bursty = plan(spec | {"arrivals": {"gamma": {"cv": 4}}}, duration_s=500)
    gaps_s = np.diff([request.due_s for request in bursty.requests])
    assert gaps_s.std() / gaps_s.mean() == pytest.approx(4, rel=0.15)


def test_conversations_end_before_they_are_too_long() -> None:
    made = plan(TALKS | {"longest": 200}, duration_s=60)
    longest = max(tokens(request) + request.output_tokens for request in made.requests)
    assert 150 < longest <= 200
    at_s = np.array(sent_s(made))
    assert np.sum(at_s < 60) / 60 == pytest.approx(20, rel=0.1)


def test_closed_conversations_come_one_after_another_with_their_turns() -> None:
    made = plan(TALKS, CLOSED, duration_s=5)
    roots = [index for index, request in enumerate(made.requests) if request.after is None]
    assert roots[0] == 0
    assert all(len(r.prompt) == 1 for r in (made.requests[root] for root in roots))
    turns = [r.after == index - 1 for index, r in enumerate(made.requests) if r.after is not None]
    assert all(turns)
    assert {request.due_s for request in made.requests} == {0.0}
    assert 3 < len(made.requests) / len(roots) < 6


# Replay


def test_a_trace_gives_its_gaps_lengths_and_blocks_at_the_levels_rate() -> None:
    real = traffic([[1, 2], [1, 3], [1, 2], []], [25, 22, 20, 5])
    made = plan({"trace": "t", "longest": 100}, Level("w", rate_rps=4.0), duration_s=1.0, traffic=real)
    assert [request.due_s for request in made.requests] == pytest.approx([0, 0.25, 0.5, 0.75])
    by_answer = {request.output_tokens: request for request in made.requests}
    assert [tokens(by_answer[n]) for n in (1, 2, 3, 4)] == [25, 22, 20, 5]
    ids = {n: made.prompts.token_ids(request.prompt) for n, request in sorted(by_answer.items())}
    shared = {
        (a, b): next(i for i, (x, y) in enumerate(itertools.zip_longest(ids[a], ids[b])) if x != y)
        for a, b in itertools.combinations(ids, 2)
    }
    # Laps are new traffic: which pairs are in one depends on where the replay began.
    first = made.requests[0].output_tokens
    lap = {n: n >= first for n in ids}
    for (a, b), expected in {(1, 2): 10, (1, 3): 20, (2, 3): 10, (1, 4): 0}.items():
        assert shared[a, b] == (expected if lap[a] == lap[b] else 0)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), max_size=4), min_size=2, max_size=12), seeds, st.floats(0.1, 3.0))
def test_prompts_of_a_trace_have_their_lengths_and_share_whole_chains(
    paths: list[list[int]], seed: int, scale: float
) -> None:
    """Blocks here are named by their chain, so that equal names are equal beginnings."""
    names: dict[tuple[int, ...], int] = {}
    blocks = [[names.setdefault(tuple(p[: i + 1]), len(names)) for i in range(len(p))] for p in paths]
    inputs = [10 * len(path) + 1 + row % 7 for row, path in enumerate(paths)]
    real = traffic(blocks, inputs).fitting(scale=scale, longest=10_000)
    made = plan({"trace": "t", "longest": 10_000, "arrivals": "poisson"}, seed=seed, traffic=real)
    row = int(np.random.default_rng(seed).integers(len(real)))
    for place, request in enumerate(made.requests, row):
        assert tokens(request) == real.input_tokens[place % len(real)]
        assert request.output_tokens == real.output_tokens[place % len(real)]
    keys = [segment for request in made.requests for segment in request.prompt]
    assert all(segment.tokens > 0 for segment in keys)
    # One key, one length: otherwise two prompts would differ within what they share.
    lengths: dict[int, set[int]] = {}
    for segment in keys:
        lengths.setdefault(segment.key, set()).add(segment.tokens)
    assert all(len(found) == 1 for found in lengths.values())


def test_replayed_prefixes_are_those_of_the_traffic() -> None:
    rng = np.random.default_rng(0)
    names: dict[tuple[int, ...], int] = {}
    blocks, inputs = [], []
    for _ in range(300):
        path = rng.integers(0, 2, rng.integers(1, 6)).tolist()
        blocks.append([names.setdefault(tuple(path[: i + 1]), len(names)) for i in range(len(path))])
        inputs.append(10 * len(path) + 5)
    real = traffic(blocks, inputs)
    level = Level("w", rate_rps=30.0)
    made = plan({"trace": "t", "longest": 100, "arrivals": "poisson"}, level, duration_s=9.0, traffic=real)
    start = int(np.random.default_rng(0).integers(len(real)))
    replayed = real.segment(start, len(made.requests))
    assert planned_prefix_share(made, block_tokens=10) == pytest.approx(replayed.prefix_share)
    assert replayed.prefix_share > 0.4


def test_turns_of_a_trace_wait_for_the_answers_before_them() -> None:
    real = traffic([[], [], [], []], [5, 5, 5, 5], talks=[7, -1, 7, 7])
    made = plan({"trace": "t", "longest": 100}, CLOSED, traffic=real)
    first = next(i for i, r in enumerate(made.requests) if r.output_tokens == 1)
    lap = made.requests[first : first + 4]
    assert [r.after and r.after - first for r in lap] == [None, None, 0, 2]


def test_a_long_replay_begins_anew_with_other_prompts() -> None:
    real = traffic([[1], [1], [1]], [15, 15, 15])
    made = plan({"trace": "t", "longest": 100}, CLOSED, traffic=real)
    assert len(made.requests) > 1000
    uses = Counter(request.prompt[0].key for request in made.requests)
    assert max(uses.values()) == 3
    assert len(uses) >= len(made.requests) // 3


# What a prefix cache may find


def shared_sums(prompts: Sequence[Sequence[Segment]], block_tokens: int) -> tuple[int, int]:
    shared, totals = shared_tokens(prompts, block_tokens=block_tokens)
    return int(shared.sum()), int(totals.sum())


def test_shared_tokens_are_whole_blocks_of_equal_beginnings() -> None:
    a, b, c = Segment(1, 20), Segment(2, 20), Segment(3, 20)
    assert shared_sums([(a,), (a,)], block_tokens=4) == (16, 40)  # the last block is computed
    assert shared_sums([(a, b), (a, c), (a, b)], block_tokens=4) == (20 + 36, 120)
    assert shared_sums([(a, b), (c, b)], block_tokens=4) == (0, 80)
    assert shared_sums([(a, b), (a,), (Segment(1, 19), b)], block_tokens=16) == (16, 99)
    assert shared_sums([(a,), (Segment(1, 20, "system"), b)], block_tokens=20) == (20, 60)
    assert shared_sums([], block_tokens=16) == (0, 0)


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), max_size=15))
def test_shared_tokens_are_those_of_the_longest_beginning_seen(paths: list[list[int]]) -> None:
    prompts = [tuple(Segment(key, 3 + key) for key in path) for path in paths]
    expected = 0
    for index, prompt in enumerate(prompts):
        ids = [s.key for s in prompt for _ in range(s.tokens)]
        common = 0
        for other in prompts[:index]:
            equal = list(
                itertools.takewhile(lambda pair: pair[0] == pair[1], zip(prompt, other, strict=False))
            )
            common = max(common, sum(s.tokens for s, _ in equal))
        expected += min(common, len(ids) - 1)
    assert shared_sums(prompts, block_tokens=1)[0] == expected


def test_an_empty_plan_shares_nothing() -> None:
    made = plan({"input_tokens": 8, "output_tokens": 1}, Level("w", rate_rps=1e-9))
    assert made.requests == ()
    assert planned_prefix_share(made, block_tokens=16) == 0
    real = traffic([[]], [5])
    parts = {"trace": "t", "longest": 9, "arrivals": "poisson"}
    assert plan(parts, Level("w", rate_rps=1e-9), traffic=real).requests == ()
