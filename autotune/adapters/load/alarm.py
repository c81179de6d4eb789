"""Calls back at a moment of the monotonic clock to within some 0.1 ms, where event loops count whole ms.

Linux's timerfd is a file that becomes readable at a moment; Python has it from 3.13 on, the C library from
2008. Where there is none the event loop's own timers serve.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import time
from collections.abc import Callable

CLOCK_MONOTONIC = 1
ABSOLUTE = 1
"""TFD_TIMER_ABSTIME: the time set is a moment, not a wait."""
LEAST_NS = 1
"""A time of 0 would disarm the timer; a moment long past goes off at once."""
SHORTEST_WAIT_S = 0.001
"""What an event loop's own timer cannot undercut."""


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Setting(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Alarm:
    """One moment at a time: setting another takes the place of the one before. Belongs to a running loop."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.TimerHandle | None = None
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = -1
        self._closed = False
        with contextlib.suppress(AttributeError):  # no timerfd here
            self._fd = self._libc.timerfd_create(CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd >= 0:
            self._loop.add_reader(self._fd, self._went_off)

    def set(self, at_s: float) -> None:
        """Ring at a moment, monotonic seconds; at once where it is past. One that was closed never rings."""
        if self._closed:
            return
        if self._fd < 0:
            self._cancel_handle()
            wait_s = max(at_s - time.monotonic(), SHORTEST_WAIT_S)
            self._handle = self._loop.call_later(wait_s, self._ring)
            return
        seconds, nanoseconds = divmod(max(int(at_s * 1e9), LEAST_NS), 10**9)
        setting = _Setting(_Timespec(0, 0), _Timespec(seconds, nanoseconds))
        self._libc.timerfd_settime(self._fd, ABSOLUTE, ctypes.byref(setting), None)

    def close(self) -> None:
        """Ring no more."""
        self._closed = True
        self._cancel_handle()
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _went_off(self) -> None:
        with contextlib.suppress(BlockingIOError):  # set anew since
            os.read(self._fd, 8)
            self._ring()

    def _cancel_handle(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
