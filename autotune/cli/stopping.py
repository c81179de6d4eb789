"""Ctrl-C and SIGTERM as a request to stop cleanly."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from rich.console import Console

RESUMED = "stopping: the engine is being ended; `autotune resume` goes on from here"


@dataclass
class StopRequest:
    """Turns true once a signal asked to stop; remembers which, for the exit code."""

    signal: int = 0

    def __call__(self) -> bool:
        """Whether to stop."""
        return bool(self.signal)


@contextmanager
def stop_signals(console: Console, said: str = RESUMED) -> Iterator[StopRequest]:
    """Turn Ctrl-C and SIGTERM into a request to stop cleanly."""
    request = StopRequest()

    def ask(number: int, _frame: FrameType | None) -> None:
        if not request.signal:
            console.print(said)
        request.signal = number

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
