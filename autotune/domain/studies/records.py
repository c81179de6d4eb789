"""What is kept of a launch: raw records for the archive, a summary row for the catalog."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from autotune.domain.configs.config import EngineConfig
from autotune.domain.hardware.node import NodeState
from autotune.domain.judging.quality import Precision, QualityVerdict, ReferenceAnswers
from autotune.domain.launches.launch import Failure
from autotune.domain.launches.transport import Transport
from autotune.domain.measuring.measurement import LoadCurve


class TrialState(StrEnum):
    """What became of a trial.

    ::

        running ──> measured | infeasible | censored | bench_error
        (on paper) ──> rejected
    """

    RUNNING = "running"
    MEASURED = "measured"
    INFEASIBLE = "infeasible"
    REJECTED = "rejected"
    CENSORED = "censored"
    BENCH_ERROR = "bench_error"


class Purpose(StrEnum):
    """Why a configuration was launched."""

    BASELINE = "baseline"
    DEFAULTS = "defaults"
    SEARCH = "search"
    REFERENCE = "reference"
    FINAL = "final"
    SOAK = "soak"


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchRecord:
    """Everything a launch left behind that a figure may be computed from; ``versions`` by component.

    ``device`` is the name of the accelerators it held, ``before`` and ``after`` the node around it; None
    where the launch ended before it was looked at. ``transport`` is what KV blocks took between pools.
    ``quality`` is the verdict on its precision, ``answers`` what others are judged by, of the launch that
    became the study's reference. ``kv_tokens`` is what one replica's KV cache held, where its log tells.
    ``copies`` is how many engines of the configuration shared the node, each under the same load.
    ``variants`` are records of the same engine under other settings of its devices, kept as launches of
    their own that took no time to start.
    """

    study: str
    number: int
    purpose: Purpose
    config: EngineConfig
    model: str
    command: str
    curve: LoadCurve
    versions: Mapping[str, str]
    launch_s: float
    load_s: float
    failure: Failure | None = None
    device: str = ""
    device_count: int = 1
    copies: int = 1
    transport: Transport | None = None
    before: NodeState | None = None
    after: NodeState | None = None
    quality: QualityVerdict | None = None
    answers: ReferenceAnswers | None = None
    kv_tokens: int | None = None
    variants: tuple[LaunchRecord, ...] = ()

    @property
    def precision(self) -> Precision:
        """What decides how exactly it computes."""
        engine = self.config.engine
        return Precision.of(self.model, self.config, f"{engine} {self.versions.get(engine, '')}".strip())

    @property
    def node(self) -> str:
        """Name of the node it ran on; figures of different nodes are not compared."""
        return self.before.node if self.before else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRow:
    """One row of the catalog: what lists and pages show of a trial without opening the archive.

    ``final_of`` is the number of the trial that a final, a reference or a soak launches again.
    ``objectives`` are by SLA, ``predicted`` what a prior said of them before the launch. ``quality`` is the
    state of the verdict on its precision.
    """

    study: str
    number: int
    purpose: Purpose
    state: TrialState
    config: EngineConfig
    command: str = ""
    final_of: int | None = None
    failure_class: str | None = None
    failure_line: str | None = None
    log_path: str | None = None
    launch_s: float = 0.0
    load_s: float = 0.0
    total_s: float = 0.0
    objectives: Mapping[str, float] = field(default_factory=dict)
    quality: str | None = None
    predicted: Mapping[str, float] = field(default_factory=dict)

    @property
    def on_running_engine(self) -> bool:
        """Whether it was measured on an engine that another trial had started."""
        return self.load_s > 0 and self.launch_s == 0


class StudyStatus(StrEnum):
    """Where a study stands; one whose process vanished is left ``running`` and found out by its owner."""

    RUNNING = "running"
    INTERRUPTED = "interrupted"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRow:
    """One row per study; ``spec`` is the whole study file as it was resolved, in JSON.

    ``spent_s`` is the wall time it ran so far; ``owner`` names the process that runs it.
    """

    name: str
    spec: str
    status: StudyStatus
    owner: str
    spent_s: float
    started_at: str
