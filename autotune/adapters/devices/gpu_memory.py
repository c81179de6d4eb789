"""How much memory of each GPU is in use, whoever uses it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import pynvml

from autotune.adapters.devices import amd as devices_amd
from autotune.domain.basics.errors import BenchError
from autotune.domain.hardware.hardware import Device, DeviceKind


def used_memory(devices: Sequence[Device], nvml: Any = pynvml) -> Mapping[str, int]:
    """Bytes in use by device uid, of the GPUs among some devices; raises BenchError where one is lost."""
    cuda = [device.uid for device in devices if device.kind is DeviceKind.CUDA]
    rocm = [device for device in devices if device.kind is DeviceKind.ROCM]
    used = devices_amd.used_memory(rocm) if rocm else {}
    return {**used, **(_of_cuda(cuda, nvml) if cuda else {})}


def _of_cuda(uids: Sequence[str], nvml: Any) -> Mapping[str, int]:
    try:
        nvml.nvmlInit()
        try:
            return {
                uid: nvml.nvmlDeviceGetMemoryInfo(nvml.nvmlDeviceGetHandleByUUID(uid)).used for uid in uids
            }
        finally:
            # After a lost GPU even this fails; what was wrong is on its way by then.
            with suppress(pynvml.NVMLError):
                nvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise BenchError(
            f"cannot ask {', '.join(uids)} for memory in use: NVML: {error}; "
            "see `nvidia-smi` and the kernel log (Xid)"
        ) from error
