"""Streams as fast as one core can write them: prepared bytes, straight to the sockets, by turns."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import random
import time
from collections.abc import Iterator

from mock_wire import STREAM_HEAD, event

VARIANTS = 32
"""Ways in which an answer is cut into writes, so that streams do not run in lockstep."""
FULL_S = 0.0005


@functools.cache
def writes(tokens: int, events_per_write: int, variant: int) -> tuple[tuple[bytes, int], ...]:
    """An answer as (bytes, tokens) of each write: 1 to ``2 * events_per_write - 1`` events at random."""
    events = [event(json.dumps(chunk(n, is_last=n == tokens))) for n in range(1, tokens + 1)]
    sizes, cut = random.Random(variant), []
    while events:
        size = min(sizes.randint(1, 2 * events_per_write - 1), len(events))
        cut.append((b"".join(events[:size]), size))
        del events[:size]
    return ((STREAM_HEAD + cut[0][0], cut[0][1]), *cut[1:])


def chunk(number: int, *, is_last: bool) -> dict[str, object]:
    choice = {
        "index": 0,
        "text": f" t{number}",
        "logprobs": None,
        "finish_reason": "length" if is_last else None,
        "stop_reason": None,
    }
    return {
        "id": "cmpl-flood",
        "object": "text_completion",
        "created": 0,
        "model": "flood",
        "choices": [choice],
    }


class FloodStream:
    """One answer under way; ``made`` of its tokens are written."""

    def __init__(self, fd: int, answer: tuple[tuple[bytes, int], ...]) -> None:
        # A descriptor of its own: that of a connection which is lost meanwhile may be given to another.
        self._fd = os.dup(fd)
        self._left: Iterator[tuple[bytes, int]] = iter(answer)
        self._partial = b""
        self.made = 0
        self.write_s: list[float] = []
        self.ended = asyncio.get_running_loop().create_future()

    def write_next(self) -> bool:
        """Make the next write; whether anything could be written. Ends when all is, or the client is gone."""
        data, tokens = (self._partial, 0) if self._partial else next(self._left, (b"", 0))
        if not data:
            self.end()
            return True
        self.write_s[1:] = [time.monotonic()]
        self.made += tokens
        try:
            written = os.write(self._fd, data)
        except BlockingIOError:
            written = 0
        except OSError:
            self.end()
            return True
        self._partial = data[written:]
        return written > 0

    def end(self) -> None:
        os.close(self._fd)
        self.ended.set_result(None)


class Flood:
    """Writes the answers of all running requests, a write of each by turns."""

    def __init__(self, events_per_write: int) -> None:
        self._events_per_write = events_per_write
        self._started = 0
        self._streams: list[FloodStream] = []
        self._pump: asyncio.Task[None] | None = None

    def start(self, fd: int, tokens: int) -> FloodStream:
        """Begin an answer; await its ``ended``."""
        self._started += 1
        stream = FloodStream(fd, writes(tokens, self._events_per_write, self._started % VARIANTS))
        self._streams.append(stream)
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._write_by_turns())
        return stream

    async def _write_by_turns(self) -> None:
        while self._streams:
            progress = [stream.write_next() for stream in self._streams]
            self._streams = [s for s in self._streams if not s.ended.done()]
            await asyncio.sleep(0 if any(progress) else FULL_S)
