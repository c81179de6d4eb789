"""Sampling, and the estimated meter over counters of CPU time that a test moves by hand."""

from __future__ import annotations

import threading
import time

import pytest

from autotune.adapters.power import sampling
from autotune.adapters.power.estimated import ACTIVE_W, IDLE_W, CoreTime, EstimatedPowerMeter, core_times
from autotune.adapters.power.sampling import Sampling
from autotune.domain.basics.errors import BenchError
from autotune.domain.hardware.hardware import Device, DeviceKind
from autotune.domain.measuring.power import EnergyVerdict, PowerBasis, Window, energy_in

CORES = tuple(Device(DeviceKind.CPU, i, "Fake core", f"core-{i}", 1 << 30) for i in range(2))


def no_meter_threads() -> bool:
    return not any(thread.name == "power meter" for thread in threading.enumerate())


def test_a_meter_that_hangs_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "ANSWER_TIMEOUT_S", 0.05)
    hanging, release = threading.Event(), threading.Event()

    def read() -> int:
        if threading.current_thread().name == "power meter":
            hanging.set()
            release.wait(timeout=30)
        return 0

    with Sampling(read, 0.001) as running:
        hanging.wait(timeout=30)
        with pytest.raises(BenchError, match="no reading within"):
            running.samples()
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
