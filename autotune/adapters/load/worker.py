"""A load client as a process: ``python -m autotune.adapters.load.worker SOCKET_FD TUNER_PID``.

It does what the tuner orders over a socket (see messages), and ends when the tuner does, however it
ends: a socket that closed is the order to end, and so is another parent, for the case that something else
holds the socket open. The kernel's own signal for it, PR_SET_PDEATHSIG, would come when the *thread* ends
that started the worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import socket
import sys
from pathlib import Path
from typing import cast

import uvloop

from autotune.adapters.load.client import Drive
from autotune.adapters.load.messages import HEADER, Failed, Order, Prepare, Ready, Report, Start, Stop, framed
from autotune.domain.basics.errors import BenchError

FIRST_IN_LINE = -20
"""Niceness asked for: an engine that keeps every core busy must not be what delays the clock on it."""
PARENT_PERIOD_S = 0.5
"""How often the worker looks whether the tuner is still its parent."""


class Worker:
    """Drives one plan after another, as ordered."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._drive: Drive | None = None
        self._start_s: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    async def serve(self) -> None:
        """Follow orders until there is nobody to give them; an error in a drive ends the worker."""
        async with asyncio.TaskGroup() as tasks:
            driving: asyncio.Task[None] | None = None
            while (order := await self._order()) is not None:
                match order:
                    case Prepare():
                        self._start_s = asyncio.get_running_loop().create_future()
                        driving = tasks.create_task(self._carry_out(order))
                    case Start():
                        self._start_s.set_result(order.at_s)
                    case Stop():
                        if self._drive is not None:
                            self._drive.stop(cut=order.cut)
            if driving is not None:
                driving.cancel()

    async def _carry_out(self, order: Prepare) -> None:
        self._drive = Drive(order.endpoint, order.plan, self._say)
        await self._drive.prepare()
        self._say(Ready())
        try:
            self._say(await self._drive.run(await self._start_s))
        except BenchError as error:
            self._say(Failed(str(error)))
        finally:
            self._drive = None

    def _say(self, report: Report) -> None:
        self._writer.write(framed(report))

    async def _order(self) -> Order | None:
        try:
            (length,) = HEADER.unpack(await self._reader.readexactly(HEADER.size))
            data = await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        # The other end of the socket is the tuner, which started this process.
        return cast("Order", pickle.loads(data))  # noqa: S301


async def _end_with(tuner_pid: int) -> None:
    while os.getppid() == tuner_pid:
        await asyncio.sleep(PARENT_PERIOD_S)
    os._exit(0)


async def _serve(socket_fd: int, tuner_pid: int) -> None:
    watching = asyncio.create_task(_end_with(tuner_pid))
    reader, writer = await asyncio.open_unix_connection(sock=socket.socket(fileno=socket_fd))
    try:
        await Worker(reader, writer).serve()
    finally:
        watching.cancel()
        writer.close()


def _go_first() -> None:
    """Ask for FIRST_IN_LINE; where that is not allowed, the lag is measured and told as ever."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, FIRST_IN_LINE)
    # With autogroups niceness counts within a session alone, and this process is one of its own.
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(FIRST_IN_LINE))


def main() -> None:
    """Serve the tuner that the command line names."""
    _go_first()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(int(sys.argv[1]), int(sys.argv[2])))


if __name__ == "__main__":
    main()
