"""Progress of a study, as frozen facts; the command line and later the web pages read the same ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autotune.domain.configs.config import EngineConfig
from autotune.domain.judging.drift import Drift
from autotune.domain.judging.scoring import CurveScore
from autotune.domain.launches.launch import Phase
from autotune.domain.load.level import Level
from autotune.domain.measuring.measurement import WindowEnd


@dataclass(frozen=True, slots=True)
class StudyStarted:
    """The study begins, or goes on with ``launches_done`` launches behind it."""

    study: str
    hardware: str
    engine: str
    power: str
    launches_done: int
    most_launches: int
    wall_time_s: float


@dataclass(frozen=True, slots=True)
class LaunchStarted:
    """An engine is about to be launched; ``purpose`` is baseline, defaults, search or final."""

    number: int
    config: EngineConfig
    purpose: str


@dataclass(frozen=True, slots=True)
class PhaseChanged:
    """The launch under way went on to another phase."""

    number: int
    phase: Phase


@dataclass(frozen=True, slots=True)
class LevelStarted:
    """A load level is being driven; it takes ``duration_s`` at most."""

    number: int
    level: Level
    duration_s: float


@dataclass(frozen=True, slots=True)
class LevelProgress:
    """A load level went on: warming up, measuring, finishing, emptying."""

    number: int
    level: Level
    stage: str


@dataclass(frozen=True, slots=True)
class LevelMeasured:
    """A load level was measured: output tok/s and p99 TTFT of all its requests, its window and its end."""

    number: int
    level: Level
    throughput_tok_per_s: float
    ttft_p99_s: float
    window_s: float
    ended: WindowEnd


@dataclass(frozen=True, slots=True)
class LaunchEnded:
    """A launch is over; ``scores`` by SLA when it was measured, else ``why`` in one line."""

    number: int
    state: str
    scores: Mapping[str, CurveScore]
    why: str
    launch_s: float
    load_s: float


@dataclass(frozen=True, slots=True)
class Incumbent:
    """A configuration leads for an SLA."""

    sla: str
    number: int
    config: EngineConfig
    score: CurveScore


@dataclass(frozen=True, slots=True)
class Rejected:
    """A configuration was found invalid on paper: no launch was spent on it."""

    number: int
    config: EngineConfig
    why: str


@dataclass(frozen=True, slots=True)
class Drifted:
    """The reference configuration was measured again; ``drift`` is how far it moved since the first time."""

    number: int
    drift: Drift


@dataclass(frozen=True, slots=True)
class Notice:
    """Something the user should know, in a sentence."""

    text: str


Event = (
    StudyStarted
    | LaunchStarted
    | PhaseChanged
    | LevelStarted
    | LevelProgress
    | LevelMeasured
    | LaunchEnded
    | Incumbent
    | Rejected
    | Drifted
    | Notice
)
