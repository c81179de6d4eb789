"""Power limits and clocks: nvidia-ml-py over the stand-in, where settings outlive a process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from host_harness import (
    nothing_left,  # noqa: F401 - a fixture
    wait_for,
)
from standin.nvml import build_standin, run_on_standin, standin_env

from autotune.adapters.engines import warden

HEAD = """
import json, os, signal, sys
from pathlib import Path
import pynvml
from autotune.adapters.engines import warden
from autotune.adapters.devices.inventory import LocalInventory
from autotune.adapters.engines.process import reap_orphans
from autotune.adapters.power.settings import settings
from autotune.domain.basics.errors import AutotuneError

gpus = LocalInventory().devices().devices
runtime = Path(os.environ["RUNTIME"])
everything = ("power_limit", "clocks")

def now():
    pynvml.nvmlInit()
    handles = [pynvml.nvmlDeviceGetHandleByIndex(gpu.index) for gpu in gpus]
    return [
        [pynvml.nvmlDeviceGetPowerManagementLimit(h) // 1000, pynvml.nvmlDeviceGetClockInfo(h, 0)]
        for h in handles
    ]

def tell(**what):
    print(json.dumps(what), flush=True)
"""
BEFORE = [[700, 1980], [650, 1980]]
TWO = "0 - gpus=2\n0 1 power_limit_w=650"


@dataclass(frozen=True)
class Machine:
    """Two GPUs of the stand-in, and a runtime directory."""

    library: Path
    scenario: Path
    folder: Path

    def run(self, code: str) -> Any:
        """What a process says last."""
        return json.loads(run_on_standin(self.library, self.scenario, HEAD + code).splitlines()[-1])

    def start(self, code: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", HEAD + code],
            env=standin_env(self.library, self.scenario),
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def now(self) -> Any:
        return self.run("tell(now=now())")["now"]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_standin(tmp_path_factory.mktemp("standin"))


@pytest.fixture
def machine(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setenv("RUNTIME", str(tmp_path))
    scenario = tmp_path / "scenario.txt"
    scenario.write_text(TWO)
    return Machine(library, scenario, tmp_path)


def test_settings_hold_for_the_block_and_are_put_back(machine: Machine) -> None:
    said = machine.run(
        "both = dict(power_limit_w=500, graphics_clock_mhz=1410)\n"
        "with settings(gpus, allowed=everything, runtime_dir=runtime, **both):\n"
        "    inside = now()\n"
        "tell(inside=inside, after=now())\n"
    )
    assert said == {"inside": [[500, 1410], [500, 1410]], "after": BEFORE}
    assert list((machine.folder / "engines").iterdir()) == []


def test_only_what_is_asked_for_is_changed(machine: Machine) -> None:
    said = machine.run(
        "with settings(gpus[1:], allowed=['power_limit'], power_limit_w=300, runtime_dir=runtime):\n"
        "    inside = now()\n"
        "with settings(gpus, allowed=(), runtime_dir=runtime):\n"
        "    nothing = now()\n"
        "tell(inside=inside, nothing=nothing)\n"
    )
    assert said == {"inside": [[700, 1980], [300, 1980]], "nothing": BEFORE}
    assert "locked_clock" not in machine.scenario.with_name("scenario.txt.state").read_text()


def test_an_exception_in_the_block_puts_back_too(machine: Machine) -> None:
    said = machine.run(
        "try:\n"
        "    with settings(gpus, allowed=everything, power_limit_w=500, runtime_dir=runtime):\n"
        "        raise KeyError\n"
        "except KeyError:\n"
        "    tell(after=now())\n"
    )
    assert said == {"after": BEFORE}


HOLD = """
with settings(gpus, allowed=everything, power_limit_w=500, graphics_clock_mhz=1410, runtime_dir=runtime):
    tell(wardens=[process.pid for process in warden.descendants(os.getpid())])
    signal.pause()
"""


def test_a_killed_tuner_leaves_the_settings_as_they_were(machine: Machine) -> None:
    with machine.start(HOLD) as tuner:
        assert tuner.stdout is not None
        guard, _ = json.loads(tuner.stdout.readline())["wardens"]
        assert machine.now == [[500, 1410], [500, 1410]]
        tuner.kill()
    wait_for(lambda: warden.find(guard) is None)
    assert machine.now == BEFORE


def test_the_next_start_puts_back_what_a_killed_warden_could_not(machine: Machine) -> None:
    with machine.start(HOLD) as tuner:
        assert tuner.stdout is not None
        guard, _ = json.loads(tuner.stdout.readline())["wardens"]
        os.kill(guard, signal.SIGKILL)
        tuner.kill()
    assert machine.now == [[500, 1410], [500, 1410]]
    assert machine.run("reap_orphans(runtime)\ntell(after=now())") == {"after": BEFORE}
    assert list((machine.folder / "engines").iterdir()) == []


@pytest.mark.parametrize(
    ("scenario", "words", "kind", "told"),
    [
        (
            "error.nvmlDeviceSetPowerManagementLimit=4",
            "power_limit_w=500",
            "InputError",
            ("hardware.allow: power_limit may not be set here", "run as root"),
        ),
        ("error.nvmlDeviceSetGpuLockedClocks=4", "graphics_clock_mhz=1410", "InputError", ("run as root",)),
        ("", "power_limit_w=100", "InfeasibleConfigError", ("power_limit_w 100", "takes 200 to 700 W")),
        (
            "error.nvmlDeviceSetGpuLockedClocks=3",
            "graphics_clock_mhz=9",
            "InfeasibleConfigError",
            ("clocks", "Not Supported"),
        ),
        ("error.all=15", "power_limit_w=500", "BenchError", ("GPU is lost",)),
    ],
)
def test_what_goes_wrong_is_told_by_what_is_to_be_done(
    machine: Machine, scenario: str, words: str, kind: str, told: tuple[str, ...]
) -> None:
    """The second of two GPUs is at fault: the first one is put back."""
    machine.scenario.write_text(f"{TWO}\n1.5 1 {scenario}" if scenario else TWO)
    said = machine.run(
        "import time; time.sleep(1.6)\n"
        "try:\n"
        f"    with settings(gpus, allowed=everything, {words}, runtime_dir=runtime):\n"
        "        pass\n"
        "except AutotuneError as error:\n"
        "    tell(kind=type(error).__name__, error=str(error))\n"
    )
    assert said["kind"] == kind
    assert [part for part in told if part not in said["error"]] == []
    machine.scenario.write_text(TWO)
    assert machine.now == BEFORE


def test_what_the_study_does_not_allow_is_refused_by_name(machine: Machine) -> None:
    said = machine.run(
        "try:\n"
        "    with settings(gpus, allowed=['clocks'], power_limit_w=500, graphics_clock_mhz=1410):\n"
        "        pass\n"
        "except AutotuneError as error:\n"
        "    tell(kind=type(error).__name__, error=str(error))\n"
    )
    assert said["kind"] == "InfeasibleConfigError"
    assert "does not allow power_limit; write `hardware: {allow: [power_limit]}`" in said["error"]


def test_a_setting_that_could_not_be_put_back_is_a_bench_error(machine: Machine) -> None:
    """The driver forbids it from a moment on; the guard's record stays for the next start."""
    said = machine.run(
        "scenario = Path(os.environ['NVML_STANDIN_SCENARIO'])\n"
        "try:\n"
        "    with settings(gpus, allowed=everything, power_limit_w=500, runtime_dir=runtime):\n"
        "        scenario.write_text('0 - gpus=2\\n0 1 error.nvmlDeviceSetPowerManagementLimit=4')\n"
        "except AutotuneError as error:\n"
        "    tell(kind=type(error).__name__, error=str(error))\n"
    )
    assert said["kind"] == "BenchError"
    assert "GPU-00000001" in said["error"]
    machine.scenario.write_text(TWO)
    assert machine.now == [[700, 1980], [500, 1980]]
    assert machine.run("reap_orphans(runtime)\ntell(after=now())") == {"after": BEFORE}
