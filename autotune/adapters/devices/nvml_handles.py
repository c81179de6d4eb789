"""Finds a GPU by the id of what is used of it."""

from __future__ import annotations

from typing import Any


def whole_gpu(nvml: Any, uid: str) -> Any:
    """NVML's handle of a GPU, that of the whole one for a MIG instance; raises NVMLError.

    An instance has no sensors: power, energy, temperature, clocks and errors are told of the GPU around it,
    and it is used only where it is alone there.
    """
    handle = nvml.nvmlDeviceGetHandleByUUID(uid)
    return nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle) if uid.startswith("MIG-") else handle
