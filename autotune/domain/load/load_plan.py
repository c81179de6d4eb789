"""Load plans: every request of a load level with its due time and its prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from autotune.domain.load.prompts import PromptSource, Segment

Api = Literal["completions", "chat"]


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request to send.

    ``due_s`` counts from the plan's start (0 throughout in closed loop). A later turn of a conversation names
    the request that it comes ``after`` by its place in the plan, and is due ``think_s`` after that one ended;
    its own ``due_s`` is then the earliest possible.
    """

    due_s: float
    prompt: tuple[Segment, ...]
    output_tokens: int
    after: int | None = None
    think_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """Requests in due order, how they are put, and the deadlines of the run.

    Open loop sends each at its due time until ``duration_s``. Closed loop keeps ``concurrency`` in flight
    until ``duration_s``, taking requests in order; when they run out the run ends. A turn whose conversation
    broke off is never due. ``temperature`` 0 makes every configuration generate the same tokens from the same
    plan: which experts are used, and which speculated tokens accepted, hangs on them.
    """

    requests: tuple[PlannedRequest, ...]
    prompts: PromptSource
    duration_s: float
    concurrency: int | None = None
    api: Api = "completions"
    temperature: float = 0.0
    request_timeout_s: float = 60.0
    drain_timeout_s: float = 30.0

    def within(self, *, request_timeout_s: float) -> LoadPlan:
        """Return the same plan with another deadline per request, which is also the drain's."""
        return replace(self, request_timeout_s=request_timeout_s, drain_timeout_s=request_timeout_s)
