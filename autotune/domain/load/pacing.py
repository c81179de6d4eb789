"""Pacing: which request of a plan is due when, and how a plan is shared out between clients."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import replace

from autotune.domain.load.load_plan import LoadPlan


class Agenda:
    """Says which requests are due, from the plan and from how the earlier ones ended; has no clock.

    A first turn is due at its own time in open loop, and as soon as a slot is free in closed loop. A later
    turn is due ``think_s`` after the answer that it comes after, and never if that one failed. In closed loop
    a conversation keeps its slot through its thinking, so that ``concurrency`` counts users. Nothing is due
    after ``duration_s``. Times are monotonic seconds.
    """

    def __init__(self, plan: LoadPlan) -> None:
        self._plan = plan
        self._roots = conversations(plan)
        self.first_turns: Sequence[int] = [i for i, root in enumerate(self._roots) if i == root]
        self._followers: dict[int, list[int]] = {}
        for index, request in enumerate(plan.requests):
            if request.after is not None:
                self._followers.setdefault(request.after, []).append(index)
        self._taken = 0
        self._pending: dict[int, int] = {}
        self._waiting: list[tuple[float, int]] = []
        self.started_s = 0.0
        self.stopped = False

    def begin(self, started_s: float) -> None:
        """Count due times from now on."""
        self.started_s = started_s
        for _ in range(self._plan.concurrency or 1):
            self._wait_for_first_turn(started_s)

    def stop(self) -> None:
        """Have nothing due any more."""
        self.stopped = True

    @property
    def sends_until_s(self) -> float:
        """Time after which nothing is due."""
        return self.started_s + self._plan.duration_s

    @property
    def next_due_s(self) -> float | None:
        """When the next request is due, as far as is known."""
        if self.stopped or not self._waiting or self._waiting[0][0] > self.sends_until_s:
            return None
        return self._waiting[0][0]

    def due_by(self, now_s: float) -> Iterator[tuple[int, float]]:
        """Take the requests that are due by now: place in the plan, and due time."""
        while (due_s := self.next_due_s) is not None and due_s <= now_s:
            _, index = heapq.heappop(self._waiting)
            if self._plan.concurrency is None and self._roots[index] == index:
                self._wait_for_first_turn(self.started_s)
            yield index, due_s

    def followers(self, index: int) -> Sequence[int]:
        """Requests that come after one."""
        return self._followers.get(index, ())

    def ended(self, index: int, at_s: float, *, ok: bool) -> None:
        """Note that a request's answer ended, or failed."""
        root = self._roots[index]
        for follower in self.followers(index) if ok else ():
            request = self._plan.requests[follower]
            due_s = max(self.started_s + request.due_s, at_s + request.think_s)
            heapq.heappush(self._waiting, (due_s, follower))
            self._pending[root] += 1
        self._pending[root] -= 1
        if not self._pending[root] and self._plan.concurrency is not None:
            self._wait_for_first_turn(at_s)

    def _wait_for_first_turn(self, free_s: float) -> None:
        """Put the next first turn on the agenda; in open loop it has a due time of its own."""
        if self._taken == len(self.first_turns):
            return
        index = self.first_turns[self._taken]
        self._taken += 1
        due_s = self.started_s + self._plan.requests[index].due_s
        self._pending[index] = 1
        heapq.heappush(self._waiting, (max(due_s, free_s), index))


def conversations(plan: LoadPlan) -> list[int]:
    """For each request, the first turn of its conversation; raises ValueError for a turn before its own."""
    roots: list[int] = []
    for index, request in enumerate(plan.requests):
        if request.after is not None and not 0 <= request.after < index:
            raise ValueError(f"request {index} comes after {request.after}, which is not before it")
        roots.append(index if request.after is None else roots[request.after])
    return roots


def shares(plan: LoadPlan, clients: int) -> list[list[int]]:
    """Places in a plan by the client that sends them: conversations in turn, each whole.

    At most as many clients as there are slots.
    """
    clients = min(clients, plan.concurrency or clients)
    roots = conversations(plan)
    client_of = {root: place % clients for place, root in enumerate(dict.fromkeys(roots))}
    parts: list[list[int]] = [[] for _ in range(clients)]
    for index, root in enumerate(roots):
        parts[client_of[root]].append(index)
    return parts


def share_out(plan: LoadPlan, parts: Sequence[Sequence[int]]) -> tuple[LoadPlan, ...]:
    """Split a plan into parts that ``shares`` made, and closed-loop slots evenly."""
    place_in_part = {index: place for part in parts for place, index in enumerate(part)}
    slots, extra = divmod(plan.concurrency or 0, len(parts))
    return tuple(
        replace(
            plan,
            requests=tuple(
                request if request.after is None else replace(request, after=place_in_part[request.after])
                for request in (plan.requests[index] for index in part)
            ),
            concurrency=None if plan.concurrency is None else slots + (client < extra),
        )
        for client, part in enumerate(parts)
    )
