"""Power of CPU cores where no meter is at hand: a model of how busy they are, and never more than that."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import psutil

from autotune.adapters.power.sampling import Sampling
from autotune.domain.basics.errors import BenchError
from autotune.domain.hardware.hardware import Device
from autotune.domain.measuring.power import DevicePower, PowerBasis, PowerTrace

PERIOD_S = 0.1
"""The kernel counts CPU time in ticks of 10 ms: ten to a sample."""
IDLE_W = 0.74
"""Watts of an idle virtual core: mean over AWS's processors in Cloud Carbon Footprint's methodology."""
ACTIVE_W = 3.5
"""Watts of a fully busy virtual core, from the same table (SPECpower results by microarchitecture)."""
SOURCE = (
    f"model, not a meter: {IDLE_W} W idle to {ACTIVE_W} W busy per core "
    "(Cloud Carbon Footprint, AWS mean) by the share of time each core was busy"
)


@dataclass(frozen=True, slots=True)
class CoreTime:
    """Seconds that a core was busy, and seconds counted at all, since the machine started."""

    busy_s: float
    total_s: float


CoreTimes = Callable[[], Sequence[CoreTime]]


def core_times() -> tuple[CoreTime, ...]:
    """Read the kernel's counters of every core.

    Time stolen by other virtual machines counts as not busy: they have it, not this engine.
    """
    times = []
    for core in psutil.cpu_times(percpu=True):
        busy_s = core.user + core.nice + core.system + core.irq + core.softirq
        times.append(CoreTime(busy_s, busy_s + core.idle + core.iowait + core.steal))
    return tuple(times)


class EstimatedPowerMeter:
    """PowerMeter on basis ``estimated``: idle + (active - idle) x busy share, for each core."""

    def __init__(self, *, period_s: float = PERIOD_S, read: CoreTimes = core_times) -> None:
        self._period_s = period_s
        self._read = read

    @contextmanager
    def window(self, devices: Sequence[Device]) -> Iterator[EstimatedRecording]:
        """Record for the length of a ``with`` block; raises BenchError for a core that is not there."""
        with Sampling(lambda: self._sample(devices), self._period_s) as sampling:
            yield EstimatedRecording(sampling.samples, devices=tuple(devices), period_s=self._period_s)

    def _sample(self, devices: Sequence[Device]) -> _Sample:
        times = self._read()
        for device in devices:
            if device.index >= len(times):
                raise BenchError(f"there is no core {device.index}: this machine counts {len(times)} of them")
        return _Sample(time.monotonic(), tuple(times[device.index] for device in devices))


@dataclass(frozen=True, slots=True)
class _Sample:
    at_s: float
    cores: tuple[CoreTime, ...]


class EstimatedRecording:
    """PowerRecording of a window, under way or over."""

    def __init__(
        self, samples: Callable[[], tuple[_Sample, ...]], *, devices: tuple[Device, ...], period_s: float
    ) -> None:
        self._samples = samples
        self._devices = devices
        self._period_s = period_s

    def trace(self) -> PowerTrace:
        """Return what was recorded so far, up to now."""
        samples = self._samples()
        return PowerTrace(
            basis=PowerBasis.ESTIMATED,
            source=SOURCE,
            period_s=self._period_s,
            devices=tuple(
                _device_power(device.uid, [s.at_s for s in samples], [s.cores[index] for s in samples])
                for index, device in enumerate(self._devices)
            ),
        )


def _device_power(uid: str, at_s: Sequence[float], times: Sequence[CoreTime]) -> DevicePower:
    """Model one core: each sample has the mean power since the one before, the first that of the second.

    There is no energy counter, so the energy of a window never passes for one that was checked.
    """
    shares = _busy_shares(times)
    none = np.zeros(0)
    return DevicePower(
        uid=uid,
        time_s=np.array(at_s, dtype=np.float64),
        power_w=IDLE_W + (ACTIVE_W - IDLE_W) * np.array([*shares[:1], *shares], dtype=np.float64),
        counter_time_s=none,
        counter_j=none,
    )


def _busy_shares(times: Sequence[CoreTime]) -> list[float]:
    """Busy share between each two samples; between samples too close for a tick, that of the ones before."""
    shares: list[float] = []
    for before, after in itertools.pairwise(times):
        total_s = after.total_s - before.total_s
        if total_s > 0:
            shares.append(min(1.0, max(0.0, (after.busy_s - before.busy_s) / total_s)))
        else:
            shares.append(shares[-1] if shares else 0.0)
    return shares
