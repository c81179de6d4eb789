"""Power of AMD GPUs through amdsmi, which comes with ROCm and is loaded only when it is wanted.

Run so far against a hand-written stand-in only (tests), never on an AMD GPU. Facts: AMD SMI's Python
reference and its source. Socket power is in whole watts, instant on MI300 and later, a mean on earlier GPUs;
the energy accumulator times its resolution is microjoules. Conditions come from one snapshot of the GPU's
metrics table, and why a clock was held back from its residency counters: `amdsmi_get_violation_status` would
sleep 100 ms per call. GPUs before MI300 tell that a clock was held back, but not why: nothing is concluded
from that.
"""

from __future__ import annotations

import importlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from autotune.adapters.devices.gpu_processes import foreign_processes
from autotune.adapters.power.reading import Reading, Recording, device_power
from autotune.adapters.power.sampling import Sampling
from autotune.domain.basics.errors import BenchError
from autotune.domain.hardware.hardware import Device
from autotune.domain.measuring.power import DevicePower, PowerBasis, PowerTrace, Slowdown

PERIOD_S = 0.1
PROCESSES_PERIOD_S = 1.0
NOT_SUPPORTED = frozenset({2, 3})
"""AMDSMI_STATUS_NOT_SUPPORTED and AMDSMI_STATUS_NOT_YET_IMPLEMENTED."""
ABSENT_W = 0xFFFF
ABSENT_COUNT = 2**64 - 1
"""What metrics tables hold for what a GPU does not know, where AMD SMI passes it on instead of N/A."""
SOURCE = "AMD SMI socket power (amdsmi_get_power_info)"
REMEDY = "see `amd-smi metric -p` and the kernel log (amdgpu)"
POWER_KEYS = ("current_socket_power", "average_socket_power")

RESIDENCIES = {
    "ppt_residency_acc": Slowdown.POWER_CAP,
    "socket_thm_residency_acc": Slowdown.THERMAL,
    "vr_thm_residency_acc": Slowdown.THERMAL,
    "hbm_thm_residency_acc": Slowdown.THERMAL,
    "prochot_residency_acc": Slowdown.HARDWARE,
}
"""Counters of how long each limit was in force: what grew since the last reading held the clock back."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """One GPU at one moment: its reading, its residency counters, and foreign processes where looked for."""

    reading: Reading
    residencies: Mapping[str, float]
    foreign: frozenset[str] = frozenset()


_Sample = tuple[_Seen, ...]


def load_amdsmi() -> Any:
    """Import amdsmi; raises BenchError where it, or the library under it, is missing or does not fit."""
    try:
        return importlib.import_module("amdsmi")
    except (ImportError, OSError, AttributeError, KeyError) as error:
        raise BenchError(
            f"AMD SMI could not be loaded ({error}); install the amdsmi that belongs to this ROCm "
            "(`pip install /opt/rocm/share/amd_smi`)"
        ) from error


class AmdPowerMeter:
    """PowerMeter on basis ``gpu``; devices are found by the UUID that AMD SMI gives them."""

    def __init__(self, *, period_s: float = PERIOD_S, load: Callable[[], Any] = load_amdsmi) -> None:
        self._period_s = period_s
        self._load = load

    @contextmanager
    def window(self, devices: Sequence[Device]) -> Iterator[Recording[_Sample]]:
        """Record for the length of a ``with`` block; raises BenchError where AMD SMI or a GPU is missing."""
        smi = self._load()
        uids = tuple(device.uid for device in devices)
        with _smi_errors(smi, "start"):
            smi.amdsmi_init()
        try:
            reader = _Reader(smi, _handles(smi, uids), round(PROCESSES_PERIOD_S / self._period_s))
            with Sampling(reader.read, self._period_s) as sampling:
                yield Recording(sampling.samples, lambda samples: self._trace(uids, samples))
        finally:
            # After a lost GPU even this fails; what was wrong was said by then.
            with suppress(smi.AmdSmiException):
                smi.amdsmi_shut_down()

    def _trace(self, uids: Sequence[str], samples: Sequence[_Sample]) -> PowerTrace:
        return PowerTrace(
            basis=PowerBasis.GPU,
            source=SOURCE,
            period_s=self._period_s,
            devices=tuple(
                _device_power(uid, [sample[index] for sample in samples]) for index, uid in enumerate(uids)
            ),
            reserved=tuple(uids),
        )


class _Reader:
    """Reads all GPUs at every beat, and at every ``processes_every``-th who works on them: that is slow."""

    def __init__(self, smi: Any, handles: Sequence[Any], processes_every: int) -> None:
        self._smi = smi
        self._handles = handles
        self._every = max(1, processes_every)
        self._beat = 0

    def read(self) -> _Sample:
        """Read every GPU now; raises BenchError."""
        with _smi_errors(self._smi, "read the power"):
            seen = tuple(self._read_one(handle) for handle in self._handles)
        self._beat += 1
        return seen

    def _read_one(self, handle: Any) -> _Seen:
        smi = self._smi
        power_w = _power_w(smi.amdsmi_get_power_info(handle))
        at_s = time.monotonic()
        metrics = _asked(smi, lambda: smi.amdsmi_get_gpu_metrics_info(handle))
        cap = _asked(smi, lambda: smi.amdsmi_get_power_cap_info(handle))
        reading = Reading(
            at_s=at_s,
            power_w=power_w,
            counter_j=_counted_j(_asked(smi, lambda: smi.amdsmi_get_energy_count(handle))),
            temperature_c=_number(metrics, "temperature_hotspot"),
            clock_mhz=_number(metrics, "current_gfxclk"),
            power_limit_w=_number(cap, "power_cap") / 1e6,
        )
        foreign = frozenset[str]()
        if self._beat % self._every == 0:
            foreign = foreign_processes(
                lambda: [process["pid"] for process in smi.amdsmi_get_gpu_process_list(handle)]
            )
        return _Seen(reading, {key: _number(metrics, key) for key in RESIDENCIES}, foreign)


def _handles(smi: Any, uids: Sequence[str]) -> tuple[Any, ...]:
    with _smi_errors(smi, "find the GPUs"):
        there = {
            smi.amdsmi_get_gpu_device_uuid(handle): handle for handle in smi.amdsmi_get_processor_handles()
        }
    missing = [uid for uid in uids if uid not in there]
    if missing:
        raise BenchError(
            f"AMD SMI does not see {', '.join(missing)}, only: {', '.join(there) or 'none'}; "
            "see `amd-smi list`, and that this user is in the groups video and render"
        )
    return tuple(there[uid] for uid in uids)


def _power_w(info: Mapping[str, Any]) -> float:
    """Read the instant power where the GPU tells it, else the mean; raises BenchError for none."""
    for key in POWER_KEYS:
        power_w = _number(info, key)
        if power_w < ABSENT_W:
            return power_w
    raise BenchError(
        f"power meter lost: AMD SMI tells no power ({dict(info)}); the second half of an MI250 never does "
        f"(the first tells both halves' power), otherwise {REMEDY}"
    )


def _counted_j(info: Mapping[str, Any]) -> float:
    """Convert the accumulator: steps times microjoules per step."""
    if info.get("energy_accumulator") == ABSENT_COUNT:
        return math.nan
    return _number(info, "energy_accumulator") * _number(info, "counter_resolution") / 1e6


def _number(info: Mapping[str, Any], key: str) -> float:
    """Read a figure; NaN for what the GPU does not know, which AMD SMI writes as the text N/A."""
    value = info.get(key)
    return float(value) if isinstance(value, int | float) else math.nan


def _asked(smi: Any, ask: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the answer, empty where this GPU does not know; raises AmdSmiLibraryException for any other."""
    try:
        return ask()
    except smi.AmdSmiLibraryException as error:
        if error.get_error_code() in NOT_SUPPORTED:
            return {}
        raise


def _device_power(uid: str, seen: Sequence[_Seen]) -> DevicePower:
    """Lay one GPU out: what held its clock back at a reading is what did since the reading before."""
    readings = [seen[0].reading]
    for before, after in itertools.pairwise(seen):
        slowdown = Slowdown.NONE
        for key, meaning in RESIDENCIES.items():
            if after.residencies[key] > before.residencies[key]:
                slowdown |= meaning
        readings.append(replace(after.reading, slowdown=slowdown))
    foreign = frozenset[str]().union(*(at.foreign for at in seen))
    return device_power(uid, readings, tuple(sorted(foreign)))


@contextmanager
def _smi_errors(smi: Any, doing: str) -> Iterator[None]:
    """Turn AMD SMI's errors into BenchError: the configuration is not to blame for a lost meter."""
    try:
        yield
    except smi.AmdSmiException as error:
        raise BenchError(f"power meter lost: AMD SMI could not {doing}: {error}; {REMEDY}") from error
