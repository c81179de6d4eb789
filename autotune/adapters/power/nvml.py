"""Power of NVIDIA GPUs through NVML: instant power, the energy counter to check it against, and conditions.

zeus 0.16 reads neither clocks nor why they were held back, stamps its samples with the wall clock in other
processes, and takes the whole module for the GPU on Grace. So pynvml, which it stands on, is used directly.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import numpy as np
import pynvml

from autotune.adapters.devices.gpu_processes import foreign_processes
from autotune.adapters.devices.nvml_handles import whole_gpu
from autotune.adapters.power.reading import Reading, Recording, device_power, floats
from autotune.adapters.power.sampling import Sampling
from autotune.domain.basics.errors import BenchError
from autotune.domain.hardware.hardware import Device
from autotune.domain.measuring.power import DevicePower, PowerBasis, PowerScope, PowerTrace, Slowdown

PERIOD_S = 0.05
CONDITIONS_PERIOD_S = 1.0
INSTANT_SOURCE = "NVML instant power (NVML_FI_DEV_POWER_INSTANT, GPU scope)"
USAGE_SOURCE = "NVML power usage (nvmlDeviceGetPowerUsage: a 1 s mean on Ampere and later, GA100 excepted)"
WRAP_J = 2**32 / 1e3
"""Where a counter of 32 bits of millijoules starts again."""
COUNTER_STEP_S = 0.1
"""The longest that counters are known to stand still between updates (20 to 100 ms)."""
WRAP_STEP = 2.0
"""A wrap adds at most this many times what the highest power seen would."""

_ABSENT = (
    pynvml.NVMLError_NotSupported,
    pynvml.NVMLError_InvalidArgument,
    pynvml.NVMLError_FunctionNotFound,
    pynvml.NVMLError_Deprecated,
)
"""How GPUs and drivers answer for what they do not know, or know no longer."""
_FIELD_MEMBERS = {
    pynvml.NVML_VALUE_TYPE_DOUBLE: "dVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG: "ulVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "ullVal",
}
_SLOWDOWNS = {
    pynvml.nvmlClocksEventReasonSwPowerCap: Slowdown.POWER_CAP,
    pynvml.nvmlClocksEventReasonSwThermalSlowdown: Slowdown.THERMAL,
    pynvml.nvmlClocksEventReasonHwThermalSlowdown: Slowdown.THERMAL,
    pynvml.nvmlClocksEventReasonHwSlowdown: Slowdown.HARDWARE,
    pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown: Slowdown.HARDWARE,
}
"""NVML's reasons that mean less work for a watt; an idle GPU, set clocks and synchronised boost do not."""
_REMEDIES = {
    pynvml.NVML_ERROR_GPU_IS_LOST: "the GPU fell off the bus: see the kernel log (Xid), reset it or reboot",
    pynvml.NVML_ERROR_RESET_REQUIRED: "reset it (`nvidia-smi --gpu-reset`) or reboot",
    pynvml.NVML_ERROR_NO_PERMISSION: "allow this user to read and write /dev/nvidia*, or leave the container",
    pynvml.NVML_ERROR_NOT_FOUND: "it is not on this machine any more, or this container does not see it",
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "install NVIDIA's driver, or start the container with its runtime",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "load the driver again (`sudo modprobe nvidia`)",
    pynvml.NVML_ERROR_UNINITIALIZED: "the driver went away: see that `nvidia-smi` answers",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "the driver was replaced underneath: reboot",
}


class _Counter(Enum):
    """Which energy counter a GPU has."""

    SCOPED = "NVML_FI_DEV_ENERGY, in GPU scope"
    TOTAL = "nvmlDeviceGetTotalEnergyConsumption"
    NONE = "none that counts the GPU alone"


@dataclass(frozen=True, slots=True)
class _Gpu:
    uid: str
    handle: Any
    instant: bool
    counter: _Counter


@dataclass(frozen=True, slots=True)
class _Beat:
    """One GPU at one moment; ``foreign`` is None where only power was read, and no conditions."""

    reading: Reading
    foreign: frozenset[str] | None = None


_Beats = tuple[_Beat, ...]


class NvmlPowerMeter:
    """PowerMeter on basis ``gpu``; devices are found by their UUID, so CUDA_VISIBLE_DEVICES plays no part."""

    def __init__(
        self,
        *,
        period_s: float = PERIOD_S,
        conditions_period_s: float = CONDITIONS_PERIOD_S,
        nvml: Any = pynvml,
    ) -> None:
        self._period_s = period_s
        self._conditions_period_s = conditions_period_s
        self._nvml = nvml

    @contextmanager
    def window(self, devices: Sequence[Device]) -> Iterator[Recording[_Beats]]:
        """Record for the length of a ``with`` block; raises BenchError where NVML or a device is missing.

        GPUs that tell no power are reserved and have no trace; BenchError where that is all of them.
        """
        with _nvml_errors("start NVML"):
            self._nvml.nvmlInit()
        try:
            gpus = self._find(devices)
            every = round(self._conditions_period_s / self._period_s)
            reader = _Reader(self._nvml, gpus, conditions_every=every)
            with Sampling(reader.read, self._period_s) as sampling:
                yield Recording(sampling.samples, lambda beats: self._trace(devices, gpus, beats))
        finally:
            # After a lost GPU even this fails; what was wrong was said by then.
            with suppress(pynvml.NVMLError):
                self._nvml.nvmlShutdown()

    def _find(self, devices: Sequence[Device]) -> tuple[_Gpu, ...]:
        gpus = []
        for device in devices:
            with _nvml_errors(f"find {device.uid}"):
                gpus.append(_gpu(self._nvml, device.uid))
        found = tuple(gpu for gpu in gpus if gpu is not None)
        if not found:
            raise BenchError(
                f"NVML tells no power of {', '.join(d.uid for d in devices)}: these GPUs, or their virtual "
                "machine, have no power sensor; measure the node, or rank by `estimated` power"
            )
        return found

    def _trace(
        self, devices: Sequence[Device], gpus: Sequence[_Gpu], samples: Sequence[_Beats]
    ) -> PowerTrace:
        return PowerTrace(
            basis=PowerBasis.GPU,
            source="; ".join(dict.fromkeys(INSTANT_SOURCE if gpu.instant else USAGE_SOURCE for gpu in gpus)),
            period_s=self._period_s,
            devices=tuple(
                _device_power(gpu.uid, [beats[index] for beats in samples]) for index, gpu in enumerate(gpus)
            ),
            scope=PowerScope.GPU,
            reserved=tuple(device.uid for device in devices),
        )


class _Reader:
    """Reads all GPUs' power at every beat, and the conditions of each at every ``conditions_every``-th.

    They take turns, so that no beat takes so long that the power has a gap; at the first beat all are read.
    """

    def __init__(self, nvml: Any, gpus: tuple[_Gpu, ...], *, conditions_every: int) -> None:
        self._nvml = nvml
        self._gpus = gpus
        self._every = max(conditions_every, len(gpus))
        self._beat = 0

    def read(self) -> _Beats:
        """Read every GPU now; raises BenchError."""
        beats = []
        for index, gpu in enumerate(self._gpus):
            with _nvml_errors(f"read {gpu.uid}"):
                beat = _Beat(self._power(gpu))
                if self._beat == 0 or self._beat % self._every == index:
                    beat = self._with_conditions(gpu.handle, beat.reading)
            beats.append(beat)
        self._beat += 1
        return tuple(beats)

    def _power(self, gpu: _Gpu) -> Reading:
        power_w = _instant_w(self._nvml, gpu.handle) if gpu.instant else _usage_w(self._nvml, gpu.handle)
        at_s = time.monotonic()
        return Reading(at_s=at_s, power_w=power_w, counter_j=_counted_j(self._nvml, gpu.handle, gpu.counter))

    def _with_conditions(self, handle: Any, reading: Reading) -> _Beat:
        nvml = self._nvml
        reasons = _told(lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
        told = replace(
            reading,
            temperature_c=_temperature_c(nvml, handle),
            clock_mhz=_told(lambda: nvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)),
            power_limit_w=_told(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle)) / 1e3,
            slowdown=Slowdown.NONE if math.isnan(reasons) else slowdown(int(reasons)),
        )
        foreign = foreign_processes(
            lambda: [process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)]
        )
        return _Beat(told, foreign)


def slowdown(reasons: int) -> Slowdown:
    """Read NVML's clocks-event reasons; bits that do not concern us, or are not known, are nothing."""
    found = Slowdown.NONE
    for bit, meaning in _SLOWDOWNS.items():
        if reasons & bit:
            found |= meaning
    return found


def unwrapped(readings: Sequence[Reading]) -> list[Reading]:
    """Undo wraps of the energy counter at 32 bits, over one reading or more; any other fall is left as it is.

    NVML promises 64 bits of millijoules since the driver was loaded, and counters do pass 2**32 (1.3e11 on an
    A30, NVIDIA/dcgm-exporter#317); a driver that kept 32 bits would start again every 4.3 MJ, 70 min at 1 kW.
    What the step would then have counted must be what the power seen can draw in its time; a reset, which may
    come at any count, looks so by chance once in thousands.
    """
    counter_j = floats(reading.counter_j for reading in readings)
    at_s = floats(reading.at_s for reading in readings)
    most_w = WRAP_STEP * max(reading.power_w for reading in readings)
    step_j = np.diff(counter_j)
    from_below = (step_j < 0) & (counter_j[:-1] < WRAP_J)
    wraps = from_below & (step_j + WRAP_J <= most_w * (np.diff(at_s) + COUNTER_STEP_S))
    added_j = WRAP_J * np.concatenate(([0], np.cumsum(wraps)))
    return [
        replace(reading, counter_j=reading.counter_j + float(added))
        for reading, added in zip(readings, added_j, strict=True)
    ]


def _device_power(uid: str, beats: Sequence[_Beat]) -> DevicePower:
    """Lay one GPU out; its conditions only at the beats that read them."""
    told = [beat.reading for beat in beats if beat.foreign is not None]
    foreign = frozenset[str]().union(*(beat.foreign for beat in beats if beat.foreign is not None))
    power = device_power(uid, unwrapped([beat.reading for beat in beats]), tuple(sorted(foreign)))
    return replace(power, conditions=device_power(uid, told).conditions)


def _gpu(nvml: Any, uid: str) -> _Gpu | None:
    """Find out what a GPU and its driver know; None where they know no power."""
    handle = whole_gpu(nvml, uid)
    instant = _answers(lambda: _instant_w(nvml, handle))
    if not instant and not _answers(lambda: _usage_w(nvml, handle)):
        return None
    return _Gpu(uid, handle, instant, _counter(nvml, handle))


def _counter(nvml: Any, handle: Any) -> _Counter:
    """Choose a counter of the GPU alone.

    The counter without a scope counts the whole module on Grace Hopper (ml-energy/zeus#172), where it would
    never agree with the GPU's power; whether there is a module is seen by whether its power is told.
    """
    if _answers(lambda: _counted_j(nvml, handle, _Counter.SCOPED)):
        return _Counter.SCOPED
    in_module = _answers(lambda: _instant_w(nvml, handle, module=True))
    if not in_module and _answers(lambda: _counted_j(nvml, handle, _Counter.TOTAL)):
        return _Counter.TOTAL
    return _Counter.NONE


def _instant_w(nvml: Any, handle: Any, *, module: bool = False) -> float:
    scope = pynvml.NVML_POWER_SCOPE_MODULE if module else pynvml.NVML_POWER_SCOPE_GPU
    return _field(nvml, handle, pynvml.NVML_FI_DEV_POWER_INSTANT, scope) / 1e3


def _usage_w(nvml: Any, handle: Any) -> float:
    return float(nvml.nvmlDeviceGetPowerUsage(handle)) / 1e3


def _counted_j(nvml: Any, handle: Any, counter: _Counter) -> float:
    match counter:
        case _Counter.SCOPED:
            return _field(nvml, handle, pynvml.NVML_FI_DEV_ENERGY, pynvml.NVML_POWER_SCOPE_GPU) / 1e3
        case _Counter.TOTAL:
            return float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
        case _Counter.NONE:
            return math.nan


def _field(nvml: Any, handle: Any, field: int, scope: int) -> float:
    """Read one field in a scope; raises NVMLError, also for what NVML reports inside the field."""
    (value,) = nvml.nvmlDeviceGetFieldValues(handle, [(field, scope)])
    if value.nvmlReturn != pynvml.NVML_SUCCESS:
        raise pynvml.NVMLError(value.nvmlReturn)
    return float(getattr(value.value, _FIELD_MEMBERS[value.valueType]))


def _temperature_c(nvml: Any, handle: Any) -> float:
    """Ask by the function of newer drivers, then by the one that they are about to drop."""
    sensor = pynvml.NVML_TEMPERATURE_GPU
    by_version = _told(lambda: nvml.nvmlDeviceGetTemperatureV(handle, sensor))
    return (
        _told(lambda: nvml.nvmlDeviceGetTemperature(handle, sensor)) if math.isnan(by_version) else by_version
    )


def _answers(ask: Callable[[], float]) -> bool:
    """Whether a sensor is there: some are told of as 0 where they are not."""
    return _told(ask) > 0


def _told(ask: Callable[[], float]) -> float:
    """Return the answer, NaN where the GPU or its driver does not know; raises any other NVMLError."""
    try:
        return float(ask())
    except _ABSENT:
        return math.nan


@contextmanager
def _nvml_errors(doing: str) -> Iterator[None]:
    """Turn NVML's errors into BenchError: the configuration is not to blame for a lost meter."""
    try:
        yield
    except pynvml.NVMLError as error:
        remedy = _REMEDIES.get(error.value, "see `nvidia-smi` and the kernel log (Xid)")
        raise BenchError(f"power meter lost: NVML could not {doing}: {error}; {remedy}") from error
