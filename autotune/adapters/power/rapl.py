"""Power of CPU packages and their memory by RAPL, read from the kernel's powercap tree (Intel and AMD alike).

Facts: https://docs.kernel.org/power/powercap/powercap.html. ``energy_uj`` counts microjoules and starts
again from 0 after ``max_energy_range_uj``. The zones ``core`` and ``uncore`` are parts of their package,
``psys`` is the whole platform with the packages in it, and ``intel-rapl-mmio`` shows the packages a second
time: only packages and ``dram`` are added up.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autotune.adapters.power.reading import Recording, floats
from autotune.adapters.power.sampling import Sampling
from autotune.domain.basics.errors import BenchError
from autotune.domain.hardware.hardware import Device
from autotune.domain.measuring.power import DevicePower, Floats, PowerBasis, PowerScope, PowerTrace

ROOT = Path("/sys/class/powercap")
PERIOD_S = 0.1
"""Ten times the counters' longest step, hundreds of times shorter than their wraps, which take minutes."""
COUNTER_STEP_S = 0.01
"""The counters move about every millisecond: readings closer than that differ by a whole step or by none."""
MOST_ZONE_W = 5000.0
"""No package draws this much: a counter that seems to was set back, and did not wrap."""
SOURCE = "RAPL energy counters (powercap): CPU packages and DRAM"
REMEDY = (
    "since CVE-2020-8694 only root may read them; allow it for this boot with "
    "`sudo chmod a+r /sys/class/powercap/intel-rapl*/energy_uj`, for good with a udev rule"
)


@dataclass(frozen=True, slots=True)
class _Zone:
    uid: str
    energy_uj: Path
    range_j: float


@dataclass(frozen=True, slots=True)
class _Counted:
    """The counter of one zone, as it stands."""

    at_s: float
    energy_j: float


_Sample = tuple[_Counted, ...]


def available(root: Path = ROOT) -> str:
    """Say why the packages cannot be measured here; empty when they can."""
    try:
        for zone in _zones(root):
            _read(zone)
    except BenchError as error:
        return str(error)
    return ""


class RaplPowerMeter:
    """PowerMeter on basis ``host``, scope ``package``: all packages of this machine, whatever runs on it."""

    def __init__(self, *, root: Path = ROOT, period_s: float = PERIOD_S) -> None:
        self._root = root
        self._period_s = period_s

    @contextmanager
    def window(self, devices: Sequence[Device]) -> Iterator[Recording[_Sample]]:  # noqa: ARG002 - the host is one
        """Record for the length of a ``with`` block; raises BenchError where RAPL cannot be read."""
        zones = _zones(self._root)
        with Sampling(lambda: tuple(_read(zone) for zone in zones), self._period_s) as sampling:
            yield Recording(sampling.samples, lambda samples: self._trace(zones, samples))

    def _trace(self, zones: Sequence[_Zone], samples: Sequence[_Sample]) -> PowerTrace:
        return PowerTrace(
            basis=PowerBasis.HOST,
            source=SOURCE,
            period_s=self._period_s,
            devices=tuple(
                _device_power(zone, [sample[index] for sample in samples]) for index, zone in enumerate(zones)
            ),
            scope=PowerScope.PACKAGE,
            reserved=tuple(zone.uid for zone in zones),
        )


def _zones(root: Path) -> tuple[_Zone, ...]:
    """Find packages and their DRAM; raises BenchError where there are none."""
    zones = []
    for folder in sorted(root.glob("intel-rapl:*")):
        name = _text(folder / "name")
        package = _text(root / folder.name.rpartition(":")[0] / "name") if name == "dram" else ""
        if name.startswith("package") or package.startswith("package"):
            uid = f"{package}/{name}" if package else name
            range_j = _number(folder / "max_energy_range_uj") / 1e6
            zones.append(_Zone(uid, folder / "energy_uj", range_j))
    if not zones:
        raise BenchError(
            f"no RAPL counters under {root}: load the module (`sudo modprobe intel_rapl_msr`); "
            "virtual machines and containers mostly have none"
        )
    return tuple(zones)


def _read(zone: _Zone) -> _Counted:
    energy_j = _number(zone.energy_uj) / 1e6
    return _Counted(time.monotonic(), energy_j)


def _number(path: Path) -> float:
    text = _text(path)
    if not text.isdecimal():
        raise BenchError(f"power meter lost: {path} holds {text[:40]!r} instead of a number")
    return float(text)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except PermissionError as error:
        raise BenchError(f"RAPL counters are not readable ({path}): {REMEDY}") from error
    except OSError as error:
        raise BenchError(
            f"power meter lost: {path}: {error.strerror}; is the module intel_rapl_msr still loaded?"
        ) from error


def _device_power(zone: _Zone, counted: Sequence[_Counted]) -> DevicePower:
    """Lay out one zone: between two readings the power is their mean, from one to the other.

    Two samples at each reading, the second a moment later, make the steps: trapezoids over them hold just the
    counter's joules.
    """
    at_s = floats(reading.at_s for reading in counted)
    energy_j = _unwrapped(zone, at_s, floats(reading.energy_j for reading in counted))
    time_s = np.repeat(at_s, 2)[1:-1]
    time_s[2::2] = np.nextafter(time_s[2::2], np.inf)
    return DevicePower(
        uid=zone.uid,
        time_s=time_s,
        power_w=np.repeat(np.diff(energy_j) / np.diff(at_s), 2),
        counter_time_s=at_s,
        counter_j=energy_j,
    )


def _unwrapped(zone: _Zone, at_s: Floats, energy_j: Floats) -> Floats:
    """Make the counter run on over its wraps; raises BenchError where it was set back instead."""
    steps_j = np.diff(energy_j)
    steps_j[steps_j < 0] += zone.range_j
    most_j = MOST_ZONE_W * (np.diff(at_s) + COUNTER_STEP_S)
    if ((steps_j < 0) | (steps_j > most_j)).any():
        raise BenchError(
            f"power meter lost: the RAPL counter of {zone.uid} was set back within the window; "
            "see what else writes to it or reloads its module"
        )
    return np.cumsum(np.concatenate((energy_j[:1], steps_j)), dtype=np.float64)
