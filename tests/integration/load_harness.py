"""Plans, prompts and readable results for the tests of the load client."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scripted_server import DONE, END, HEAD, Call, Script, Server, chunk, token, usage

from autotune.adapters.load.clients import LoadClients
from autotune.domain.load.load_plan import Api, LoadPlan, PlannedRequest
from autotune.domain.load.progress import Steering, to_the_end
from autotune.domain.load.prompts import RandomTokens, Segment
from autotune.domain.measuring.measurement import LoadResult, RequestRecord

PROMPTS = RandomTokens(vocab_size=5000, seed=1)


@dataclass(frozen=True)
class Words:
    """Prompts that say which segments they are."""

    def token_ids(self, segments: Sequence[Segment]) -> list[int]:
        return [segment.key for segment in segments for _ in range(segment.tokens)]

    def messages(self, segments: Sequence[Segment]) -> list[dict[str, str]]:
        return [{"role": s.role, "content": f"{s.key} x{s.tokens}"} for s in segments]


def planned(due_s: float = 0.0, *, key: int = 0, tokens: int = 3, **turn: float) -> PlannedRequest:
    return PlannedRequest(due_s, (Segment(key, 3),), tokens, **turn)  # type: ignore[arg-type]


def open_plan(
    *due_s: float,
    tokens: int = 3,
    duration_s: float | None = None,
    request_timeout_s: float = 60.0,
    drain_timeout_s: float = 30.0,
    api: Api = "completions",
) -> LoadPlan:
    return LoadPlan(
        requests=tuple(planned(due, key=key, tokens=tokens) for key, due in enumerate(due_s)),
        prompts=Words(),
        duration_s=max(due_s, default=0.0) if duration_s is None else duration_s,
        request_timeout_s=request_timeout_s,
        drain_timeout_s=drain_timeout_s,
        api=api,
    )


def closed_plan(requests: int, concurrency: int, duration_s: float) -> LoadPlan:
    return LoadPlan(
        requests=tuple(planned(key=key) for key in range(requests)),
        prompts=PROMPTS,
        duration_s=duration_s,
        concurrency=concurrency,
    )


def drive(
    clients: LoadClients,
    server: Server,
    plan: LoadPlan,
    *,
    alive: Callable[[], bool] = lambda: True,
    cancelled: Callable[[], bool] = lambda: False,
    steer: Steering = to_the_end,
) -> LoadResult:
    return clients.drive(server.endpoint, plan, alive=alive, cancelled=cancelled, steer=steer)


def records(result: LoadResult) -> list[RequestRecord]:
    """The rows of a result's table."""
    table = result.requests
    starts = table.chunk_end - table.chunks
    return [
        RequestRecord(
            due_s=float(table.due_s[i]),
            sent_s=float(table.sent_s[i]),
            finished_s=float(table.finished_s[i]),
            chunk_s=tuple(table.chunk_s[starts[i] : table.chunk_end[i]].tolist()),
            prompt_tokens=int(table.prompt_tokens[i]),
            output_tokens=int(table.output_tokens[i]),
            status=int(table.status[i]),
            reasoning_chunks=int(table.reasoning_chunks[i]),
            error=table.error[i],
        )
        for i in range(len(table))
    ]


def one_request(clients: LoadClients, server: Server, *, api: Api = "completions") -> RequestRecord:
    """Drive a single request."""
    (record,) = records(drive(clients, server, open_plan(0.0, api=api)))
    return record


def answer_of(*events: bytes) -> Script:
    """A script that streams the events, each in an HTTP chunk and a segment of its own."""

    async def script(call: Call) -> None:
        await call.send(HEAD, *(chunk(e) for e in events), END)

    return script


three_tokens = answer_of(token(), token(), token(), usage(3, 3), DONE)
