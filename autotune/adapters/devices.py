"""The devices of this machine, and leases that the kernel ends with their holder."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pynvml

from autotune.adapters.gpu_processes import foreign_processes
from autotune.adapters.runtime_dir import default_runtime_dir
from autotune.domain.errors import BenchError, DevicesBusyError
from autotune.domain.hardware import Device, DeviceKind, Hardware


class LocalInventory:
    """NVIDIA GPUs where the driver is there, else the cores that this process may use.

    ``kind`` asks for one of the two, as for an engine built for CPUs on a machine with GPUs. ``nvml`` is
    pynvml, or anything with those of its functions that are used here.
    """

    def __init__(
        self, runtime_dir: Path | None = None, *, kind: DeviceKind | None = None, nvml: Any = pynvml
    ) -> None:
        self._leases = (runtime_dir or default_runtime_dir()) / "leases"
        self._kind = kind
        self._nvml = nvml

    def devices(self) -> Hardware:
        """List what is there; raises BenchError when GPUs are there but do not answer."""
        if self._kind is not DeviceKind.CPU:
            gpus = self._gpus()
            if gpus or self._kind is DeviceKind.CUDA:
                return Hardware(DeviceKind.CUDA, gpus)
        return Hardware(DeviceKind.CPU, _cores())

    @contextmanager
    def lease(self, among: Hardware, count: int, owner: str) -> Iterator[tuple[Device, ...]]:
        """Hold the ``count`` lowest free devices of some, in index order; ``owner`` is what others are told.

        Raises DevicesBusyError naming who holds what, and BenchError when a GPU does not answer.
        """
        with ExitStack() as held:
            taken: list[Device] = []
            holders: list[str] = []
            for device in among.devices:
                if len(taken) == count:
                    break
                if holder := self._foreign_processes(device) or self._take(device, owner, held):
                    holders.append(f"{device.uid} is held by {holder}")
                else:
                    taken.append(device)
            if len(taken) < count:
                raise DevicesBusyError(_shortage(count, among, taken, holders))
            yield tuple(taken)

    def _take(self, device: Device, owner: str, held: ExitStack) -> str:
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

    def _foreign_processes(self, device: Device) -> str:
        """Name the processes that compute on a GPU and are not ours."""
        if device.kind is not DeviceKind.CUDA:
            return ""
        nvml = self._nvml
        try:
            nvml.nvmlInit()
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(device.index)
                foreign = foreign_processes(
                    lambda: [process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)]
                )
            finally:
                nvml.nvmlShutdown()
        except pynvml.NVMLError as error:
            raise BenchError(f"cannot ask {device.uid} what runs on it: {error}") from error
        return ", ".join(sorted(foreign))

    def _gpus(self) -> tuple[Device, ...]:
        try:
            self._nvml.nvmlInit()
        except pynvml.NVMLError as error:
            absent = (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
            if error.value in absent:
                return ()
            raise BenchError(f"the NVIDIA driver is there but does not answer: {error}") from error
        try:
            gpus = tuple(self._gpu(index) for index in range(self._nvml.nvmlDeviceGetCount()))
        except pynvml.NVMLError as error:
            raise BenchError(f"cannot list the GPUs: {error}") from error
        finally:
            self._nvml.nvmlShutdown()
        return tuple(gpu for gpu in gpus if _visible(gpu))

    def _gpu(self, index: int) -> Device:
        handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
        return Device(
            DeviceKind.CUDA,
            index,
            name=self._nvml.nvmlDeviceGetName(handle),
            uid=self._nvml.nvmlDeviceGetUUID(handle),
            memory_bytes=self._nvml.nvmlDeviceGetMemoryInfo(handle).total,
            driver=self._nvml.nvmlSystemGetDriverVersion(),
        )


def _visible(gpu: Device) -> bool:
    """Whether CUDA_VISIBLE_DEVICES, by which batch systems hand out GPUs, leaves us this one."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is None:
        return True
    names = [name.strip() for name in allowed.split(",") if name.strip()]
    return any(
        name == str(gpu.index) or (name.startswith("GPU-") and gpu.uid.startswith(name)) for name in names
    )


def _cores() -> tuple[Device, ...]:
    cores = sorted(os.sched_getaffinity(0))
    share_bytes = psutil.virtual_memory().total // len(cores)
    name = _cpu_name()
    return tuple(Device(DeviceKind.CPU, core, name, f"cpu-{core}", share_bytes) for core in cores)


def _cpu_name() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else os.uname().machine


def _shortage(count: int, hardware: Hardware, taken: list[Device], holders: list[str]) -> str:
    if count > hardware.count:
        return f"{count} devices were asked for and this machine has {hardware.describe()}; ask for fewer"
    return "\n".join(
        [
            f"{count} devices were asked for and {len(taken)} of {hardware.count} are free:",
            *(f"  {holder}" for holder in holders),
            "remedy: wait for these or stop them, or ask for fewer devices",
        ]
    )
