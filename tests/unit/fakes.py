"""Hand-written fakes of the ports: they keep the ports' promises, in memory and in virtual time."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
from synthetic_measurements import HEALTHY, NOTHING, measurement, request, steady_power

from autotune.domain.config import EngineConfig
from autotune.domain.errors import DevicesBusyError, InputError, InputProblem
from autotune.domain.events import Event
from autotune.domain.hardware import Device, DeviceKind, Hardware
from autotune.domain.launch import (
    Endpoint,
    EngineEnvironment,
    Evidence,
    Failure,
    FailureClass,
    LaunchContext,
    LaunchSpec,
    Phase,
    ProcessSpec,
)
from autotune.domain.measurement import ClientHealth, LoadCurve, LoadResult, RequestRecord
from autotune.domain.ports import Cancelled, LauncherTraits, Outcome, Suggestion
from autotune.domain.power import DevicePower, PowerBasis, PowerTrace, Window
from autotune.domain.records import LaunchRecord, StudyRow, TrialRow
from autotune.domain.space import SearchSpace
from autotune.domain.study import StudySpec
from autotune.domain.workload import Level, LoadPlan

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
    }
    return StudySpec.model_validate(parts | changes)


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


class FakeSearch:
    """Goes through a space in order."""

    def __init__(self, space: SearchSpace, base: EngineConfig, tried: Sequence[EngineConfig] = ()) -> None:
        self._space, self._base = space, base
        self._tried = {config.key for config in tried}
        self._numbers = itertools.count(len(tried))
        self.open: set[int] = set()
        self.told: dict[int, Outcome] = {}

    def ask(self) -> Suggestion | None:
        configs = (self._space.config_at(self._base, point) for point in self._space.points())
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
    def lease(self, among: Hardware, count: int, owner: str) -> Iterator[tuple[Device, ...]]:
        if self._busy:
            raise DevicesBusyError(f"the devices that {owner} wants are held by another")
        self.leased += count
        try:
            yield among.devices[:count]
        finally:
            self.leased -= count


class FakeEngine:
    """An engine that is up; what its evidence says is given."""

    endpoint = Endpoint("http://127.0.0.1:1", "some/model")

    def alive(self) -> bool:
        return True

    def counters(self) -> Mapping[str, float]:
        return {"preemptions": 2.0}

    def evidence(self, stream_error: str = "", *, loading: bool) -> Evidence:
        phase = Phase.LOADING if loading else Phase.FIRST_REQUEST
        return Evidence(phase=phase, exit_code=1, log="the log", stream_error=stream_error)


class FakeHost:
    """Brings FakeEngine up, or raises ``error`` instead."""

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error
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
            yield FakeEngine()
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
        self, endpoint: Endpoint, plan: LoadPlan, *, alive: Callable[[], bool], cancelled: Cancelled
    ) -> LoadResult:
        drive = len(self.plans)
        self.plans.append(plan)
        if drive == 0 and self._first_error:
            return LoadResult((RequestRecord(due_s=0.0, error=self._first_error),), 0.0, HEALTHY)
        if drive == self._dies_at:
            return LoadResult((), 0.0, HEALTHY, engine_died=True)
        lag_s = self._lag_s[drive] if drive < len(self._lag_s) else 0.0
        ttft_s = 3.05 if drive in self._slow_drives else 0.05
        records = tuple(_closed_loop(plan) if plan.concurrency else _open_loop(plan, ttft_s))
        return LoadResult(records, 0.0, ClientHealth(lag_p99_s=lag_s, cpu_share=0.1))


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


class FakeMeter:
    """100 W on every device, for as long as any test drives load."""

    @contextmanager
    def window(self, devices: Sequence[Device]) -> Iterator[FakeRecording]:
        yield FakeRecording(devices)


@dataclass(frozen=True)
class FakeRecording:
    devices: Sequence[Device]

    def trace(self) -> PowerTrace:
        time_s = np.arange(-1.0, 100.0, 0.05)
        power_w = np.full(len(time_s), 100.0)
        traces = tuple(
            DevicePower(uid=d.uid, time_s=time_s, power_w=power_w, counter_time_s=NOTHING, counter_j=NOTHING)
            for d in self.devices
        )
        return PowerTrace(basis=PowerBasis.GPU, source="fake", period_s=0.05, devices=traces)


TRAITS = LauncherTraits(
    engine="fake",
    executable="serve",
    dimensions=frozenset({"max_num_seqs", "tensor_parallel"}),
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
