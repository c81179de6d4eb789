"""What a launch is: processes to start, how they are judged ready, and how they fail.

States of a launch::

    starting ──> ready ──> first request ──> loading ──> stopped
        │          │            │               │
        └──────────┴────────────┴───────────────┴──> Failure (classified)
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from autotune.domain.hardware import Device, DeviceKind


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineEnvironment:
    """An installed engine: where it is, which version, and the flags that its own parser has.

    ``flags`` maps each long flag to its choices (empty: any value).
    """

    engine: str
    executable: Path
    version: str
    kind: DeviceKind
    flags: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchContext:
    """All that a launcher needs beside the configuration.

    ``args`` and ``env`` are the study's own, the same for every configuration.
    """

    model: str
    environment: EngineEnvironment
    devices: tuple[Device, ...]
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """One process of a launch; ``{host:ROLE}`` and ``{port:ROLE}`` in ``argv`` are filled in by the host.

    ``ready_path`` is the HTTP path on the role's own port that answers 200 when it is ready; empty for a
    process without one. ``devices`` are the host's indices.
    """

    role: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    devices: tuple[Device, ...]
    ready_path: str = "/health"
    host_slot: int = 0
    depends_on: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSpec:
    """The processes of one launch, in starting order; ``serving_role`` takes the requests."""

    processes: tuple[ProcessSpec, ...]
    serving_role: str
    served_model: str


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a running engine takes requests; ``ignore_eos`` is false where it refuses that parameter."""

    base_url: str
    model: str
    ignore_eos: bool = True


def shell_command(process: ProcessSpec, *, port: int = 8000) -> str:
    """Write a process as the shell line that starts it, quoted, its environment in front."""
    words = [re.sub(r"\{port:[^}]*\}", str(port), word) for word in process.argv]
    words = [re.sub(r"\{host:[^}]*\}", "127.0.0.1", word) for word in words]
    words[0] = Path(words[0]).name
    env = [f"{name}={shlex.quote(value)}" for name, value in sorted(process.env.items())]
    return " ".join([*env, *map(shlex.quote, words)])


class Phase(StrEnum):
    """How far a launch had come."""

    PREFLIGHT = "preflight"
    STARTING = "starting"
    FIRST_REQUEST = "first request"
    LOADING = "loading"
    STOPPING = "stopping"


class Reaction(StrEnum):
    """What a failure means for the study."""

    INFEASIBLE = "infeasible"
    CENSORED = "censored"
    BENCH = "bench"


class FailureClass(StrEnum):
    """Causes of failure; the reaction to each is in REACTIONS."""

    REFUSED_ARGUMENTS = "refused arguments"
    UNSUPPORTED_COMBINATION = "unsupported combination"
    UNSUPPORTED_QUANTIZATION = "unsupported quantization"
    CHECKPOINT = "checkpoint"
    CONTEXT_TOO_LONG = "context too long"
    KV_CACHE_TOO_SMALL = "kv cache too small"
    OUT_OF_MEMORY = "out of memory"
    DIED_AT_FIRST_REQUEST = "died at first request"
    DIED_UNDER_LOAD = "died under load"
    START_TIMEOUT = "start timed out"
    PORT_TAKEN = "port taken"
    NODE_FAULT = "node fault"
    KILLED = "killed from outside"
    INTERRUPTED = "interrupted"
    UNRECOGNISED = "unrecognised"


REACTIONS: Mapping[FailureClass, Reaction] = {
    FailureClass.START_TIMEOUT: Reaction.CENSORED,
    FailureClass.PORT_TAKEN: Reaction.BENCH,
    FailureClass.NODE_FAULT: Reaction.BENCH,
    FailureClass.KILLED: Reaction.BENCH,
    FailureClass.INTERRUPTED: Reaction.BENCH,
}
"""Reactions other than ``INFEASIBLE``, which every class not named here has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is left of a failed launch, for a launcher to classify.

    ``exit_code`` is None while the process lives (a deadline passed), negative for a signal.
    ``log`` is the whole log; ``stream_error`` is what the first request's stream said, if anything.
    """

    phase: Phase
    exit_code: int | None
    log: str
    timed_out: bool = False
    stream_error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A failed launch, understood as far as its evidence goes; ``line`` is the log's first telling one."""

    failure_class: FailureClass
    phase: Phase
    line: str
    exit_code: int | None = None

    @property
    def reaction(self) -> Reaction:
        """What the study does about it."""
        return REACTIONS.get(self.failure_class, Reaction.INFEASIBLE)


class EngineDiedError(Exception):
    """A process of the launch ended, or was not ready in time; carries evidence and the log's path."""

    def __init__(self, evidence: Evidence, log_path: Path) -> None:
        super().__init__(
            f"engine failed while {evidence.phase} (exit code {evidence.exit_code}); log: {log_path}"
        )
        self.evidence = evidence
        self.log_path = log_path
