"""The NVML meter over a hand-written NVML; tests/integration/test_nvml_standin.py has it load a library."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pynvml
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.adapters.devices.gpu_processes import foreign_processes
from autotune.adapters.power.nvml import (
    INSTANT_SOURCE,
    USAGE_SOURCE,
    WRAP_J,
    NvmlPowerMeter,
    slowdown,
    unwrapped,
)
from autotune.adapters.power.reading import Reading
from autotune.domain.basics.errors import BenchError
from autotune.domain.hardware.hardware import Device, DeviceKind
from autotune.domain.measuring.power import PowerBasis, PowerScope, Slowdown, Window, integrate_j

GPUS = tuple(Device(DeviceKind.CUDA, i, "Fake GPU", f"GPU-{i}", 1 << 30) for i in range(2))

NOT_SUPPORTED = pynvml.NVML_ERROR_NOT_SUPPORTED
LOST = pynvml.NVML_ERROR_GPU_IS_LOST
POWER = pynvml.NVML_FI_DEV_POWER_INSTANT
ENERGY = pynvml.NVML_FI_DEV_ENERGY


def no_meter_threads() -> bool:
    return not any(thread.name == "power meter" for thread in threading.enumerate())


@dataclass
class FakeNvml:
    """GPU ``i`` draws ``100 * (i + 1)`` W, and its counters say so; the rest is what goes wrong.

    ``errors`` by function or (field, scope); ``mute`` are the GPUs that they concern.
    """

    errors: dict[object, int] = field(
        default_factory=lambda: {(POWER, pynvml.NVML_POWER_SCOPE_MODULE): NOT_SUPPORTED}
    )
    mute: tuple[int, ...] = (0, 1)
    lost_after: int = 1_000_000
    counter_offsets_mj: dict[int, float] = field(default_factory=dict)
    reasons: int = 0
    power_reads: int = 0
    conditions_reads: list[int] = field(default_factory=list)
    inits: int = 0
    started_s: float = field(default_factory=time.monotonic)

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's names
        self.inits += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.inits -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:  # noqa: N802
        if uuid not in {device.uid for device in GPUS}:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return int(uuid.removeprefix("GPU-"))

    def nvmlDeviceGetFieldValues(  # noqa: N802
        self, handle: int, fields: list[tuple[int, int]]
    ) -> list[SimpleNamespace]:
        (asked,) = fields
        error = self.errors.get(asked, 0) if handle in self.mute else 0
        if asked[0] == POWER:
            self._read()
            value = SimpleNamespace(uiVal=100_000 * (handle + 1), ullVal=-1)
            return [
                SimpleNamespace(nvmlReturn=error, valueType=pynvml.NVML_VALUE_TYPE_UNSIGNED_INT, value=value)
            ]
        value = SimpleNamespace(uiVal=-1, ullVal=self._counter_mj(handle))
        kind = pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG
        return [SimpleNamespace(nvmlReturn=error, valueType=kind, value=value)]

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:  # noqa: N802
        self._fail("usage", handle)
        self._read()
        return 90_000 * (handle + 1)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> float:  # noqa: N802
        self._fail("total", handle)
        return self._counter_mj(handle)

    def nvmlDeviceGetTemperatureV(self, handle: int, sensor: int) -> int:  # noqa: N802
        self._fail("temperature-v", handle)
        return 61

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:  # noqa: N802
        return 60

    def nvmlDeviceGetClockInfo(self, handle: int, kind: int) -> int:  # noqa: N802
        assert kind == pynvml.NVML_CLOCK_SM
        return 1980

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: int) -> int:  # noqa: N802
        self._fail("limit", handle)
        return 700_000

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: int) -> int:  # noqa: N802
        self.conditions_reads.append(handle)
        return self.reasons

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[SimpleNamespace]:  # noqa: N802
        return [SimpleNamespace(pid=os.getpid())]

    def _fail(self, function: str, handle: int) -> None:
        if handle in self.mute and function in self.errors:
            raise pynvml.NVMLError(self.errors[function])

    def _counter_mj(self, handle: int) -> float:
        counted_mj = 1e5 * (handle + 1) * (time.monotonic() - self.started_s)
        return 1e9 + counted_mj + self.counter_offsets_mj.get(handle, 0.0)

    def _read(self) -> None:
        self.power_reads += 1
        if self.power_reads > self.lost_after:
            raise pynvml.NVMLError(LOST)


def lacking(*functions: object, mute: tuple[int, ...] = (0, 1), module: bool = False) -> FakeNvml:
    errors: dict[object, int] = dict.fromkeys(functions, NOT_SUPPORTED)
    if not module:
        errors[POWER, pynvml.NVML_POWER_SCOPE_MODULE] = NOT_SUPPORTED
    return FakeNvml(errors=errors, mute=mute)


NO_INSTANT = (POWER, pynvml.NVML_POWER_SCOPE_GPU)
NO_SCOPED_COUNTER = (ENERGY, pynvml.NVML_POWER_SCOPE_GPU)


def test_nvml_covers_the_window_with_the_power_and_the_counter_of_each_gpu() -> None:
    nvml = FakeNvml()
    with NvmlPowerMeter(period_s=0.01, nvml=nvml).window(GPUS) as recording:
        start_s = time.monotonic()
        time.sleep(0.2)
        end_s = time.monotonic()
        trace = recording.trace()
    window = Window(start_s, end_s)
    assert (trace.basis, trace.scope, trace.source) == (PowerBasis.GPU, PowerScope.GPU, INSTANT_SOURCE)
    assert [device.uid for device in trace.devices] == list(trace.reserved) == ["GPU-0", "GPU-1"]
    assert all((np.diff(device.time_s) >= 0).all() for device in trace.devices)
    assert all(device.time_s[0] <= start_s and device.time_s[-1] >= end_s for device in trace.devices)
    for device, power_w in zip(trace.devices, (100, 200), strict=True):
        assert integrate_j(device, window) == pytest.approx(power_w * window.length_s)
        counted_s = np.ptp(device.counter_time_s)
        assert np.ptp(device.counter_j) == pytest.approx(power_w * counted_s, rel=0.5)  # of its order, in J
    assert nvml.inits == 0
    assert no_meter_threads()


def test_nvml_without_instant_power_or_counter_falls_back_and_says_so() -> None:
    nvml = lacking(NO_INSTANT, NO_SCOPED_COUNTER, "total")
    with NvmlPowerMeter(period_s=0.01, nvml=nvml).window(GPUS) as recording:
        trace = recording.trace()
    assert trace.source == USAGE_SOURCE
    assert set(trace.devices[0].power_w) == {90.0}
    assert set(trace.devices[1].power_w) == {180.0}
    assert all(len(device.counter_j) == len(device.counter_time_s) == 0 for device in trace.devices)


def test_each_gpu_is_read_as_it_can_be() -> None:
    nvml = lacking(NO_INSTANT, NO_SCOPED_COUNTER, "total", mute=(1,))
    with NvmlPowerMeter(period_s=10, nvml=nvml).window(GPUS) as recording:
        trace = recording.trace()
    assert trace.source == f"{INSTANT_SOURCE}; {USAGE_SOURCE}"
    assert [len(device.counter_j) for device in trace.devices] == [2, 0]


@pytest.mark.parametrize(("module", "counted"), [(False, True), (True, False)])
def test_a_counter_without_scope_is_used_only_where_there_is_no_module(
    *, module: bool, counted: bool
) -> None:
    nvml = lacking(NO_SCOPED_COUNTER, module=module)
    with NvmlPowerMeter(period_s=10, nvml=nvml).window(GPUS) as recording:
        trace = recording.trace()
    assert [len(device.counter_j) > 0 for device in trace.devices] == [counted, counted]


def test_a_gpu_without_power_is_reserved_and_not_covered() -> None:
    nvml = lacking(NO_INSTANT, "usage", mute=(1,))
    with NvmlPowerMeter(period_s=10, nvml=nvml).window(GPUS) as recording:
        trace = recording.trace()
    assert [device.uid for device in trace.devices] == ["GPU-0"]
    assert trace.reserved == ("GPU-0", "GPU-1")


def test_no_power_at_all_is_a_bench_error() -> None:
    nvml = lacking(NO_INSTANT, "usage")
    with pytest.raises(BenchError, match="no power of GPU-0, GPU-1"), NvmlPowerMeter(nvml=nvml).window(GPUS):
        pass
    assert nvml.inits == 0


def test_nvml_leaves_out_a_counter_that_was_reset_but_not_its_neighbours() -> None:
    nvml = FakeNvml()
    with NvmlPowerMeter(period_s=10, nvml=nvml).window(GPUS) as recording:
        nvml.counter_offsets_mj[1] = -1e9
        trace = recording.trace()
    assert len(trace.devices[0].counter_j) == 2
    assert len(trace.devices[1].counter_j) == len(trace.devices[1].counter_time_s) == 0
    assert len(trace.devices[1].power_w) == 2


def test_conditions_are_read_in_turns_and_first_at_once() -> None:
    nvml = FakeNvml()
    with NvmlPowerMeter(period_s=0.001, conditions_period_s=0.004, nvml=nvml).window(GPUS) as recording:
        while nvml.power_reads < 40:
            time.sleep(0.001)
        trace = recording.trace()
    assert nvml.conditions_reads[:6] == [0, 1, 1, 0, 1, 0]
    first = trace.devices[0].conditions
    assert 2 <= len(first.time_s) < len(trace.devices[0].time_s)
    assert (set(first.temperature_c), set(first.clock_mhz), set(first.power_limit_w)) == ({61}, {1980}, {700})


def test_what_a_gpu_does_not_tell_is_not_a_number_and_an_older_driver_is_asked_as_it_understands() -> None:
    with NvmlPowerMeter(period_s=10, nvml=lacking("limit", "temperature-v")).window(GPUS) as recording:
        at = recording.trace().devices[0].conditions
    assert set(at.temperature_c) == {60}
    assert np.isnan(at.power_limit_w).all()


@pytest.mark.parametrize(
    ("reasons", "meaning"),
    [
        (0x0, Slowdown.NONE),
        (0x1 | 0x2 | 0x10 | 0x100 | 1 << 40, Slowdown.NONE),
        (0x4, Slowdown.POWER_CAP),
        (0x20, Slowdown.THERMAL),
        (0x40 | 0x8, Slowdown.THERMAL | Slowdown.HARDWARE),
        (0x80, Slowdown.HARDWARE),
    ],
)
def test_reasons_are_read_by_their_bits(reasons: int, meaning: Slowdown) -> None:
    assert slowdown(reasons) is meaning


def readings(counter_j: list[float], *, power_w: float = 500.0) -> list[Reading]:
    return [Reading(at_s=i * 0.05, power_w=power_w, counter_j=j) for i, j in enumerate(counter_j)]


@given(
    st.floats(0.0, 2000.0), st.lists(st.floats(0.0, 0.3), min_size=2, max_size=30), st.floats(-500.0, 500.0)
)
def test_a_counter_of_32_bits_counts_on(power_w: float, gaps_s: list[float], start_j: float) -> None:
    """Whatever the power and the gaps: what was counted modulo 2**32 mJ is what was counted at all."""
    at_s = np.cumsum(gaps_s)
    true_j = WRAP_J + start_j + power_w * at_s
    taken = [
        Reading(at_s=t, power_w=power_w, counter_j=j % WRAP_J) for t, j in zip(at_s, true_j, strict=True)
    ]
    counted_j = np.array([reading.counter_j for reading in unwrapped(taken)])
    assert counted_j - counted_j[0] == pytest.approx(true_j - true_j[0], abs=1e-3)


@pytest.mark.parametrize(
    "counter_j",
    [
        pytest.param([1e6, 1e6 + 25, 0, 25], id="reset far from the wrap"),
        pytest.param([WRAP_J - 10, 4000.0], id="more than the GPU can draw"),
        pytest.param([2 * WRAP_J - 10, 15.0], id="past 32 bits already"),
        pytest.param([2 * WRAP_J + 10, WRAP_J + 15], id="a fall by as much, past 32 bits"),
        pytest.param([1e6, 1e6 - 1], id="a step back"),
        pytest.param([float("nan")] * 3, id="no counter"),
    ],
)
def test_what_is_no_wrap_is_left_as_it_is(counter_j: list[float]) -> None:
    left = [reading.counter_j for reading in unwrapped(readings(counter_j))]
    assert left == pytest.approx(counter_j, nan_ok=True)


def test_our_processes_and_their_children_are_not_foreign_and_others_are() -> None:
    with subprocess.Popen(
        ["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, text=True
    ) as ours:
        assert ours.stdout is not None
        grandchild = int(ours.stdout.readline())
        try:
            assert foreign_processes(lambda: [os.getpid(), ours.pid, grandchild]) == frozenset()
            (name,) = foreign_processes(lambda: [1, ours.pid])
            assert name.endswith(" (pid 1)")
        finally:
            ours.kill()
            os.kill(grandchild, 9)


def test_a_process_that_ended_is_nobodys_and_one_of_another_namespace_is_told() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    answers = iter([[ended.pid], []])
    assert foreign_processes(lambda: next(answers)) == frozenset()
    (name,) = foreign_processes(lambda: [ended.pid])
    assert "--pid=host" in name


def test_a_gpu_lost_in_the_window_is_a_bench_error_and_the_thread_ends() -> None:
    nvml = FakeNvml()
    with NvmlPowerMeter(period_s=0.001, nvml=nvml).window(GPUS) as recording:
        nvml.lost_after = nvml.power_reads
        while nvml.power_reads <= nvml.lost_after:
            time.sleep(0.001)
        with pytest.raises(BenchError, match=r"power meter lost.*read GPU-0.*GPU is lost.*Xid"):
            recording.trace()
    assert nvml.inits == 0
    assert no_meter_threads()


def test_a_gpu_lost_at_the_start_is_a_bench_error() -> None:
    nvml = FakeNvml(lost_after=0)
    with pytest.raises(BenchError, match="GPU is lost"), NvmlPowerMeter(nvml=nvml).window(GPUS):
        pass
    assert nvml.inits == 0


def test_a_gpu_that_is_not_there_is_a_bench_error() -> None:
    stranger = Device(DeviceKind.CUDA, 7, "Fake GPU", "GPU-7", 1 << 30)
    with pytest.raises(BenchError, match="Not Found"), NvmlPowerMeter(nvml=FakeNvml()).window([stranger]):
        pass


def test_the_trace_can_be_read_again_after_the_window() -> None:
    with NvmlPowerMeter(period_s=10, nvml=FakeNvml()).window(GPUS) as recording:
        inside_s = time.monotonic()
    trace = recording.trace()
    assert trace.devices[0].time_s[-1] >= inside_s
    assert len(recording.trace().devices[0].time_s) == len(trace.devices[0].time_s)


def test_the_thread_ends_when_the_block_raises() -> None:
    with pytest.raises(KeyError), NvmlPowerMeter(period_s=0.01, nvml=FakeNvml()).window(GPUS):
        raise KeyError
    assert no_meter_threads()
