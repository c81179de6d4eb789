"""Ports: what the runs need of the outside, as protocols of one to three methods."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from autotune.domain.configs.config import EngineConfig
from autotune.domain.hardware.hardware import Device, DeviceKind, Hardware
from autotune.domain.hardware.node import CoolDown, NodeState
from autotune.domain.judging.answers import Answer, AnswerTerms, Question
from autotune.domain.judging.quality import TaskScore, TaskSpec
from autotune.domain.launches.endpoint import Endpoint
from autotune.domain.launches.launch import (
    Evidence,
    Failure,
    LaunchContext,
    LaunchSpec,
)
from autotune.domain.load.load_plan import LoadPlan
from autotune.domain.load.progress import Cancelled, Steering, to_the_end
from autotune.domain.measuring.counters import CounterTrace
from autotune.domain.measuring.measurement import LoadResult
from autotune.domain.measuring.power import PowerTrace
from autotune.domain.search.choosing import Foresight
from autotune.domain.search.curves import SeenLevels
from autotune.domain.search.prior import NotCovered, Prediction
from autotune.domain.studies.events import Event
from autotune.domain.studies.records import LaunchRecord, StudyRow, TrialRow


@dataclass(frozen=True, slots=True, kw_only=True)
class LauncherTraits:
    """Facts of an engine that need no code: its id, its words, its defaults' limits, its metric names.

    ``dimensions`` are the words of the vocabulary it can express. ``parser_probe`` is a Python program
    that, run by the engine's own interpreter, prints ``{"version", "device", "flags": {flag: [choices]}}``;
    empty for an engine that has no parser to ask. ``config_probe`` is one that reads a JSON list of
    argument lists from standard input and prints as the last line a JSON list with, for each, null or why
    the engine's own parser and validation refuse it; empty where there is none. ``counters`` maps our names
    to the engine's Prometheus names, on the page at ``counters_path``. ``reset_path`` is the HTTP path that
    forgets cached prefixes when posted to; engines may answer it only when started so. ``environment`` is
    the engine whose installation it runs from, its own id if empty. ``of_the_bench`` are variables that the
    launches of a bench have and a deployment has not; ``images`` is the container image that the engine's
    maker has, by device, with ``{version}`` in it. ``kv_tokens_line`` finds in a log how many tokens one
    replica's KV cache holds, its first group; empty where none tells. ``launched`` is false for engines that
    run already, ``chat_only`` true for those that take no token ids as a prompt: their workloads have
    ``api: chat``.
    """

    engine: str
    executable: str
    dimensions: frozenset[str]
    device_kinds: frozenset[DeviceKind]
    parser_probe: str
    counters: Mapping[str, str]
    counters_path: str = "/metrics"
    reset_path: str = ""
    config_probe: str = ""
    environment: str = ""
    launched: bool = True
    kv_tokens_line: str = ""
    chat_only: bool = False
    of_the_bench: frozenset[str] = frozenset()
    images: Mapping[DeviceKind, str] = field(default_factory=dict)


class Launcher(Protocol):
    """Knows one engine: what to run for a configuration, and what its failures mean; starts nothing."""

    @property
    def traits(self) -> LauncherTraits:
        """What is true of the engine whatever the configuration."""

    def launch_spec(self, config: EngineConfig, context: LaunchContext, /) -> LaunchSpec:
        """Write the processes; raises InfeasibleConfigError for a word that the engine cannot express."""

    def parse_command(self, command: str, /) -> tuple[EngineConfig, str]:
        """Read a command line that runs in production as (configuration, model); raises ValueError."""

    def classify_failure(self, evidence: Evidence, /) -> Failure:
        """Name the cause; evidence that no rule knows is UNRECOGNISED, never guessed."""


class Inventory(Protocol):
    """The devices of this machine, and the exclusive right to use some."""

    def devices(self) -> Hardware:
        """List what is there."""

    def lease(
        self, among: Hardware, count: int, owner: str, group: int = 1
    ) -> AbstractContextManager[tuple[Device, ...]]:
        """Hold ``count`` of the devices ``among``, group after group of tensor-parallel ranks.

        Raises DevicesBusyError naming who holds them.
        """


class Prior(Protocol):
    """Says what a configuration is worth before it is launched."""

    def predict(self, config: EngineConfig, /) -> Prediction | NotCovered:
        """Predict the objective of every SLA, or say why this configuration is not covered."""


@runtime_checkable
class CurvePrior(Prior, Protocol):
    """A prior that forecasts whole load curves, which tell more than an objective."""

    def curves(self, configs: Sequence[EngineConfig], sla: str, /) -> Foresight:
        """Forecast the curves of configurations, as they count for one SLA."""


class CounterRecording(Protocol):
    """Counters being sampled."""

    def trace(self) -> CounterTrace:
        """What was sampled so far; empty for an engine that shows none."""


class RunningEngine(Protocol):
    """An engine that answers its health check."""

    @property
    def endpoint(self) -> Endpoint:
        """Where it takes requests."""

    def alive(self) -> bool:
        """Whether every process of the launch still runs; cheap, asked many times a second."""

    def counters(self) -> Mapping[str, float]:
        """The engine's own counters now, by our names; empty where it shows none."""

    def counting(self) -> AbstractContextManager[CounterRecording]:
        """Sample the counters for the length of a ``with`` block."""

    def reset_caches(self) -> bool:
        """Forget cached prefixes where the engine can be told to; whether it was."""

    def evidence(self, stream_error: str = "", *, loading: bool, stalled: bool = False) -> Evidence:
        """What is to be seen of a failure after health: exit code, log; ``stalled``: it answers nothing."""


class EngineHost(Protocol):
    """Starts and ends the processes of launches on this machine."""

    def serving(
        self, spec: LaunchSpec, *, workdir: Path, start_timeout_s: float, cancelled: Cancelled
    ) -> AbstractContextManager[RunningEngine]:
        """Run a launch for the length of a ``with`` block; no process of it is left afterwards.

        Raises EngineDiedError when it did not get ready, StudyCancelledError when ``cancelled`` turned true.
        """


class LoadDriver(Protocol):
    """Drives load at an endpoint."""

    def drive(
        self,
        endpoint: Endpoint,
        plan: LoadPlan,
        *,
        alive: Callable[[], bool],
        cancelled: Cancelled,
        steer: Steering = to_the_end,
    ) -> LoadResult:
        """Send the requests of the plan until ``steer`` says otherwise; each failure is data in its record.

        Returns early, marked ``engine_died``, when ``alive`` turns false; raises StudyCancelledError when
        ``cancelled`` turns true, and BenchError when this machine cannot drive the load.
        """


class OutputProbe(Protocol):
    """Asks a running engine what it answers; comparing answers is no business of its own."""

    def ask(
        self, endpoint: Endpoint, questions: Sequence[Question], terms: AnswerTerms, cancelled: Cancelled
    ) -> tuple[Answer, ...]:
        """Greedy answers, with log-probabilities where the endpoint tells them; a refusal is an answer too.

        Raises NoAnswerError when the connection breaks or a deadline passes, StudyCancelledError when
        ``cancelled`` turned true.
        """


class TaskRunner(Protocol):
    """Has a running engine solve tasks; how well is what it returns."""

    def run(
        self, endpoint: Endpoint, tasks: TaskSpec, workdir: Path, cancelled: Cancelled, *, chat: bool
    ) -> tuple[TaskScore, ...]:
        """Solve all tasks, as a chat where the endpoint knows no completions; the log goes to ``workdir``.

        Raises BenchError where they could not be solved, StudyCancelledError when ``cancelled`` turned true.
        """


class PowerRecording(Protocol):
    """A recording under way."""

    def trace(self) -> PowerTrace:
        """What was recorded so far; raises BenchError when the meter was lost."""


class PowerMeter(Protocol):
    """Measures the power of devices."""

    def window(self, devices: Sequence[Device]) -> AbstractContextManager[PowerRecording]:
        """Record for the length of a ``with`` block."""


class Settings(Protocol):
    """Changes settings of devices that a study allows to be changed."""

    def __call__(
        self,
        devices: Sequence[Device],
        *,
        allowed: Collection[str],
        power_limit_w: int | None,
        graphics_clock_mhz: int | None,
    ) -> AbstractContextManager[None]:
        """Hold devices to a power limit and a clock for the length of a ``with`` block; None for neither.

        They are put back whatever becomes of the tuner. Raises InfeasibleConfigError for what is not allowed
        or cannot be, InputError where this user may not change it.
        """


class Preflight(Protocol):
    """Looks a node over before and after a launch."""

    def check(self, devices: Sequence[Device]) -> NodeState:
        """State of the node and of these devices; raises BenchError for a device that is lost."""

    def cool_down(
        self, devices: Sequence[Device], start: NodeState, wait: CoolDown, cancelled: Cancelled
    ) -> tuple[str, ...]:
        """Wait until devices are about as cool as in ``start``; returns which are not, in words."""


class Search(Protocol):
    """Chooses configurations and learns from what became of them."""

    def ask(self) -> Suggestion | None:
        """Suggest a configuration that no trial had before; None when the space is exhausted."""

    def begin(self, config: EngineConfig) -> Suggestion:
        """Open a trial for a given configuration: a baseline, a recipe, a final."""

    def tell(self, number: int, outcome: Outcome) -> None:
        """Learn what became of a trial."""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A configuration to try, under the trial number that it has in the store."""

    number: int
    config: EngineConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One objective per SLA (0 for what was missed); ``feasible`` is false only for what cannot run.

    ``scored`` is false for what was not judged at all (bench failures): no sampler learns from it.
    ``levels`` are what load levels showed, by the SLA's place; ``seconds`` is what the launch took, None
    where nothing was started.
    """

    objectives: tuple[float, ...]
    feasible: bool = True
    scored: bool = True
    seconds: float | None = None
    levels: Mapping[int, SeenLevels] = field(default_factory=dict)


NOT_JUDGED = Outcome(objectives=(), scored=False)
"""Of a trial that tells nothing: the bench broke it, or it was never launched."""


class Archive(Protocol):
    """Keeps the raw records of launches: whatever is shown later can be computed again from them."""

    def save(self, record: LaunchRecord, logs: Sequence[Path]) -> None:
        """Store a launch's raw records and its logs."""

    def load(self, study: str, number: int) -> LaunchRecord:
        """Read a launch back; raises InputError where there is none."""


class Catalog(Protocol):
    """Summary rows of studies and trials: what lists and pages read."""

    def put(self, row: TrialRow) -> None:
        """Insert a trial's row, or replace it."""

    def trials(self, study: str) -> tuple[TrialRow, ...]:
        """Rows of a study's trials, by number."""

    def put_study(self, row: StudyRow) -> None:
        """Insert a study's row, or replace it."""


EventSink = Callable[[Event], None]
"""Takes progress as it happens; must not block."""
