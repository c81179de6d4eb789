"""Power of NVIDIA GPUs through NVML: instant power, and the energy counter to check it against."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pynvml

from autotune.adapters.power_sampling import Sampling
from autotune.domain.errors import BenchError
from autotune.domain.hardware import Device
from autotune.domain.power import DevicePower, PowerBasis, PowerTrace

PERIOD_S = 0.05
INSTANT_SOURCE = "NVML instant power (NVML_FI_DEV_POWER_INSTANT)"
USAGE_SOURCE = "NVML power usage (nvmlDeviceGetPowerUsage: a 1 s mean on Ampere and later, GA100 excepted)"


@dataclass(frozen=True, slots=True)
class _Reading:
    """One device at one moment; ``counter_j`` is None for a device without a counter."""

    power_s: float
    power_w: float
    counter_s: float
    counter_j: float | None


_Readings = tuple[_Reading, ...]


class NvmlPowerMeter:
    """PowerMeter on basis ``gpu``; devices are found by their UUID, so CUDA_VISIBLE_DEVICES plays no part."""

    def __init__(self, *, period_s: float = PERIOD_S, nvml: Any = pynvml) -> None:
        self._period_s = period_s
        self._nvml = nvml

    @contextmanager
    def window(self, devices: Sequence[Device]) -> Iterator[NvmlRecording]:
        """Record for the length of a ``with`` block; raises BenchError where NVML or a device is missing."""
        with _nvml_errors("start NVML"):
            self._nvml.nvmlInit()
        try:
            with _nvml_errors("find the GPUs"):
                handles = tuple(self._nvml.nvmlDeviceGetHandleByUUID(device.uid) for device in devices)
                instant = all(_has_instant_power(self._nvml, handle) for handle in handles)
                counted = all(_has_counter(self._nvml, handle) for handle in handles)
            reader = _Reader(self._nvml, handles, instant=instant, counted=counted)
            with Sampling(reader.read, self._period_s) as sampling:
                yield NvmlRecording(
                    sampling.samples,
                    devices=tuple(devices),
                    period_s=self._period_s,
                    source=INSTANT_SOURCE if instant else USAGE_SOURCE,
                )
        finally:
            # After a lost GPU even this fails; what was wrong was said by then.
            with suppress(pynvml.NVMLError):
                self._nvml.nvmlShutdown()


class NvmlRecording:
    """PowerRecording of a window, under way or over."""

    def __init__(
        self,
        samples: Callable[[], tuple[_Readings, ...]],
        *,
        devices: tuple[Device, ...],
        period_s: float,
        source: str,
    ) -> None:
        self._samples = samples
        self._devices = devices
        self._period_s = period_s
        self._source = source

    def trace(self) -> PowerTrace:
        """Return what was recorded so far, up to now; raises BenchError when a GPU was lost."""
        samples = self._samples()
        return PowerTrace(
            basis=PowerBasis.GPU,
            source=self._source,
            period_s=self._period_s,
            devices=tuple(
                _device_power(device.uid, [readings[index] for readings in samples])
                for index, device in enumerate(self._devices)
            ),
        )


@dataclass(frozen=True, slots=True)
class _Reader:
    nvml: Any
    handles: tuple[Any, ...]
    instant: bool
    counted: bool

    def read(self) -> _Readings:
        """Read every device now; raises BenchError."""
        with _nvml_errors("read the power"):
            return tuple(self._read_one(handle) for handle in self.handles)

    def _read_one(self, handle: Any) -> _Reading:
        power_w = (
            _instant_power_w(self.nvml, handle)
            if self.instant
            else self.nvml.nvmlDeviceGetPowerUsage(handle) / 1e3
        )
        power_s = time.monotonic()
        counter_j = self.nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3 if self.counted else None
        return _Reading(power_s, power_w, time.monotonic(), counter_j)


def _device_power(uid: str, readings: Sequence[_Reading]) -> DevicePower:
    """Lay one device's readings out; a counter that ran backwards is left out whole.

    It was reset (a driver reload), and what it had counted up to then is not known: no counter is honest.
    """
    counter = [(r.counter_s, r.counter_j) for r in readings if r.counter_j is not None]
    at_s, counter_j = np.array(counter, dtype=np.float64).reshape(-1, 2).T
    if (np.diff(counter_j) < 0).any():
        at_s, counter_j = at_s[:0], counter_j[:0]
    return DevicePower(
        uid=uid,
        time_s=np.array([r.power_s for r in readings], dtype=np.float64),
        power_w=np.array([r.power_w for r in readings], dtype=np.float64),
        counter_time_s=at_s,
        counter_j=counter_j,
    )


def _instant_power_w(nvml: Any, handle: Any) -> float:
    """Read the instant power; raises NVMLError, also for what NVML reports inside the field."""
    (value,) = nvml.nvmlDeviceGetFieldValues(handle, [nvml.NVML_FI_DEV_POWER_INSTANT])
    if value.nvmlReturn != nvml.NVML_SUCCESS:
        raise pynvml.NVMLError(value.nvmlReturn)
    return float(value.value.uiVal) / 1e3


def _has_instant_power(nvml: Any, handle: Any) -> bool:
    """Whether the GPU and driver know the field; older ones answer in one of these ways."""
    try:
        _instant_power_w(nvml, handle)
    except (
        pynvml.NVMLError_NotSupported,
        pynvml.NVMLError_InvalidArgument,
        pynvml.NVMLError_FunctionNotFound,
    ):
        return False
    return True


def _has_counter(nvml: Any, handle: Any) -> bool:
    try:
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound):
        return False
    return True


@contextmanager
def _nvml_errors(doing: str) -> Iterator[None]:
    """Turn NVML's errors into BenchError: the configuration is not to blame for a lost meter."""
    try:
        yield
    except pynvml.NVMLError as error:
        raise BenchError(
            f"power meter lost: NVML could not {doing}: {error}; see `nvidia-smi` and the kernel log (Xid)"
        ) from error
