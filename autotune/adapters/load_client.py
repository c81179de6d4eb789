"""Drives open- and closed-loop load at an OpenAI-compatible engine, on one event loop of its own."""

from __future__ import annotations

import asyncio
import errno
import gc
import json
import resource
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import numpy as np
import uvloop

from autotune.adapters.sse_protocol import Connection, Exchange
from autotune.domain.errors import BenchError, StudyCancelledError
from autotune.domain.launch import Endpoint
from autotune.domain.measurement import ClientHealth, LoadResult
from autotune.domain.ports import Cancelled
from autotune.domain.workload import LoadPlan, PlannedRequest

TICK_S = 0.05
"""How often the engine's life, cancelling and deadlines are looked at."""
SPARE_CONNECTIONS = 16
"""Connections kept open ahead of need, so that a burst does not wait for handshakes."""
CONNECT_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 1.0
SHORTEST_WAIT_S = 0.001
"""The event loop's timers count whole milliseconds."""
CLIENT_LIMITS = frozenset({errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL})
"""Errors of opening a connection that say nothing of the engine: this machine ran out."""
SPARE_FILES = 256
"""File descriptors left to the rest of the process."""


class HttpLoadDriver:
    """LoadDriver over HTTP: ``/v1/completions``, streamed, every token timed when its chunk arrives."""

    def drive(
        self, endpoint: Endpoint, plan: LoadPlan, *, alive: Callable[[], bool], cancelled: Cancelled
    ) -> LoadResult:
        """Send every request of the plan; each failure is data in its record.

        An open-loop drive lasts until ``duration_s`` even if all requests ended earlier. Raises
        StudyCancelledError, and BenchError when this machine cannot open the connections needed.
        """
        address = _Address(endpoint)
        exchanges = [_exchange(address, endpoint.model, request) for request in plan.requests]
        _raise_file_limit(plan.concurrency or len(exchanges))
        with _no_garbage_collection(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_Drive(address, plan, exchanges).run(alive, cancelled))


class _Address:
    """Host, port and path of an endpoint; raises ValueError for what is not plain HTTP."""

    def __init__(self, endpoint: Endpoint) -> None:
        url = urlsplit(endpoint.base_url)
        if url.scheme != "http" or url.hostname is None:
            raise ValueError(f"an endpoint is http://HOST:PORT, not {endpoint.base_url!r}")
        self.host = url.hostname
        self.port = url.port or 80
        self.netloc = url.netloc
        self.path = f"{url.path.rstrip('/')}/v1/completions"


def _exchange(address: _Address, model: str, planned: PlannedRequest) -> Exchange:
    """Write a request out in full, so that sending it is one write."""
    body = json.dumps(
        {
            "model": model,
            "prompt": planned.prompt,
            "max_tokens": planned.output_tokens,
            "ignore_eos": True,
            # Greedy, so that every configuration generates the same tokens from the same plan: which experts
            # are used and which speculated tokens are accepted hang on them, and so would the comparison.
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
        separators=(",", ":"),
    ).encode()
    head = (
        f"POST {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    return Exchange(due_s=planned.due_s, request=head + body, prompt_tokens=len(planned.prompt))


class _Drive:
    """One drive under way: paces requests, owns the connections, ends what does not end by itself."""

    def __init__(self, address: _Address, plan: LoadPlan, exchanges: list[Exchange]) -> None:
        self._address = address
        self._plan = plan
        self._exchanges = exchanges
        self._next = 0
        self._started_s = 0.0
        self._in_flight: set[Exchange] = set()
        # Last used at the right, never used at the left; taken from the right: servers close what idles.
        self._idle: deque[Connection] = deque()
        self._connections: set[Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._opening_spares = 0
        self._client_limit: OSError | None = None
        self._closing = False

    async def run(self, alive: Callable[[], bool], cancelled: Cancelled) -> LoadResult:
        """Drive from the first request to the last answer, or to the end of draining."""
        try:
            self._open_spares(self._plan.concurrency or SPARE_CONNECTIONS)
            if self._opening:
                await asyncio.wait(self._opening, timeout=CONNECT_TIMEOUT_S)
            cpu_s = time.process_time()
            self._start()
            engine_died = await self._watch(alive, cancelled)
            wall_s = time.monotonic() - self._started_s
            cpu_share = (time.process_time() - cpu_s) / wall_s
        finally:
            await self._close()
        self._fail_unfinished("engine died" if engine_died else "not finished when draining ended")
        return LoadResult(
            records=tuple(exchange.record() for exchange in self._taken()),
            started_s=self._started_s,
            health=ClientHealth(lag_p99_s=self._lag_p99_s(), cpu_share=cpu_share),
            engine_died=engine_died,
        )

    # -- pacing

    def _start(self) -> None:
        self._started_s = time.monotonic()
        if self._plan.concurrency is None:
            for exchange in self._exchanges:
                exchange.due_s += self._started_s
            self._send_due()
        else:
            for _ in range(self._plan.concurrency):
                self._send_next()

    def _send_due(self) -> None:
        """Open loop: send all that is due, however the earlier ones fare, and come back for the next."""
        now_s = time.monotonic()
        while self._next < len(self._exchanges) and self._exchanges[self._next].due_s <= now_s:
            self._send(self._exchanges[self._next])
            self._next += 1
        if self._next < len(self._exchanges) and not self._closing:
            wait_s = max(self._exchanges[self._next].due_s - now_s, SHORTEST_WAIT_S)
            asyncio.get_running_loop().call_later(wait_s, self._send_due)

    def _send_next(self) -> None:
        """Closed loop: fill a slot that is free now."""
        now_s = time.monotonic()
        if self._next < len(self._exchanges) and now_s < self._sends_until_s and not self._closing:
            exchange = self._exchanges[self._next]
            self._next += 1
            exchange.due_s = now_s
            self._send(exchange)

    @property
    def _sends_until_s(self) -> float:
        return self._started_s + self._plan.duration_s

    # -- watching

    async def _watch(self, alive: Callable[[], bool], cancelled: Cancelled) -> bool:
        """Wait for the end; whether it came by the engine's death."""
        ends_s = self._sends_until_s
        if self._plan.concurrency is None and self._exchanges:
            ends_s = max(ends_s, self._exchanges[-1].due_s)
        while True:
            await asyncio.sleep(TICK_S)
            if cancelled():
                raise StudyCancelledError("stopped while driving load")
            if self._client_limit is not None:
                raise BenchError(
                    f"the load client cannot open more connections than {len(self._connections)}: "
                    f"{self._client_limit}; raise the limit on open files (ulimit -n) or lower the load"
                ) from self._client_limit
            if not alive():
                return True
            now_s = time.monotonic()
            self._expire(now_s)
            if now_s >= ends_s + self._plan.drain_timeout_s or self._is_over(now_s, ends_s):
                return False

    def _is_over(self, now_s: float, ends_s: float) -> bool:
        if self._in_flight:
            return False
        return now_s >= ends_s or (self._plan.concurrency is not None and self._next == len(self._exchanges))

    def _expire(self, now_s: float) -> None:
        limit_s = now_s - self._plan.request_timeout_s
        for exchange in [e for e in self._in_flight if e.due_s <= limit_s]:
            if exchange.connection is not None:
                exchange.connection.abort()
            exchange.fail("timeout", now_s)
            self.on_ended(exchange)

    # -- exchanges and connections

    def _send(self, exchange: Exchange) -> None:
        self._in_flight.add(exchange)
        if self._idle:
            self._idle.pop().start(exchange, may_be_stale=True)
        else:
            self._spawn(self._send_on_new(exchange))
        self._open_spares(SPARE_CONNECTIONS)

    def on_stale(self, exchange: Exchange) -> None:
        """Send again, on a new connection: no byte of an answer had come."""
        exchange.connection = None
        self._spawn(self._send_on_new(exchange))

    def on_idle(self, connection: Connection) -> None:
        """Take back a connection that can carry another request."""
        self._idle.append(connection)

    def on_lost(self, connection: Connection) -> None:
        """Forget a connection."""
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def on_ended(self, exchange: Exchange) -> None:
        """Note that nothing more is to come of an exchange; in closed loop its slot is free."""
        self._in_flight.discard(exchange)
        if self._plan.concurrency is not None:
            self._send_next()

    async def _send_on_new(self, exchange: Exchange) -> None:
        try:
            connection = await self._connect()
        except OSError as error:
            if not exchange.ended:
                exchange.fail(f"connection: {error or 'timed out'}", time.monotonic())
                self.on_ended(exchange)
            return
        if exchange.ended:
            self.on_idle(connection)
        else:
            connection.start(exchange, may_be_stale=False)

    def _open_spares(self, wanted: int) -> None:
        """Open connections ahead of need, in open loop for ever more, in closed loop once for all."""
        if self._plan.concurrency is not None and self._started_s:
            return
        for _ in range(wanted - len(self._idle) - self._opening_spares):
            self._opening_spares += 1
            self._spawn(self._open_spare())

    async def _open_spare(self) -> None:
        try:
            self._idle.appendleft(await self._connect())
        except OSError:
            # A request that needs a connection will meet the same error, and record it.
            return
        finally:
            self._opening_spares -= 1

    async def _connect(self) -> Connection:
        """Open a connection; raises OSError, of which TimeoutError is one."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, connection = await loop.create_connection(
                    lambda: Connection(self), self._address.host, self._address.port
                )
        except OSError as error:
            if error.errno in CLIENT_LIMITS:
                self._client_limit = error
            raise
        self._connections.add(connection)
        return connection

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _close(self) -> None:
        """Leave no connection and no task behind."""
        self._closing = True
        for task in tuple(self._opening):
            task.cancel()
        await asyncio.gather(*self._opening, return_exceptions=True)
        for connection in tuple(self._connections):
            connection.abort()
        closed_by_s = time.monotonic() + CLOSE_TIMEOUT_S
        while self._connections and time.monotonic() < closed_by_s:
            await asyncio.sleep(SHORTEST_WAIT_S)

    # -- results

    def _taken(self) -> list[Exchange]:
        """Requests that count: all that were planned in open loop, all that were started in closed loop."""
        return self._exchanges if self._plan.concurrency is None else self._exchanges[: self._next]

    def _fail_unfinished(self, error: str) -> None:
        for exchange in self._taken():
            if not exchange.ended:
                exchange.fail(error)

    def _lag_p99_s(self) -> float:
        lags_s = [e.sent_s - e.due_s for e in self._taken() if e.sent_s == e.sent_s]
        return float(np.percentile(lags_s, 99)) if lags_s else 0.0


def _raise_file_limit(connections: int) -> None:
    """Allow as many open files as connections may be needed, as far as the hard limit goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < connections + SPARE_FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keep the collector's pauses out of what is timed."""
    was_enabled = gc.isenabled()
    gc.disable()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()
