"""From a workload to the requests of one load level: pure, and the same for the same seed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from autotune.domain.load.arrivals import arrivals_due_s, scaled_due_s
from autotune.domain.load.lengths import Ints, distribution
from autotune.domain.load.level import Level
from autotune.domain.load.load_plan import LoadPlan, PlannedRequest
from autotune.domain.load.prompts import PromptSource, Segment, shared_tokens
from autotune.domain.load.traffic import Traffic
from autotune.domain.load.workload import Conversations, Workload

Floats = NDArray[np.float64]
Prompt = tuple[Segment, ...]

FASTEST_TTFT_S, FASTEST_TPOT_S = 0.01, 0.003
"""No engine answers many users at once faster than this; closed-loop plans hold requests enough for it."""
MOST_CLOSED_REQUESTS = 200_000
"""Requests that a closed-loop plan holds: drawn in seconds; a run that uses them up merely ends earlier."""
USUAL_TPOT_S = 0.02
"""What answers are taken to last when conversations are placed that began before the plan."""
PILOT = 1000
"""Draws from which means are taken beforehand."""


def plan_load(
    workload: Workload,
    level: Level,
    *,
    duration_s: float,
    seed: int,
    prompts: PromptSource,
    traffic: Traffic | None = None,
) -> LoadPlan:
    """Draw the requests of one load level; the same arguments give the same plan.

    ``traffic`` is what the workload's file holds, already fitted to it. Prompts share what the workload
    says and nothing else, so that no cache can flatter a run; ``prompts`` should have a seed of its own for
    each level, for then no prompt is ever seen twice.
    """
    if (traffic is None) != (workload.traffic_file is None):
        raise ValueError(
            f"workload {workload.name}: traffic belongs to a workload with a file, and only there"
        )
    workload = workload.under(level)
    draw = _Draw(workload, level, duration_s, np.random.default_rng(seed), traffic)
    if workload.conversations is not None:
        requests = _conversations(draw, workload.conversations)
    elif workload.trace is not None and traffic is not None:
        requests = _replay(draw, traffic)
    else:
        requests = _independent(draw)
    return LoadPlan(
        requests=requests,
        prompts=prompts,
        duration_s=duration_s,
        concurrency=level.concurrency,
        api=workload.api,
        temperature=workload.temperature,
    )


def planned_prefix_share(plan: LoadPlan, *, block_tokens: int) -> float:
    """Share of a plan's prompt tokens that a prefix cache of any size finds, where none was sent before."""
    shared, totals = shared_tokens((r.prompt for r in plan.requests), block_tokens=block_tokens)
    return float(shared.sum() / max(totals.sum(), 1))


@dataclass(frozen=True, slots=True)
class _Draw:
    """What everything of a plan is drawn from."""

    workload: Workload
    level: Level
    duration_s: float
    rng: np.random.Generator
    traffic: Traffic | None

    def lengths(self, count: int) -> tuple[Ints, Ints]:
        """Prompt and answer lengths of ``count`` requests, tokens."""
        given, answer = self.workload.input_tokens, self.workload.output_tokens
        if self.traffic is not None:
            rows = self.rng.integers(0, len(self.traffic), count)
            return self.traffic.input_tokens[rows], self.traffic.output_tokens[rows]
        assert given is not None
        assert answer is not None
        return distribution(given).draw(count, self.rng), distribution(answer).draw(count, self.rng)

    def due_s(self) -> Floats:
        """Due times of requests that come each by itself; in closed loop 0, more than any engine finishes."""
        if self.level.rate_rps is not None:
            return arrivals_due_s(self.workload.pacing, self.level.rate_rps, self.duration_s, self.rng)
        return np.zeros(self.plenty())

    def plenty(self) -> int:
        """Requests that outlast a closed-loop level, so that it ends by time; at most what a plan holds."""
        least_s = FASTEST_TTFT_S + FASTEST_TPOT_S * float(self.lengths(PILOT)[1].mean())
        outlasting = math.ceil((self.level.concurrency or 1) * (1 + self.duration_s / least_s))
        return min(outlasting, MOST_CLOSED_REQUESTS)


def _independent(draw: _Draw) -> tuple[PlannedRequest, ...]:
    due_s = draw.due_s()
    inputs, outputs = draw.lengths(len(due_s))
    rows = zip(due_s.tolist(), inputs.tolist(), outputs.tolist(), strict=True)
    return tuple(PlannedRequest(due, (Segment(key, n),), out) for key, (due, n, out) in enumerate(rows))


def _replay(draw: _Draw, traffic: Traffic) -> tuple[PlannedRequest, ...]:
    """A stretch of a trace from a place drawn; its turns wait for the answers before them."""
    start, rate_rps = int(draw.rng.integers(len(traffic))), draw.level.rate_rps
    if draw.workload.pacing == "trace" and rate_rps is not None:
        stretch = traffic.segment(start, math.ceil(rate_rps * draw.duration_s) + 1)
        assert stretch.arrival_s is not None
        due_s = scaled_due_s(stretch.arrival_s, rate_rps, draw.duration_s)
    else:
        due_s = draw.due_s()
    if not len(due_s):
        return ()
    stretch = traffic.segment(start, len(due_s))
    rows = zip(
        due_s.tolist(),
        _prompts(stretch),
        stretch.output_tokens.tolist(),
        stretch.conversation.tolist(),
        strict=True,
    )
    latest: dict[int, int] = {}
    requests = []
    for index, (due, prompt, output, conversation) in enumerate(rows):
        requests.append(PlannedRequest(due, prompt, output, after=latest.get(conversation)))
        if conversation >= 0:
            latest[conversation] = index
    return tuple(requests)


def _prompts(traffic: Traffic) -> list[Prompt]:
    """Prompts that share what the traffic's blocks say.

    A block that comes as often as the one before it always follows it: such runs are one segment.
    """
    block, ends = traffic.block, traffic.block_end
    starts = ends - traffic.blocks
    owner = np.repeat(np.arange(len(traffic)), traffic.blocks)
    place = np.arange(len(block)) - starts[owner]
    edge = np.minimum(
        np.rint((place + 1) * traffic.block_tokens).astype(np.int64), traffic.input_tokens[owner]
    )
    uses = np.bincount(block)[block] if len(block) else block
    opens = (place == 0) | (uses != np.roll(uses, 1))
    first, last = np.flatnonzero(opens), np.flatnonzero(np.roll(opens, -1))
    before = np.where(place[first] > 0, edge[first - 1], 0)
    prompts: list[list[Segment]] = [[] for _ in range(len(traffic))]
    runs = zip(owner[first].tolist(), block[first].tolist(), (edge[last] - before).tolist(), strict=True)
    for row, key, tokens in runs:
        if tokens:
            prompts[row].append(Segment(key, tokens))
    own_key = int(block.max(initial=-1)) + 1
    for row, prompt in enumerate(prompts):
        tail = int(traffic.input_tokens[row]) - sum(segment.tokens for segment in prompt)
        if tail:
            prompt.append(Segment(own_key + row, tail))
    return [tuple(prompt) for prompt in prompts]


@dataclass(frozen=True, slots=True)
class _Talks:
    """Conversations, one turn after another: ``talk`` is the conversation of each turn."""

    talk: Ints
    input_tokens: Ints
    output_tokens: Ints
    think_s: Floats
    began_s: Floats

    @classmethod
    def drawn(cls, draw: _Draw, spec: Conversations, count: int) -> _Talks:
        """Draw conversations; one ends before the turn that would be longer than the workload allows."""
        turns = distribution(spec.turns).draw(count, draw.rng)
        talk = np.repeat(np.arange(count), turns)
        opens = np.diff(talk, prepend=-1) > 0
        inputs, outputs = draw.lengths(len(talk))
        think_s = np.where(opens, 0.0, draw.rng.exponential(1.0, len(talk)) * spec.think_time)
        answer_s = outputs * USUAL_TPOT_S
        fits = spec.system_tokens + _within((inputs + outputs).astype(np.float64), talk) <= (
            draw.workload.longest or math.inf
        )
        began_s = _within(think_s + answer_s, talk) - answer_s
        return cls(talk[fits], inputs[fits], outputs[fits], think_s[fits], began_s[fits])


def _within(values: Floats, group: Ints) -> Floats:
    """Running sums that begin anew with each group."""
    sums = np.cumsum(values)
    before = np.where(np.diff(group, prepend=-1) > 0, sums - values, 0.0)
    # Sums only grow, so that the largest sum before a group so far is that before this one.
    return sums - np.maximum.accumulate(before)


def _conversations(draw: _Draw, spec: Conversations) -> tuple[PlannedRequest, ...]:
    """Turns of conversations, so many that requests come at the level's rate while the engine keeps up.

    Open loop finds conversations under way, as they would be had the plan begun long before: otherwise the
    first minutes would hold first turns only, and fewer requests than the level's rate.
    """
    pilot = _Talks.drawn(draw, spec, PILOT)
    mean_turns = len(pilot.talk) / PILOT
    if draw.level.rate_rps is None:
        talks = _Talks.drawn(draw, spec, math.ceil(draw.plenty() / mean_turns))
        return _turns(draw, spec, talks, np.zeros(len(talks.talk)))
    ahead_s = float(pilot.began_s.max())
    rate_per_s = draw.level.rate_rps / mean_turns
    starts_s = arrivals_due_s(draw.workload.pacing, rate_per_s, ahead_s + draw.duration_s, draw.rng) - ahead_s
    talks = _Talks.drawn(draw, spec, len(starts_s))
    return _turns(draw, spec, talks, starts_s[talks.talk] + talks.began_s)


def _turns(draw: _Draw, spec: Conversations, talks: _Talks, due_s: Floats) -> tuple[PlannedRequest, ...]:
    """Requests in due order; turns that were due before the plan are history to those after them."""
    ends = np.flatnonzero(np.diff(talks.talk, append=-1))
    systems = draw.rng.integers(0, spec.system_prompts, len(ends)).tolist()
    requests: list[PlannedRequest] = []
    start = 0
    for end, system in zip((ends + 1).tolist(), systems, strict=True):
        prompt: Prompt = (Segment(system, spec.system_tokens, "system"),) if spec.system_tokens else ()
        before: int | None = None
        for row in range(start, end):
            key = spec.system_prompts + 2 * row
            prompt = (*prompt, Segment(key, int(talks.input_tokens[row]), "user"))
            answer, think_s, at_s = (
                int(talks.output_tokens[row]),
                float(talks.think_s[row]),
                float(due_s[row]),
            )
            if before is not None:
                at_s = requests[before].due_s + (think_s if draw.level.rate_rps is not None else 0.0)
            if at_s >= draw.duration_s:
                break
            if at_s >= 0:
                requests.append(
                    PlannedRequest(at_s, prompt, answer, before, think_s if before is not None else 0.0)
                )
                before = len(requests) - 1
            prompt = (*prompt, Segment(key + 1, answer, "assistant"))
        start = end
    return _in_due_order(requests)


def _in_due_order(requests: list[PlannedRequest]) -> tuple[PlannedRequest, ...]:
    order = np.argsort([request.due_s for request in requests], kind="stable")
    place = np.argsort(order).tolist()
    moved = (requests[row] for row in order.tolist())
    return tuple(r if r.after is None else replace(r, after=place[r.after]) for r in moved)
