"""What a launch is: processes to start, how they are judged ready, and how they fail.

States of a launch::

    starting ──> ready ──> first request ──> loading ──> stopped
        │          │            │               │
        └──────────┴────────────┴───────────────┴──> Failure (classified)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from autotune.domain.configs.config import EngineConfig
from autotune.domain.hardware.hardware import Device, DeviceKind
from autotune.domain.launches.endpoint import Endpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineEnvironment:
    """An installed engine: where it is, which version, and the flags that its own parser has.

    ``flags`` maps each long flag to its choices (empty: any value); no flags at all: no parser was asked.
    """

    engine: str
    executable: Path
    version: str
    kind: DeviceKind
    flags: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """An image that an engine runs from; ``runtime`` is docker, podman or apptainer."""

    image: str
    runtime: str = "docker"
    mounts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchContext:
    """All that a launcher needs beside the configuration.

    ``args`` and ``env`` are the study's own, the same for every configuration. ``url`` and
    ``token_variable`` are those of an engine that runs already. ``devices`` are as many as the
    configuration's ``devices``, in an order in which neighbours are close.
    """

    model: str
    environment: EngineEnvironment
    devices: tuple[Device, ...]
    url: str = ""
    token_variable: str = ""
    container: Container | None = None
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)

    def of(self, config: EngineConfig) -> LaunchContext:
        """The same for a configuration that has a checkpoint of its own: that is its model."""
        return replace(self, model=config.checkpoint) if config.checkpoint else self


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """One process of a launch; the host fills in what stands in braces in ``argv`` and ``env``.

    ``{host:ROLE}`` and ``{port:ROLE}`` are where a role listens; ``{port:ROLE/NAME}`` is a further port of
    it. A value in ``env`` that begins with ``~/`` lies in the user's home. ``{file:NAME}`` is the path of a
    file that the host writes, whose text (placeholders and all) is in ``files``. ``ready_path`` is the HTTP
    path on the role's own port that answers 200 when it is ready; empty for a process without one.
    ``stop_argv`` is a command that ends what would outlive the process, such as a container. ``devices``
    are the host's indices.
    """

    role: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    devices: tuple[Device, ...]
    ready_path: str = "/health"
    host_slot: int = 0
    depends_on: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    stop_argv: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSpec:
    """The processes of one launch, in starting order; ``serving_role`` takes the requests.

    ``counter_roles`` are those whose counters are read, none: that of the serving role. ``endpoint`` is that
    of an engine that runs already: no process, no role.
    """

    processes: tuple[ProcessSpec, ...]
    serving_role: str
    served_model: str
    ignore_eos: bool = True
    counter_roles: tuple[str, ...] = ()
    endpoint: Endpoint | None = None


class Phase(StrEnum):
    """How far a launch had come."""

    PREFLIGHT = "preflight"
    STARTING = "starting"
    FIRST_REQUEST = "first request"
    EXAMINING = "known prompts and quality"
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
    OUT_OF_MEMORY_LOADING = "out of memory while loading weights"
    OUT_OF_MEMORY_PROFILING = "out of memory while profiling"
    OUT_OF_MEMORY_SERVING = "out of memory under load"
    COMMUNICATION = "communication between ranks"
    COMPILATION = "compilation"
    DIED_AT_FIRST_REQUEST = "died at first request"
    DIED_UNDER_LOAD = "died under load"
    WRONG_OUTPUT = "wrong output"
    STALLED = "stalled"
    START_TIMEOUT = "start timed out"
    PORT_TAKEN = "port taken"
    DISK_FULL = "disk full"
    LICENSE = "license"
    DRIVER = "driver"
    HOST_MEMORY = "host out of memory"
    NODE_FAULT = "node fault"
    KILLED = "killed from outside"
    INTERRUPTED = "interrupted"
    UNRECOGNISED = "unrecognised"


REACTIONS: Mapping[FailureClass, Reaction] = {
    FailureClass.START_TIMEOUT: Reaction.CENSORED,
    FailureClass.PORT_TAKEN: Reaction.BENCH,
    FailureClass.DISK_FULL: Reaction.BENCH,
    FailureClass.LICENSE: Reaction.BENCH,
    FailureClass.DRIVER: Reaction.BENCH,
    FailureClass.HOST_MEMORY: Reaction.BENCH,
    FailureClass.NODE_FAULT: Reaction.BENCH,
    FailureClass.KILLED: Reaction.BENCH,
    FailureClass.INTERRUPTED: Reaction.BENCH,
}
"""Reactions other than ``INFEASIBLE``, which every class not named here has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is left of a failed launch, for a launcher to classify.

    ``exit_code`` is None while the process lives (a deadline passed), negative for a signal.
    ``log`` is the whole log of the process that died first; ``stream_error`` is what the first request's
    stream said, if anything; ``kernel_log`` is what the kernel logged since the launch, where it may be read,
    and ``pids`` are the launch's processes as far as they are known, dead ones too. ``stalled``: it lives and
    answers nothing.
    """

    phase: Phase
    exit_code: int | None
    log: str
    timed_out: bool = False
    stream_error: str = ""
    kernel_log: str = ""
    pids: tuple[int, ...] = ()
    stalled: bool = False


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
