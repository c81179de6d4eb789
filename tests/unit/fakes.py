"""Hand-written fakes of the ports: they keep the ports' promises, in memory and in virtual time."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
from synthetic_measurements import HEALTHY, NOTHING, measurement, request, steady_power

from autotune.domain.basics.errors import (
    DevicesBusyError,
    InfeasibleConfigError,
    InputError,
    InputProblem,
)
from autotune.domain.configs.config import EngineConfig
from autotune.domain.configs.space import Branch
from autotune.domain.hardware.hardware import Device, DeviceKind, Hardware
from autotune.domain.hardware.node import CoolDown, NodeState
from autotune.domain.judging.answers import Answer, AnswerTerms, Question, Step
from autotune.domain.judging.quality import TaskScore, TaskSpec
from autotune.domain.launches.endpoint import Endpoint
from autotune.domain.launches.launch import (
    EngineEnvironment,
    Evidence,
    Failure,
    FailureClass,
    LaunchContext,
    LaunchSpec,
    Phase,
    ProcessSpec,
)
from autotune.domain.load.level import Level
from autotune.domain.load.load_plan import LoadPlan
from autotune.domain.load.planning import plan_load
from autotune.domain.load.progress import Cancelled, EndedRequests, Progress, Steer, Steering, to_the_end
from autotune.domain.load.prompts import RandomTokens
from autotune.domain.measuring.counters import CounterTrace
from autotune.domain.measuring.measurement import (
    ClientHealth,
    LoadCurve,
    LoadResult,
    RequestRecord,
    RequestTable,
)
from autotune.domain.measuring.power import DevicePower, PowerBasis, PowerTrace, Window
from autotune.domain.studies.events import Event
from autotune.domain.studies.ports import LauncherTraits, Outcome, Suggestion
from autotune.domain.studies.records import LaunchRecord, StudyRow, TrialRow
from autotune.domain.studies.study import StudySpec
from autotune.runs.measure import Planner
from launchers.options import HOST_WORDS, refuse_words

T = TypeVar("T")
WINDOW = Window(0.0, 30.0)


def devices(count: int) -> tuple[Device, ...]:
    return tuple(
        Device(kind=DeviceKind.CUDA, index=i, name="a device", uid=f"gpu-{i}", memory_bytes=1 << 34)
        for i in range(count)
    )


def hardware(count: int = 2) -> Hardware:
    return Hardware(DeviceKind.CUDA, devices(count))


def study_spec(**changes: object) -> StudySpec:
    """A small study of the engine ``fake``, with two SLAs on one workload."""
    parts: dict[str, object] = {
        "name": "small",
        "model": "some/model",
        "engines": [{"name": "fake"}],
        "workloads": [{"name": "chat", "input_tokens": 8, "output_tokens": 5}],
        "slas": [
            {"name": "fast", "attainment": 0.9, "slos": {"ttft": "1s"}},
            {"name": "slow", "contract": "percentile", "slos": {"ttft": {"p50": "20s"}}},
        ],
        "space": {"dimensions": {"max_num_seqs": ["default", 4, 8, 16], "tensor_parallel": ["default", 2]}},
        "budget": {"launches": 8},
        "soak": "0s",
    }
    return StudySpec.model_validate(parts | changes)


def planner(study: StudySpec) -> Planner:
    """Plans of a study's workloads with random tokens."""

    def plan(level: Level, duration_s: float, seed: int) -> LoadPlan:
        return plan_load(
            study.workload(level.workload),
            level,
            duration_s=duration_s,
            seed=seed,
            prompts=RandomTokens(vocab_size=5000, seed=seed),
        )

    return plan


@lru_cache
def curve(
    rates_rps: Sequence[float] = (4.0, 5.0), *, capacity_rps: float = 5.0, watts: float = 100.0
) -> LoadCurve:
    """Open-loop levels of an engine that answers in 0.1 s up to its capacity, and in 3 s beyond it."""
    return tuple(
        measurement(
            [
                request(due_s, ttft_s=0.1 if rate <= capacity_rps else 3.0)
                for due_s in np.arange(0, WINDOW.end_s, 1 / rate).tolist()
            ],
            level=Level("chat", rate_rps=rate),
            window=WINDOW,
            power=steady_power(WINDOW, watts=watts),
        )
        for rate in rates_rps
    )


def launch_record(row: TrialRow, measured: LoadCurve, *, node: str = "n1") -> LaunchRecord:
    """What the launch of a trial left behind."""
    return LaunchRecord(
        study=row.study,
        number=row.number,
        purpose=row.purpose,
        config=row.config,
        model="some/model",
        command=row.command,
        curve=measured,
        versions={},
        launch_s=1.0,
        load_s=2.0,
        device="a device",
        before=replace(NODE, node=node, idle_power_w=20.0),
    )


class FakeSearch:
    """Goes through the branches in order."""

    def __init__(self, branches: Sequence[Branch], tried: Sequence[EngineConfig] = ()) -> None:
        self._branches = branches
        self._tried = {config.key for config in tried}
        self._numbers = itertools.count(len(tried))
        self.open: set[int] = set()
        self.told: dict[int, Outcome] = {}

    def ask(self) -> Suggestion | None:
        configs = itertools.chain.from_iterable(branch.configs() for branch in self._branches)
        fresh = next((config for config in configs if config.key not in self._tried), None)
        return None if fresh is None else self.begin(fresh)

    def begin(self, config: EngineConfig) -> Suggestion:
        self._tried.add(config.key)
        suggestion = Suggestion(next(self._numbers), config)
        self.open.add(suggestion.number)
        return suggestion

    def tell(self, number: int, outcome: Outcome) -> None:
        self.open.remove(number)
        self.told[number] = outcome


class FakeSettings:
    """Notes what devices were held to, and that they are held to nothing any more."""

    def __init__(self) -> None:
        self.asked: list[tuple[tuple[str, ...], int | None, int | None]] = []
        self.held = 0
        self.refuses: int | None = None

    @contextmanager
    def __call__(
        self,
        devices: Sequence[Device],
        *,
        allowed: Collection[str],
        power_limit_w: int | None,
        graphics_clock_mhz: int | None,
    ) -> Iterator[None]:
        if power_limit_w is not None and power_limit_w == self.refuses:
            raise InfeasibleConfigError("this GPU has no such limit")
        self.asked.append((tuple(allowed), power_limit_w, graphics_clock_mhz))
        self.held += 1
        try:
            yield
        finally:
            self.held -= 1


class FakeCatalog:
    """Rows in memory."""

    def __init__(self, rows: Sequence[TrialRow] = ()) -> None:
        self._rows = {(row.study, row.number): row for row in rows}
        self._studies: dict[str, StudyRow] = {}

    def put(self, row: TrialRow) -> None:
        self._rows[row.study, row.number] = row

    def trials(self, study: str) -> tuple[TrialRow, ...]:
        return tuple(self._rows[key] for key in sorted(self._rows) if key[0] == study)

    def put_study(self, row: StudyRow) -> None:
        self._studies[row.name] = row


class FakeArchive:
    """Records in memory."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, int], LaunchRecord] = {}
        self.logs: dict[int, tuple[Path, ...]] = {}

    def save(self, record: LaunchRecord, logs: Sequence[Path]) -> None:
        self.records[record.study, record.number] = record
        self.logs[record.number] = tuple(logs)

    def load(self, study: str, number: int) -> LaunchRecord:
        if (study, number) not in self.records:
            raise InputError(InputProblem(f"{study}, trial {number}", "was never saved"))
        return self.records[study, number]


class FakeClock:
    """Stands in for the module ``time``: goes on only when told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


class FakeInventory:
    """Some devices, all free unless ``busy``."""

    def __init__(self, count: int = 2, *, busy: bool = False) -> None:
        self._hardware, self._busy = hardware(count), busy
        self.leased = 0

    def devices(self) -> Hardware:
        return self._hardware

    @contextmanager
    def lease(self, among: Hardware, count: int, owner: str, group: int = 1) -> Iterator[tuple[Device, ...]]:
        if self._busy:
            raise DevicesBusyError(f"the devices that {owner} wants are held by another")
        self.leased += count
        try:
            yield among.devices[:count]
        finally:
            self.leased -= count


class FakeEngine:
    """An engine that is up; what its evidence says is given, and so are its counters."""

    endpoint = Endpoint("http://127.0.0.1:1", "some/model")

    def __init__(self, counted: CounterTrace | None = None) -> None:
        self._counted = counted or CounterTrace()

    def alive(self) -> bool:
        return True

    def counters(self) -> Mapping[str, float]:
        return {"requests_running": 0.0, "requests_waiting": 0.0}

    @contextmanager
    def counting(self) -> Iterator[FakeCounters]:
        yield FakeCounters(self._counted)

    def reset_caches(self) -> bool:
        return False

    def evidence(self, stream_error: str = "", *, loading: bool, stalled: bool = False) -> Evidence:
        phase = Phase.LOADING if loading else Phase.FIRST_REQUEST
        return Evidence(phase=phase, exit_code=1, log="the log", stream_error=stream_error, stalled=stalled)


@dataclass(frozen=True)
class FakeCounters:
    counted: CounterTrace

    def trace(self) -> CounterTrace:
        return self.counted


class FakeHost:
    """Brings FakeEngine up, or raises ``error`` instead."""

    def __init__(self, error: Exception | None = None, *, counted: CounterTrace | None = None) -> None:
        self._error, self._counted = error, counted
        self.running = 0
        self.launches: list[LaunchSpec] = []

    @contextmanager
    def serving(
        self, spec: LaunchSpec, *, workdir: Path, start_timeout_s: float, cancelled: Cancelled
    ) -> Iterator[FakeEngine]:
        self.launches.append(spec)
        if self._error is not None:
            raise self._error
        self.running += 1
        try:
            yield FakeEngine(self._counted)
        finally:
            self.running -= 1


class FakeDriver:
    """Serves every request in 0.05 s and 0.01 s per further token, in no time at all.

    ``lag_s`` are the client's own latenesses by drive, 0 when used up; at ``slow_drives`` an answer takes 3 s
    longer. Drives count from 0, the first request's included.
    """

    def __init__(
        self,
        *,
        first_error: str = "",
        dies_at_drive: int | None = None,
        lag_s: Sequence[float] = (),
        slow_drives: Container[int] = (),
    ) -> None:
        self._first_error, self._dies_at, self._lag_s = first_error, dies_at_drive, list(lag_s)
        self._slow_drives = slow_drives
        self.plans: list[LoadPlan] = []

    def drive(
        self,
        endpoint: Endpoint,
        plan: LoadPlan,
        *,
        alive: Callable[[], bool],
        cancelled: Cancelled,
        steer: Steering = to_the_end,
    ) -> LoadResult:
        drive = len(self.plans)
        self.plans.append(plan)
        if drive == 0 and self._first_error:
            failed = RequestTable.of([RequestRecord(due_s=0.0, error=self._first_error)])
            return LoadResult(requests=failed, started_s=0.0, health=HEALTHY)
        if drive == self._dies_at:
            return LoadResult(requests=RequestTable.of([]), started_s=0.0, health=HEALTHY, engine_died=True)
        lag_s = self._lag_s[drive] if drive < len(self._lag_s) else 0.0
        ttft_s = 3.05 if drive in self._slow_drives else 0.05
        records = tuple(_closed_loop(plan) if plan.concurrency else _open_loop(plan, ttft_s))
        requests = _steered(RequestTable.of(records), plan, steer)
        health = ClientHealth(lag_p99_s=lag_s, cpu_share=0.1)
        return LoadResult(requests=requests, started_s=0.0, health=health)


def _steered(requests: RequestTable, plan: LoadPlan, steer: Steering) -> RequestTable:
    """Show every second's progress, and leave out what was not due when sending was to end."""
    for at_s in np.arange(1.0, plan.duration_s, 1.0).tolist():
        due, ended = requests.due_s < at_s, requests.finished_s < at_s
        rows = np.flatnonzero(ended)
        progress = Progress(
            started_s=0.0,
            at_s=at_s,
            due_s=requests.due_s[due],
            ended=EndedRequests(
                due_s=requests.due_s[rows],
                first_token_s=requests.first_token_s[rows],
                last_token_s=requests.last_token_s[rows],
                finished_s=requests.finished_s[rows],
                tpot_s=requests.tpot_s[rows],
                stall_s=requests.stall_s[rows],
                output_tokens=requests.output_tokens[rows],
                ok=requests.ok[rows],
            ),
        )
        if steer(progress) is not Steer.GO_ON:
            return requests.take(np.flatnonzero(due))
    return requests


def _open_loop(plan: LoadPlan, ttft_s: float) -> Iterator[RequestRecord]:
    for planned in plan.requests:
        yield request(planned.due_s, ttft_s=ttft_s, tokens=planned.output_tokens)


def _closed_loop(plan: LoadPlan) -> Iterator[RequestRecord]:
    free_s = [0.0] * (plan.concurrency or 0)
    for planned in plan.requests:
        due_s = heapq.heappop(free_s)
        if due_s >= plan.duration_s:
            return
        record = request(due_s, ttft_s=0.05, tokens=planned.output_tokens)
        heapq.heappush(free_s, record.finished_s)
        yield record


class FakeProbe:
    """Answers by the prompt alone; ``off_nats`` come off every log-probability, ``garbage`` shifts tokens.

    ``asked`` are (questions, together, whether they were scored) of each call.
    """

    def __init__(
        self,
        *,
        off_nats: float = 0.0,
        garbage: bool = False,
        mute: bool = False,
        error: Exception | None = None,
    ) -> None:
        self._off_nats, self._garbage, self._mute, self._error = off_nats, garbage, mute, error
        self.asked: list[tuple[int, int, bool]] = []

    def ask(
        self, endpoint: Endpoint, questions: Sequence[Question], terms: AnswerTerms, cancelled: Cancelled
    ) -> tuple[Answer, ...]:
        if self._error is not None:
            raise self._error
        if questions:
            self.asked.append((len(questions), terms.together, questions[0].scored > 0))
        return tuple(self._answer(question, terms.output_tokens) for question in questions)

    def _answer(self, question: Question, tokens: int) -> Answer:
        start = sum(question.ids) + (1000 if self._garbage else 0)
        ids = question.ids[-question.scored :] if question.scored else range(start, start + tokens)
        own_nats = -0.1 - self._off_nats - (9.0 if self._garbage and question.scored else 0.0)
        steps = tuple(
            Step(token, own_nats, ((token, own_nats), (token + 1, own_nats - 3.0))) for token in ids
        )
        text = " ".join(map(str, ids))
        return Answer(text=text, output_tokens=len(ids), steps=() if self._mute else steps)


class FakeTasks:
    """Solves every task with the given score, of which the standard error is ``error``."""

    def __init__(self, score: float = 0.8, error: float = 0.01, fails: Exception | None = None) -> None:
        self._score, self._error, self._fails = score, error, fails
        self.solved: list[tuple[str, ...]] = []

    def run(
        self, endpoint: Endpoint, tasks: TaskSpec, workdir: Path, cancelled: Cancelled, *, chat: bool
    ) -> tuple[TaskScore, ...]:
        if self._fails is not None:
            raise self._fails
        self.solved.append(tasks.names)
        return tuple(
            TaskScore(task=name, metric="acc", score=self._score, error=self._error) for name in tasks.names
        )


class FakeMeter:
    """100 W on every device, for as long as any test drives load."""

    @contextmanager
    def window(self, devices: Sequence[Device]) -> Iterator[FakeRecording]:
        yield FakeRecording(devices)


@dataclass(frozen=True)
class FakeRecording:
    devices: Sequence[Device]

    def trace(self) -> PowerTrace:
        time_s = np.arange(-1.0, 400.0, 0.05)
        power_w = np.full(len(time_s), 100.0)
        traces = tuple(
            DevicePower(uid=d.uid, time_s=time_s, power_w=power_w, counter_time_s=NOTHING, counter_j=NOTHING)
            for d in self.devices
        )
        return PowerTrace(basis=PowerBasis.GPU, source="fake", period_s=0.05, devices=traces)


NODE = NodeState(
    node="n1",
    boot_id="b",
    kernel="6.1",
    cores=4,
    load_1min=0.1,
    busy_share=0.0,
    steal_share=0.0,
    memory_available_bytes=1 << 30,
)


class FakePreflight:
    """A sound node, unless states are given to tell one after another; the last stays."""

    def __init__(self, *states: NodeState, warm: tuple[str, ...] = ()) -> None:
        self._states, self._warm = list(states) or [NODE], warm
        self.waited_for: list[NodeState] = []

    def check(self, devices: Sequence[Device]) -> NodeState:
        return self._states.pop(0) if len(self._states) > 1 else self._states[0]

    def cool_down(
        self, devices: Sequence[Device], start: NodeState, wait: CoolDown, cancelled: Cancelled
    ) -> tuple[str, ...]:
        self.waited_for.append(start)
        return self._warm


TRAITS = LauncherTraits(
    engine="fake",
    executable="serve",
    dimensions=frozenset({"dtype", "kv_cache_dtype", "quantization", "max_num_seqs", "tensor_parallel"})
    | {"prefill.workers", "decode.workers"}
    | HOST_WORDS,
    device_kinds=frozenset({DeviceKind.CUDA}),
    parser_probe="",
    counters={},
)


@dataclass
class FakeLauncher:
    """Runs ``serve``, and gives every failure the class that it was told to."""

    failure_class: FailureClass = FailureClass.UNRECOGNISED
    seen: list[Evidence] = field(default_factory=list)
    traits: LauncherTraits = TRAITS

    def launch_spec(self, config: EngineConfig, context: LaunchContext) -> LaunchSpec:
        refuse_words("fake", config, self.traits.dimensions)
        argv = (str(context.environment.executable), context.model, "--port", "{port:engine}", *context.args)
        process = ProcessSpec(role="engine", argv=argv, env=context.env, devices=context.devices)
        return LaunchSpec(processes=(process,), serving_role="engine", served_model=context.model)

    def parse_command(self, command: str) -> tuple[EngineConfig, str]:
        raise ValueError(f"no command of this engine: {command}")

    def classify_failure(self, evidence: Evidence) -> Failure:
        self.seen.append(evidence)
        return Failure(
            failure_class=self.failure_class,
            phase=evidence.phase,
            line=evidence.stream_error or evidence.log,
            exit_code=evidence.exit_code,
        )


ENVIRONMENT = EngineEnvironment(
    engine="fake", executable=Path("/engines/bin/serve"), version="1", kind=DeviceKind.CUDA, flags={}
)


class Events(list[Event]):
    """An event sink that remembers."""

    def __call__(self, event: Event) -> None:
        self.append(event)

    def of(self, kind: type[T]) -> list[T]:
        return [event for event in self if isinstance(event, kind)]


def never() -> bool:
    """Nobody asked to stop."""
    return False
