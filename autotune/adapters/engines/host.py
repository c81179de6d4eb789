"""Engines as processes of this machine: started, watched until they are ready, and ended without remains."""

from __future__ import annotations

import graphlib
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType

from autotune.adapters.engines.hygiene import Hygiene
from autotune.adapters.engines.places import HOST, Places, places_for
from autotune.adapters.engines.process import POLL_S, EngineProcess, first_dead, reap_orphans, records_in
from autotune.adapters.engines.running import (
    COUNTERS_PATH,
    KernelLog,
    LocalEngine,
    Shows,
    no_kernel_log,
)
from autotune.adapters.runtime_dir import default_runtime_dir
from autotune.domain.basics.errors import BenchError, StudyCancelledError
from autotune.domain.launches.launch import EngineDiedError, LaunchSpec, Phase
from autotune.domain.load.progress import Cancelled

HEALTH_TIMEOUT_S = 5.0
PORTS_TIMEOUT_S = 5.0
"""How long a launch's ports may still be listened to when its processes are gone."""


class LocalEngineHost:
    """Starts and ends the processes of launches on this machine.

    ``counters``, ``counters_path`` and ``reset_path`` are those of the launcher's traits; ``hygiene`` proves
    that nothing is left; ``kernel_log`` is asked when an engine failed. Making a host ends what engines a
    killed tuner left behind; raises BenchError for what would not end.
    """

    def __init__(  # noqa: PLR0913 - facts of the engine, then ways of the host
        self,
        counters: Mapping[str, str],
        runtime_dir: Path | None = None,
        *,
        counters_path: str = COUNTERS_PATH,
        reset_path: str = "",
        stop_grace_s: float = 10.0,
        hygiene: Hygiene | None = None,
        kernel_log: KernelLog = no_kernel_log,
    ) -> None:
        self._shows = Shows(counters, counters_path, reset_path)
        self._runtime_dir = runtime_dir or default_runtime_dir()
        self._stop_grace_s = stop_grace_s
        self._hygiene = hygiene or Hygiene()
        self._kernel_log = kernel_log
        reap_orphans(self._runtime_dir)

    @contextmanager
    def serving(
        self, spec: LaunchSpec, *, workdir: Path, start_timeout_s: float, cancelled: Cancelled
    ) -> Iterator[LocalEngine]:
        """Run a launch for the length of a ``with`` block; nothing of it is left afterwards.

        Each role's output goes to ``workdir/ROLE.log``. Raises EngineDiedError when it did not get ready,
        StudyCancelledError when ``cancelled`` turned true, BenchError naming what would not end.
        """
        started_s = time.monotonic()
        with ExitStack() as running:
            try:
                processes = self._start(spec, workdir, running, (started_s + start_timeout_s, cancelled))
            except EngineDiedError as died:
                evidence = replace(died.evidence, kernel_log=self._kernel_log(started_s))
                raise EngineDiedError(evidence, died.log_path) from None
            yield LocalEngine(
                spec,
                processes,
                shows=self._shows,
                started_s=started_s,
                kernel_log=self._kernel_log,
            )

    def _start(
        self, spec: LaunchSpec, workdir: Path, running: ExitStack, until: tuple[float, Cancelled]
    ) -> dict[str, EngineProcess]:
        """Start every process, each after those that it needs, and wait until all are ready."""
        if any(process.host_slot for process in spec.processes):
            away = ", ".join(process.role for process in spec.processes if process.host_slot)
            raise BenchError(
                f"this launch wants several machines and there is one: {away} would run on another; "
                "bound configurations to this one's devices (`requirements: { most_gpus: ... }`)"
            )
        workdir.mkdir(parents=True, exist_ok=True)
        places = places_for(spec, workdir)
        specs = {process.role: places.filled(process) for process in spec.processes}
        devices = tuple({d.uid: d for process in spec.processes for d in process.devices}.values())
        # First in, last out: what is left is seen when everything is gone.
        running.enter_context(self._hygiene.kept(devices, workdir))
        running.push(_Proof(places))
        # For the sockets and files that engines leave behind; short, a socket's path has 107 bytes.
        scratch = running.enter_context(TemporaryDirectory(prefix="autotune-", ignore_cleanup_errors=True))
        started: dict[str, EngineProcess] = {}
        for role in _starting_order(spec):
            for needed in specs[role].depends_on:
                _await_ready(started[needed], started.values(), *until)
            started[role] = EngineProcess(
                specs[role],
                places.ports[role],
                log_path=workdir / f"{role}.log",
                scratch=scratch,
                records=records_in(self._runtime_dir),
                stop_grace_s=self._stop_grace_s,
            )
            running.callback(started[role].stop)
        for process in started.values():
            _await_ready(process, started.values(), *until)
        return started


def _starting_order(spec: LaunchSpec) -> tuple[str, ...]:
    graph = {process.role: process.depends_on for process in spec.processes}
    return tuple(graphlib.TopologicalSorter(graph).static_order())


def _await_ready(
    process: EngineProcess, started: Iterable[EngineProcess], deadline_s: float, cancelled: Cancelled
) -> None:
    """Return when the process answers; any of the launch that dies meanwhile ends the wait."""
    while True:
        if cancelled():
            raise StudyCancelledError("cancelled while the engine was starting")
        if dead := first_dead(started):
            raise EngineDiedError(dead.evidence(Phase.STARTING), dead.log_path)
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise EngineDiedError(process.evidence(Phase.STARTING, timed_out=True), process.log_path)
        if process.ready(min(left_s, HEALTH_TIMEOUT_S)):
            return
        time.sleep(POLL_S)


@dataclass(frozen=True, slots=True)
class _Proof(AbstractContextManager[None]):
    """Proves at the end that nothing listens on a launch's ports any more."""

    places: Places

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """Raise BenchError for what outlived the processes of the launch.

        Not where the engine died: of a port that another had taken its own log tells.
        """
        if isinstance(error, EngineDiedError):
            return
        deadline_s = time.monotonic() + PORTS_TIMEOUT_S
        while taken := sorted(name for name, port in self.places.ports.items() if _is_listened_to(port)):
            if time.monotonic() > deadline_s:
                ports = ", ".join(f"{self.places.ports[name]} ({name})" for name in taken)
                raise BenchError(f"the engine is gone and its ports are still listened to: {ports}")
            time.sleep(POLL_S)


def _is_listened_to(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(PORTS_TIMEOUT_S)
        return probe.connect_ex((HOST, port)) == 0
