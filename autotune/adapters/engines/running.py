"""An engine that answers: its endpoint, its counters, and what is to be seen when it fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from autotune.adapters.engines.counters import CounterSampling, combined, counting, read_counters
from autotune.adapters.engines.process import HTTP_OK, POLL_S, EngineProcess, first_dead
from autotune.domain.launches.endpoint import Endpoint
from autotune.domain.launches.launch import Evidence, LaunchSpec, Phase

COUNTERS_TIMEOUT_S = 2.0
RESET_TIMEOUT_S = 10.0
DYING_TIMEOUT_S = 2.0
"""How long a failing engine is given to exit: vLLM answers 503 a moment before it does."""

COUNTERS_PATH = "/metrics"

KernelLog = Callable[[float], str]
"""What the kernel logged since a moment of the monotonic clock; empty where it may not be read."""


def no_kernel_log(since_s: float) -> str:  # noqa: ARG001 - the signature of KernelLog
    """Tell nothing."""
    return ""


@dataclass(frozen=True, slots=True)
class Shows:
    """What an engine's processes show and take over HTTP: counters, our names to theirs, and resets."""

    counters: Mapping[str, str]
    counters_path: str = COUNTERS_PATH
    reset_path: str = ""


class LocalEngine:
    """A launch of this machine that answers its health check; ``started_s`` is the moment of its start."""

    def __init__(
        self,
        spec: LaunchSpec,
        processes: Mapping[str, EngineProcess],
        *,
        shows: Shows,
        started_s: float,
        kernel_log: KernelLog = no_kernel_log,
    ) -> None:
        self._processes = processes
        self._serving = processes[spec.serving_role]
        self._counted = [processes[role] for role in spec.counter_roles] or [self._serving]
        self._shows = shows
        self._started_s = started_s
        self._kernel_log = kernel_log
        self.endpoint = Endpoint(self._serving.base_url, spec.served_model, ignore_eos=spec.ignore_eos)

    @property
    def log_path(self) -> Path:
        """Log of the process that takes the requests."""
        return self._serving.log_path

    def alive(self) -> bool:
        """Whether every process of the launch still runs; a read that never blocks."""
        return first_dead(self._processes.values()) is None

    def counters(self) -> Mapping[str, float]:
        """The engine's own counters now, by our names, over all that count; empty where one is silent."""
        pages: list[Mapping[str, float]] = []
        for process in self._counted:
            status, page = process.ask("GET", self._shows.counters_path, COUNTERS_TIMEOUT_S)
            if status != HTTP_OK:
                # A sum over fewer processes would look like a counter that fell.
                return {}
            pages.append(read_counters(page.decode(errors="replace"), self._shows.counters))
        return combined(pages)

    def counting(self) -> AbstractContextManager[CounterSampling]:
        """Sample the counters about once a second for the length of a ``with`` block."""
        return counting(self.counters)

    def reset_caches(self) -> bool:
        """Forget cached prefixes in every process that counts, where it can be told to; whether all did."""
        path = self._shows.reset_path
        if not path:
            return False
        asked = [process.ask("POST", path, RESET_TIMEOUT_S)[0] for process in self._counted]
        return all(status == HTTP_OK for status in asked)

    def evidence(self, stream_error: str = "", *, loading: bool, stalled: bool = False) -> Evidence:
        """What is to be seen of a failure after health; waits up to DYING_TIMEOUT_S for an exit code."""
        deadline_s = time.monotonic() + DYING_TIMEOUT_S
        while self.alive() and time.monotonic() < deadline_s:
            time.sleep(POLL_S)
        process = first_dead(self._processes.values()) or self._serving
        phase = Phase.LOADING if loading else Phase.FIRST_REQUEST
        evidence = process.evidence(phase, stream_error=stream_error, stalled=stalled)
        return replace(evidence, kernel_log=self._kernel_log(self._started_s))
