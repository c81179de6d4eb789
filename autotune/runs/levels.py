"""Load levels on a running engine: drive and meter at once, one level after another."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from autotune.domain.boundary import BoundarySettings, Stop, next_level
from autotune.domain.errors import BenchError
from autotune.domain.events import LevelMeasured, LevelStarted
from autotune.domain.hardware import Device
from autotune.domain.measurement import LoadCurve, Measurement, RequestTable
from autotune.domain.ports import Cancelled, EventSink, LoadDriver, PowerMeter, RunningEngine
from autotune.domain.power import Window
from autotune.domain.scoring import score_level
from autotune.domain.sla import Sla
from autotune.domain.study import MeasurementSpec, StudySpec
from autotune.domain.workload import Level, plan_load

PAUSES_S = (0.0, 2.0, 8.0)
"""Waits before a level in which the client was late is driven again: a busy machine may calm down."""
MOST_RETREATS = 2
"""Lower loads tried in a final whose operating point did not hold."""


class EngineDiedUnderLoadError(Exception):
    """The engine died in a level; the levels measured before it stand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadBench:
    """What drives and meters load on one running engine."""

    driver: LoadDriver
    meter: PowerMeter
    engine: RunningEngine
    devices: tuple[Device, ...]
    vocab_size: int
    number: int
    sink: EventSink
    cancelled: Cancelled


Levels = Callable[[LoadCurve], Level | Stop]
"""Chooses the next level from the curve so far."""


def search_levels(study: StudySpec, workload: str) -> Levels:
    """Levels that find the capacity and the operating point of every SLA on a workload."""
    spec = study.measurement
    settings = BoundarySettings(
        headroom=spec.headroom,
        tolerance=spec.tolerance,
        most_levels=spec.most_levels,
        saturating_concurrency=spec.saturating_concurrency,
    )
    slas = study.slas_on(workload)
    return lambda curve: next_level(curve, slas, workload, settings)


def given_levels(study: StudySpec, levels: tuple[Level, ...], must_hold: tuple[Sla, ...]) -> Levels:
    """Given levels, in order: what finals measure.

    Where an SLA of ``must_hold`` held at none of them, a lower one follows, MOST_RETREATS times at most: a
    launch that is a little slower than the one before it has an operating point too.
    """

    def choose(curve: LoadCurve) -> Level | Stop:
        if len(curve) < len(levels):
            return levels[len(curve)]
        lost = [sla for sla in must_hold if not any(score_level(m, sla).may_hold for m in curve)]
        if not lost or len(curve) >= len(levels) + MOST_RETREATS:
            return Stop("all levels measured")
        lowest_rps = min(m.level.rate_rps for m in curve if m.level.rate_rps is not None)
        return Level(curve[-1].level.workload, rate_rps=study.measurement.headroom * lowest_rps)

    return choose


def measure_levels(
    bench: LoadBench, study: StudySpec, levels: Levels, *, final: bool
) -> Iterator[Measurement]:
    """Measure one workload's levels until enough; raises EngineDiedUnderLoadError, BenchError."""
    curve: LoadCurve = ()
    while isinstance(level := levels(curve), Level):
        measurement = _measure_patiently(bench, study, level, final=final)
        curve = (*curve, measurement)
        bench.sink(
            LevelMeasured(bench.number, level, measurement.throughput_tok_per_s, measurement.ttft_p99_s)
        )
        yield measurement


def window_length_s(level: Level, spec: MeasurementSpec, *, final: bool) -> float:
    """Window long enough for the wanted requests, within the study's bounds."""
    if final:
        return spec.final_window
    if level.rate_rps is None:
        return spec.window
    return min(max(spec.requests / level.rate_rps, spec.window), max(spec.longest_window, spec.window))


def _measure_patiently(bench: LoadBench, study: StudySpec, level: Level, *, final: bool) -> Measurement:
    for attempt, pause_s in enumerate(PAUSES_S):
        time.sleep(pause_s)
        measurement = _measure(bench, study, level, final=final, attempt=attempt)
        if not measurement.health.was_limit:
            return measurement
    raise BenchError(
        f"the load client was the limit at {level.label}: p99 of sent - due was "
        f"{measurement.health.lag_p99_s * 1e3:.0f} ms; give it a core of its own or lower the load"
    )


def _measure(bench: LoadBench, study: StudySpec, level: Level, *, final: bool, attempt: int) -> Measurement:
    spec = study.measurement
    window_s = window_length_s(level, spec, final=final)
    duration_s = spec.warmup + window_s
    workload = next(w for w in study.workloads if w.name == level.workload)
    # A seed of its own for each launch, level and attempt: no prompt is ever seen twice by an engine.
    seed = zlib.crc32(f"{study.seed} {bench.number} {level} {attempt}".encode())
    plan = plan_load(workload, level, duration_s=duration_s, vocab_size=bench.vocab_size, seed=seed)
    bench.sink(LevelStarted(bench.number, level, duration_s))
    with bench.meter.window(bench.devices) as recording:
        result = bench.driver.drive(
            bench.engine.endpoint,
            plan.within(request_timeout_s=spec.request_timeout),
            alive=bench.engine.alive,
            cancelled=bench.cancelled,
        )
        trace = recording.trace()
    if result.engine_died:
        raise EngineDiedUnderLoadError(level.label)
    return Measurement(
        level=level,
        window=Window(result.started_s + spec.warmup, result.started_s + duration_s),
        requests=RequestTable.of(result.records),
        power=trace,
        health=result.health,
        counters=bench.engine.counters(),
    )
