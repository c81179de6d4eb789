"""Drives open- and closed-loop load at an OpenAI-compatible engine, on one event loop: one client's share."""

from __future__ import annotations

import asyncio
import gc
import resource
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from autotune.adapters.load.alarm import SHORTEST_WAIT_S, Alarm
from autotune.adapters.load.connection_pool import ConnectionPool
from autotune.adapters.load.messages import Done, Increment
from autotune.adapters.load.openai_requests import RequestWriter
from autotune.adapters.load.sse_protocol import Exchange
from autotune.domain.basics.errors import BenchError
from autotune.domain.launches.endpoint import Endpoint
from autotune.domain.load.load_plan import LoadPlan
from autotune.domain.load.pacing import Agenda
from autotune.domain.load.progress import EndedRequest
from autotune.domain.measuring.measurement import ClientHealth, RequestTable

TICK_S = 0.05
"""How often deadlines and the end are looked at, and by that the lateness of the event loop."""
REPORT_PERIOD_S = 0.5
"""How often increments are reported."""
PREPARED_REQUESTS = 16
"""Requests written ahead of need at least; more if they are due within PREPARED_S."""
PREPARED_S = 1.0
SPARE_FILES = 256
"""File descriptors left to the rest of the process."""


class Drive:
    """One drive: paces requests, owns the connections, ends what does not end by itself.

    ::

        prepare() ──> run(): sending ──────────────> draining ──> over
                          └──────> stop(cut="...") ──────────────────┘
    """

    def __init__(self, endpoint: Endpoint, plan: LoadPlan, report: Callable[[Increment], None]) -> None:
        self._plan = plan
        self._report = report
        self._agenda = Agenda(plan)
        writer = RequestWriter(endpoint, plan)
        self._requests = _Requests(writer, plan, self._agenda)
        self._pool = ConnectionPool(
            writer.host,
            writer.port,
            slots=plan.concurrency,
            on_ended=self._on_ended,
            encrypted=writer.encrypted,
        )
        self._exchanges: list[Exchange] = []
        self._in_flight: set[Exchange] = set()
        self._alarm: Alarm | None = None
        self._preparing = False
        self._drains_until_s = float("inf")
        self._cut: str | None = None
        self._due_news: list[float] = []
        self._ended_news: list[EndedRequest] = []
        self._loop_lags_s: list[float] = []

    async def prepare(self) -> None:
        """Open connections and write what is needed first; errors wait for the request that meets them."""
        _raise_file_limit(self._plan.concurrency or len(self._plan.requests))
        await self._pool.open_first()
        while self._requests.prepare_one(0.0):
            await asyncio.sleep(0)

    async def run(self, start_s: float) -> Done:
        """Drive from ``start_s`` to the last answer, or to the end of draining.

        An open-loop drive lasts until ``duration_s`` even if all requests ended earlier. Raises BenchError
        when this machine cannot open the connections needed.
        """
        try:
            with _no_garbage_collection():
                await asyncio.sleep(max(0.0, start_s - time.monotonic()))
                cpu_s = time.process_time()
                self._alarm = Alarm(self._send_due)
                self._agenda.begin(start_s)
                self._drains_until_s = self._agenda.sends_until_s + self._plan.drain_timeout_s
                self._send_due()
                await self._watch(start_s)
                cpu_share = (time.process_time() - cpu_s) / (time.monotonic() - start_s)
        finally:
            self.stop()
            if self._alarm is not None:
                self._alarm.close()
            await self._pool.close()
        self._report_news(time.monotonic())
        for exchange in self._in_flight:
            exchange.fail(self._cut or "not finished when draining ended")
        return Done(
            requests=RequestTable.of([exchange.record() for exchange in self._exchanges]),
            health=ClientHealth(
                lag_p99_s=_p99([e.sent_s - e.due_s for e in self._exchanges if e.sent_s == e.sent_s]),
                cpu_share=cpu_share,
                loop_lag_p99_s=_p99(self._loop_lags_s),
            ),
        )

    def stop(self, *, cut: str | None = None) -> None:
        """Send nothing more; ``cut`` is why what is in flight is dropped, None to wait for it."""
        self._agenda.stop()
        self._cut = self._cut or cut
        self._drains_until_s = min(self._drains_until_s, time.monotonic() + self._plan.drain_timeout_s)

    # -- pacing

    def _send_due(self) -> None:
        """Send all that is due, however the earlier ones fare, and come back for the next."""
        now_s = time.monotonic()
        for index, due_s in self._agenda.due_by(now_s):
            self._due_news.append(due_s)
            exchange = self._requests.exchange(index, due_s)
            self._exchanges.append(exchange)
            self._in_flight.add(exchange)
            self._pool.send(exchange)
        if self._alarm is not None and (next_s := self._agenda.next_due_s) is not None:
            self._alarm.set(next_s)
        self._prepare_soon()

    def _prepare_soon(self) -> None:
        if not self._preparing:
            self._preparing = True
            asyncio.get_running_loop().call_soon(self._prepare_one)

    def _prepare_one(self) -> None:
        """Write one request ahead, unless the time to the next one is too short for it."""
        self._preparing = False
        if self._agenda.stopped:
            return
        now_s = time.monotonic()
        next_s = self._agenda.next_due_s
        has_time = next_s is None or next_s - now_s > self._requests.writing_s
        if has_time and self._requests.prepare_one(now_s):
            self._prepare_soon()

    def _on_ended(self, exchange: Exchange) -> None:
        """Note that nothing more is to come of an exchange; what waited for it may be due."""
        self._in_flight.discard(exchange)
        summary = exchange.summary()
        self._ended_news.append(summary)
        exchange.request = b""
        self._agenda.ended(exchange.index, exchange.finished_s, ok=summary.ok)
        if self._agenda.next_due_s is not None:
            self._send_due()

    # -- watching

    async def _watch(self, start_s: float) -> None:
        """Wait for the end.

        Ticks have due times of their own, so that a loop that was held up is late for each that it missed.
        """
        tick_s = start_s + TICK_S
        reported_s = start_s
        while True:
            await asyncio.sleep(max(SHORTEST_WAIT_S, tick_s - time.monotonic()))
            now_s = time.monotonic()
            while tick_s <= now_s:
                self._loop_lags_s.append(now_s - tick_s)
                tick_s += TICK_S
            if self._pool.client_limit is not None:
                raise BenchError(
                    f"the load client cannot open more connections than {len(self._pool)}: "
                    f"{self._pool.client_limit}; raise the limit on open files (ulimit -n) or lower the load"
                )
            self._expire(now_s)
            if self._cut is not None or now_s >= self._drains_until_s or self._is_over(now_s):
                return
            if now_s >= reported_s + REPORT_PERIOD_S:
                reported_s = now_s
                self._report_news(now_s)

    def _is_over(self, now_s: float) -> bool:
        if self._in_flight or self._agenda.next_due_s is not None:
            return False
        return (
            now_s >= self._agenda.sends_until_s or self._agenda.stopped or self._plan.concurrency is not None
        )

    def _expire(self, now_s: float) -> None:
        limit_s = now_s - self._plan.request_timeout_s
        for exchange in [e for e in self._in_flight if e.due_s <= limit_s]:
            if exchange.connection is not None:
                exchange.connection.abort()
            exchange.fail("timeout", now_s)
            self._on_ended(exchange)

    def _report_news(self, now_s: float) -> None:
        due_s = np.array(self._due_news, dtype=np.float64)
        ended = np.array(self._ended_news, dtype=np.float64).reshape(-1, len(EndedRequest._fields))
        self._report(Increment(now_s, due_s, ended))
        self._due_news, self._ended_news = [], []


class _Requests:
    """Writes requests shortly before they are due, so that a long plan starts at once and fits in memory."""

    def __init__(self, writer: RequestWriter, plan: LoadPlan, agenda: Agenda) -> None:
        self._writer = writer
        self._plan = plan
        self._agenda = agenda
        self._written: dict[int, bytes] = {}
        self._written_first_turns = 0
        self._sent_first_turns = 0
        self._later_turns: deque[int] = deque()
        self._wanted_first_turns = max(PREPARED_REQUESTS, plan.concurrency or 0)
        self.writing_s = 0.0
        """How long it took to write the last one."""

    def exchange(self, index: int, due_s: float) -> Exchange:
        """Return a request to send now."""
        planned = self._plan.requests[index]
        if index not in self._written:
            if planned.after is not None:
                self._later_turns.remove(index)
            self._write(index)
        if planned.after is None:
            self._sent_first_turns += 1
        self._later_turns.extend(self._agenda.followers(index))
        return Exchange(
            index=index,
            due_s=due_s,
            request=self._written.pop(index),
            prompt_tokens=sum(segment.tokens for segment in planned.prompt),
            chat=self._plan.api == "chat",
        )

    def prepare_one(self, now_s: float) -> bool:
        """Write the request that is wanted most; false when there is none to write yet."""
        index = self._next_to_write(now_s)
        if index is None:
            return False
        self._write(index)
        return True

    def _next_to_write(self, now_s: float) -> int | None:
        """A later turn of a conversation under way, or a first turn to come."""
        if self._later_turns:
            return self._later_turns.popleft()
        first_turns = self._agenda.first_turns
        if self._written_first_turns == len(first_turns):
            return None
        index = first_turns[self._written_first_turns]
        ahead = self._written_first_turns - self._sent_first_turns
        due_s = self._agenda.started_s + self._plan.requests[index].due_s
        soon = self._plan.concurrency is None and due_s <= now_s + PREPARED_S
        return index if ahead < self._wanted_first_turns or soon else None

    def _write(self, index: int) -> None:
        began_s = time.monotonic()
        planned = self._plan.requests[index]
        self._written[index] = self._writer.write(planned)
        if planned.after is None:
            self._written_first_turns += 1
        self.writing_s = time.monotonic() - began_s


def _p99(values: list[float]) -> float:
    return float(np.percentile(values, 99)) if values else 0.0


def _raise_file_limit(connections: int) -> None:
    """Allow as many open files as connections may be needed, as far as the hard limit goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < connections + SPARE_FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keep the collector's pauses out of what is timed."""
    gc.disable()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.enable()
