"""The devices of this machine, and leases that the kernel ends with their holder."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pynvml

from autotune.adapters.devices import amd as devices_amd
from autotune.adapters.devices import nvidia as devices_nvidia
from autotune.adapters.power.amd import load_amdsmi
from autotune.adapters.runtime_dir import default_runtime_dir
from autotune.domain.basics.errors import BenchError, DevicesBusyError
from autotune.domain.hardware.hardware import VECTORS, Device, DeviceKind, Hardware
from autotune.domain.hardware.placement import choose_devices

KFD = Path("/dev/kfd")
"""AMD's driver for computing is there where this is."""


@dataclass(frozen=True, slots=True)
class Drivers:
    """What GPUs are asked through: pynvml and what imports amdsmi, or anything with their functions."""

    nvml: Any = pynvml
    load_amdsmi: devices_amd.Load = load_amdsmi
    kfd: Path = KFD


class LocalInventory:
    """GPUs where a driver is there, NVIDIA's first, else the cores that this process may use.

    ``kind`` asks for one of these, as for an engine built for CPUs on a machine with GPUs.
    """

    def __init__(
        self,
        runtime_dir: Path | None = None,
        *,
        kind: DeviceKind | None = None,
        drivers: Drivers | None = None,
    ) -> None:
        self._leases = (runtime_dir or default_runtime_dir()) / "leases"
        self._kind = kind
        self._drivers = drivers or Drivers()
        self._aside: dict[str, str] = {}

    def devices(self) -> Hardware:
        """List what is there; raises BenchError when GPUs are there that do not answer or may not be used."""
        kind, drivers = self._kind, self._drivers
        if kind in {None, DeviceKind.CUDA}:
            found = devices_nvidia.gpus(drivers.nvml) or devices_nvidia.NvidiaGpus((), ())
            if found.left_out and not found.devices:
                raise BenchError("; ".join(found.left_out))
            if found.devices or kind is DeviceKind.CUDA:
                return Hardware(DeviceKind.CUDA, found.devices)
        if kind is DeviceKind.ROCM or (kind is None and drivers.kfd.exists()):
            return Hardware(DeviceKind.ROCM, devices_amd.gpus(drivers.load_amdsmi))
        return Hardware(DeviceKind.CPU, _cores())

    def set_aside(self, device: Device, why: str) -> None:
        """Lease a device no more, as long as this inventory lives; ``why`` is what others are told."""
        self._aside[device.uid] = why

    @contextmanager
    def lease(self, among: Hardware, count: int, owner: str, group: int = 1) -> Iterator[tuple[Device, ...]]:
        """Hold ``count`` free devices of some, group after group as ``choose_devices`` lays them.

        ``owner`` is what others are told. Raises DevicesBusyError naming who holds what, and BenchError when
        a GPU does not answer, or too few are left of those that were not set aside.
        """
        if among.kind is DeviceKind.REMOTE and count <= among.count:
            yield among.devices  # nobody's to hold, and all of them serve
            return
        free = [device for device in among.devices if device.uid not in self._aside]
        refused = {uid: f"set aside: {why}" for uid, why in self._aside.items()}
        if len(free) < count <= among.count:
            # Of this launch alone: another may need fewer.
            raise BenchError(_shortage(count, among, refused))
        with ExitStack() as held:
            chosen = self._take(free, count, group, (owner, held, refused))
            if len(chosen) < count:
                raise DevicesBusyError(_shortage(count, among, refused))
            yield chosen

    def _take(
        self, free: list[Device], count: int, group: int, lease: tuple[str, ExitStack, dict[str, str]]
    ) -> tuple[Device, ...]:
        """Choose and lock devices, anew without those that turn out held; none where too few are left."""
        owner, held, refused = lease
        while chosen := choose_devices(free, count, group=group):
            with ExitStack() as tried:
                # In the order of their indices, so that two who want the same do not each get a part of it.
                for device in sorted(chosen, key=lambda each: each.index):
                    if holder := self._foreign(device) or self._lock(device, owner, tried):
                        refused[device.uid] = f"held by {holder}"
                if not refused.keys() & {device.uid for device in chosen}:
                    held.push(tried.pop_all())
                    return chosen
            free = [device for device in free if device.uid not in refused]
        return ()

    def _lock(self, device: Device, owner: str, held: ExitStack) -> str:
        """Lock a device for as long as ``held`` is open; returns its holder when there is one, else ''."""
        self._leases.mkdir(parents=True, exist_ok=True)
        # Never deleted: a file that was unlinked while another waits to lock it would be locked twice.
        path = self._leases / f"{re.sub(r'[^A-Za-z0-9-]', '_', device.uid)}.lock"
        with ExitStack() as opened:
            file = opened.enter_context(path.open("a+"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                return file.read() or "a process that just took it"
            file.truncate(0)
            file.write(f"{owner} (pid {os.getpid()})")
            file.flush()
            held.push(opened.pop_all())
        return ""

    def _foreign(self, device: Device) -> str:
        """Name the processes that compute on a GPU and are not ours."""
        match device.kind:
            case DeviceKind.CUDA:
                return ", ".join(sorted(devices_nvidia.foreign(device, self._drivers.nvml)))
            case DeviceKind.ROCM:
                return ", ".join(sorted(devices_amd.foreign(device, self._drivers.load_amdsmi)))
            case _:
                return ""


def _cores() -> tuple[Device, ...]:
    cores = sorted(os.sched_getaffinity(0))
    share_bytes = psutil.virtual_memory().total // len(cores)
    told = Path("/proc/cpuinfo").read_text()
    name = _told(told, "model name") or os.uname().machine
    flags = _told(told, "flags")
    instructions = VECTORS & set(flags.split()) if flags else None
    return tuple(
        Device(DeviceKind.CPU, core, name, f"cpu-{core}", share_bytes, instructions=instructions)
        for core in cores
    )


def _told(cpuinfo: str, what: str) -> str:
    found = re.search(rf"^{what}\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return found[1] if found else ""


def _shortage(count: int, hardware: Hardware, refused: dict[str, str]) -> str:
    if count > hardware.count:
        return f"{count} devices were asked for and this machine has {hardware.describe()}; ask for fewer"
    holders = [f"  {d.uid} is {refused[d.uid]}" for d in hardware.devices if d.uid in refused]
    free = hardware.count - len(holders)
    return "\n".join(
        [
            f"{count} devices were asked for and {free} of {hardware.count} are free:",
            *holders,
            "remedy: wait for these or stop them, or ask for fewer devices",
        ]
    )
