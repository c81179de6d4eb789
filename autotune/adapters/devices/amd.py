"""AMD GPUs through amdsmi: what they are, how they are linked, who works on them.

Run so far against a hand-written stand-in only (tests), never on an AMD GPU. Facts: AMD SMI's Python
reference and its source; VRAM is in MiB, and the numbers of link types were reordered in ROCm 6.4, so that
they are taken by name.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from autotune.adapters.devices.gpu_processes import foreign_processes
from autotune.adapters.devices.islands import islands
from autotune.adapters.power.amd import NOT_SUPPORTED, load_amdsmi
from autotune.domain.basics.errors import BenchError
from autotune.domain.hardware.hardware import Device, DeviceKind

Load = Callable[[], Any]

REMEDY = "see `amd-smi list`, and that this user is in the groups video and render"


def gpus(load: Load = load_amdsmi) -> tuple[Device, ...]:
    """AMD GPUs in HIP's order; ``index`` is HIP's. Raises BenchError where AMD SMI does not answer."""
    with _session(load) as smi:
        handles = smi.amdsmi_get_processor_handles()
        linked = [
            (a, b)
            for (a, one), (b, other) in itertools.combinations(enumerate(handles), 2)
            if _linked(smi, one, other)
        ]
        island = islands(len(handles), linked)
        found = [_gpu(smi, at, handle, island[at]) for at, handle in enumerate(handles)]
    visible = _visible(sorted(found, key=lambda gpu: gpu.index))
    return tuple(visible)


def used_memory(devices: Sequence[Device], load: Load = load_amdsmi) -> Mapping[str, int]:
    """Bytes in use by device uid; raises BenchError."""
    with _session(load) as smi:
        by_uid = _by_uid(smi)
        return {d.uid: _vram(smi, by_uid[d.uid], "vram_used") for d in devices if d.uid in by_uid}


def foreign(device: Device, load: Load = load_amdsmi) -> frozenset[str]:
    """Name the processes on a GPU that are not ours; raises BenchError."""
    with _session(load) as smi:
        handle = _by_uid(smi)[device.uid]
        return foreign_processes(
            lambda: [process["pid"] for process in smi.amdsmi_get_gpu_process_list(handle)]
        )


@contextmanager
def _session(load: Load) -> Iterator[Any]:
    smi = load()
    try:
        smi.amdsmi_init()
        try:
            yield smi
        finally:
            with suppress(smi.AmdSmiException):
                smi.amdsmi_shut_down()
    except smi.AmdSmiException as error:
        raise BenchError(f"AMD SMI does not answer for the GPUs: {error}; {REMEDY}") from error


def _by_uid(smi: Any) -> dict[str, Any]:
    return {smi.amdsmi_get_gpu_device_uuid(handle): handle for handle in smi.amdsmi_get_processor_handles()}


def _gpu(smi: Any, at: int, handle: Any, island: int) -> Device:
    asic = smi.amdsmi_get_gpu_asic_info(handle)
    return Device(
        DeviceKind.ROCM,
        # Before ROCm 6.4 nothing tells HIP's order; it is that of the bus, as the handles'.
        _known(smi, "amdsmi_get_gpu_enumeration_info", handle).get("hip_id", at),
        name=asic["market_name"],
        uid=smi.amdsmi_get_gpu_device_uuid(handle),
        memory_bytes=_vram(smi, handle, "vram_total"),
        driver=str(_known(smi, "amdsmi_get_gpu_driver_info", handle).get("driver_version", "")),
        compute_capability=_target(str(asic.get("target_graphics_version", ""))),
        island=island,
        numa_node=_numa_node(smi, handle),
    )


def _known(smi: Any, function: str, *handles: Any) -> Mapping[str, Any]:
    """An answer; empty where this GPU, or this version, does not know."""
    ask = getattr(smi, function, None)
    if ask is None:
        return {}
    try:
        answer: Mapping[str, Any] = ask(*handles)
    except smi.AmdSmiLibraryException as error:
        if error.get_error_code() in NOT_SUPPORTED:
            return {}
        raise
    return answer


def _vram(smi: Any, handle: Any, which: str) -> int:
    return int(smi.amdsmi_get_gpu_vram_usage(handle)[which]) << 20


def _numa_node(smi: Any, handle: Any) -> int:
    try:
        return int(smi.amdsmi_topo_get_numa_node_number(handle))
    except smi.AmdSmiLibraryException:
        return -1


def _linked(smi: Any, one: Any, other: Any) -> bool:
    """Whether two GPUs reach each other over xGMI."""
    link = _known(smi, "amdsmi_topo_get_link_type", one, other)
    if hasattr(smi, "AmdSmiLinkType"):
        xgmi = smi.AmdSmiLinkType.AMDSMI_LINK_TYPE_XGMI
    else:
        xgmi = smi.AmdSmiIoLinkType.XGMI
    return bool(link) and int(link["type"]) == int(xgmi)


def _target(name: str) -> tuple[int, ...]:
    """Numbers of a target: gfx942 is (9, 4, 2); the last two digits are hexadecimal, as in gfx90a."""
    found = re.fullmatch(r"gfx(\d+)([\da-f])([\da-f])", name)
    return (int(found[1]), int(found[2], 16), int(found[3], 16)) if found else ()


def _visible(found: Sequence[Device]) -> Sequence[Device]:
    """What ROCR_VISIBLE_DEVICES leaves, and of that HIP_VISIBLE_DEVICES; each counts what the other left."""
    for variable in ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        allowed = os.environ.get(variable)
        if allowed is not None:
            names = [name.strip() for name in allowed.split(",") if name.strip()]
            found = [gpu for at, gpu in enumerate(found) if str(at) in names or gpu.uid in names]
    return found
