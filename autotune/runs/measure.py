"""One load level on a running engine: driven, metered and counted at once, and driven again if need be."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import numpy as np

from autotune.domain.basics.errors import BenchError, StudyCancelledError
from autotune.domain.hardware.hardware import Device
from autotune.domain.judging.window import Over, Stage, Warming, WindowRules, advance, closed_by_force
from autotune.domain.load.level import Level
from autotune.domain.load.load_plan import LoadPlan
from autotune.domain.load.progress import Cancelled, Progress, Steer
from autotune.domain.load.prompts import shared_tokens
from autotune.domain.load.workload import PrefixHits
from autotune.domain.measuring.counters import CounterTrace
from autotune.domain.measuring.measurement import Measurement, RequestTable
from autotune.domain.measuring.power import EnergyVerdict, PowerTrace, Window, energy_in
from autotune.domain.search.boundary import Length
from autotune.domain.studies.events import LevelProgress, LevelStarted, Notice
from autotune.domain.studies.ports import EventSink, LoadDriver, PowerMeter, PowerRecording, RunningEngine
from autotune.domain.studies.study import StudySpec

PAUSES_S = (0.0, 2.0, 8.0)
"""Waits before a level that went wrong is driven again: a busy machine may calm down, a GPU settle."""
EMPTY_TIMEOUT_S = 30.0
"""An engine that nobody asks any more must have nothing left to do by then."""
POLL_S = 0.1
QUEUE_COUNTERS = ("requests_running", "requests_waiting")
CACHE_BLOCK_TOKENS = 16
"""Smallest block that engines share prefixes by: what can be shared at most is counted in these."""
CACHE_TOLERANCE = 0.05
TEMPLATE_TOKENS = 64
"""A chat's template puts a head of its own before every prompt, of up to so many tokens, the same for all."""
ANY_PRECISION, NO_PRECISION = 1.0, 0.0
"""Half-widths, as shares of throughput, at which a window may end: in no time, and never before its time."""
TIMEOUT = "timeout"
"""The error of a request whose deadline passed."""
ANSWER_TOKENS = 4
"""An engine that gives so many tokens to a single request answers."""

Planner = Callable[[Level, float, int], LoadPlan]
"""Draws the requests of a level for a duration in seconds, from a seed."""


class EngineDiedUnderLoadError(Exception):
    """The engine died in a level; the levels measured before it stand."""


class EngineStalledError(EngineDiedUnderLoadError):
    """The engine lives, and does not answer a single request any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadBench:
    """What drives and meters load on one running engine; ``beside`` are meters that do not rank."""

    driver: LoadDriver
    meter: PowerMeter
    beside: tuple[PowerMeter, ...]
    engine: RunningEngine
    devices: tuple[Device, ...]
    plan: Planner
    number: int
    sink: EventSink
    cancelled: Cancelled


def window_rules(study: StudySpec, level: Level, length: Length) -> WindowRules:
    """What the window of a level must achieve and may cost."""
    spec = study.measurement
    longest_s, precision = {
        Length.BRIEF: (spec.longest_window, ANY_PRECISION),
        Length.SHORT: (spec.longest_window, spec.precision),
        Length.LONG: (spec.final_window, spec.final_precision),
        Length.SOAK: (study.soak_s, NO_PRECISION),
    }[length]
    return WindowRules(
        # A closed loop carries no capacity: what its SLAs would say nobody asks.
        slas=study.slas_on(level.workload) if level.rate_rps is not None else (),
        rate_rps=level.rate_rps,
        dispersion=study.workload(level.workload).under(level).dispersion,
        warmup_s=spec.warmup,
        longest_warmup_s=max(spec.longest_warmup, spec.warmup),
        shortest_s=spec.window,
        longest_s=max(longest_s, spec.window),
        precision=precision,
    )


def measure_level(
    bench: LoadBench, study: StudySpec, level: Level, *, length: Length, turn: int
) -> Measurement:
    """Measure a level, again where the bench spoiled it; ``turn`` is how many this engine had before it.

    Raises EngineDiedUnderLoadError, EngineStalledError where it only does not answer any more, BenchError.
    """
    spoiled = ""
    for attempt, pause_s in enumerate(PAUSES_S):
        _pause(pause_s, bench)
        measurement = _measure(bench, study, level, length=length, draw=f"{turn} {attempt}")
        spoiled = why_spoiled(measurement, study.workload(level.workload).prefix_hits)
        if not spoiled:
            return measurement
        bench.sink(Notice(f"trial {bench.number}: {level.label} does not count: {spoiled}"))
    raise BenchError(f"{level.label}: {spoiled}")


def why_spoiled(measurement: Measurement, declared: PrefixHits | None) -> str:
    """Say why a level's figures are not the engine's; empty for a sound one."""
    health = measurement.health
    if health.was_limit:
        return (
            f"the load client was the limit: p99 of sent - due was {health.lag_p99_s * 1e3:.0f} ms, of its "
            f"event loop's lag {health.loop_lag_p99_s * 1e3:.0f} ms, the busiest of {health.processes} "
            f"processes took {health.cpu_share:.0%} of a core; give it cores of its own or lower the load"
        )
    energy = energy_in(measurement.power, measurement.window)
    if measurement.power.basis.ranks and energy.verdict is EnergyVerdict.INVALID:
        return f"its energy is invalid: {', '.join(energy.reasons)}"
    seen = measurement.counters.prefix_hit_rate(measurement.window)
    if seen is None:
        return ""
    expected = declared.expected if declared else measurement.prefix_share
    tolerance = declared.tolerance if declared else CACHE_TOLERANCE
    # Less than could be shared is the configuration's own doing, unless the workload says what it must be.
    if seen > expected + tolerance or (declared and seen < expected - tolerance):
        return (
            f"the prefix cache served {seen:.1%} of the prompt tokens where the workload promises "
            f"{expected:.1%}: these are another workload's figures; mend `prefix_hits`, or see who else "
            "sends this engine requests"
        )
    return ""


def _pause(seconds: float, bench: LoadBench) -> None:
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        if bench.cancelled():
            raise StudyCancelledError("stopped between two attempts at a level")
        time.sleep(min(POLL_S, seconds))


def _measure(bench: LoadBench, study: StudySpec, level: Level, *, length: Length, draw: str) -> Measurement:
    rules = window_rules(study, level, length)
    # A seed of its own for each launch, turn and attempt, for a level may have several turns: no prompt is
    # ever seen twice by an engine.
    seed = zlib.crc32(f"{study.seed} {bench.number} {level} {draw}".encode())
    plan = bench.plan(level, rules.longest_run_s, seed).within(
        request_timeout_s=study.measurement.request_timeout
    )
    bench.engine.reset_caches()
    bench.sink(LevelStarted(bench.number, level, rules.longest_run_s))
    pilot = _Pilot(rules, level, bench)
    with ExitStack() as stack:
        recording = stack.enter_context(bench.meter.window(bench.devices))
        beside = _open_beside(bench, level, stack)
        counting = stack.enter_context(bench.engine.counting())
        result = bench.driver.drive(
            bench.engine.endpoint,
            plan,
            alive=bench.engine.alive,
            cancelled=bench.cancelled,
            steer=pilot.steer,
        )
        power, counters = recording.trace(), counting.trace()
        around = _traces_beside(bench, level, beside)
    if result.engine_died:
        raise EngineDiedUnderLoadError(level.label)
    if not _empties(bench, level, counters):
        _ask_once(bench, study, level)
        raise BenchError(
            f"the engine still works {EMPTY_TIMEOUT_S:g} s after the last request of {level.label} was "
            "answered or dropped; it does not notice that a client is gone, or others send it requests"
        )
    if any(error == TIMEOUT and not chunks for error, chunks in _ends(result.requests)):
        # A server whose engine hangs may show empty queues, the last that it was told.
        _ask_once(bench, study, level)
    over = pilot.over()
    return Measurement(
        level=level,
        window=over.window,
        requests=result.requests,
        power=power,
        beside=around,
        health=result.health,
        counters=counters,
        ended=over.end,
        steady=over.steady,
        prefix_share=_prefix_share(plan, result.requests, over.window),
        dispersion=rules.dispersion,
    )


def _prefix_share(plan: LoadPlan, requests: RequestTable, window: Window) -> float:
    """Share of the window's prompt tokens that a prefix cache could have served, by what was sent before."""
    template = TEMPLATE_TOKENS if plan.api == "chat" else 0
    sent = requests.take(np.argsort(requests.sent_s, kind="stable"))
    prompts = [plan.requests[place].prompt for place in sent.planned.tolist()]
    inside = window.holds(sent.due_s)
    shared, total = shared_tokens(prompts, block_tokens=CACHE_BLOCK_TOKENS)
    possible = (shared + template)[inside].sum() / max((total + template)[inside].sum(), 1)
    return float(min(possible, 1.0))


@dataclass(slots=True)
class _Pilot:
    """Steers one level through its window."""

    rules: WindowRules
    level: Level
    bench: LoadBench
    stage: Stage = field(default_factory=Warming)
    progress: Progress | None = None

    def steer(self, progress: Progress) -> Steer:
        stage = advance(self.stage, progress, self.rules)
        if type(stage) is not type(self.stage):
            self.bench.sink(LevelProgress(self.bench.number, self.level, stage.name))
        self.stage, self.progress = stage, progress
        return stage.steer

    def over(self) -> Over:
        """How the level ended; raises BenchError for one that ended before anything was measured."""
        if self.progress is not None and (over := closed_by_force(self.stage, self.progress)):
            return over
        raise BenchError(f"the load of {self.level.label} ended before its window began; lengthen the trace")


def _open_beside(bench: LoadBench, level: Level, stack: ExitStack) -> list[PowerRecording]:
    recordings = []
    for meter in bench.beside:
        with _dispensable(bench, level):
            recordings.append(stack.enter_context(meter.window(bench.devices)))
    return recordings


def _traces_beside(
    bench: LoadBench, level: Level, recordings: Sequence[PowerRecording]
) -> tuple[PowerTrace, ...]:
    traces = []
    for recording in recordings:
        with _dispensable(bench, level):
            traces.append(recording.trace())
    return tuple(traces)


@contextmanager
def _dispensable(bench: LoadBench, level: Level) -> Iterator[None]:
    """Go on without a meter that does not rank: its trace is missing from the level, and that is told."""
    try:
        yield
    except BenchError as error:
        bench.sink(Notice(f"trial {bench.number}: {level.label} has no watts of a meter beside: {error}"))


def _empties(bench: LoadBench, level: Level, seen: CounterTrace) -> bool:
    """Wait until the engine has nothing left to do, by its own counters; ``seen`` are those of the level.

    An engine that shows none had all its answers waited for by the driver; one that showed them and does not
    answer any more has not. Returns whether it got empty; raises EngineDiedUnderLoadError if it dies of the
    answers that were cut off.
    """
    shows = any(name in seen.values for name in QUEUE_COUNTERS)
    deadline_s = time.monotonic() + EMPTY_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if bench.cancelled():
            raise StudyCancelledError("stopped while the engine emptied")
        if not bench.engine.alive():
            raise EngineDiedUnderLoadError(level.label)
        counters = bench.engine.counters()
        if (counters or not shows) and not any(counters.get(name) for name in QUEUE_COUNTERS):
            return True
        time.sleep(POLL_S)
    return False


def single_request(planner: Planner, study: StudySpec, workload: str) -> LoadPlan:
    """Plan one short request of a workload: whoever works at all answers it."""
    plan = planner(Level(workload, concurrency=1), 1.0, study.seed)
    first = replace(plan.requests[0], output_tokens=ANSWER_TOKENS)
    plan = replace(plan, requests=(first,), duration_s=0.001)
    return plan.within(request_timeout_s=study.measurement.request_timeout)


def _ask_once(bench: LoadBench, study: StudySpec, level: Level) -> None:
    """Return if the engine answers one request, with no load; raises EngineStalledError if it does not.

    Its health is not asked: of an engine that stopped, a server in front of it may well say that all is well.
    """
    plan = single_request(bench.plan, study, level.workload)
    result = bench.driver.drive(
        bench.engine.endpoint, plan, alive=bench.engine.alive, cancelled=bench.cancelled
    )
    if result.engine_died:
        raise EngineDiedUnderLoadError(level.label)
    if TIMEOUT in result.requests.error:
        raise EngineStalledError(f"no answer to a single request after {level.label}")


def _ends(requests: RequestTable) -> Iterator[tuple[str, int]]:
    return zip(requests.error, requests.chunks.tolist(), strict=True)
