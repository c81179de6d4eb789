"""Samples a meter, or counters, in a thread, from the start of a window to its end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Generic, Self, TypeVar

from autotune.domain.basics.errors import BenchError

Sample = TypeVar("Sample")

ANSWER_TIMEOUT_S = 5.0
"""A meter that takes longer for one reading is lost."""


class Sampling(Generic[Sample]):
    """Calls ``read`` every ``period_s`` for the length of a ``with`` block, first and last moment included.

    Raises BenchError where ``read`` does: on entering, or from ``samples`` for what happened since.
    """

    def __init__(self, read: Callable[[], Sample], period_s: float, *, of: str = "power meter") -> None:
        self._read = read
        self._period_s = period_s
        self._of = of
        self._samples: list[Sample] = []
        self._lost: BenchError | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=of, daemon=True)

    def __enter__(self) -> Self:
        self._samples.append(self._read())
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(ANSWER_TIMEOUT_S)
        self._take()

    def samples(self) -> tuple[Sample, ...]:
        """Return all samples in order, the last one taken now while the block lasts."""
        if not self._stop.is_set():
            self._take()
        if self._lost is not None:
            raise self._lost
        return tuple(self._samples)

    def _run(self) -> None:
        next_s = time.monotonic() + self._period_s
        while not self._stop.wait(max(0.0, next_s - time.monotonic())):
            self._take()
            # A reader that takes longer than a period skips beats; it does not fall behind for ever.
            next_s = max(next_s + self._period_s, time.monotonic())

    def _take(self) -> None:
        """Add a sample; the lock keeps them in order of time."""
        if not self._lock.acquire(timeout=ANSWER_TIMEOUT_S):
            self._lost = BenchError(f"{self._of} lost: no reading within {ANSWER_TIMEOUT_S:g} s")
            return
        try:
            if self._lost is None:
                self._samples.append(self._read())
        except BenchError as error:
            self._lost = error
        finally:
            self._lock.release()
