"""Looks a node over before and after a launch: its GPUs, and its host through the kernel's files."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Sequence
from pathlib import Path

import psutil

from autotune.adapters.devices.gpu_health import GpuHealth
from autotune.adapters.engines.kernel_log import read_log
from autotune.domain.hardware.hardware import Device
from autotune.domain.hardware.node import CoolDown, NodeState, XidCount
from autotune.domain.load.progress import Cancelled

CPU_SAMPLE_S = 0.5
"""The CPU's shares are means over this long."""

# A record of /dev/kmsg: "priority,sequence,microseconds since boot,flags;text" (the kernel's ABI document
# dev-kmsg). Priorities below 8 are the kernel's own: a process cannot write such a line.
_XID = re.compile(
    r"^[0-7],\d+,(?P<us>\d+),[^;\n]*;.*?NVRM: Xid \((?:PCI:)?(?P<pci>[\da-fA-F:]+)[^)\n]*\): (?P<code>\d+)",
    re.MULTILINE,
)


class LocalPreflight:
    """Looks this machine over; ``root`` is where the kernel's and the system's files are."""

    def __init__(self, *, gpus: GpuHealth | None = None, root: Path = Path("/")) -> None:
        self._gpus = gpus or GpuHealth()
        self._root = root

    def check(self, devices: Sequence[Device]) -> NodeState:
        """Look over these devices and their host, in about CPU_SAMPLE_S.

        Raises BenchError where a GPU is lost or NVML does not answer.
        """
        cpu = psutil.cpu_times_percent(interval=CPU_SAMPLE_S)
        frequency = psutil.cpu_freq()
        return NodeState(
            node=_node_name(self._root),
            boot_id=_text(self._root / "proc/sys/kernel/random/boot_id"),
            kernel=os.uname().release,
            devices=self._gpus.read(devices),
            cores=psutil.cpu_count(),
            load_1min=os.getloadavg()[0],
            # Each share is rounded, so that together they may come to more than the whole.
            busy_share=max(0.0, 100 - cpu.idle - cpu.iowait - cpu.steal) / 100,
            steal_share=cpu.steal / 100,
            cpu_governor=_governor(self._root),
            cpu_mhz=frequency.current if frequency else None,
            memory_available_bytes=psutil.virtual_memory().available,
            xids=_xids(self._root / "dev/kmsg"),
        )

    def cool_down(
        self, devices: Sequence[Device], start: NodeState, wait: CoolDown, cancelled: Cancelled
    ) -> tuple[str, ...]:
        """Wait until these devices are about as cool as in ``start``; returns which are not, in words.

        Cores tell no temperature and are not waited for. Raises as GpuHealth.cool_down does.
        """
        return self._gpus.cool_down(devices, start, wait, cancelled)


def _node_name(root: Path) -> str:
    """Host name, with a hash that tells machines of one name apart and is the same after a reboot.

    machine-id(5) asks that the id itself be kept secret, and for a keyed hash of it where one is needed. A
    container's host name may change from run to run: it is then taken for another node, which keeps figures
    apart that could have been compared.
    """
    host, machine_id = os.uname().nodename, _text(root / "etc/machine-id")
    if not machine_id:
        return host
    return f"{host}-{hmac.new(machine_id.encode(), b'autotune node', hashlib.sha256).hexdigest()[:8]}"


def _governor(root: Path) -> str | None:
    """CPU frequency governor; several joined by ``+``, None where the kernel does not say."""
    files = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor")
    return "+".join(sorted({_text(file) for file in files} - {""})) or None


def _xids(log: Path) -> tuple[XidCount, ...] | None:
    """Xid errors since boot, as far back as the kernel's log goes; None where it cannot be read."""
    text = read_log(log)
    if not text:  # what has not even the lines of its boot is not the kernel's log
        return None
    seen: dict[tuple[str, int], list[float]] = {}
    for line in _XID.finditer(text):
        seen.setdefault((line["pci"].lower(), int(line["code"])), []).append(int(line["us"]) / 1e6)
    return tuple(XidCount(pci, code, len(at_s), max(at_s)) for (pci, code), at_s in sorted(seen.items()))


def _text(path: Path) -> str:
    """A small file of the kernel, stripped; empty where it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
