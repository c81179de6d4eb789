"""Devices and leases: real locks between real processes, and a hand-written NVML."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest

from autotune.adapters.devices import LocalInventory
from autotune.domain.errors import BenchError, DevicesBusyError
from autotune.domain.hardware import DeviceKind

HOLDER = """
import sys
from pathlib import Path
from autotune.adapters.devices import LocalInventory
from autotune.domain.hardware import DeviceKind
inventory = LocalInventory(Path(sys.argv[1]), kind=DeviceKind.CPU)
with inventory.lease(inventory.devices(), 1, "study other") as (core,):
    print(core.uid, flush=True)
    sys.stdin.read()
"""


class FakeNvml:
    """Two GPUs, and the processes that compute on them."""

    def __init__(self, running: dict[int, list[int]] | None = None, gpus: int = 2) -> None:
        self.running = running or {}
        self.gpus = gpus

    def nvmlInit(self) -> None:  # noqa: N802
        pass

    def nvmlShutdown(self) -> None:  # noqa: N802
        pass

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return self.gpus

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802
        return "NVIDIA H200"

    def nvmlDeviceGetUUID(self, handle: int) -> str:  # noqa: N802
        return f"GPU-{handle}f00"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(total=141 << 30)

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "580.65.06"

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[SimpleNamespace]:  # noqa: N802
        return [SimpleNamespace(pid=pid) for pid in self.running.get(handle, [])]


class NoNvml(FakeNvml):
    """What pynvml does where there is no driver, or a broken one."""

    def __init__(self, error: int = pynvml.NVML_ERROR_LIBRARY_NOT_FOUND) -> None:
        super().__init__()
        self.error = error

    def nvmlInit(self) -> None:  # noqa: N802
        raise pynvml.NVMLError(self.error)


def cores(runtime_dir: Path) -> LocalInventory:
    return LocalInventory(runtime_dir, nvml=NoNvml())


@pytest.fixture
def visible(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return monkeypatch


def test_without_a_driver_the_devices_are_the_cores_we_may_use(tmp_path: Path) -> None:
    hardware = cores(tmp_path).devices()
    assert hardware.kind is DeviceKind.CPU
    assert [core.index for core in hardware.devices] == sorted(os.sched_getaffinity(0))
    assert all(core.name and core.memory_bytes > 0 for core in hardware.devices)


def test_a_driver_that_does_not_answer_is_no_machine_without_gpus(tmp_path: Path) -> None:
    broken = LocalInventory(tmp_path, nvml=NoNvml(pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH))
    with pytest.raises(BenchError, match="does not answer"):
        broken.devices()


def test_lists_gpus(tmp_path: Path, visible: pytest.MonkeyPatch) -> None:
    hardware = LocalInventory(tmp_path, nvml=FakeNvml()).devices()
    assert hardware.describe() == "2 x NVIDIA H200"
    assert [(g.index, g.uid, g.driver) for g in hardware.devices] == [
        (0, "GPU-0f00", "580.65.06"),
        (1, "GPU-1f00", "580.65.06"),
    ]


@pytest.mark.parametrize(("value", "indices"), [("1", [1]), ("GPU-0f", [0]), ("1,0", [0, 1]), ("", [])])
def test_gpus_that_a_batch_system_did_not_give_us_are_not_there(
    tmp_path: Path, visible: pytest.MonkeyPatch, value: str, indices: list[int]
) -> None:
    visible.setenv("CUDA_VISIBLE_DEVICES", value)
    inventory = LocalInventory(tmp_path, kind=DeviceKind.CUDA, nvml=FakeNvml())
    assert [gpu.index for gpu in inventory.devices().devices] == indices


def test_a_machine_with_gpus_can_be_used_for_its_cores(tmp_path: Path) -> None:
    assert LocalInventory(tmp_path, kind=DeviceKind.CPU, nvml=FakeNvml()).devices().kind is DeviceKind.CPU


def test_leases_the_lowest_free_devices_in_order(tmp_path: Path, visible: pytest.MonkeyPatch) -> None:
    inventory = LocalInventory(tmp_path, nvml=FakeNvml(gpus=4))
    with (
        inventory.lease(inventory.devices(), 1, "first") as first,
        inventory.lease(inventory.devices(), 2, "second") as second,
    ):
        assert [gpu.index for gpu in first + second] == [0, 1, 2]
    with inventory.lease(inventory.devices(), 4, "third") as third:
        assert [gpu.index for gpu in third] == [0, 1, 2, 3]


def test_a_lease_that_falls_short_holds_nothing(tmp_path: Path, visible: pytest.MonkeyPatch) -> None:
    inventory = LocalInventory(tmp_path, nvml=FakeNvml(gpus=3))
    with inventory.lease(inventory.devices(), 1, "first"):
        with pytest.raises(DevicesBusyError), inventory.lease(inventory.devices(), 3, "greedy"):
            pass
        with inventory.lease(inventory.devices(), 2, "modest") as modest:
            assert [gpu.index for gpu in modest] == [1, 2]


def test_more_than_there_is_is_said_so(tmp_path: Path, visible: pytest.MonkeyPatch) -> None:
    inventory = LocalInventory(tmp_path, nvml=FakeNvml())
    with (
        pytest.raises(DevicesBusyError, match="this machine has 2 x NVIDIA H200"),
        inventory.lease(inventory.devices(), 3, "me"),
    ):
        pass


def test_a_gpu_with_a_foreign_process_is_refused(tmp_path: Path, visible: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["sleep", "60"]) as ours:
        try:
            # pid 1 is certainly not of this test; a child of ours is, and may stay.
            inventory = LocalInventory(tmp_path, nvml=FakeNvml({0: [1], 1: [os.getpid(), ours.pid]}))
            with inventory.lease(inventory.devices(), 1, "me") as (gpu,):
                assert gpu.index == 1
            with pytest.raises(DevicesBusyError, match=r"GPU-0f00 is held by .*\(pid 1\)"):
                inventory.lease(inventory.devices(), 2, "me").__enter__()
        finally:
            ours.kill()


def test_processes_exclude_each_other_and_a_killed_holder_lets_go(tmp_path: Path) -> None:
    everything = len(os.sched_getaffinity(0))
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        held = holder.stdout.readline().strip()
        message = re.escape(f"{held} is held by study other (pid {holder.pid})")
        with (
            pytest.raises(DevicesBusyError, match=message),
            cores(tmp_path).lease(cores(tmp_path).devices(), everything, "me"),
        ):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait(30)
        with cores(tmp_path).lease(cores(tmp_path).devices(), everything, "me") as mine:
            assert held in {core.uid for core in mine}
