"""Power traces, and the energy of a window with a verdict on how far to trust it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CONSISTENT_WITHIN = 0.05
"""A counter and integrated power that differ by no more than this share are consistent."""
MOST_GAP_PERIODS = 3.0
"""A gap longer than this many sample periods breaks a window."""


class PowerBasis(StrEnum):
    """What a power figure covers; figures on different bases are never ranked against one another."""

    GPU = "gpu"
    HOST = "host"
    PROVISIONED = "provisioned"
    ESTIMATED = "estimated"

    @property
    def is_measured(self) -> bool:
        """Whether a meter stands behind it, rather than a model or a constant."""
        return self in {PowerBasis.GPU, PowerBasis.HOST}


class EnergyVerdict(StrEnum):
    """How far the joules of a window can be trusted."""

    CONSISTENT = "consistent"
    UNCHECKED = "unchecked"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePower:
    """One device's trace: power samples, and readings of its energy counter where it has one.

    Times are monotonic seconds, ascending; ``power_w`` watts; ``counter_j`` joules since any fixed moment.
    """

    uid: str
    time_s: Floats
    power_w: Floats
    counter_time_s: Floats
    counter_j: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerTrace:
    """Traces of every device that the configuration reserves, over the same span."""

    basis: PowerBasis
    source: str
    period_s: float
    devices: tuple[DevicePower, ...]


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


def energy_in(trace: PowerTrace, window: Window) -> Energy:
    """Energy of the window, judged device by device."""
    joules = 0.0
    reasons: list[str] = []
    checked = True
    for device in trace.devices:
        if not _covers(device.time_s, window, trace.period_s):
            reasons.append(f"gap:{device.uid}")
            continue
        integrated_j = integrate_j(device, window)
        counted_j = _counted_j(device, window)
        if counted_j is None:
            checked = False
        elif abs(counted_j - integrated_j) > CONSISTENT_WITHIN * max(counted_j, integrated_j):
            reasons.append(f"counter-disagrees:{device.uid}")
        joules += integrated_j
    if not trace.devices:
        reasons.append("no-device")
    verdict = EnergyVerdict.CONSISTENT if checked else EnergyVerdict.UNCHECKED
    return Energy(
        joules, joules / window.length_s, EnergyVerdict.INVALID if reasons else verdict, tuple(reasons)
    )


def _covers(time_s: Floats, window: Window, period_s: float) -> bool:
    """Whether samples reach over the window with no gap of more than MOST_GAP_PERIODS."""
    if len(time_s) < 2 or time_s[0] > window.start_s or time_s[-1] < window.end_s:  # noqa: PLR2004 - an interval
        return False
    first, last = np.searchsorted(time_s, [window.start_s, window.end_s])
    around = time_s[max(first - 1, 0) : last + 1]
    return bool(np.diff(around).max() <= MOST_GAP_PERIODS * period_s)


def _counted_j(device: DevicePower, window: Window) -> float | None:
    """Joules by the device's counter, None where it has none that spans the window."""
    at = device.counter_time_s
    if len(at) < 2 or at[0] > window.start_s or at[-1] < window.end_s:  # noqa: PLR2004 - an interval
        return None
    start_j, end_j = np.interp([window.start_s, window.end_s], at, device.counter_j)
    return float(end_j - start_j)
