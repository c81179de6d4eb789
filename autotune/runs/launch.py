"""One launch: lease, start, first request, load levels; whatever happens, a record of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from autotune.domain.config import EngineConfig
from autotune.domain.errors import BenchError
from autotune.domain.events import Notice, PhaseChanged
from autotune.domain.hardware import Device, Hardware
from autotune.domain.launch import (
    EngineDiedError,
    EngineEnvironment,
    Failure,
    LaunchContext,
    LaunchSpec,
    Phase,
    Reaction,
    shell_command,
)
from autotune.domain.level import Level
from autotune.domain.measurement import LoadCurve, Measurement
from autotune.domain.node import NodeState, faults, new_faults, warnings
from autotune.domain.ports import (
    Cancelled,
    EngineHost,
    EventSink,
    Inventory,
    Launcher,
    LoadDriver,
    PowerMeter,
    Preflight,
    RunningEngine,
)
from autotune.domain.power import mean_power_w
from autotune.domain.records import LaunchRecord, Purpose
from autotune.domain.study import StudySpec
from autotune.runs.levels import given_levels, measure_levels, search_levels
from autotune.runs.measure import EngineDiedUnderLoadError, LoadBench, Planner

FIRST_ANSWER_TOKENS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Everything outside that a launch needs, as ports; ``remarks`` are what its user should know of it."""

    launcher: Launcher
    environment: EngineEnvironment
    hardware: Hardware
    inventory: Inventory
    host: EngineHost
    driver: LoadDriver
    meter: PowerMeter
    beside: tuple[PowerMeter, ...]
    preflight: Preflight
    plan: Planner
    versions: Mapping[str, str]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchTask:
    """What to launch and measure: plain data.

    ``levels`` is None to search for the load boundary, else the levels to measure (finals), with the names of
    the SLAs that must hold at one of them. ``start`` is the node as it was before the study's first launch.
    """

    study: StudySpec
    number: int
    purpose: Purpose
    config: EngineConfig
    workdir: Path
    levels: tuple[Level, ...] | None = None
    must_hold: tuple[str, ...] = ()
    start: NodeState | None = None


def run_launch(task: LaunchTask, bench: Bench, sink: EventSink, cancelled: Cancelled) -> LaunchRecord:
    """Launch a configuration and measure it.

    Failures of the configuration are in the record; raises BenchError when the bench broke and
    StudyCancelledError when the user asked to stop.
    """
    return _Launch(task, bench, sink, cancelled).run()


class _Launch:
    """State of one launch while it runs: the curve so far and where the time went."""

    def __init__(self, task: LaunchTask, bench: Bench, sink: EventSink, cancelled: Cancelled) -> None:
        self._task, self._bench, self._sink, self._cancelled = task, bench, sink, cancelled
        self._curve: LoadCurve = ()
        self._command = ""
        self._device = ""
        self._before: NodeState | None = None
        self._after: NodeState | None = None
        self._started_s = time.monotonic()
        self._ready_s: float | None = None
        self._loaded_s: float | None = None

    def run(self) -> LaunchRecord:
        failure: Failure | None = None
        try:
            self._serve()
        except EngineDiedError as died:
            failure = self._bench.launcher.classify_failure(died.evidence)
        self._blame_node()
        return self._record(failure)

    def _serve(self) -> None:
        task, bench = self._task, self._bench
        with ExitStack() as stack:
            owner = f"study {task.study.name}, trial {task.number}"
            devices = stack.enter_context(bench.inventory.lease(bench.hardware, task.config.ranks, owner))
            self._device = devices[0].name
            self._look_over(devices)
            # First in, last out: what the engine leaves behind is seen when it is gone.
            stack.callback(self._look_again, devices)
            self._phase(Phase.STARTING)
            self._started_s = time.monotonic()
            engine = stack.enter_context(
                bench.host.serving(
                    self._spec(devices),
                    workdir=task.workdir,
                    start_timeout_s=task.study.measurement.start_timeout,
                    cancelled=self._cancelled,
                )
            )
            self._phase(Phase.FIRST_REQUEST)
            self._first_request(engine)
            self._ready_s = time.monotonic()
            self._phase(Phase.LOADING)
            try:
                self._load(
                    engine,
                    LoadBench(
                        driver=bench.driver,
                        meter=bench.meter,
                        engine=engine,
                        devices=devices,
                        beside=bench.beside,
                        plan=bench.plan,
                        number=task.number,
                        sink=self._sink,
                        cancelled=self._cancelled,
                    ),
                )
            finally:
                self._loaded_s = time.monotonic()
            self._phase(Phase.STOPPING)

    def _look_over(self, devices: tuple[Device, ...]) -> None:
        """Note the node's state and what its devices draw at rest; raises BenchError for a node at fault."""
        task, bench = self._task, self._bench
        self._phase(Phase.PREFLIGHT)
        if task.start is not None:
            wait = task.study.measurement.cool_down
            for warm in bench.preflight.cool_down(devices, task.start, wait, self._cancelled):
                self._sink(Notice(f"trial {task.number}: {warm}"))
        with bench.meter.window(devices) as recording:
            state = bench.preflight.check(devices)
            idle_w = mean_power_w(recording.trace())
        self._before = replace(state, idle_power_w=idle_w)
        known = warnings(task.start) if task.start else ()
        for warning in warnings(state):
            if warning.partition(":")[0] not in [text.partition(":")[0] for text in known]:
                self._sink(Notice(f"trial {task.number}: {warning}"))
        if at_fault := faults(state):
            raise BenchError(f"the node is at fault: {'; '.join(at_fault)}")

    def _look_again(self, devices: tuple[Device, ...]) -> None:
        self._after = self._bench.preflight.check(devices)

    def _blame_node(self) -> None:
        """Raise BenchError for faults of the node that came with the launch, whatever became of it."""
        if self._before and self._after and (came := new_faults(self._before, self._after)):
            raise BenchError(f"the node failed during the launch: {'; '.join(came)}")

    def _spec(self, devices: tuple[Device, ...]) -> LaunchSpec:
        study = self._task.study
        context = LaunchContext(
            model=study.model,
            environment=self._bench.environment,
            devices=devices,
            args=study.engine.args,
            env=study.engine.env,
        )
        spec = self._bench.launcher.launch_spec(self._task.config, context)
        self._command = " && ".join(shell_command(process) for process in spec.processes)
        return spec

    def _first_request(self, engine: RunningEngine) -> None:
        """Ask for one real answer: engines have been seen healthy that die of their first request."""
        study = self._task.study
        plan = self._bench.plan(Level(study.workload_names[0], concurrency=1), 1.0, study.seed)
        first = replace(plan.requests[0], output_tokens=FIRST_ANSWER_TOKENS)
        plan = replace(plan, requests=(first,), duration_s=0.001)
        plan = plan.within(request_timeout_s=study.measurement.request_timeout)
        result = self._bench.driver.drive(
            engine.endpoint, plan, alive=engine.alive, cancelled=self._cancelled
        )
        if not result.requests.ok.any():
            error = next(iter(result.requests.error), "") or "no token came"
            raise EngineDiedError(engine.evidence(error, loading=False), self._task.workdir)

    def _load(self, engine: RunningEngine, bench: LoadBench) -> None:
        study, chosen = self._task.study, self._task.levels
        is_final = self._task.purpose is Purpose.FINAL
        for workload in study.workload_names:
            if chosen is None:
                levels = search_levels(study, workload)
            else:
                levels = given_levels(
                    study,
                    tuple(level for level in chosen if level.workload == workload),
                    tuple(sla for sla in study.slas_on(workload) if sla.name in self._task.must_hold),
                )
            try:
                for measurement in measure_levels(bench, study, levels, final=is_final):
                    self._keep(measurement)
            except EngineDiedUnderLoadError as died:
                raise EngineDiedError(engine.evidence(str(died), loading=True), self._task.workdir) from died

    def _keep(self, measurement: Measurement) -> None:
        self._curve = (*self._curve, measurement)

    def _phase(self, phase: Phase) -> None:
        self._sink(PhaseChanged(self._task.number, phase))

    def _record(self, failure: Failure | None) -> LaunchRecord:
        now_s = time.monotonic()
        ready_s = self._ready_s or now_s
        if failure and failure.reaction is Reaction.BENCH:
            raise BenchError(f"{failure.failure_class} while {failure.phase}: {failure.line}")
        return LaunchRecord(
            study=self._task.study.name,
            number=self._task.number,
            purpose=self._task.purpose,
            config=self._task.config,
            model=self._task.study.model,
            command=self._command,
            curve=self._curve,
            versions=self._bench.versions,
            launch_s=ready_s - self._started_s,
            load_s=(self._loaded_s or ready_s) - ready_s,
            failure=failure,
            device=self._device,
            before=self._before,
            after=self._after,
        )
