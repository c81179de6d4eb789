"""The load-boundary decision: which level to measure next on a running engine, or that it is enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autotune.domain.measurement import LoadCurve
from autotune.domain.scoring import HEADROOM, is_same_rate, score_level
from autotune.domain.sla import Sla
from autotune.domain.workload import Level


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundarySettings:
    """How finely, and with how many levels, capacity is searched for."""

    headroom: float = HEADROOM
    tolerance: float = 0.15
    most_levels: int = 8
    saturating_concurrency: int = 64


@dataclass(frozen=True, slots=True)
class Stop:
    """No further level: ``reason`` says why."""

    reason: str


def next_level(
    curve: LoadCurve, slas: Sequence[Sla], workload: str, settings: BoundarySettings
) -> Level | Stop:
    """Decide from what was measured, for every SLA of one workload, at one set of levels.

    First a closed-loop level shows where throughput saturates; open-loop levels then start just below it.
    For each SLA in turn capacity is bracketed (down by halves, up by a third) and bisected until the
    bracket is within ``tolerance``; last, each SLA's operating point is measured itself.
    """
    if not curve:
        return Level(workload, concurrency=settings.saturating_concurrency)
    saturated_rps = curve[0].sustained_rps
    if saturated_rps <= 0:
        return Stop("nothing finished in closed loop")
    measured_rps = [m.level.rate_rps for m in curve if m.level.rate_rps is not None]
    if not measured_rps:
        return Level(workload, rate_rps=0.9 * saturated_rps)
    brackets = [_bracket(curve, sla) for sla in slas]
    operating = [settings.headroom * b.met_rps for b in brackets if b.met_rps is not None]
    due = [rate for rate in operating if not _has(measured_rps, rate)]
    spare_levels = settings.most_levels - len(measured_rps)
    # A bracket may still move its operating point, so these come first while levels last for both.
    narrowing = [r for b in brackets if (r := _narrow(b, saturated_rps, settings)) is not None]
    narrowing = [rate for rate in narrowing if not _has(measured_rps, rate)]
    wanted = (narrowing if spare_levels > len(due) else []) + due
    if wanted and spare_levels > 0:
        return Level(workload, rate_rps=wanted[0])
    return Stop("every capacity and operating point measured" if not wanted else "most levels measured")


@dataclass(frozen=True, slots=True)
class _Bracket:
    met_rps: float | None
    failed_rps: float | None


def _bracket(curve: LoadCurve, sla: Sla) -> _Bracket:
    """The highest rate that met the SLA, and the lowest above it that did not."""
    verdicts = [
        (m.level.rate_rps, score_level(m, sla).may_hold)
        for m in curve
        if m.level.rate_rps is not None
    ]
    met_rps = max((rate for rate, met in verdicts if met), default=None)
    failed = [rate for rate, met in verdicts if not met and rate > (met_rps or 0)]
    return _Bracket(met_rps, min(failed, default=None))


def _narrow(bracket: _Bracket, saturated_rps: float, settings: BoundarySettings) -> float | None:
    """The rate that narrows a bracket most, None when it is narrow enough or hopeless."""
    met_rps, failed_rps = bracket.met_rps, bracket.failed_rps
    if met_rps is None and failed_rps is not None:
        lower_rps = failed_rps / 2
        return lower_rps if lower_rps > saturated_rps / 32 else None
    if met_rps is not None and failed_rps is None:
        higher_rps = met_rps * 4 / 3
        return higher_rps if higher_rps < saturated_rps * 1.5 else None
    if met_rps is not None and failed_rps is not None and failed_rps / met_rps > 1 + settings.tolerance:
        return float((met_rps * failed_rps) ** 0.5)
    return None


def _has(measured_rps: Sequence[float], rate_rps: float) -> bool:
    return any(is_same_rate(rate, rate_rps) for rate in measured_rps)
