"""Connections of one drive: opened ahead of need, used again, and all closed at the end."""

from __future__ import annotations

import asyncio
import errno
import ssl
import time
from collections import deque
from collections.abc import Callable, Coroutine

from autotune.adapters.load.sse_protocol import Connection, Exchange

SPARE_CONNECTIONS = 16
"""Connections kept open ahead of need in open loop, so that a burst does not wait for handshakes."""
CONNECT_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 1.0
CLIENT_LIMITS = frozenset({errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL})
"""Errors of opening a connection that say nothing of the engine: this machine ran out."""


class ConnectionPool:
    """Gives every exchange a connection at once; ``slots`` is how many it takes at most in closed loop."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        slots: int | None,
        on_ended: Callable[[Exchange], None],
        encrypted: bool = False,
    ) -> None:
        self._host = host
        self._port = port
        self._tls = ssl.create_default_context() if encrypted else None
        self._slots = slots
        self.on_ended = on_ended
        self.client_limit: OSError | None = None
        """The error by which this machine ran out of connections, if it did."""
        # Last used at the right, never used at the left; taken from the right: servers close what idles.
        self._idle: deque[Connection] = deque()
        self._connections: set[Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._opening_spares = 0

    async def open_first(self) -> None:
        """Open the first connections; an error is left to the request that meets it."""
        self._open_spares(self._slots or SPARE_CONNECTIONS)
        if self._opening:
            await asyncio.wait(self._opening, timeout=CONNECT_TIMEOUT_S)

    def send(self, exchange: Exchange) -> None:
        """Send a request."""
        if self._idle:
            self._idle.pop().start(exchange, may_be_stale=True)
        else:
            self._spawn(self._send_on_new(exchange))
        if self._slots is None:
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

    async def close(self) -> None:
        """Leave no connection and no task behind."""
        for task in tuple(self._opening):
            task.cancel()
        await asyncio.gather(*self._opening, return_exceptions=True)
        for connection in tuple(self._connections):
            connection.abort()
        closed_by_s = time.monotonic() + CLOSE_TIMEOUT_S
        while self._connections and time.monotonic() < closed_by_s:
            await asyncio.sleep(0.001)

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
                    lambda: Connection(self), self._host, self._port, ssl=self._tls
                )
        except OSError as error:
            if error.errno in CLIENT_LIMITS:
                self.client_limit = error
            raise
        self._connections.add(connection)
        return connection

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    def __len__(self) -> int:
        return len(self._connections)
