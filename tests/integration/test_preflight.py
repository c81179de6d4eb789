"""Preflight: nvidia-ml-py on the stand-in for the driver, and files of the kernel's as they really look."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from standin.nvml import build_standin, run_on_standin

from autotune.adapters.devices.gpu_health import GpuHealth
from autotune.adapters.devices.preflight import LocalPreflight
from autotune.domain.basics.errors import BenchError
from autotune.domain.hardware.hardware import Device, DeviceKind
from autotune.domain.hardware.node import NodeState, XidCount, faults, new_faults, read_node_state, warnings

UIDS = [f"GPU-0000000{index}-0000-0000-0000-000000000000" for index in range(2)]
HEADER = f"""
from autotune.adapters.devices.preflight import LocalPreflight
from autotune.domain.basics.errors import BenchError, StudyCancelledError
from autotune.domain.hardware.hardware import Device, DeviceKind
from autotune.domain.hardware.node import CoolDown, DeviceHealth, NodeState
gpus = [Device(DeviceKind.CUDA, i, "H200", uid, 1 << 30) for i, uid in enumerate({UIDS})]
"""
CHECK = """
import json
from dataclasses import asdict
print(json.dumps(asdict(LocalPreflight().check(gpus))))
"""
COOL_DOWN = """
start = NodeState(
    node="n", boot_id="b", kernel="k", cores=1, load_1min=0, busy_share=0, steal_share=0,
    memory_available_bytes=1, devices=tuple(DeviceHealth(uid=gpu.uid, temperature_c=30) for gpu in gpus),
)
def cool_down(cancelled=lambda: False, **wait):
    return LocalPreflight().cool_down(gpus, start, CoolDown(tolerance_c=5, **wait), cancelled)
"""
QUERIES = (
    "GetFieldValues",
    "GetPciInfo_v3",
    "GetTemperature",
    "GetTotalEccErrors",
    "GetRemappedRows",
    "GetRetiredPagesPendingStatus",
    "GetNvLinkState",
    "GetNvLinkErrorCounter",
    "GetCurrPcieLinkGeneration",
    "GetMaxPcieLinkGeneration",
    "GetCurrPcieLinkWidth",
    "GetMaxPcieLinkWidth",
    "GetClockInfo",
    "GetMaxClockInfo",
    "GetEnforcedPowerLimit",
    "GetPowerManagementDefaultLimit",
    "GetMigMode",
)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_standin(tmp_path_factory.mktemp("nvml"))


class Standin:
    """Runs code on two GPUs with four NVLinks each, changed by the lines of a scenario."""

    def __init__(self, library: Path, scenario: Path) -> None:
        self.library, self.scenario = library, scenario

    def run(self, code: str, *lines: str) -> str:
        self.scenario.write_text("\n".join(["0 - gpus=2", "0 * nvlinks=4", *lines]))
        return run_on_standin(self.library, self.scenario, HEADER + code)

    def state(self, *lines: str) -> NodeState:
        return read_node_state(json.loads(self.run(CHECK, *lines)))


@pytest.fixture
def standin(library: Path, tmp_path: Path) -> Standin:
    return Standin(library, tmp_path / "scenario")


def codes(reasons: tuple[str, ...]) -> set[str]:
    """Of the reasons that these tests cause: how busy this machine is, and its log, are its own affair."""
    found = {reason.split(": ")[0] for reason in reasons}
    return found - {"busy", "steal", "xid-unknown"}


def test_reads_what_a_gpu_says_in_the_units_of_the_fields(standin: Standin) -> None:
    state = standin.state(
        "0 0 temperature_c=41 ecc.corrected.volatile=7",
        "0 0 nvlink.1.error.0=2 nvlink.2.error.2=3 nvlink.3.error.1=4",
        "0 0 clock_mhz=345 pcie_generation=1 enforced_power_limit_w=650 field.230=0",
        "0 1 mig=1 pci_bus=60 retired_pending=1 error.nvmlDeviceGetRemappedRows=3 field.230=4",
    )
    first, second = state.devices
    assert (first.uid, second.uid) == tuple(UIDS)
    assert (first.pci, second.pci) == ("0000:01:00", "0000:3c:00")
    assert (first.temperature_c, first.ecc_corrected, first.ecc_uncorrected) == (41, 7, 0)
    assert (first.nvlinks_up, first.nvlinks, first.nvlink_errors, first.nvlink_recoveries) == (4, 4, 5, 4)
    assert (first.sm_clock_mhz, first.sm_clock_max_mhz) == (345, 1980)
    assert (first.pcie_generation, first.pcie_generation_max) == (1, 5)
    assert (first.pcie_width, first.pcie_width_max) == (16, 16)
    assert (first.power_limit_w, first.power_limit_default_w) == (650, 700)
    assert (first.mig, second.mig) == (False, True)
    assert (first.remap_pending, first.remap_failed) == (False, False)
    assert (second.remap_pending, second.remap_failed) == (True, None)
    assert (first.recovery, second.recovery) == ("none", "drain-and-reset")


def test_a_sound_node_is_accepted(standin: Standin) -> None:
    state = standin.state()
    assert codes(faults(state)) == codes(warnings(state)) == set()


def test_a_broken_gpu_is_refused_with_every_reason(standin: Standin) -> None:
    state = standin.state(
        "0 0 ecc.uncorrected.volatile=3 remap_pending=1 nvlink.2.state=0 power_limit_w=500",
        "0 1 pcie_width=8 field.230=1",
    )
    gpu, other = UIDS
    assert codes(faults(state)) == {
        f"ecc-uncorrected:{gpu}",
        f"remap-pending:{gpu}",
        f"nvlink-down:{gpu}",
        f"recovery-needed:{other}",
    }
    assert codes(warnings(state)) == {f"power-cap:{gpu}", f"nvlink-partial:{gpu}", f"pcie-narrow:{other}"}


def test_faults_that_came_between_two_checks_are_found(standin: Standin) -> None:
    before = standin.state("0 0 ecc.uncorrected.volatile=1")
    after = standin.state(
        "0 0 ecc.uncorrected.volatile=2", "0 1 nvlink.0.state=0 nvlink.1.error.1=1 nvlink.1.error.0=50"
    )
    assert codes(new_faults(before, after)) == {
        f"ecc-uncorrected:{UIDS[0]}",
        f"nvlink-down:{UIDS[1]}",
        f"nvlink-recovery:{UIDS[1]}",
    }


@pytest.mark.parametrize("code", [2, 3, 4, 13], ids=["invalid", "unsupported", "forbidden", "old-driver"])
def test_what_a_gpu_does_not_support_is_none(standin: Standin, code: int) -> None:
    mute = standin.state(*(f"0 0 error.nvmlDevice{query}={code}" for query in QUERIES)).devices[0]
    assert {field: getattr(mute, field) for field in mute.__slots__ if field != "uid"} == dict.fromkeys(
        field for field in mute.__slots__ if field != "uid"
    )


def test_ecc_that_is_off_and_a_gpu_without_nvlink_are_none(standin: Standin) -> None:
    device = standin.state("0 0 ecc=0 nvlinks=0").devices[0]
    assert device.ecc_corrected is device.ecc_uncorrected is None
    assert device.nvlinks_up is device.nvlinks is device.nvlink_errors is device.nvlink_recoveries is None
    assert device.temperature_c == 55


@pytest.mark.parametrize(
    "line",
    [
        "0 1 error.all=15",
        "0 1 error.nvmlDeviceGetHandleByUUID=15",
        "0 1 error.nvmlDeviceGetTemperature=16",
        "0 1 error.field.230=15",
        "0 1 uuid=GPU-another",
        "0 - error.all=9",
    ],
    ids=["lost", "lost-at-once", "reset-required", "lost-in-a-field", "gone", "no-driver"],
)
def test_a_gpu_that_is_lost_is_the_benchs(standin: Standin, line: str) -> None:
    code = """
try:
    LocalPreflight().check(gpus)
except BenchError as error:
    print(error)
"""
    assert UIDS[1] in standin.run(code, line)


def test_waits_until_every_gpu_is_cool(standin: Standin) -> None:
    code = """
print(cool_down(poll_s=0.02), [gpu.temperature_c for gpu in LocalPreflight().check(gpus).devices])
"""
    lines = [
        "0 0 temperature_c=70",
        "0 1 temperature_c=20",
        "0.2 0 temperature_c=50",
        "0.5 0 temperature_c=35",
    ]
    assert standin.run(COOL_DOWN + code, *lines).strip() == "() [35, 20]"


def test_cool_gpus_are_not_waited_for(standin: Standin) -> None:
    assert standin.run(COOL_DOWN + "print(cool_down(poll_s=3600))", "0 * temperature_c=35").strip() == "()"


@pytest.mark.parametrize(
    "wait", ["timeout_s=0.3", "settled_s=0.3, timeout_s=3600"], ids=["timeout", "no-cooler"]
)
def test_a_gpu_that_stays_warm_is_told_and_no_longer_waited_for(standin: Standin, wait: str) -> None:
    told = standin.run(COOL_DOWN + f"print(*cool_down(poll_s=0.02, {wait}))", "0 1 temperature_c=60")
    # The other GPU stays at 55.
    assert f"warm-start:{UIDS[0]}: 55 °C, wanted 35 °C" in told
    assert f"warm-start:{UIDS[1]}: 60 °C, wanted 35 °C" in told


def test_a_user_who_stops_the_study_does_not_wait_for_the_cool_down(standin: Standin) -> None:
    code = """
try:
    cool_down(cancelled=lambda: True)
except StudyCancelledError:
    print("stopped")
"""
    assert standin.run(COOL_DOWN + code).strip() == "stopped"


# ---- the host


KERNEL_LOG = """\
6,1,0,-;Linux version 6.1.0-37-amd64
 SUBSYSTEM=cpu
3,801,5000000,-;NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, name=python, GPU has fallen off the bus.
4,802,6000000,-;NVRM: Xid (PCI:0000:3B:00): 79, GPU has fallen off the bus.
4,803,7000000,c;NVRM: Xid (PCI:0000:4c:00 GPU-I:05): 31, pid=77, name=vllm, Ch 00000008, MMU Fault
4,804,8000000,-;NVRM: Xid (0000:4c:00): 13, Graphics Exception
12,805,9000000,-;NVRM: Xid (PCI:0000:5d:00): 95, written by a process
4,806,9500000,-;NVRM: GPU at PCI:0000:3b:00: GPU-b850f46d
"""
XIDS = (
    XidCount("0000:3b:00", 79, 2, 6.0),
    XidCount("0000:4c:00", 13, 1, 8.0),
    XidCount("0000:4c:00", 31, 1, 7.0),
)


def check(root: Path) -> NodeState:
    return LocalPreflight(root=root).check([])


def test_reads_xids_from_the_kernels_log_and_believes_only_the_kernel(tmp_path: Path) -> None:
    log = tmp_path / "dev/kmsg"
    log.parent.mkdir()
    log.write_text(KERNEL_LOG)
    assert check(tmp_path).xids == XIDS


def test_stops_at_the_end_of_a_log_that_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "dev/kmsg"
    log.parent.mkdir()
    os.mkfifo(log)
    kernel = os.open(log, os.O_RDWR)
    try:
        os.write(kernel, KERNEL_LOG.encode())
        assert check(tmp_path).xids == XIDS
    finally:
        os.close(kernel)


def test_a_log_that_cannot_be_read_is_not_one_without_xids(tmp_path: Path) -> None:
    log = tmp_path / "dev/kmsg"
    assert check(tmp_path).xids is None
    log.parent.mkdir()
    log.write_text("")
    assert check(tmp_path).xids is None
    log.unlink()
    log.mkdir()
    assert check(tmp_path).xids is None
    log.rmdir()
    log.write_text("6,1,0,-;Linux version 6.1.0-37-amd64\n")
    assert check(tmp_path).xids == ()


def test_a_node_is_named_alike_after_a_reboot_and_unlike_its_namesake(tmp_path: Path) -> None:
    def name(machine_id: str) -> str:
        (tmp_path / "etc").mkdir(exist_ok=True)
        (tmp_path / "etc/machine-id").write_text(machine_id)
        return check(tmp_path).node

    one, other = "0123456789abcdef0123456789abcdef", "0123456789abcdef0123456789abcde0"
    host = os.uname().nodename
    assert check(tmp_path).node == host
    named = name(one)
    assert named == name(one + "\n") != name(other)
    assert named.startswith(f"{host}-")
    assert not any(one[at : at + 8] in named.removeprefix(host) for at in range(len(one) - 7))
    assert name("") == host


def test_governors_of_all_cores(tmp_path: Path) -> None:
    assert check(tmp_path).cpu_governor is None
    for core, governor in enumerate(["powersave", "performance", "performance"]):
        policy = tmp_path / f"sys/devices/system/cpu/cpu{core}/cpufreq"
        policy.mkdir(parents=True)
        (policy / "scaling_governor").write_text(f"{governor}\n")
    assert check(tmp_path).cpu_governor == "performance+powersave"


def test_sees_that_the_machine_is_busy() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            state = LocalPreflight().check([])
        finally:
            busy.kill()
    # A core's worth, less what another process or a hypervisor kept from it.
    assert state.busy_share + state.steal_share > 0.3 / state.cores
    assert 0 <= state.busy_share <= 1
    assert 0 <= state.steal_share <= 1


def test_this_machine() -> None:
    state = LocalPreflight().check([])
    assert state.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert state.kernel == Path("/proc/sys/kernel/osrelease").read_text().strip()
    assert state.cores >= len(os.sched_getaffinity(0))
    assert 0 < state.memory_available_bytes < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert new_faults(state, LocalPreflight().check([])) == ()


def test_cores_need_no_driver() -> None:
    no_nvml: Any = object()
    core = Device(DeviceKind.CPU, 0, "core", "cpu-0", 1 << 30)
    assert LocalPreflight(gpus=GpuHealth(no_nvml)).check([core]).devices == ()


def test_a_gpu_that_this_machine_has_not_is_the_benchs() -> None:
    gpu = Device(DeviceKind.CUDA, 0, "H200", "GPU-of-another-machine", 1 << 30)
    with pytest.raises(BenchError, match="GPU-of-another-machine"):
        LocalPreflight().check([gpu])
