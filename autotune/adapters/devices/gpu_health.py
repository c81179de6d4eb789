"""What NVIDIA GPUs say of their own health through NVML, and the wait until they are cool again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import pynvml

from autotune.adapters.devices.nvml_handles import whole_gpu
from autotune.domain.basics.errors import BenchError, StudyCancelledError
from autotune.domain.hardware.hardware import Device, DeviceKind
from autotune.domain.hardware.node import CoolDown, DeviceHealth, NodeState
from autotune.domain.load.progress import Cancelled

Answer = TypeVar("Answer")

CANNOT_SAY = frozenset(
    {
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        pynvml.NVML_ERROR_INVALID_ARGUMENT,
        pynvml.NVML_ERROR_NO_PERMISSION,
        pynvml.NVML_ERROR_NO_DATA,
    }
)
"""How NVML says that this GPU, driver or user cannot have an answer; any other error is a broken GPU."""

RECOVERIES = (
    "none",
    "gpu-reset",
    "node-reboot",
    "drain-p2p",
    "drain-and-reset",
    "recover-imex-domain",
    "bus-reset",
    "system-reboot",
)
"""NVML's recovery actions by their numbers, as DeviceHealth names them."""
NVLINK_CORRECTED = (
    pynvml.NVML_NVLINK_ERROR_DL_REPLAY,
    pynvml.NVML_NVLINK_ERROR_DL_CRC_FLIT,
    pynvml.NVML_NVLINK_ERROR_DL_CRC_DATA,
)


class GpuHealth:
    """Asks the GPUs among some devices; ``nvml`` is pynvml, or what has those of its functions used here."""

    def __init__(self, nvml: Any = pynvml) -> None:
        self._nvml = nvml

    def read(self, devices: Sequence[Device]) -> tuple[DeviceHealth, ...]:
        """Ask each GPU for its health; raises BenchError where one is lost or NVML does not answer."""
        with self._handles(devices) as handles:
            return tuple(self._health(uid, handle) for uid, handle in handles.items())

    def cool_down(
        self, devices: Sequence[Device], start: NodeState, wait: CoolDown, cancelled: Cancelled
    ) -> tuple[str, ...]:
        """Wait until these devices are about as cool as in ``start``; returns which are not, in words.

        A device that stays warm is no broken bench, and a later retry would find the same room: the launch
        goes on, and its windows' own verdicts (temperature plateau, thermal slow-down) judge it. Raises
        BenchError where a GPU is lost, and StudyCancelledError.
        """
        goals_c = {
            device.uid: device.temperature_c + wait.tolerance_c
            for device in start.devices
            if device.temperature_c is not None
        }
        with self._handles(devices) as handles:
            watched = {uid: handle for uid, handle in handles.items() if uid in goals_c}
            return self._await_cool(watched, goals_c, wait, cancelled)

    def _await_cool(
        self, handles: dict[str, Any], goals_c: dict[str, float], wait: CoolDown, cancelled: Cancelled
    ) -> tuple[str, ...]:
        now_s = time.monotonic()
        deadline_s, least_c, least_at_s = now_s + wait.timeout_s, float("inf"), now_s
        while True:
            now_s = time.monotonic()
            readings_c = {uid: self._temperature_c(handle) for uid, handle in handles.items()}
            hot_c = {uid: t for uid, t in readings_c.items() if t is not None and t > goals_c[uid]}
            if sum(hot_c.values()) < least_c:
                least_c, least_at_s = sum(hot_c.values()), now_s
            if not hot_c or now_s >= deadline_s or now_s - least_at_s >= wait.settled_s:
                return tuple(
                    f"warm-start:{uid}: {t:.0f} °C, wanted {goals_c[uid]:.0f} °C" for uid, t in hot_c.items()
                )
            if cancelled():
                raise StudyCancelledError("stopped while the devices cooled down")
            time.sleep(min(wait.poll_s, deadline_s - now_s))

    @contextmanager
    def _handles(self, devices: Sequence[Device]) -> Iterator[dict[str, Any]]:
        """Find the GPUs among some devices, by uid; an NVMLError in the block leaves it as BenchError."""
        uids = [device.uid for device in devices if device.kind is DeviceKind.CUDA]
        if not uids:
            yield {}
            return
        try:
            self._nvml.nvmlInit()
            try:
                yield {uid: whole_gpu(self._nvml, uid) for uid in uids}
            finally:
                # After a lost GPU even this fails; what was wrong is on its way by then.
                with suppress(pynvml.NVMLError):
                    self._nvml.nvmlShutdown()
        except pynvml.NVMLError as error:
            raise BenchError(
                f"preflight of {', '.join(uids)}: NVML: {error}; see `nvidia-smi` and the kernel log (Xid)"
            ) from error

    def _health(self, uid: str, handle: Any) -> DeviceHealth:
        nvml = self._nvml
        pending, failed = self._remaps(handle)
        links = self._links(handle)
        mig = _known(nvml.nvmlDeviceGetMigMode, handle)
        volatile = nvml.NVML_VOLATILE_ECC
        corrected, uncorrected = (
            _known(nvml.nvmlDeviceGetTotalEccErrors, handle, kind, volatile)
            for kind in (nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED)
        )
        return DeviceHealth(
            uid=uid,
            pci=_pci_address(_known(nvml.nvmlDeviceGetPciInfo, handle)),
            temperature_c=self._temperature_c(handle),
            ecc_corrected=corrected,
            ecc_uncorrected=uncorrected,
            remap_pending=pending,
            remap_failed=failed,
            recovery=self._recovery(handle),
            # NVML also knows links that sleep: they are up.
            nvlinks_up=sum(state != 0 for state in links) if links else None,
            nvlinks=len(links) or None,
            nvlink_errors=self._link_errors(handle, len(links), NVLINK_CORRECTED),
            nvlink_recoveries=self._link_errors(handle, len(links), (pynvml.NVML_NVLINK_ERROR_DL_RECOVERY,)),
            pcie_generation=_known(nvml.nvmlDeviceGetCurrPcieLinkGeneration, handle),
            pcie_generation_max=_known(nvml.nvmlDeviceGetMaxPcieLinkGeneration, handle),
            pcie_width=_known(nvml.nvmlDeviceGetCurrPcieLinkWidth, handle),
            pcie_width_max=_known(nvml.nvmlDeviceGetMaxPcieLinkWidth, handle),
            sm_clock_mhz=_known(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM),
            sm_clock_max_mhz=_known(nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_SM),
            power_limit_w=_watts(_known(nvml.nvmlDeviceGetEnforcedPowerLimit, handle)),
            power_limit_default_w=_watts(_known(nvml.nvmlDeviceGetPowerManagementDefaultLimit, handle)),
            mig=None if mig is None else mig[0] == nvml.NVML_DEVICE_MIG_ENABLE,
        )

    def _temperature_c(self, handle: Any) -> float | None:
        return _known(self._nvml.nvmlDeviceGetTemperature, handle, self._nvml.NVML_TEMPERATURE_GPU)

    def _remaps(self, handle: Any) -> tuple[bool | None, bool | None]:
        """Whether memory waits to be mapped out, and whether that ever failed; older GPUs retire pages."""
        rows = _known(self._nvml.nvmlDeviceGetRemappedRows, handle)
        if rows is not None:
            return bool(rows[2]), bool(rows[3])
        pages = _known(self._nvml.nvmlDeviceGetRetiredPagesPendingStatus, handle)
        return (None if pages is None else bool(pages)), None

    def _recovery(self, handle: Any) -> str | None:
        fields = _known(
            self._nvml.nvmlDeviceGetFieldValues, handle, [self._nvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION]
        )
        if fields is None or fields[0].nvmlReturn in CANNOT_SAY:
            return None
        if fields[0].nvmlReturn != self._nvml.NVML_SUCCESS:
            raise pynvml.NVMLError(fields[0].nvmlReturn)
        action = int(fields[0].value.uiVal)
        return RECOVERIES[action] if action < len(RECOVERIES) else f"recovery-action-{action}"

    def _links(self, handle: Any) -> list[int]:
        """States of a GPU's NVLinks; 0 is down."""
        states = []
        for link in range(self._nvml.NVML_NVLINK_MAX_LINKS):
            state = _known(self._nvml.nvmlDeviceGetNvLinkState, handle, link)
            if state is None:
                break
            states.append(state)
        return states

    def _link_errors(self, handle: Any, links: int, counters: Sequence[int]) -> int | None:
        counts = [
            _known(self._nvml.nvmlDeviceGetNvLinkErrorCounter, handle, link, counter)
            for link in range(links)
            for counter in counters
        ]
        known = [count for count in counts if count is not None]
        return sum(known) if known else None


def _known(ask: Callable[..., Answer], *args: Any) -> Answer | None:
    """NVML's answer, None where it cannot say; raises NVMLError for a GPU that is lost or broken."""
    try:
        return ask(*args)
    except pynvml.NVMLError as error:
        if error.value in CANNOT_SAY:
            return None
        raise


def _watts(milliwatts: float | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1e3


def _pci_address(pci: Any) -> str | None:
    """As the kernel log writes it: ``0000:3b:00``."""
    return None if pci is None else f"{pci.domain:04x}:{pci.bus:02x}:{pci.device:02x}"
