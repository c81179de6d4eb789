"""The NVML meter with the real nvidia-ml-py over a stand-in for the driver's library, compiled here.

What this shows is how the meter reads and judges what a driver says, not what real GPUs say.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from standin.nvml import build_standin, run_on_standin

from autotune.adapters.power.nvml import INSTANT_SOURCE, USAGE_SOURCE
from autotune.domain.measuring.power import Slowdown

pytestmark = pytest.mark.alone

MEASURE = """
import json, time
import numpy as np
from autotune.adapters.devices.inventory import LocalInventory
from autotune.adapters.power.nvml import NvmlPowerMeter
from autotune.domain.basics.errors import BenchError
from autotune.domain.measuring.power import Window, energy_in

devices = LocalInventory().devices().devices
try:
    with NvmlPowerMeter(period_s=0.1, conditions_period_s=0.2).window(devices) as recording:
        start_s = time.monotonic()
        time.sleep(1.2)
        end_s = time.monotonic()
        trace = recording.trace()
except BenchError as error:
    told = {"error": str(error)}
else:
    energy = energy_in(trace, Window(start_s, end_s))
    told = {
        "verdict": energy.verdict, "reasons": energy.reasons, "joules": energy.joules,
        "seconds": end_s - start_s, "source": trace.source, "scope": trace.scope,
        "counted": [len(device.counter_j) > 0 for device in trace.devices],
        "slowdown": [int(np.bitwise_or.reduce(device.conditions.slowdown)) for device in trace.devices],
        "conditions": [
            [float(column[-1]) for column in (at.temperature_c, at.clock_mhz, at.power_limit_w)]
            for at in (device.conditions for device in trace.devices)
        ],
        "foreign": [device.foreign for device in trace.devices],
    }
print(json.dumps(told))
"""

GPU0 = "GPU-00000000-0000-0000-0000-000000000000"
GPU1 = "GPU-00000001-0000-0000-0000-000000000000"
NO_INSTANT = "error.field.186=3"
NO_SCOPED_COUNTER = "error.field.191=3"
NO_COUNTER = f"{NO_SCOPED_COUNTER} error.nvmlDeviceGetTotalEnergyConsumption=3"
ABOVE_ANY_PID = 2**22 + 1


@dataclass(frozen=True)
class Case:
    """What happens 0.6 s after the start, in the middle of the window, and what is to be said of it."""

    scenario: str
    verdict: str = "consistent"
    reasons: tuple[str, ...] = ()


CASES = {
    "steady": Case(
        "0 - gpus=2\n0 0 power_w=300\n0 1 power_w=500 temperature_c=71 clock_mhz=1755 power_limit_w=650"
    ),
    "varying": Case("".join(f"{i / 10} 0 power_w={400 + 40 * (i % 3)}\n" for i in range(20))),
    "our own process": Case("0 0 pids=self"),
    "an instance alone on its GPU": Case("0 0 mig=1 mig_instances=1 mig.0.uuid=MIG-aa power_w=300"),
    "power cap": Case("0.6 0 reasons=0x4"),
    "idle and set clocks": Case("0.6 0 reasons=0x3"),
    "counter wraps": Case("0 0 counter_modulo_mj=4294967296 counter_mj=4294787296"),
    "no instant power": Case(f"0 0 {NO_INSTANT}"),
    "no scoped counter": Case(f"0 0 {NO_SCOPED_COUNTER}"),
    "superchip": Case("0 0 power_w=400 module_w=600 module_counter=1"),
    "superchip without scoped counter": Case(
        f"0 0 power_w=400 module_w=600 module_counter=1 {NO_SCOPED_COUNTER}", "unchecked"
    ),
    "no counter": Case(f"0 0 {NO_COUNTER}", "unchecked"),
    "counter reset": Case("0.6 0 counter_mj=0", "unchecked"),
    "one of two without counter": Case(f"0 - gpus=2\n0 1 {NO_COUNTER}", "unchecked"),
    "counter disagrees": Case("0 0 counter_scale=1.2", "invalid", (f"counter-disagrees:{GPU0}",)),
    "counter frozen": Case("0 0 counter_scale=0", "invalid", (f"counter-disagrees:{GPU0}",)),
    "sensor stuck": Case("0 0 reported_w=300\n0.6 0 power_w=600", "invalid", (f"counter-disagrees:{GPU0}",)),
    "gap": Case("0.4 0 stall_until_s=1.0", "invalid", (f"gap:{GPU0}",)),
    "thermal": Case("0.6 0 reasons=0x20", "invalid", (f"thermal-slowdown:{GPU0}",)),
    "power brake": Case("0.6 0 reasons=0x80", "invalid", (f"hardware-slowdown:{GPU0}",)),
    "warming up": Case(
        "".join(f"{i / 10} 0 temperature_c={50 + i}\n" for i in range(14)),
        "invalid",
        (f"temperature-unsettled:{GPU0}",),
    ),
    "foreign process": Case(
        f"0 - gpus=2\n0 0 pids=self\n0.6 1 pids=self,{os.getpid()}", "invalid", (f"foreign-process:{GPU1}",)
    ),
    "process of another namespace": Case(
        f"0 0 pids=self,{ABOVE_ANY_PID}", "invalid", (f"foreign-process:{GPU0}",)
    ),
    "one of two without power": Case(
        f"0 - gpus=2\n0 1 {NO_INSTANT} error.nvmlDeviceGetPowerUsage=3", "invalid", (f"not-covered:{GPU1}",)
    ),
}
FAILURES = {
    "lost": ("0.6 0 error.all=15", rf"power meter lost.*read {GPU0}: GPU is lost; .*Xid"),
    "no permission": ("0 0 error.nvmlDeviceGetFieldValues=4", r"find GPU-0.*Permission.*/dev/nvidia"),
    "processes hidden": (
        "0 0 error.nvmlDeviceGetComputeRunningProcesses_v3=4",
        r"read GPU-0.*Permission.*/dev/nvidia",
    ),
    "driver gone": ("0.6 - error.all=9", r"power meter lost.*modprobe"),
    "no power sensor": (f"0 0 {NO_INSTANT} error.nvmlDeviceGetPowerUsage=3", r"no power of GPU-0.*estimated"),
}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_standin(tmp_path_factory.mktemp("standin"))


@pytest.fixture(scope="module")
def told(library: Path) -> Iterator[dict[str, Future[dict[str, Any]]]]:
    """What the meter says in each scenario, a child process each; they mostly wait, so several at a time."""
    scenarios = {name: case.scenario for name, case in CASES.items()}
    scenarios |= {name: scenario for name, (scenario, _) in FAILURES.items()}

    def measure(name: str) -> dict[str, Any]:
        scenario = library.with_name(f"{name}.txt")
        scenario.write_text(scenarios[name])
        answer: dict[str, Any] = json.loads(run_on_standin(library, scenario, MEASURE))
        return answer

    with ThreadPoolExecutor(max_workers=4) as pool:
        yield {name: pool.submit(measure, name) for name in scenarios}


@pytest.mark.parametrize("name", CASES)
def test_a_window_is_judged_by_what_happened_in_it(
    told: dict[str, Future[dict[str, Any]]], name: str
) -> None:
    answer = told[name].result()
    assert (answer.get("verdict"), tuple(answer.get("reasons", ()))) == (
        CASES[name].verdict,
        CASES[name].reasons,
    ), answer


@pytest.mark.parametrize("name", FAILURES)
def test_a_lost_meter_is_a_bench_error_with_a_remedy(
    told: dict[str, Future[dict[str, Any]]], name: str
) -> None:
    error = told[name].result().get("error", "no error")
    assert re.search(FAILURES[name][1], error), error


def test_power_and_conditions_are_those_of_the_gpus(told: dict[str, Future[dict[str, Any]]]) -> None:
    answer = told["steady"].result()
    assert answer["joules"] == pytest.approx(800 * answer["seconds"])
    assert (answer["source"], answer["scope"]) == (INSTANT_SOURCE, "gpu")
    assert answer["conditions"] == [[55, 1980, 700], [71, 1755, 650]]


def test_a_power_cap_is_recorded(told: dict[str, Future[dict[str, Any]]]) -> None:
    assert told["power cap"].result()["slowdown"] == [int(Slowdown.POWER_CAP)]
    assert told["steady"].result()["slowdown"] == [0, 0]


def test_the_source_says_what_the_power_is(told: dict[str, Future[dict[str, Any]]]) -> None:
    assert told["no instant power"].result()["source"] == USAGE_SOURCE


def test_a_superchip_is_measured_in_the_scope_of_its_gpu(told: dict[str, Future[dict[str, Any]]]) -> None:
    answer = told["superchip"].result()
    assert answer["joules"] == pytest.approx(400 * answer["seconds"])
    assert (answer["scope"], answer["counted"]) == ("gpu", [True])


def test_a_foreign_process_is_named(told: dict[str, Future[dict[str, Any]]]) -> None:
    ours, (stranger,) = told["foreign process"].result()["foreign"]
    assert ours == []
    assert stranger.endswith(f" (pid {os.getpid()})")


def test_the_inventory_lists_the_gpus(library: Path) -> None:
    scenario = library.with_name("inventory.txt")
    scenario.write_text(
        "0 - gpus=2 driver=570.1\n0 1 name=NVIDIA_H100_80GB_HBM3 uuid=GPU-beef memory_mib=81559"
    )
    listed = run_on_standin(
        library,
        scenario,
        "from autotune.adapters.devices.inventory import LocalInventory\n"
        "for gpu in LocalInventory().devices().devices:\n"
        "    print(gpu.index, gpu.name, gpu.uid, gpu.memory_bytes >> 20, gpu.driver, sep='|')",
    )
    assert listed.split("\n")[:-1] == [
        f"0|NVIDIA H200|{GPU0}|143771|570.1",
        "1|NVIDIA H100 80GB HBM3|GPU-beef|81559|570.1",
    ]


def test_without_a_compiler_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="apt-get install -y gcc"):
        build_standin(tmp_path)
