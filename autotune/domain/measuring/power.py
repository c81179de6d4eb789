"""Power traces, and the energy of a window with a verdict on how far to trust it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from enum import IntFlag, StrEnum

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CONSISTENT_WITHIN = 0.05
"""A counter and integrated power that differ by no more than this share are consistent."""
MOST_GAP_PERIODS = 3.0
"""A gap longer than this many sample periods breaks a window."""
PLATEAU_C = 5.0
"""A device that warmed or cooled by more than this through a window, in a straight line, had not settled."""


class PowerBasis(StrEnum):
    """What a power figure covers; figures on different bases are never ranked against one another.

    ``none``: nothing is known of the power, as of an endpoint on unnamed hardware.
    """

    GPU = "gpu"
    HOST = "host"
    PROVISIONED = "provisioned"
    ESTIMATED = "estimated"
    NONE = "none"

    @property
    def ranks(self) -> bool:
        """Whether good tokens per its joules rank configurations: not where a model guessed them."""
        return self not in {PowerBasis.ESTIMATED, PowerBasis.NONE}


class EnergyVerdict(StrEnum):
    """How far the joules of a window can be trusted.

    ``consistent``: counter and integrated power agree; they share a sensor, so this proves the arithmetic.
    """

    CONSISTENT = "consistent"
    UNCHECKED = "unchecked"
    INVALID = "invalid"


class PowerScope(StrEnum):
    """What one device's watts cover; of a module of CPU and GPU the GPU alone is asked for."""

    GPU = "gpu"
    PACKAGE = "package"
    NODE = "node"
    CORE = "core"


class Slowdown(IntFlag):
    """Why a device's clock was held back; only a software power cap leaves a window valid."""

    NONE = 0
    POWER_CAP = 1
    THERMAL = 2
    HARDWARE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """Under what a device worked while its power was read; NaN where the device does not say.

    Columns of one length: monotonic seconds, ascending; degrees Celsius; MHz; watts; Slowdown bits.
    """

    time_s: Floats
    temperature_c: Floats
    clock_mhz: Floats
    power_limit_w: Floats
    slowdown: NDArray[np.int64]


def no_conditions() -> Conditions:
    """Conditions of a device that tells none."""
    none = np.zeros(0)
    return Conditions(
        time_s=none,
        temperature_c=none,
        clock_mhz=none,
        power_limit_w=none,
        slowdown=np.zeros(0, dtype=np.int64),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePower:
    """One device's trace: power samples, and readings of its energy counter where it has one.

    Times are monotonic seconds, ascending; ``power_w`` watts; ``counter_j`` joules since any fixed moment.
    ``foreign`` names processes that worked on the device and were not the engine's.
    """

    uid: str
    time_s: Floats
    power_w: Floats
    counter_time_s: Floats
    counter_j: Floats
    conditions: Conditions = field(default_factory=no_conditions)
    foreign: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerTrace:
    """Traces of devices over the same span: those that the configuration reserves, or the host around them.

    ``reserved`` are the uids of all that should be there; one without a trace makes a window invalid.
    """

    basis: PowerBasis
    source: str
    period_s: float
    devices: tuple[DevicePower, ...]
    scope: PowerScope = PowerScope.GPU
    reserved: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Window:
    """The steady part of a load level, monotonic seconds; half-open."""

    start_s: float
    end_s: float

    def __post_init__(self) -> None:
        if not self.end_s > self.start_s:
            raise ValueError(f"a window must end after it starts, not [{self.start_s}, {self.end_s})")

    @property
    def length_s(self) -> float:
        """Seconds."""
        return self.end_s - self.start_s

    def holds(self, at_s: Floats) -> NDArray[np.bool_]:
        """Which moments lie in it."""
        return (at_s >= self.start_s) & (at_s < self.end_s)

    def sums(self, at_s: Floats, weights: Floats | None = None, *, blocks: int) -> Floats:
        """Sums (counts without weights) of what happened in each of so many equal blocks."""
        sums, _ = np.histogram(at_s, bins=blocks, range=(self.start_s, self.end_s), weights=weights)
        return sums.astype(np.float64)

    def blocks(self, count: int) -> tuple[Window, ...]:
        """Cut into ``count`` equal windows."""
        edges = np.linspace(self.start_s, self.end_s, count + 1)
        return tuple(Window(float(a), float(b)) for a, b in itertools.pairwise(edges))


@dataclass(frozen=True, slots=True)
class Energy:
    """Energy of a window over all its devices; ``reasons`` are codes that say why it is not consistent."""

    joules: float
    mean_w: float
    verdict: EnergyVerdict
    reasons: tuple[str, ...] = ()


def integrate_j(device: DevicePower, window: Window) -> float:
    """Joules of one device in the window: trapezoids over its samples, interpolated at both edges."""
    inside = (device.time_s > window.start_s) & (device.time_s < window.end_s)
    time_s = np.concatenate(([window.start_s], device.time_s[inside], [window.end_s]))
    power_w = np.interp(time_s, device.time_s, device.power_w)
    return float(np.trapezoid(power_w, time_s))


def joules_by_block(trace: PowerTrace, window: Window, count: int) -> Floats:
    """Joules of all devices in each of ``count`` equal parts of a covered window; not judged."""
    return np.array(
        [sum(integrate_j(device, block) for device in trace.devices) for block in window.blocks(count)]
    )


def mean_power_w(trace: PowerTrace) -> float | None:
    """Mean watts over all of a trace, its devices together; None for one without samples."""
    if not trace.devices or any(len(device.power_w) == 0 for device in trace.devices):
        return None
    return float(sum(device.power_w.mean() for device in trace.devices))


def energy_in(trace: PowerTrace, window: Window) -> Energy:
    """Energy of the window, judged device by device; every reason to distrust it is told by its code."""
    joules = 0.0
    there = {device.uid for device in trace.devices}
    reasons = [f"not-covered:{uid}" for uid in trace.reserved if uid not in there]
    checked = True
    for device in trace.devices:
        if not _covers(device.time_s, window, trace.period_s):
            reasons.append(f"gap:{device.uid}")
            continue
        integrated_j = integrate_j(device, window)
        by_counter_j = counted_j(device, window)
        if by_counter_j is None:
            checked = False
        elif abs(by_counter_j - integrated_j) > CONSISTENT_WITHIN * max(by_counter_j, integrated_j):
            reasons.append(f"counter-disagrees:{device.uid}")
        reasons += [f"{code}:{device.uid}" for code in _disturbances(device, window)]
        joules += integrated_j
    if not trace.devices:
        reasons.append("no-device")
    verdict = EnergyVerdict.CONSISTENT if checked else EnergyVerdict.UNCHECKED
    return Energy(
        joules, joules / window.length_s, EnergyVerdict.INVALID if reasons else verdict, tuple(reasons)
    )


def _disturbances(device: DevicePower, window: Window) -> list[str]:
    """Codes of what makes a device's joules another's, or those of another state than it settles in."""
    at = device.conditions
    inside = window.holds(at.time_s)
    held_back = Slowdown(int(np.bitwise_or.reduce(at.slowdown[inside], initial=0)))
    codes = []
    if Slowdown.THERMAL in held_back:
        codes.append("thermal-slowdown")
    if Slowdown.HARDWARE in held_back:
        codes.append("hardware-slowdown")
    if device.foreign:
        codes.append("foreign-process")
    time_s, temperature_c = at.time_s[inside], at.temperature_c[inside]
    known = np.isfinite(temperature_c)
    if known.sum() > 2:  # noqa: PLR2004 - a line through two points fits anything
        slope = float(np.polyfit(time_s[known] - window.start_s, temperature_c[known], 1)[0])
        if abs(slope) * window.length_s > PLATEAU_C:
            codes.append("temperature-unsettled")
    return codes


def _covers(time_s: Floats, window: Window, period_s: float) -> bool:
    """Whether samples reach over the window with no gap of more than MOST_GAP_PERIODS."""
    if len(time_s) < 2 or time_s[0] > window.start_s or time_s[-1] < window.end_s:  # noqa: PLR2004 - an interval
        return False
    first, last = np.searchsorted(time_s, [window.start_s, window.end_s])
    around = time_s[max(first - 1, 0) : last + 1]
    return bool(np.diff(around).max() <= MOST_GAP_PERIODS * period_s)


def counted_j(device: DevicePower, window: Window) -> float | None:
    """Joules by the device's counter, None where it has none that spans the window."""
    at = device.counter_time_s
    if len(at) < 2 or at[0] > window.start_s or at[-1] < window.end_s:  # noqa: PLR2004 - an interval
        return None
    start_j, end_j = np.interp([window.start_s, window.end_s], at, device.counter_j)
    return float(end_j - start_j)
