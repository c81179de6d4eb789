"""Properties of pacing: what is due when, and sharing a plan out."""

from __future__ import annotations

import heapq
import random
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.domain.load.load_plan import LoadPlan, PlannedRequest
from autotune.domain.load.pacing import Agenda, conversations, share_out, shares
from autotune.domain.load.prompts import RandomTokens, Segment

PROMPTS = RandomTokens(vocab_size=5000, seed=1)
START_S = 1000.0


@st.composite
def plans(draw: st.DrawFn) -> LoadPlan:
    """Some conversations, in due order of their first turns; keys tell requests apart."""
    closed = draw(st.booleans())
    requests: list[PlannedRequest] = []
    due_s = 0.0
    for key in range(draw(st.integers(0, 30))):
        after = draw(st.none() | st.integers(0, key - 1)) if key else None
        think_s = draw(st.floats(0, 3)) if after is not None else 0.0
        due_s += 0.0 if closed else draw(st.floats(0, 1))
        requests.append(PlannedRequest(due_s, (Segment(key, 3),), 3, after=after, think_s=think_s))
    return LoadPlan(
        requests=tuple(requests),
        prompts=PROMPTS,
        duration_s=draw(st.floats(0, 20)),
        concurrency=draw(st.integers(1, 5)) if closed else None,
    )


def played(plan: LoadPlan, seed: int) -> dict[int, tuple[float, float, bool]]:
    """Play an agenda with answers of random lengths: due time, end and success of what was due."""
    rng = random.Random(seed)
    agenda = Agenda(plan)
    agenda.begin(START_S)
    story: dict[int, tuple[float, float, bool]] = {}
    in_flight: list[tuple[float, int]] = []
    while True:
        next_s = agenda.next_due_s
        if next_s is not None and (not in_flight or next_s <= in_flight[0][0]):
            for index, due_s in agenda.due_by(next_s):
                assert index not in story
                end_s = next_s + rng.choice((0.0, 2 * rng.random()))
                story[index] = (due_s, end_s, rng.random() < 0.7)
                heapq.heappush(in_flight, (end_s, index))
            if plan.concurrency is not None:
                assert len(in_flight) <= plan.concurrency or any(r.after is not None for r in plan.requests)
        elif in_flight:
            end_s, index = heapq.heappop(in_flight)
            agenda.ended(index, end_s, ok=story[index][2])
        else:
            return story


@given(plans(), st.integers(0, 1 << 32))
def test_every_request_is_due_when_the_plan_says(plan: LoadPlan, seed: int) -> None:
    story = played(plan, seed)
    until_s = START_S + plan.duration_s
    for index, request in enumerate(plan.requests):
        earliest_s = START_S + request.due_s
        if request.after is not None:
            if request.after not in story or not story[request.after][2]:
                assert index not in story
                continue
            earliest_s = max(earliest_s, story[request.after][1] + request.think_s)
        if plan.concurrency is None or request.after is not None:
            assert (index in story) == (earliest_s <= until_s)
        if index in story:
            due_s = story[index][0]
            assert earliest_s <= due_s <= until_s
            assert due_s == earliest_s or (plan.concurrency is not None and request.after is None)


@given(plans(), st.integers(0, 1 << 32))
def test_a_closed_loop_holds_as_many_conversations_as_it_has_slots(plan: LoadPlan, seed: int) -> None:
    """A slot is free again at the very moment at which all of a conversation's turns have ended."""
    if plan.concurrency is None:
        return
    story = played(plan, seed)
    roots = conversations(plan)
    started = sorted({root for index, root in enumerate(roots) if index in story})
    assert started == sorted(set(roots))[: len(started)]
    ends_s = {
        root: max(end_s for index, (_, end_s, _) in story.items() if roots[index] == root) for root in started
    }
    cut_off = {
        root
        for root in started
        for index, request in enumerate(plan.requests)
        if roots[index] == root and index not in story and request.after in story and story[request.after][2]
    }
    free_s = [START_S] * plan.concurrency
    for root in started:
        assert story[root][0] == heapq.heappop(free_s)
        heapq.heappush(free_s, ends_s[root] if root not in cut_off else float("inf"))


def test_nothing_is_due_after_a_stop() -> None:
    plan = LoadPlan(
        requests=(PlannedRequest(0.0, (), 1), PlannedRequest(1.0, (), 1)), prompts=PROMPTS, duration_s=9.0
    )
    agenda = Agenda(plan)
    agenda.begin(START_S)
    assert list(agenda.due_by(START_S)) == [(0, START_S)]
    agenda.stop()
    assert agenda.next_due_s is None
    assert list(agenda.due_by(START_S + 5)) == []


@given(plans(), st.integers(1, 6))
def test_sharing_out_loses_nothing_and_keeps_conversations_whole(plan: LoadPlan, clients: int) -> None:
    parts = share_out(plan, shares(plan, clients))
    assert len(parts) == min(clients, plan.concurrency or clients)
    if plan.concurrency is not None:
        slots = [part.concurrency or 0 for part in parts]
        assert sum(slots) == plan.concurrency
        assert max(slots) - min(slots) <= 1
    whole = {r.prompt: r for r in plan.requests}
    found = [r.prompt for part in parts for r in part.requests]
    assert sorted(found) == sorted(whole)
    for part in parts:
        assert [r.prompt for r in part.requests] == [
            r.prompt for r in plan.requests if r.prompt in {q.prompt for q in part.requests}
        ]
        for request in part.requests:
            before = whole[request.prompt].after
            assert (request.after is None) == (before is None)
            if request.after is not None and before is not None:
                assert part.requests[request.after].prompt == plan.requests[before].prompt
    firsts = [sum(r.after is None for r in part.requests) for part in parts]
    assert max(firsts) - min(firsts) <= 1


def test_a_turn_before_its_own_conversation_is_refused() -> None:
    numbers = count()
    requests = tuple(PlannedRequest(0.0, (Segment(next(numbers), 1),), 1, after=after) for after in (None, 1))
    with pytest.raises(ValueError, match="request 1 comes after 1"):
        conversations(LoadPlan(requests=requests, prompts=PROMPTS, duration_s=1.0))
