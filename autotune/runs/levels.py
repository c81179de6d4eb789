"""Which load levels a launch is measured at: those that find every SLA's capacity, or given ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from autotune.domain.judging.scoring import score_level
from autotune.domain.judging.sla import Sla
from autotune.domain.load.level import Level
from autotune.domain.measuring.measurement import LoadCurve, Measurement
from autotune.domain.search.boundary import BoundarySettings, Foreknowledge, Length, Step, Stop, next_level
from autotune.domain.studies.events import LevelMeasured, Notice
from autotune.domain.studies.study import StudySpec
from autotune.runs.measure import LoadBench, measure_level

MOST_RETREATS = 2
"""Lower loads tried in a final whose operating point did not hold."""

Levels = Callable[[LoadCurve], Step | Stop]
"""Chooses the next level from the curve so far."""


def search_levels(study: StudySpec, workload: str, known: Foreknowledge) -> Levels:
    """Levels that find the capacity and the operating point of every SLA on a workload."""
    spec = study.measurement
    settings = BoundarySettings(
        headroom=spec.headroom,
        tolerance=spec.tolerance,
        precision=spec.precision,
        most_levels=spec.most_levels,
        saturating_concurrency=spec.saturating_concurrency,
    )
    slas = study.slas_on(workload)
    return lambda curve: next_level(curve, slas, workload, settings, known)


def given_levels(
    study: StudySpec, levels: tuple[Level, ...], length: Length, must_hold: tuple[Sla, ...]
) -> Levels:
    """Given levels, in order: what finals measure.

    Where an SLA of ``must_hold`` held at none of them, a lower one follows, MOST_RETREATS times at most: a
    launch that is a little slower than the one before it has an operating point too.
    """

    def choose(curve: LoadCurve) -> Step | Stop:
        if len(curve) < len(levels):
            return Step(levels[len(curve)], length)
        lost = [sla for sla in must_hold if not any(score_level(m, sla).may_hold for m in curve)]
        if not lost or len(curve) >= len(levels) + MOST_RETREATS:
            return Stop("all levels measured")
        lowest_rps = min(m.level.rate_rps for m in curve if m.level.rate_rps is not None)
        lower = Level(curve[-1].level.workload, rate_rps=study.measurement.headroom * lowest_rps)
        return Step(lower, length)

    return choose


def within(levels: Levels, study: StudySpec, *, until_s: float) -> Levels:
    """The same levels, as long as another may end by a moment of the monotonic clock; the first always."""
    spec = study.measurement
    longest_s = spec.warmup + max(spec.longest_window, spec.window)

    def choose(curve: LoadCurve) -> Step | Stop:
        step = levels(curve)
        begun = any(m.level.rate_rps is not None for m in curve)
        if isinstance(step, Step) and begun and time.monotonic() + longest_s > until_s:
            return Stop("the budget's time is up", lost=True)
        return step

    return choose


def measure_levels(bench: LoadBench, study: StudySpec, levels: Levels) -> Iterator[Measurement]:
    """Measure one workload's levels until enough; raises EngineDiedUnderLoadError, BenchError."""
    curve: LoadCurve = ()
    while isinstance(step := levels(curve), Step):
        measurement = measure_level(bench, study, step.level, length=step.length, turn=len(curve))
        curve = (*curve, measurement)
        bench.sink(
            LevelMeasured(
                bench.number,
                step.level,
                measurement.throughput_tok_per_s,
                measurement.ttft_p99_s,
                measurement.window.length_s,
                measurement.ended,
            )
        )
        yield measurement
    if step.lost:
        bench.sink(Notice(f"trial {bench.number} is cut short: {step.reason}"))
