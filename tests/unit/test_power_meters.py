"""Power meters, over a hand-written NVML and over counters of CPU time that a test moves by hand."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pynvml
import pytest

from autotune.adapters import power_sampling
from autotune.adapters.power_estimated import ACTIVE_W, IDLE_W, CoreTime, EstimatedPowerMeter, core_times
from autotune.adapters.power_nvml import INSTANT_SOURCE, USAGE_SOURCE, NvmlPowerMeter
from autotune.adapters.power_sampling import Sampling
from autotune.domain.errors import BenchError
from autotune.domain.hardware import Device, DeviceKind
from autotune.domain.power import EnergyVerdict, PowerBasis, Window, energy_in

GPUS = tuple(Device(DeviceKind.CUDA, i, "Fake GPU", f"GPU-{i}", 1 << 30) for i in range(2))
CORES = tuple(Device(DeviceKind.CPU, i, "Fake core", f"core-{i}", 1 << 30) for i in range(2))

NOT_SUPPORTED = pynvml.NVML_ERROR_NOT_SUPPORTED
LOST = pynvml.NVML_ERROR_GPU_IS_LOST


def no_meter_threads() -> bool:
    return not any(thread.name == "power-meter" for thread in threading.enumerate())


@dataclass
class FakeNvml:
    """GPU ``i`` draws ``100 * (i + 1)`` W, and its counter says so; the rest is what goes wrong."""

    instant_error: int = pynvml.NVML_SUCCESS
    counter_error: int = pynvml.NVML_SUCCESS
    lost_after: int = 1_000_000
    counter_offsets_mj: dict[int, float] = field(default_factory=dict)
    power_reads: int = 0
    inits: int = 0
    started_s: float = field(default_factory=time.monotonic)

    NVML_SUCCESS = pynvml.NVML_SUCCESS
    NVML_FI_DEV_POWER_INSTANT = pynvml.NVML_FI_DEV_POWER_INSTANT

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's names
        self.inits += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.inits -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:  # noqa: N802
        if uuid not in {device.uid for device in GPUS}:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return int(uuid.removeprefix("GPU-"))

    def nvmlDeviceGetFieldValues(self, handle: int, fields: list[int]) -> list[SimpleNamespace]:  # noqa: N802
        assert fields == [pynvml.NVML_FI_DEV_POWER_INSTANT]
        self._read()
        value = SimpleNamespace(uiVal=100_000 * (handle + 1))
        return [SimpleNamespace(nvmlReturn=self.instant_error, value=value)]

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:  # noqa: N802
        self._read()
        return 90_000 * (handle + 1)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> float:  # noqa: N802
        if self.counter_error:
            raise pynvml.NVMLError(self.counter_error)
        counted_mj = 1e5 * (handle + 1) * (time.monotonic() - self.started_s)
        return 1e9 + counted_mj + self.counter_offsets_mj.get(handle, 0.0)

    def _read(self) -> None:
        self.power_reads += 1
        if self.power_reads > self.lost_after:
            raise pynvml.NVMLError(LOST)


def test_nvml_covers_the_window_and_its_energy_is_consistent() -> None:
    nvml = FakeNvml()
    with NvmlPowerMeter(period_s=0.01, nvml=nvml).window(GPUS) as recording:
        start_s = time.monotonic()
        time.sleep(0.2)
        end_s = time.monotonic()
        trace = recording.trace()
    energy = energy_in(trace, Window(start_s, end_s))
    assert trace.basis is PowerBasis.GPU
    assert trace.source == INSTANT_SOURCE
    assert [device.uid for device in trace.devices] == ["GPU-0", "GPU-1"]
    assert all((np.diff(device.time_s) >= 0).all() for device in trace.devices)
    assert all(device.time_s[0] <= start_s and device.time_s[-1] >= end_s for device in trace.devices)
    assert energy.joules == pytest.approx(300 * (end_s - start_s))
    assert not any(reason.startswith("counter") for reason in energy.reasons)
    assert nvml.inits == 0
    assert no_meter_threads()


def test_nvml_without_instant_power_or_counter_falls_back_and_says_so() -> None:
    nvml = FakeNvml(instant_error=NOT_SUPPORTED, counter_error=NOT_SUPPORTED)
    with NvmlPowerMeter(period_s=0.01, nvml=nvml).window(GPUS) as recording:
        trace = recording.trace()
    assert trace.source == USAGE_SOURCE
    assert set(trace.devices[0].power_w) == {90.0}
    assert set(trace.devices[1].power_w) == {180.0}
    assert all(len(device.counter_j) == len(device.counter_time_s) == 0 for device in trace.devices)


def test_nvml_leaves_out_a_counter_that_was_reset_but_not_its_neighbours() -> None:
    nvml = FakeNvml()
    with NvmlPowerMeter(period_s=10, nvml=nvml).window(GPUS) as recording:
        nvml.counter_offsets_mj[1] = -1e9
        trace = recording.trace()
    assert len(trace.devices[0].counter_j) == 2
    assert len(trace.devices[1].counter_j) == len(trace.devices[1].counter_time_s) == 0
    assert len(trace.devices[1].power_w) == 2


def test_a_gpu_lost_in_the_window_is_a_bench_error_and_the_thread_ends() -> None:
    nvml = FakeNvml(lost_after=10)
    with NvmlPowerMeter(period_s=0.001, nvml=nvml).window(GPUS) as recording:
        while nvml.power_reads <= 10:
            time.sleep(0.001)
        with pytest.raises(BenchError, match=r"power meter lost.*GPU is lost"):
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


def test_a_meter_that_hangs_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power_sampling, "ANSWER_TIMEOUT_S", 0.05)
    hanging, release = threading.Event(), threading.Event()

    def read() -> int:
        if threading.current_thread().name == "power-meter":
            hanging.set()
            release.wait(timeout=30)
        return 0

    with Sampling(read, 0.001) as sampling:
        hanging.wait(timeout=30)
        with pytest.raises(BenchError, match="no reading within"):
            sampling.samples()
    release.set()


def test_estimated_power_follows_the_busy_share_of_the_cores_asked_for() -> None:
    """Core 1 is read (of three): idle for the first interval, busy for a quarter of the second."""
    states = iter(
        [
            (CoreTime(5, 10), CoreTime(0, 10), CoreTime(9, 10)),
            (CoreTime(6, 11), CoreTime(0, 11), CoreTime(9, 11)),
            (CoreTime(7, 12), CoreTime(0.25, 12), CoreTime(9, 12)),
            (CoreTime(7, 12), CoreTime(0.25, 12), CoreTime(9, 12)),
        ]
    )
    with EstimatedPowerMeter(period_s=60, read=lambda: next(states)).window(CORES[1:]) as recording:
        recording.trace()
        recording.trace()
        trace = recording.trace()
        states = iter([(CoreTime(7, 12), CoreTime(0.25, 12), CoreTime(9, 12))])
    (device,) = trace.devices
    quarter_w = IDLE_W + 0.25 * (ACTIVE_W - IDLE_W)
    assert device.uid == "core-1"
    # The first sample has the power of the first interval; the last came before the next tick.
    assert device.power_w == pytest.approx([IDLE_W, IDLE_W, quarter_w, quarter_w])
    assert trace.basis is PowerBasis.ESTIMATED
    assert "model" in trace.source
    assert no_meter_threads()


def test_estimated_energy_is_never_called_consistent() -> None:
    with EstimatedPowerMeter(period_s=0.2).window(CORES[:1]) as recording:
        start_s = time.monotonic()
        time.sleep(0.3)
        end_s = time.monotonic()
        trace = recording.trace()
    energy = energy_in(trace, Window(start_s, end_s))
    assert energy.verdict is not EnergyVerdict.CONSISTENT
    assert IDLE_W - 1e-9 <= energy.mean_w <= ACTIVE_W + 1e-9


def test_a_core_that_is_not_there_is_a_bench_error() -> None:
    stranger = Device(DeviceKind.CPU, 5, "Fake core", "core-5", 1 << 30)
    meter = EstimatedPowerMeter(read=lambda: (CoreTime(0, 1),))
    with pytest.raises(BenchError, match="no core 5"), meter.window([stranger]):
        pass


def test_the_kernels_counters_move_with_the_time_of_a_busy_core() -> None:
    before = core_times()
    busy_until_s = time.process_time() + 0.1
    while time.process_time() < busy_until_s:
        pass
    after = core_times()
    spent_s = sum(b.busy_s - a.busy_s for a, b in zip(before, after, strict=True))
    assert spent_s >= 0.05
    assert all(b.total_s >= b.busy_s for b in after)
