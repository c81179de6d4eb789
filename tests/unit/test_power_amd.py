"""AMD GPUs over a hand-written amdsmi with the functions, keys, units and errors that AMD documents."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from autotune.adapters.power.amd import AmdPowerMeter, load_amdsmi
from autotune.domain.basics.errors import BenchError
from autotune.domain.hardware.hardware import Device, DeviceKind
from autotune.domain.measuring.power import PowerBasis, Slowdown, Window, energy_in

GPUS = tuple(Device(DeviceKind.CUDA, i, "Fake MI300X", f"amd-{i}", 1 << 30) for i in range(2))
RESOLUTION_UJ = 15.259
NOT_SUPPORTED, NOT_FOUND = 2, 31


class AmdSmiException(Exception):  # noqa: N818 - AMD's name
    pass


class AmdSmiLibraryException(AmdSmiException):
    def __init__(self, code: int) -> None:
        super().__init__(f"Error code:\n\t{code}")
        self.code = code

    def get_error_code(self) -> int:
        return self.code


@dataclass
class FakeAmdsmi:
    """GPU ``i`` draws ``100 * (i + 1)`` W and counts it; the rest is what goes wrong."""

    power: dict[str, Any] = field(default_factory=dict)
    lacking: frozenset[str] = frozenset()
    lost: bool = False
    energy_offset: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    pids: tuple[int, ...] = ()
    started_s: float = field(default_factory=time.monotonic)
    running: int = 0

    AmdSmiException = AmdSmiException
    AmdSmiLibraryException = AmdSmiLibraryException

    def amdsmi_init(self) -> None:
        self.running += 1

    def amdsmi_shut_down(self) -> None:
        self.running -= 1

    def amdsmi_get_processor_handles(self) -> list[int]:
        return [1, 0]

    def amdsmi_get_gpu_device_uuid(self, handle: int) -> str:
        return f"amd-{handle}"

    def amdsmi_get_power_info(self, handle: int) -> dict[str, Any]:
        self._ask("power")
        watts = 100 * (handle + 1)
        return {
            "current_socket_power": watts,
            "average_socket_power": "N/A",
            "power_limit": 750,
            **self.power,
        }

    def amdsmi_get_energy_count(self, handle: int) -> dict[str, Any]:
        self._ask("energy")
        counted_j = 100 * (handle + 1) * (time.monotonic() - self.started_s)
        steps = 10**9 + int(counted_j * 1e6 / RESOLUTION_UJ) + self.energy_offset
        return {"energy_accumulator": steps, "counter_resolution": RESOLUTION_UJ, "timestamp": 1}

    def amdsmi_get_gpu_metrics_info(self, handle: int) -> dict[str, Any]:
        self._ask("metrics")
        return {
            "temperature_hotspot": 61,
            "current_gfxclk": 2100,
            "throttle_status": "N/A",
            "ppt_residency_acc": 5,
            "socket_thm_residency_acc": 0,
            "vr_thm_residency_acc": 0,
            "hbm_thm_residency_acc": 0,
            "prochot_residency_acc": 0,
            **self.metrics,
        }

    def amdsmi_get_power_cap_info(self, handle: int) -> dict[str, Any]:
        self._ask("cap")
        return {"power_cap": 750_000_000, "default_power_cap": 750_000_000}

    def amdsmi_get_gpu_process_list(self, handle: int) -> list[dict[str, Any]]:
        return [{"name": "N/A", "pid": pid, "mem": 0} for pid in self.pids]

    def _ask(self, what: str) -> None:
        if self.lost:
            raise AmdSmiLibraryException(NOT_FOUND)
        if what in self.lacking:
            raise AmdSmiLibraryException(NOT_SUPPORTED)


def meter(smi: FakeAmdsmi, period_s: float = 60) -> AmdPowerMeter:
    return AmdPowerMeter(period_s=period_s, load=lambda: smi)


def test_energy_over_the_window_is_consistent_and_the_gpus_are_told_apart() -> None:
    smi = FakeAmdsmi()
    with meter(smi, 0.5).window(GPUS) as recording:
        start_s = time.monotonic()
        time.sleep(0.1)
        end_s = time.monotonic()
        trace = recording.trace()
    energy = energy_in(trace, Window(start_s, end_s))
    assert trace.basis is PowerBasis.GPU
    assert trace.reserved == ("amd-0", "amd-1")
    assert [set(device.power_w) for device in trace.devices] == [{100.0}, {200.0}]
    assert energy.joules == pytest.approx(300 * (end_s - start_s))
    counted_w = [np.ptp(device.counter_j) / np.ptp(device.counter_time_s) for device in trace.devices]
    assert counted_w == pytest.approx([100, 200], rel=0.5)
    assert set(trace.devices[0].conditions.temperature_c) == {61.0}
    assert set(trace.devices[0].conditions.clock_mhz) == {2100.0}
    assert set(trace.devices[0].conditions.power_limit_w) == {750.0}
    assert smi.running == 0


def test_an_older_gpu_tells_mean_power_and_neither_counter_nor_conditions() -> None:
    smi = FakeAmdsmi(
        power={"current_socket_power": "N/A", "average_socket_power": 90},
        lacking=frozenset({"energy", "metrics", "cap"}),
    )
    with meter(smi).window(GPUS) as recording:
        trace = recording.trace()
    device = trace.devices[0]
    assert set(device.power_w) == {90.0}
    assert len(device.counter_j) == 0
    assert np.isnan(device.conditions.temperature_c).all()


@pytest.mark.parametrize(
    ("key", "slowdown"),
    [
        ("ppt_residency_acc", Slowdown.POWER_CAP),
        ("hbm_thm_residency_acc", Slowdown.THERMAL),
        ("prochot_residency_acc", Slowdown.HARDWARE),
    ],
)
def test_a_residency_that_grew_names_what_held_the_clock_back(key: str, slowdown: Slowdown) -> None:
    smi = FakeAmdsmi()
    with meter(smi).window(GPUS) as recording:
        smi.metrics[key] = 77
        recording.trace()
        trace = recording.trace()
    assert list(trace.devices[0].conditions.slowdown) == [0, slowdown, 0]


def test_residencies_that_a_gpu_has_not_got_conclude_nothing() -> None:
    smi = FakeAmdsmi(metrics={"ppt_residency_acc": "N/A"})
    with meter(smi).window(GPUS) as recording:
        smi.metrics["ppt_residency_acc"] = 3
        trace = recording.trace()
    assert list(trace.devices[0].conditions.slowdown) == [0, 0]


def test_a_counter_that_was_reset_is_left_out() -> None:
    smi = FakeAmdsmi()
    with meter(smi).window(GPUS) as recording:
        smi.energy_offset = -(10**9)
        trace = recording.trace()
    assert [len(device.counter_j) for device in trace.devices] == [0, 0]
    assert [len(device.power_w) for device in trace.devices] == [2, 2]


def test_a_counter_of_all_ones_is_none() -> None:
    smi = FakeAmdsmi()
    smi.amdsmi_get_energy_count = lambda handle: {  # type: ignore[method-assign]
        "energy_accumulator": 2**64 - 1,
        "counter_resolution": RESOLUTION_UJ,
        "timestamp": 0,
    }
    with meter(smi).window(GPUS) as recording:
        assert len(recording.trace().devices[0].counter_j) == 0


def test_processes_that_are_not_ours_are_named() -> None:
    with meter(FakeAmdsmi(pids=(os.getpid(), 1))).window(GPUS) as recording:
        foreign = recording.trace().devices[0].foreign
    assert len(foreign) == 1
    assert "pid 1" in foreign[0]


def test_a_gpu_lost_in_the_window_is_a_bench_error() -> None:
    smi = FakeAmdsmi()
    with meter(smi).window(GPUS) as recording:
        smi.lost = True
        with pytest.raises(BenchError, match=r"(?s)power meter lost.*31.*kernel log"):
            recording.trace()
    assert smi.running == 0


@pytest.mark.parametrize("told", ["N/A", 0xFFFF, None, math.nan])
def test_a_gpu_that_tells_no_power_is_a_bench_error(told: object) -> None:
    smi = FakeAmdsmi(power={"current_socket_power": told, "average_socket_power": told})
    with pytest.raises(BenchError, match=r"no power.*MI250"), meter(smi).window(GPUS):
        pass
    assert smi.running == 0


def test_a_gpu_that_is_not_there_is_a_bench_error_that_names_those_that_are() -> None:
    stranger = Device(DeviceKind.CUDA, 7, "Fake", "amd-7", 1)
    with (
        pytest.raises(BenchError, match=r"does not see amd-7, only: amd-1, amd-0"),
        meter(FakeAmdsmi()).window([stranger]),
    ):
        pass


def test_without_rocm_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "amdsmi", None)
    with (
        pytest.raises(BenchError, match=r"could not be loaded.*rocm"),
        AmdPowerMeter(load=load_amdsmi).window(GPUS),
    ):
        pass
