"""Power limit and clocks of GPUs for the length of a launch, put back whatever becomes of the tuner.

Before anything is changed, a guard is started: a process that does nothing, under a warden whose stop command
is this module, told what to put back. So the settings are put back when the launch ends, when the tuner is
killed, and, should the warden be killed too, when the next tuner starts (``reap_orphans``).

Both need root. NVML does not tell to what clocks were locked before: afterwards they are not locked.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pynvml

from autotune.adapters.engines.process import EngineProcess, records_in
from autotune.adapters.runtime_dir import default_runtime_dir
from autotune.domain.basics.errors import BenchError, InfeasibleConfigError, InputError, InputProblem
from autotune.domain.hardware.hardware import Device, DeviceKind
from autotune.domain.launches.launch import ProcessSpec

POWER_LIMIT = "power_limit"
CLOCKS = "clocks"
"""What a study may allow (``hardware.allow``)."""

GUARD_TIMEOUT_S = 30.0
POLL_S = 0.02
DO_NOTHING = (sys.executable, "-I", "-S", "-c", "import signal; signal.pause()")


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSettings:
    """One GPU's settings; None leaves one alone, ``clock_mhz`` 0 is a clock that is not locked."""

    uid: str
    power_limit_mw: int | None = None
    clock_mhz: int | None = None


@contextmanager
def settings(
    devices: Sequence[Device],
    *,
    allowed: Collection[str],
    power_limit_w: int | None = None,
    graphics_clock_mhz: int | None = None,
    runtime_dir: Path | None = None,
) -> Iterator[None]:
    """Hold GPUs to a power limit and a graphics clock for the length of a ``with`` block; None for neither.

    Raises InfeasibleConfigError for what the study does not allow or these GPUs cannot do, InputError where
    this user may not change it, BenchError where NVML does not answer or settings could not be put back.
    """
    wanted = {POWER_LIMIT: power_limit_w, CLOCKS: graphics_clock_mhz}
    asked = [name for name, value in wanted.items() if value is not None]
    if not asked:
        yield
        return
    _refuse(asked, allowed, devices)
    uids = [device.uid for device in devices]
    with _nvml_errors(asked):
        before = [
            GpuSettings(
                uid=uid,
                power_limit_mw=_power_limit_mw(uid, power_limit_w) if power_limit_w else None,
                clock_mhz=0 if graphics_clock_mhz else None,
            )
            for uid in uids
        ]
    with _guard(before, runtime_dir or default_runtime_dir()):
        limit_mw = power_limit_w * 1000 if power_limit_w else None
        with _nvml_errors(asked):
            for uid in uids:
                put(GpuSettings(uid=uid, power_limit_mw=limit_mw, clock_mhz=graphics_clock_mhz))
        yield


def put(wanted: GpuSettings) -> None:
    """Set what is wanted of one GPU and see that it took; raises NVMLError, BenchError."""
    handle = pynvml.nvmlDeviceGetHandleByUUID(wanted.uid)
    if wanted.power_limit_mw is not None:
        pynvml.nvmlDeviceSetPowerManagementLimit(handle, wanted.power_limit_mw)
        took_mw = pynvml.nvmlDeviceGetPowerManagementLimit(handle)
        if took_mw != wanted.power_limit_mw:
            raise BenchError(
                f"{wanted.uid} was set to {wanted.power_limit_mw / 1e3:g} W and says {took_mw / 1e3:g} W"
            )
    if wanted.clock_mhz:
        pynvml.nvmlDeviceSetGpuLockedClocks(handle, wanted.clock_mhz, wanted.clock_mhz)
    elif wanted.clock_mhz is not None:
        pynvml.nvmlDeviceResetGpuLockedClocks(handle)


def put_back(settings_before: Sequence[Mapping[str, Any]]) -> list[str]:
    """Put every GPU back that still answers; returns what failed, in words."""
    failed = []
    pynvml.nvmlInit()
    try:
        for before in settings_before:
            try:
                put(GpuSettings(**before))
            except (pynvml.NVMLError, BenchError) as error:
                failed.append(f"{before['uid']}: {error}")
    finally:
        pynvml.nvmlShutdown()
    return failed


def _refuse(asked: Sequence[str], allowed: Collection[str], devices: Sequence[Device]) -> None:
    if forbidden := [name for name in asked if name not in allowed]:
        names = ", ".join(forbidden)
        raise InfeasibleConfigError(
            f"the study does not allow {names}; write `hardware: {{allow: [{names}]}}`"
        )
    others = [d.uid for d in devices if d.kind is not DeviceKind.CUDA or d.uid.startswith("MIG-")]
    if others:
        raise InfeasibleConfigError(
            f"{', '.join(asked)} can be set for whole NVIDIA GPUs; not for {', '.join(others)}"
        )


def _power_limit_mw(uid: str, wanted_w: int) -> int:
    """The limit that a GPU has now, mW; raises InfeasibleConfigError for one that it does not take."""
    handle = pynvml.nvmlDeviceGetHandleByUUID(uid)
    least_mw, most_mw = pynvml.nvmlDeviceGetPowerManagementLimitConstraints(handle)
    if not least_mw <= wanted_w * 1000 <= most_mw:
        raise InfeasibleConfigError(
            f"power_limit_w {wanted_w}: {uid} takes {least_mw / 1e3:g} to {most_mw / 1e3:g} W"
        )
    return int(pynvml.nvmlDeviceGetPowerManagementLimit(handle))


@contextmanager
def _nvml_errors(asked: Sequence[str]) -> Iterator[None]:
    """Have NVML answer for the length of a ``with`` block, and say what its errors mean for the study."""
    try:
        pynvml.nvmlInit()
        try:
            yield
        finally:
            with suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()
    except pynvml.NVMLError_NoPermission as error:
        remedy = "run as root, or take the words out of the search space and of hardware.allow"
        problem = InputProblem("hardware.allow", f"{', '.join(asked)} may not be set here: {error}", remedy)
        raise InputError(problem) from error
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_InvalidArgument) as error:
        raise InfeasibleConfigError(f"these GPUs cannot be set so ({', '.join(asked)}): {error}") from error
    except pynvml.NVMLError as error:
        raise BenchError(f"cannot set {', '.join(asked)}: NVML: {error}") from error


@contextmanager
def _guard(before: Sequence[GpuSettings], runtime_dir: Path) -> Iterator[None]:
    """See to it that settings are put back; raises BenchError when they could not be."""
    told = json.dumps([asdict(each) for each in before])
    spec = ProcessSpec(
        role="power-settings",
        argv=DO_NOTHING,
        env={},
        devices=(),
        ready_path="",
        stop_argv=(sys.executable, "-m", __name__, told),
    )
    with TemporaryDirectory(prefix="autotune-", ignore_cleanup_errors=True) as scratch:
        guard = EngineProcess(
            spec,
            0,
            log_path=Path(scratch) / "guard.log",
            scratch=scratch,
            records=records_in(runtime_dir),
            stop_grace_s=1.0,
        )
        try:
            _await_record(guard)
            yield
        finally:
            guard.stop()


def _await_record(guard: EngineProcess) -> None:
    deadline_s = time.monotonic() + GUARD_TIMEOUT_S
    while not guard.watched:
        if guard.exit_code() is not None or time.monotonic() > deadline_s:
            raise BenchError("nothing would put the GPUs' settings back: its guard did not start")
        time.sleep(POLL_S)


def main() -> None:
    """Put back what the command line tells, as JSON; exits with what failed."""
    if failed := put_back(json.loads(sys.argv[1])):
        sys.exit("; ".join(failed))


if __name__ == "__main__":
    main()
