"""A small HTTP server on a real socket that answers each request as a script says."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from autotune.domain.launches.endpoint import Endpoint

HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
)
DONE = b"data: [DONE]\n\n"


def event(value: object) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def token(text: str = " word", **extra: object) -> bytes:
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": None, **extra}
    return event({"id": "cmpl-1", "object": "text_completion", "choices": [choice], "usage": None})


def usage(prompt: int, completion: int) -> bytes:
    return event(
        {"id": "cmpl-1", "choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion}}
    )


def chunk(data: bytes) -> bytes:
    """One piece of a body in HTTP's chunked transfer encoding."""
    return b"%x\r\n%s\r\n" % (len(data), data)


END = chunk(b"")


@dataclass
class Call:
    """One request as the server saw it."""

    number: int
    connection: int
    path: str
    body: dict[str, object]
    writer: asyncio.StreamWriter
    head: str

    async def answer(self, document: object, status: int = 200) -> None:
        """Answer whole, as JSON."""
        content = json.dumps(document).encode()
        head = (
            f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        await self.send(head.encode() + content)

    async def send(self, *pieces: bytes, apart_s: float = 0.0) -> None:
        """Write each piece in a segment of its own."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(apart_s)


Script = Callable[[Call], Awaitable[None]]


@dataclass
class Server:
    """Serves every request by a script; a script that closes the writer ends the connection."""

    script: Script
    port: int = 0
    calls: list[Call] = field(default_factory=list)
    received_s: list[float] = field(default_factory=list)
    busy: int = 0
    most_busy: int = 0
    connections: Iterator[int] = field(default_factory=itertools.count)

    async def on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = next(self.connections)
        try:
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                body = json.loads(await reader.readexactly(length))
                path = head.split(b" ", 2)[1].decode()
                call = Call(len(self.calls), connection, path, body, writer, head.decode())
                self.calls.append(call)
                self.received_s.append(time.monotonic())
                self.busy += 1
                self.most_busy = max(self.most_busy, self.busy)
                try:
                    await self.script(call)
                finally:
                    self.busy -= 1
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(f"http://127.0.0.1:{self.port}", "tiny")


@contextmanager
def serving(script: Script) -> Iterator[Server]:
    """Run a server in a thread of its own for the length of a ``with`` block."""
    server = Server(script)
    loop = asyncio.new_event_loop()
    listener = loop.run_until_complete(asyncio.start_server(server.on_connection, "127.0.0.1", 0))
    server.port = listener.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server
    finally:

        async def shut_down() -> None:
            listener.close()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(shut_down(), loop).result(timeout=10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=10)
        loop.close()
