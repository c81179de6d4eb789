"""What most meters have in common: readings of devices, and how they are laid out as a trace."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from autotune.domain.measuring.power import Conditions, DevicePower, Floats, PowerTrace, Slowdown

Sample = TypeVar("Sample")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One device at one moment, monotonic seconds; NaN for what the device does not tell.

    ``counter_j`` is read with the power, close enough to share its moment.
    """

    at_s: float
    power_w: float
    counter_j: float = math.nan
    temperature_c: float = math.nan
    clock_mhz: float = math.nan
    power_limit_w: float = math.nan
    slowdown: Slowdown = Slowdown.NONE


class Recording(Generic[Sample]):
    """PowerRecording of a window, under way or over: the samples so far, and how to lay them out."""

    def __init__(
        self, samples: Callable[[], tuple[Sample, ...]], lay_out: Callable[[tuple[Sample, ...]], PowerTrace]
    ) -> None:
        self._samples = samples
        self._lay_out = lay_out

    def trace(self) -> PowerTrace:
        """Return what was recorded so far, up to now; raises BenchError when the meter was lost."""
        return self._lay_out(self._samples())


def device_power(uid: str, readings: Sequence[Reading], foreign: tuple[str, ...] = ()) -> DevicePower:
    """Lay one device's readings out; a counter that ran backwards is left out whole.

    It was reset (a driver reload), and what it had counted up to then is not known: no counter is honest.
    """
    at_s = floats(reading.at_s for reading in readings)
    counter_j = floats(reading.counter_j for reading in readings)
    counted = np.isfinite(counter_j)
    if (np.diff(counter_j[counted]) < 0).any():
        counted[:] = False
    return DevicePower(
        uid=uid,
        time_s=at_s,
        power_w=floats(reading.power_w for reading in readings),
        counter_time_s=at_s[counted],
        counter_j=counter_j[counted],
        conditions=Conditions(
            time_s=at_s,
            temperature_c=floats(reading.temperature_c for reading in readings),
            clock_mhz=floats(reading.clock_mhz for reading in readings),
            power_limit_w=floats(reading.power_limit_w for reading in readings),
            slowdown=np.array([int(reading.slowdown) for reading in readings], dtype=np.int64),
        ),
        foreign=foreign,
    )


def floats(values: Iterable[float]) -> Floats:
    """Make a column of numbers."""
    return np.fromiter(values, dtype=np.float64)
