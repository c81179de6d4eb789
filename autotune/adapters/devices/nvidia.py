"""NVIDIA GPUs through NVML: what they are, how they are linked, how they are split, who works on them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import pynvml

from autotune.adapters.devices.gpu_health import CANNOT_SAY
from autotune.adapters.devices.gpu_processes import foreign_processes
from autotune.adapters.devices.islands import islands
from autotune.domain.basics.errors import BenchError
from autotune.domain.hardware.hardware import Device, DeviceKind

Answer = TypeVar("Answer")

NO_DRIVER = (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
NUMA_WORDS = 16
"""NVML writes NUMA nodes as bits of words of 64: enough for 1024 nodes."""


@dataclass(frozen=True, slots=True)
class NvidiaGpus:
    """GPUs and instances of GPUs that a study may use; ``left_out`` says in words which may not, and why."""

    devices: tuple[Device, ...]
    left_out: tuple[str, ...]


def gpus(nvml: Any = pynvml) -> NvidiaGpus | None:
    """List what is there; None without a driver. Raises BenchError where GPUs are there and do not answer.

    A GPU that is split (MIG) counts as its one instance. Several are left out: power and energy are told for
    the whole GPU, and whose they are cannot be known.
    """
    try:
        nvml.nvmlInit()
    except pynvml.NVMLError as error:
        if error.value in NO_DRIVER:
            return None
        raise BenchError(f"the NVIDIA driver is there but does not answer: {error}") from error
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        island = islands(len(handles), _links(nvml, handles))
        whole = [_gpu(nvml, index, handle, island[index]) for index, handle in enumerate(handles)]
        found = [_usable(nvml, handle, gpu) for handle, gpu in zip(handles, whole, strict=True)]
    except pynvml.NVMLError as error:
        raise BenchError(f"cannot list the GPUs: {error}") from error
    finally:
        with suppress(pynvml.NVMLError):
            nvml.nvmlShutdown()
    devices = tuple(each for each in found if isinstance(each, Device) and _visible(each))
    return NvidiaGpus(devices, tuple(each for each in found if isinstance(each, str)))


def foreign(device: Device, nvml: Any = pynvml) -> frozenset[str]:
    """Name the processes on a GPU that are not ours; raises BenchError where it does not answer."""
    with _nvml_errors(nvml, f"ask {device.uid} what runs on it"):
        handle = nvml.nvmlDeviceGetHandleByIndex(device.index)
        return foreign_processes(
            lambda: [process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)]
        )


@contextmanager
def _nvml_errors(nvml: Any, doing: str) -> Iterator[None]:
    try:
        nvml.nvmlInit()
        try:
            yield
        finally:
            # After a lost GPU even this fails; what was wrong is on its way by then.
            with suppress(pynvml.NVMLError):
                nvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise BenchError(f"cannot {doing}: {error}") from error


def _gpu(nvml: Any, index: int, handle: Any, island: int) -> Device:
    return Device(
        DeviceKind.CUDA,
        index,
        name=nvml.nvmlDeviceGetName(handle),
        uid=nvml.nvmlDeviceGetUUID(handle),
        memory_bytes=nvml.nvmlDeviceGetMemoryInfo(handle).total,
        driver=nvml.nvmlSystemGetDriverVersion(),
        compute_capability=_known(nvml.nvmlDeviceGetCudaComputeCapability, handle) or (),
        island=island,
        numa_node=_numa_node(nvml, handle),
    )


def _known(ask: Callable[..., Answer], *args: Any) -> Answer | None:
    """NVML's answer, None where it cannot say; raises NVMLError for a GPU that is lost or broken."""
    try:
        return ask(*args)
    except pynvml.NVMLError as error:
        if error.value in CANNOT_SAY:
            return None
        raise


def _numa_node(nvml: Any, handle: Any) -> int:
    """The node of host memory next to a GPU, the lowest where there are several."""
    words = _known(nvml.nvmlDeviceGetMemoryAffinity, handle, NUMA_WORDS, pynvml.NVML_AFFINITY_SCOPE_NODE)
    for at, word in enumerate(words or ()):
        if word:
            return 64 * at + int(word & -word).bit_length() - 1
    return -1


def _links(nvml: Any, handles: Sequence[Any]) -> Iterator[tuple[int, int]]:
    """Pairs of GPUs that NVLink joins, through a switch or without.

    The driver tells it of a pair, fabric and all; where it does not, whose bus address the far end of a link
    has still tells of links without a switch.
    """
    buses = {_bus(nvml.nvmlDeviceGetPciInfo(handle)): at for at, handle in enumerate(handles)}
    for (a, one), (b, other) in itertools.combinations(enumerate(handles), 2):
        status = _known(nvml.nvmlDeviceGetP2PStatus, one, other, pynvml.NVML_P2P_CAPS_INDEX_NVLINK)
        if status == pynvml.NVML_P2P_STATUS_OK or (status is None and b in _far_ends(nvml, one, buses)):
            yield a, b


def _far_ends(nvml: Any, handle: Any, buses: dict[tuple[int, int, int], int]) -> set[int]:
    ends = set()
    for link in range(pynvml.NVML_NVLINK_MAX_LINKS):
        if _known(nvml.nvmlDeviceGetNvLinkState, handle, link):
            far = _known(nvml.nvmlDeviceGetNvLinkRemotePciInfo, handle, link)
            ends |= {buses[_bus(far)]} if far and _bus(far) in buses else set()
    return ends


def _bus(pci: Any) -> tuple[int, int, int]:
    return (pci.domain, pci.bus, pci.device)


def _usable(nvml: Any, handle: Any, gpu: Device) -> Device | str:
    """The GPU, its one instance, or why neither."""
    mode = _known(nvml.nvmlDeviceGetMigMode, handle)
    if mode is None or mode[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
        return gpu
    parts = []
    for at in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        with suppress(pynvml.NVMLError_NotFound, pynvml.NVMLError_InvalidArgument):
            parts.append(nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, at))
    if len(parts) != 1:
        return (
            f"{gpu.uid} is split into {len(parts)} MIG instances, whose energy cannot be told apart; "
            f"leave it one, or make it whole: `nvidia-smi -i {gpu.index} -mig 0`"
        )
    return replace(
        gpu,
        name=nvml.nvmlDeviceGetName(parts[0]),
        uid=nvml.nvmlDeviceGetUUID(parts[0]),
        memory_bytes=nvml.nvmlDeviceGetMemoryInfo(parts[0]).total,
        island=-1,  # instances do not reach other GPUs directly
    )


def _visible(gpu: Device) -> bool:
    """Whether CUDA_VISIBLE_DEVICES, by which batch systems hand out GPUs, leaves us this one."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is None:
        return True
    names = [name.strip() for name in allowed.split(",") if name.strip()]
    return any(
        name == str(gpu.index) or (name.startswith(("GPU-", "MIG-")) and gpu.uid.startswith(name))
        for name in names
    )
