"""Devices and leases: real locks between real processes, and hand-written NVML and amdsmi."""

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

from autotune.adapters.devices.inventory import Drivers, LocalInventory
from autotune.domain.basics.errors import BenchError, DevicesBusyError
from autotune.domain.hardware.hardware import Device, DeviceKind, Hardware

HOLDER = """
import sys
from pathlib import Path
from autotune.adapters.devices.inventory import LocalInventory
from autotune.domain.hardware.hardware import DeviceKind
inventory = LocalInventory(Path(sys.argv[1]), kind=DeviceKind.CPU)
with inventory.lease(inventory.devices(), 1, "study other") as (core,):
    print(core.uid, flush=True)
    sys.stdin.read()
"""


class FakeNvml:
    """GPUs, the processes that compute on them, and the islands they lie in; no island: no links at all."""

    def __init__(
        self,
        running: dict[int, list[int]] | None = None,
        gpus: int = 2,
        islands: tuple[tuple[int, ...], ...] = (),
    ) -> None:
        self.running = running or {}
        self.gpus = gpus
        self.islands = islands

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

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> tuple[int, int]:  # noqa: N802
        return (9, 0)

    def nvmlDeviceGetMemoryAffinity(self, handle: int, words: int, scope: int) -> list[int]:  # noqa: N802
        return [1 << handle // 2] + [0] * (words - 1)

    def nvmlDeviceGetPciInfo(self, handle: int) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(domain=0, bus=handle + 1, device=0)

    def nvmlDeviceGetP2PStatus(self, one: int, other: int, index: int) -> int:  # noqa: N802
        together = any(one in island and other in island for island in self.islands)
        return pynvml.NVML_P2P_STATUS_OK if together else pynvml.NVML_P2P_STATUS_NOT_SUPPORTED

    def nvmlDeviceGetMigMode(self, handle: int) -> list[int]:  # noqa: N802
        return [0, 0]

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
    return LocalInventory(runtime_dir, drivers=Drivers(NoNvml()))


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
    broken = LocalInventory(tmp_path, drivers=Drivers(NoNvml(pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)))
    with pytest.raises(BenchError, match="does not answer"):
        broken.devices()


def test_lists_gpus(tmp_path: Path, visible: pytest.MonkeyPatch) -> None:
    hardware = LocalInventory(tmp_path, drivers=Drivers(FakeNvml())).devices()
    assert hardware.describe() == "2 x NVIDIA H200"
    assert [(g.index, g.uid, g.driver) for g in hardware.devices] == [
        (0, "GPU-0f00", "580.65.06"),
        (1, "GPU-1f00", "580.65.06"),
    ]
    assert {gpu.compute_capability for gpu in hardware.devices} == {(9, 0)}


@pytest.mark.parametrize(("value", "indices"), [("1", [1]), ("GPU-0f", [0]), ("1,0", [0, 1]), ("", [])])
def test_gpus_that_a_batch_system_did_not_give_us_are_not_there(
    tmp_path: Path, visible: pytest.MonkeyPatch, value: str, indices: list[int]
) -> None:
    visible.setenv("CUDA_VISIBLE_DEVICES", value)
    inventory = LocalInventory(tmp_path, kind=DeviceKind.CUDA, drivers=Drivers(FakeNvml()))
    assert [gpu.index for gpu in inventory.devices().devices] == indices


def test_a_machine_with_gpus_can_be_used_for_its_cores(tmp_path: Path) -> None:
    assert (
        LocalInventory(tmp_path, kind=DeviceKind.CPU, drivers=Drivers(FakeNvml())).devices().kind
        is DeviceKind.CPU
    )


def test_leases_the_lowest_free_devices_in_order(tmp_path: Path, visible: pytest.MonkeyPatch) -> None:
    inventory = LocalInventory(tmp_path, drivers=Drivers(FakeNvml(gpus=4)))
    with (
        inventory.lease(inventory.devices(), 1, "first") as first,
        inventory.lease(inventory.devices(), 2, "second") as second,
    ):
        assert [gpu.index for gpu in first + second] == [0, 1, 2]
    with inventory.lease(inventory.devices(), 4, "third") as third:
        assert [gpu.index for gpu in third] == [0, 1, 2, 3]


def test_a_lease_that_falls_short_holds_nothing(tmp_path: Path, visible: pytest.MonkeyPatch) -> None:
    inventory = LocalInventory(tmp_path, drivers=Drivers(FakeNvml(gpus=3)))
    with inventory.lease(inventory.devices(), 1, "first"):
        with pytest.raises(DevicesBusyError), inventory.lease(inventory.devices(), 3, "greedy"):
            pass
        with inventory.lease(inventory.devices(), 2, "modest") as modest:
            assert [gpu.index for gpu in modest] == [1, 2]


def test_more_than_there_is_is_said_so(tmp_path: Path, visible: pytest.MonkeyPatch) -> None:
    inventory = LocalInventory(tmp_path, drivers=Drivers(FakeNvml()))
    with (
        pytest.raises(DevicesBusyError, match="this machine has 2 x NVIDIA H200"),
        inventory.lease(inventory.devices(), 3, "me"),
    ):
        pass


def test_a_gpu_with_a_foreign_process_is_refused(tmp_path: Path, visible: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["sleep", "60"]) as ours:
        try:
            # pid 1 is certainly not of this test; a child of ours is, and may stay.
            nvml = FakeNvml({0: [1], 1: [os.getpid(), ours.pid]})
            inventory = LocalInventory(tmp_path, drivers=Drivers(nvml))
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


def test_a_lease_keeps_tensor_parallel_ranks_inside_an_island(
    tmp_path: Path, visible: pytest.MonkeyPatch
) -> None:
    nvml = FakeNvml(gpus=6, islands=((0,), (1, 2), (3, 4, 5)))
    inventory = LocalInventory(tmp_path, drivers=Drivers(nvml))
    hardware = inventory.devices()
    assert [gpu.island for gpu in hardware.devices] == [0, 1, 1, 3, 3, 3]
    assert [gpu.numa_node for gpu in hardware.devices] == [0, 0, 1, 1, 2, 2]
    with (
        inventory.lease(hardware, 2, "first", group=2) as first,
        inventory.lease(hardware, 2, "second", group=2) as second,
    ):
        assert [[gpu.index for gpu in leased] for leased in (first, second)] == [[1, 2], [3, 4]]


def test_a_lease_looks_elsewhere_when_a_part_of_its_choice_is_held(
    tmp_path: Path, visible: pytest.MonkeyPatch
) -> None:
    nvml = FakeNvml({1: [1]}, gpus=5, islands=((0, 1), (2, 3, 4)))
    inventory = LocalInventory(tmp_path, drivers=Drivers(nvml))
    with inventory.lease(inventory.devices(), 2, "me", group=2) as mine:
        assert [gpu.index for gpu in mine] == [2, 3]
        # What was tried and not taken is free.
        with inventory.lease(inventory.devices(), 1, "other") as others:
            assert others[0].index == 0


def test_a_device_set_aside_is_leased_no_more_and_named(tmp_path: Path, visible: pytest.MonkeyPatch) -> None:
    inventory = LocalInventory(tmp_path, drivers=Drivers(FakeNvml()))
    hardware = inventory.devices()
    inventory.set_aside(hardware.devices[0], "3.0 GiB of its memory did not come back")
    with inventory.lease(hardware, 1, "me") as (gpu,):
        assert gpu.index == 1
    said = r"1 of 2 are free(?s:.*)GPU-0f00 is set aside: 3.0 GiB"
    with pytest.raises(BenchError, match=said) as refused, inventory.lease(hardware, 2, "me"):
        pass
    assert not isinstance(refused.value, DevicesBusyError), "that would end a study which needs fewer"


def test_accelerators_behind_a_url_are_nobodys_to_hold(tmp_path: Path) -> None:
    remote = Hardware(DeviceKind.REMOTE, (Device(DeviceKind.REMOTE, 0, "TPU", "remote-0", 0),))
    inventory = LocalInventory(tmp_path)
    with inventory.lease(remote, 1, "me") as mine, inventory.lease(remote, 1, "other") as others:
        assert mine == others == remote.devices
    with pytest.raises(DevicesBusyError), inventory.lease(remote, 2, "me"):
        pass


class FakeAmdsmi:
    """Four GPUs; HIP counts them backwards, and xGMI joins the first two."""

    class AmdSmiException(Exception):  # noqa: N818 - AMD's name
        pass

    class AmdSmiLibraryException(AmdSmiException):
        def get_error_code(self) -> int:
            return 2

    class AmdSmiLinkType:
        AMDSMI_LINK_TYPE_PCIE = 1
        AMDSMI_LINK_TYPE_XGMI = 2

    def __init__(self, pids: dict[int, list[int]] | None = None, *, lost: bool = False) -> None:
        self.pids, self.lost, self.running = pids or {}, lost, 0

    def amdsmi_init(self) -> None:
        if self.lost:
            raise self.AmdSmiLibraryException("Error code:\n\t34 | AMDSMI_STATUS_DRIVER_NOT_LOADED")
        self.running += 1

    def amdsmi_shut_down(self) -> None:
        self.running -= 1

    def amdsmi_get_processor_handles(self) -> list[int]:
        return [0, 1, 2, 3]

    def amdsmi_get_gpu_asic_info(self, handle: int) -> dict[str, str]:
        return {"market_name": "AMD Instinct MI355X", "target_graphics_version": "gfx950"}

    def amdsmi_get_gpu_device_uuid(self, handle: int) -> str:
        return f"amd-{handle}"

    def amdsmi_get_gpu_enumeration_info(self, handle: int) -> dict[str, int]:
        return {"hip_id": 3 - handle}

    def amdsmi_get_gpu_vram_usage(self, handle: int) -> dict[str, int]:
        return {"vram_total": 294_912, "vram_used": 300 + handle}

    def amdsmi_get_gpu_driver_info(self, handle: int) -> dict[str, str]:
        raise self.AmdSmiLibraryException("not supported")

    def amdsmi_topo_get_numa_node_number(self, handle: int) -> int:
        return handle // 2

    def amdsmi_topo_get_link_type(self, one: int, other: int) -> dict[str, int]:
        return {"hops": 1, "type": 2 if {one, other} == {0, 1} else 1}

    def amdsmi_get_gpu_process_list(self, handle: int) -> list[dict[str, int]]:
        return [{"pid": pid} for pid in self.pids.get(handle, [])]


@pytest.fixture
def amd(visible: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    visible.delenv("ROCR_VISIBLE_DEVICES", raising=False)
    visible.delenv("HIP_VISIBLE_DEVICES", raising=False)
    return visible


def amd_machine(tmp_path: Path, smi: FakeAmdsmi, kind: DeviceKind | None = None) -> LocalInventory:
    kfd = tmp_path / "kfd"
    kfd.touch()
    return LocalInventory(tmp_path, kind=kind, drivers=Drivers(NoNvml(), lambda: smi, kfd))


def test_lists_amd_gpus_in_hips_order(tmp_path: Path, amd: pytest.MonkeyPatch) -> None:
    smi = FakeAmdsmi()
    hardware = amd_machine(tmp_path, smi).devices()
    assert hardware.kind is DeviceKind.ROCM
    assert hardware.describe() == "4 x AMD Instinct MI355X"
    assert [(g.index, g.uid, g.island, g.numa_node) for g in hardware.devices] == [
        (0, "amd-3", 3, 1),
        (1, "amd-2", 2, 1),
        (2, "amd-1", 0, 0),
        (3, "amd-0", 0, 0),
    ]
    assert {(g.memory_bytes, g.compute_capability, g.driver) for g in hardware.devices} == {
        (294_912 << 20, (9, 5, 0), "")
    }
    assert smi.running == 0


@pytest.mark.parametrize(
    ("rocr", "hip", "uids"),
    [("2,0", None, ["amd-3", "amd-1"]), ("1,2", "1", ["amd-1"]), ("amd-0", None, ["amd-0"]), (None, "", [])],
)
def test_amd_gpus_that_a_batch_system_did_not_give_us_are_not_there(
    tmp_path: Path, amd: pytest.MonkeyPatch, rocr: str | None, hip: str | None, uids: list[str]
) -> None:
    for variable, value in (("ROCR_VISIBLE_DEVICES", rocr), ("HIP_VISIBLE_DEVICES", hip)):
        if value is not None:
            amd.setenv(variable, value)
    hardware = amd_machine(tmp_path, FakeAmdsmi(), DeviceKind.ROCM).devices()
    assert [gpu.uid for gpu in hardware.devices] == uids


def test_an_amd_gpu_with_a_foreign_process_is_refused(tmp_path: Path, amd: pytest.MonkeyPatch) -> None:
    inventory = amd_machine(tmp_path, FakeAmdsmi({0: [1], 2: [os.getpid()]}))
    with inventory.lease(inventory.devices(), 2, "me", group=2) as mine:
        # The linked pair has a stranger on it, and ours may stay.
        assert [gpu.uid for gpu in mine] == ["amd-3", "amd-2"]


def test_an_amd_driver_that_does_not_answer_is_a_bench_error(tmp_path: Path, amd: pytest.MonkeyPatch) -> None:
    with pytest.raises(BenchError, match=r"(?s)DRIVER_NOT_LOADED.*groups video and render"):
        amd_machine(tmp_path, FakeAmdsmi(lost=True)).devices()
    without = LocalInventory(
        tmp_path, drivers=Drivers(NoNvml(), lambda: FakeAmdsmi(lost=True), tmp_path / "none")
    )
    assert without.devices().kind is DeviceKind.CPU
