"""The load-boundary decision: which level to measure next on a running engine, or that it is enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autotune.domain.level import Level
from autotune.domain.measurement import LoadCurve
from autotune.domain.scoring import HEADROOM, holding, is_same_rate, score_level
from autotune.domain.sla import Sla


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
    For each SLA capacity is bracketed (down by halves and quarters, up by a third) and bisected until the
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
    # An SLA that nothing met so far comes first: without a level of its own it has no figures at all.
    brackets.sort(key=lambda b: b.met_rps is not None)
    narrowing = [r for b in brackets if (r := _narrow(b, saturated_rps, settings)) is not None]
    narrowing = [rate for rate in narrowing if not _has(measured_rps, rate)]
    spare_levels = settings.most_levels - len(measured_rps)
    if not narrowing and not due:
        return Stop("every capacity and operating point measured")
    if spare_levels <= 0:
        return Stop("most levels measured")
    # Narrowing a bracket may move its operating point, so it goes first while levels last for both.
    wanted = narrowing if narrowing and spare_levels > len(due) else due or narrowing
    return Level(workload, rate_rps=wanted[0])


@dataclass(frozen=True, slots=True)
class _Bracket:
    met_rps: float | None
    failed_rps: float | None


def _bracket(curve: LoadCurve, sla: Sla) -> _Bracket:
    """The highest rate that holds the SLA, and the lowest above it that does not.

    Levels with too few requests to tell are neither, unless there is nothing better.
    """
    scored = [score_level(m, sla) for m in curve if m.level.rate_rps is not None]
    met_rps = max((s.rate_rps for s in holding(scored)), default=None)
    failed = [s.rate_rps for s in scored if not s.may_hold and s.rate_rps > (met_rps or 0)]
    return _Bracket(met_rps, min(failed, default=None))


def _narrow(bracket: _Bracket, saturated_rps: float, settings: BoundarySettings) -> float | None:
    """The rate that narrows a bracket most, None when it is narrow enough or hopeless."""
    met_rps, failed_rps = bracket.met_rps, bracket.failed_rps
    if met_rps is None and failed_rps is not None:
        # Near saturation a half is often enough; far below it the SLA is tight, and steps are longer.
        lower_rps = failed_rps / (2 if failed_rps > saturated_rps / 4 else 4)
        return lower_rps if lower_rps > saturated_rps / 64 else None
    if met_rps is not None and failed_rps is None:
        higher_rps = met_rps * 4 / 3
        return higher_rps if higher_rps < saturated_rps * 1.5 else None
    if met_rps is not None and failed_rps is not None and failed_rps / met_rps > 1 + settings.tolerance:
        return float((met_rps * failed_rps) ** 0.5)
    return None


def _has(measured_rps: Sequence[float], rate_rps: float) -> bool:
    return any(is_same_rate(rate, rate_rps) for rate in measured_rps)
