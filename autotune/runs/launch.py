"""One launch: lease, start, first request, load levels; whatever happens, a record of it."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from autotune.domain.basics.errors import BenchError, InfeasibleConfigError
from autotune.domain.configs.config import EngineConfig
from autotune.domain.hardware.hardware import Device, Hardware
from autotune.domain.hardware.node import NodeState, code_of, faults, new_faults, warnings
from autotune.domain.judging.answers import NoAnswerError
from autotune.domain.judging.judgement import WrongOutputError
from autotune.domain.judging.quality import Precision, QualityVerdict, ReferenceAnswers, TaskScore
from autotune.domain.judging.scoring import score_curve
from autotune.domain.launches.commands import shell_commands
from autotune.domain.launches.launch import (
    EngineDiedError,
    EngineEnvironment,
    Failure,
    FailureClass,
    LaunchSpec,
    Phase,
    Reaction,
)
from autotune.domain.launches.transport import Transport, transport_of
from autotune.domain.load.level import Level
from autotune.domain.load.progress import Cancelled
from autotune.domain.measuring.measurement import LoadCurve, Measurement
from autotune.domain.measuring.power import mean_power_w
from autotune.domain.search.boundary import NO_FOREKNOWLEDGE, Foreknowledge, Length
from autotune.domain.search.capacity import Expectation
from autotune.domain.search.expectation import FLOOR
from autotune.domain.studies.events import Notice, PhaseChanged
from autotune.domain.studies.ports import (
    EngineHost,
    EventSink,
    Inventory,
    Launcher,
    LoadDriver,
    OutputProbe,
    PowerMeter,
    Preflight,
    RunningEngine,
    Settings,
    TaskRunner,
)
from autotune.domain.studies.records import LaunchRecord, Purpose
from autotune.domain.studies.study import StudySpec
from autotune.runs.company import Opening, company
from autotune.runs.levels import given_levels, measure_levels, search_levels, within
from autotune.runs.measure import (
    TIMEOUT,
    EngineDiedUnderLoadError,
    EngineStalledError,
    LoadBench,
    Planner,
    single_request,
)
from autotune.runs.quality import (
    NOTHING_KNOWN,
    Examination,
    Examiner,
    QualityKnown,
    examine,
    questions_of,
)

LENGTHS = {Purpose.FINAL: Length.LONG, Purpose.SOAK: Length.SOAK}
"""How long given levels last, where not as in the search."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Everything outside that a launch needs, as ports; ``remarks`` are what its user should know of it."""

    launcher: Launcher
    environment: EngineEnvironment
    hardware: Hardware
    inventory: Inventory
    host: EngineHost
    driver: LoadDriver
    probe: OutputProbe
    tasks: TaskRunner
    meter: PowerMeter
    beside: tuple[PowerMeter, ...]
    preflight: Preflight
    settings: Settings
    plan: Planner
    versions: Mapping[str, str]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchTask:
    """What to launch and measure: plain data.

    ``levels`` is None to search for the load boundary, else the levels to measure (finals), with the names of
    the SLAs that must hold at one of them. ``start`` is the node as it was before the study's first launch.
    ``known`` is what the study knows of quality so far, ``foreknown`` of loads. No level is begun that
    might not end within ``time_left_s`` of the launch's start, but each workload's first. ``variants`` differ
    from the configuration in settings of the devices alone, and are measured on its engine after it.
    """

    study: StudySpec
    number: int
    purpose: Purpose
    config: EngineConfig
    workdir: Path
    levels: tuple[Level, ...] | None = None
    must_hold: tuple[str, ...] = ()
    start: NodeState | None = None
    known: QualityKnown = NOTHING_KNOWN
    foreknown: Foreknowledge = NO_FOREKNOWLEDGE
    time_left_s: float = math.inf
    variants: tuple[EngineConfig, ...] = ()


def run_launch(
    task: LaunchTask,
    bench: Bench,
    sink: EventSink,
    cancelled: Cancelled,
    beside: Sequence[Bench] = (),
) -> LaunchRecord:
    """Launch a configuration and measure it; on each bench ``beside`` it a copy serves under the same load.

    Failures of the configuration are in the record; raises BenchError when the bench broke and
    StudyCancelledError when the user asked to stop.
    """
    return _Launch(task, bench, sink, cancelled, beside).run()


@dataclass(frozen=True, slots=True)
class _Measured:
    """What a variant showed, and how long that took; its number until the study gives it another."""

    number: int
    config: EngineConfig
    curve: LoadCurve
    load_s: float
    failure: Failure | None


class _Launch:
    """State of one launch while it runs: the curve so far and where the time went."""

    def __init__(
        self, task: LaunchTask, bench: Bench, sink: EventSink, cancelled: Cancelled, beside: Sequence[Bench]
    ) -> None:
        self._task, self._bench, self._sink, self._cancelled = task, bench, sink, cancelled
        self._beside, self._driver = tuple(beside), bench.driver
        self._curve: LoadCurve = ()
        self._command = ""
        self._devices: tuple[Device, ...] = ()
        self._before: NodeState | None = None
        self._after: NodeState | None = None
        self._started_s = self._entered_s = time.monotonic()
        self._quality: QualityVerdict | None = None
        self._answers: ReferenceAnswers | None = None
        self._ready_s: float | None = None
        self._loading_s: float | None = None
        self._loaded_s: float | None = None
        self._variants: tuple[_Measured, ...] = ()

    def run(self) -> LaunchRecord:
        failure: Failure | None = None
        try:
            self._serve()
        except EngineDiedError as died:
            failure = self._bench.launcher.classify_failure(died.evidence)
        except WrongOutputError as wrong:
            failure = Failure(
                failure_class=FailureClass.WRONG_OUTPUT, phase=Phase.FIRST_REQUEST, line=str(wrong)
            )
        self._blame_node()
        return self._record(failure)

    def _serve(self) -> None:
        task, bench = self._task, self._bench
        with ExitStack() as stack:
            owner = f"study {task.study.name}, trial {task.number}"
            devices = stack.enter_context(self._lease(bench, owner))
            self._devices = devices
            self._look_over(devices)
            # First in, last out: what the engine leaves behind is seen when it is gone.
            stack.callback(self._look_again, devices)
            # Put back when the engine is gone, and before its node is looked at again.
            settings = stack.enter_context(ExitStack())
            settings.enter_context(self._settings(task.config, devices))
            self._phase(Phase.STARTING)
            if self._beside:
                self._sink(Notice(f"trial {task.number} fills the node: {1 + len(self._beside)} engines"))
            accompanied = stack.enter_context(company(self._copies(), self._cancelled))
            self._started_s = time.monotonic()
            spec = self._spec(devices)
            self._command = "\n".join(shell_commands(spec).values())
            engine = stack.enter_context(
                bench.host.serving(
                    spec,
                    workdir=task.workdir,
                    start_timeout_s=task.study.measurement.start_timeout,
                    cancelled=self._cancelled,
                )
            )
            self._phase(Phase.FIRST_REQUEST)
            self._driver = accompanied(self._bench.driver)
            self._first_request(engine)
            self._ready_s = time.monotonic()
            self._phase(Phase.EXAMINING)
            self._examine(engine)
            self._loading_s = time.monotonic()
            self._phase(Phase.LOADING)
            try:
                for measurement in self._load(engine, task.number, task.foreknown):
                    self._curve = (*self._curve, measurement)
            finally:
                self._loaded_s = time.monotonic()
            for number, variant in enumerate(task.variants, task.number + 1):
                settings.close()
                if not self._measure(number, variant, engine, settings):
                    break
            self._phase(Phase.STOPPING)

    def _copies(self) -> list[tuple[LoadDriver, Opening]]:
        """What drives each copy beside the measured engine, and how it is started."""
        return [(each.driver, partial(self._copy, n, each)) for n, each in enumerate(self._beside, 1)]

    @contextmanager
    def _copy(self, number: int, bench: Bench, cancelled: Cancelled) -> Iterator[RunningEngine]:
        """The configuration once more, on devices of its own."""
        task = self._task
        owner = f"study {task.study.name}, trial {task.number}, copy {number}"
        workdir = task.workdir / f"copy-{number}"
        workdir.mkdir(parents=True, exist_ok=True)
        with (
            self._lease(bench, owner) as devices,
            self._settings(task.config, devices),
            bench.host.serving(
                self._spec(devices),
                workdir=workdir,
                start_timeout_s=task.study.measurement.start_timeout,
                cancelled=cancelled,
            ) as engine,
        ):
            yield engine

    def _lease(self, bench: Bench, owner: str) -> AbstractContextManager[tuple[Device, ...]]:
        """Devices for one engine of the configuration."""
        config = self._task.config
        return bench.inventory.lease(
            bench.hardware, config.devices, owner, group=config.widest_tensor_parallel
        )

    def _settings(self, config: EngineConfig, devices: tuple[Device, ...]) -> AbstractContextManager[None]:
        return self._bench.settings(
            devices,
            allowed=self._task.study.hardware_asked.allow,
            power_limit_w=config.power_limit_w,
            graphics_clock_mhz=config.graphics_clock_mhz,
        )

    def _measure(
        self, number: int, variant: EngineConfig, engine: RunningEngine, settings: ExitStack
    ) -> bool:
        """Measure the running engine under other settings; returns whether it still runs."""
        began_s = time.monotonic()
        try:
            settings.enter_context(self._settings(variant, self._devices))
        except InfeasibleConfigError as refused:
            self._sink(Notice(f"trial {number}: {refused}"))
            return True
        curve: LoadCurve = ()
        failure: Failure | None = None
        try:
            for measurement in self._load(engine, number, self._expected_of_variants()):
                curve = (*curve, measurement)
        except EngineDiedError as died:
            failure = self._bench.launcher.classify_failure(died.evidence)
        took_s = time.monotonic() - began_s
        self._variants = (*self._variants, _Measured(number, variant, curve, took_s, failure))
        return failure is None

    def _expected_of_variants(self) -> Foreknowledge:
        """The configuration itself says where its variants' capacity lies."""
        study = self._task.study
        scores = (score_curve(self._curve, sla, study.workload_of(sla)) for sla in study.slas)
        expected = {s.sla: Expectation(rps=s.capacity_rps, spread=FLOOR) for s in scores if s.capacity_rps}
        return replace(self._task.foreknown, expected={**self._task.foreknown.expected, **expected})

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
        known = {code_of(warning) for warning in warnings(task.start)} if task.start else set()
        for warning in warnings(state):
            if code_of(warning) not in known:
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
        engine = study.engine(self._task.config.engine)
        context = engine.context(study.model, self._bench.environment, devices).of(self._task.config)
        return self._bench.launcher.launch_spec(self._task.config, context)

    def _first_request(self, engine: RunningEngine) -> None:
        """Ask for one real answer: engines have been seen healthy that die of their first request."""
        study = self._task.study
        plan = single_request(self._bench.plan, study, study.workload_names[0])
        result = self._driver.drive(engine.endpoint, plan, alive=engine.alive, cancelled=self._cancelled)
        if not result.requests.ok.any():
            error = next(iter(result.requests.error), "") or "no token came"
            stalled = error == TIMEOUT and not result.engine_died
            raise EngineDiedError(engine.evidence(error, loading=False, stalled=stalled), self._task.workdir)

    def _examine(self, engine: RunningEngine) -> None:
        """Have the known prompts answered, and the quality of a new precision judged."""
        task, bench, study = self._task, self._bench, self._task.study
        environment = bench.environment
        examiner = Examiner(
            probe=bench.probe,
            endpoint=engine.endpoint,
            spec=study.quality,
            # An engine's first log-probabilities may have a kernel compiled: it is still starting then.
            timeout_s=study.measurement.start_timeout,
            cancelled=self._cancelled,
            solve=partial(self._solve, engine),
        )
        examination = Examination(
            number=task.number,
            precision=Precision.of(
                study.model, task.config, f"{environment.engine} {environment.version}".strip()
            ),
            known=task.known,
            questions=questions_of(study, bench.plan),
            may_be_reference=task.purpose in {Purpose.BASELINE, Purpose.DEFAULTS},
        )
        try:
            self._quality, self._answers = examine(examiner, examination)
        except NoAnswerError as lost:
            evidence = engine.evidence(str(lost), loading=False, stalled=lost.timed_out)
            raise EngineDiedError(evidence, task.workdir) from lost

    def _solve(self, engine: RunningEngine) -> tuple[TaskScore, ...]:
        """Have the study's tasks solved, where it has any."""
        spec, bench = self._task.study.quality.tasks, self._bench
        if spec is None:
            return ()
        self._sink(Notice(f"trial {self._task.number}: tasks are solved: {', '.join(spec.names)}"))
        chat = bench.launcher.traits.chat_only
        try:
            return bench.tasks.run(engine.endpoint, spec, self._task.workdir, self._cancelled, chat=chat)
        except BenchError as failed:
            if engine.alive():
                raise
            raise NoAnswerError(f"the engine died while it solved tasks: {failed}") from failed

    def _load(self, engine: RunningEngine, number: int, foreknown: Foreknowledge) -> Iterator[Measurement]:
        """Drive load, for the trial of a number; raises EngineDiedError."""
        study, chosen = self._task.study, self._task.levels
        bench = LoadBench(
            driver=self._driver,
            meter=self._bench.meter,
            engine=engine,
            devices=self._devices,
            beside=self._bench.beside,
            plan=self._bench.plan,
            number=number,
            sink=self._sink,
            cancelled=self._cancelled,
        )
        length = LENGTHS.get(self._task.purpose, Length.SHORT)
        for workload in study.workload_names:
            if chosen is None:
                levels = within(
                    search_levels(study, workload, foreknown),
                    study,
                    until_s=self._entered_s + self._task.time_left_s,
                )
            else:
                levels = given_levels(
                    study,
                    tuple(level for level in chosen if level.workload == workload),
                    length,
                    tuple(sla for sla in study.slas_on(workload) if sla.name in self._task.must_hold),
                )
            try:
                yield from measure_levels(bench, study, levels)
            except EngineDiedUnderLoadError as died:
                stalled = isinstance(died, EngineStalledError)
                evidence = engine.evidence(str(died), loading=True, stalled=stalled)
                raise EngineDiedError(evidence, self._task.workdir) from died

    def _transport(self) -> Transport | None:
        """What KV blocks took between the pools, as the workers' logs tell; None without pools."""
        if not self._task.config.pools:
            return None
        taken = Transport()
        for log in sorted(self._task.workdir.glob("*.log")):
            taken = taken.with_(transport_of(log.read_text(errors="replace")))
        if taken.kind == "tcp" and "tcp" not in (self._task.config.kv_transfer or ""):
            self._sink(
                Notice(f"trial {self._task.number}: KV blocks travelled over TCP, which nobody asked for")
            )
        return taken

    def _kv_tokens(self) -> int | None:
        """What one replica's KV cache holds, as an engine of one pool logs it."""
        line = self._bench.launcher.traits.kv_tokens_line
        if not line or self._task.config.pools:
            return None
        logs = (log.read_text(errors="replace") for log in sorted(self._task.workdir.glob("*.log")))
        told = next((found for log in logs if (found := re.search(line, log))), None)
        return int(told[1].replace(",", "")) if told else None

    def _phase(self, phase: Phase) -> None:
        self._sink(PhaseChanged(self._task.number, phase))

    def _record(self, failure: Failure | None) -> LaunchRecord:
        now_s = time.monotonic()
        ready_s = self._ready_s or now_s
        if failure and failure.reaction is Reaction.BENCH:
            raise BenchError(f"{failure.failure_class} while {failure.phase}: {failure.line}")
        record = LaunchRecord(
            study=self._task.study.name,
            number=self._task.number,
            purpose=self._task.purpose,
            config=self._task.config,
            model=self._task.study.model,
            command=self._command,
            curve=self._curve,
            versions=self._bench.versions,
            launch_s=ready_s - self._started_s,
            load_s=self._loaded_s - self._loading_s if self._loaded_s and self._loading_s else 0.0,
            failure=failure,
            device=self._devices[0].name if self._devices else "",
            device_count=len(self._devices) or self._task.config.devices,
            copies=1 + len(self._beside),
            transport=self._transport(),
            before=self._before,
            after=self._after,
            quality=self._quality,
            answers=self._answers,
            kv_tokens=self._kv_tokens(),
        )
        variants = tuple(
            replace(
                record,
                number=each.number,
                purpose=Purpose.SEARCH,
                config=each.config,
                curve=each.curve,
                launch_s=0.0,
                load_s=each.load_s,
                failure=each.failure,
                answers=None,
            )
            for each in self._variants
        )
        return replace(record, variants=variants)
