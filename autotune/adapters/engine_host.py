"""Engines as processes of this machine: started, watched until they are ready, and ended without remains."""

from __future__ import annotations

import graphlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from autotune.adapters import warden
from autotune.adapters.engine_counters import CounterSampling, counting, read_counters
from autotune.adapters.runtime_dir import default_runtime_dir
from autotune.domain.errors import BenchError, StudyCancelledError
from autotune.domain.hardware import DeviceKind
from autotune.domain.launch import Endpoint, EngineDiedError, Evidence, LaunchSpec, Phase, ProcessSpec
from autotune.domain.ports import Cancelled

HOST = "127.0.0.1"
POLL_S = 0.1
HEALTH_TIMEOUT_S = 5.0
COUNTERS_TIMEOUT_S = 2.0
RESET_TIMEOUT_S = 10.0
HTTP_OK = http.HTTPStatus.OK
DYING_TIMEOUT_S = 2.0
"""How long a failing engine is given to exit: vLLM answers 503 a moment before it does."""

_PLACEHOLDER = re.compile(r"\{(host|port):([^{}]+)\}")


class LocalEngineHost:
    """Starts and ends the processes of launches on this machine.

    ``counters`` and ``reset_path`` are those of the launcher's traits. Making a host ends what engines a
    killed tuner left behind.
    """

    def __init__(
        self,
        counters: Mapping[str, str],
        runtime_dir: Path | None = None,
        *,
        reset_path: str = "",
        stop_grace_s: float = 10.0,
    ) -> None:
        self._counters = counters
        self._reset_path = reset_path
        self._records = _records(runtime_dir or default_runtime_dir())
        self._stop_grace_s = stop_grace_s
        reap_orphans(self._records.parent)

    @contextmanager
    def serving(
        self, spec: LaunchSpec, *, workdir: Path, start_timeout_s: float, cancelled: Cancelled
    ) -> Iterator[LocalEngine]:
        """Run a launch for the length of a ``with`` block; no process of it is left afterwards.

        Each role's output goes to ``workdir/ROLE.log``. Raises EngineDiedError when it did not get ready,
        StudyCancelledError when ``cancelled`` turned true, BenchError naming processes that would not end.
        """
        deadline_s = time.monotonic() + start_timeout_s
        roles = {process.role: process for process in spec.processes}
        if any(process.host_slot for process in spec.processes):
            raise BenchError("this launch wants several machines and there is one")
        ports = _free_ports(roles)
        workdir.mkdir(parents=True, exist_ok=True)
        self._records.mkdir(parents=True, exist_ok=True)
        started: dict[str, EngineProcess] = {}
        with ExitStack() as running:
            # For the sockets and files that engines leave behind; short, a socket's path has 107 bytes.
            scratch = running.enter_context(
                TemporaryDirectory(prefix="autotune-", ignore_cleanup_errors=True)
            )
            for role in _starting_order(spec):
                for needed in roles[role].depends_on:
                    _await_ready(started[needed], started.values(), deadline_s, cancelled)
                started[role] = EngineProcess(
                    roles[role],
                    ports,
                    log_path=workdir / f"{role}.log",
                    scratch=scratch,
                    records=self._records,
                    stop_grace_s=self._stop_grace_s,
                )
                running.callback(started[role].stop)
            for process in started.values():
                _await_ready(process, started.values(), deadline_s, cancelled)
            yield LocalEngine(
                started,
                started[spec.serving_role],
                spec.served_model,
                counters=self._counters,
                reset_path=self._reset_path,
            )


class LocalEngine:
    """An engine that answers its health check."""

    def __init__(
        self,
        processes: Mapping[str, EngineProcess],
        serving: EngineProcess,
        model: str,
        *,
        counters: Mapping[str, str],
        reset_path: str = "",
    ) -> None:
        self._processes = processes
        self._serving = serving
        self._model = model
        self._counters = counters
        self._reset_path = reset_path

    @property
    def endpoint(self) -> Endpoint:
        """Where it takes requests."""
        return Endpoint(f"http://{HOST}:{self._serving.port}", self._model)

    @property
    def log_path(self) -> Path:
        """Log of the process that takes the requests."""
        return self._serving.log_path

    def alive(self) -> bool:
        """Whether every process of the launch still runs; a read that never blocks."""
        return self._first_dead() is None

    def counters(self) -> Mapping[str, float]:
        """The engine's own counters now, by our names, summed over labels; empty where it shows none."""
        status, page = _ask(self._serving.port, "GET", "/metrics", COUNTERS_TIMEOUT_S)
        return read_counters(page.decode(errors="replace"), self._counters) if status == HTTP_OK else {}

    def counting(self) -> AbstractContextManager[CounterSampling]:
        """Sample the counters about once a second for the length of a ``with`` block."""
        return counting(self.counters)

    def reset_caches(self) -> bool:
        """Forget cached prefixes where the engine can be told to; whether it was."""
        if not self._reset_path:
            return False
        return _ask(self._serving.port, "POST", self._reset_path, RESET_TIMEOUT_S)[0] == HTTP_OK

    def evidence(self, stream_error: str = "", *, loading: bool) -> Evidence:
        """What is to be seen of a failure after health; waits up to DYING_TIMEOUT_S for an exit code."""
        deadline_s = time.monotonic() + DYING_TIMEOUT_S
        while self.alive() and time.monotonic() < deadline_s:
            time.sleep(POLL_S)
        phase = Phase.LOADING if loading else Phase.FIRST_REQUEST
        return (self._first_dead() or self._serving).evidence(phase, stream_error=stream_error)

    def _first_dead(self) -> EngineProcess | None:
        return next((p for p in self._processes.values() if p.exit_code() is not None), None)


class EngineProcess:
    """One process of a launch, under its warden."""

    def __init__(
        self,
        spec: ProcessSpec,
        ports: Mapping[str, int],
        *,
        log_path: Path,
        scratch: str,
        records: Path,
        stop_grace_s: float,
    ) -> None:
        self.port = ports[spec.role]
        self.log_path = log_path
        self.ready_path = spec.ready_path
        self._stop_timeout_s = stop_grace_s + warden.KILL_TIMEOUT_S
        self._exit_code: int | None = None
        self._left: Sequence[int] = ()
        argv = [_fill(argument, ports) for argument in spec.argv]
        env = {name: _fill(value, ports) for name, value in spec.env.items()}
        lifeline_fd, self._lifeline_fd = os.pipe()
        self._report_fd, report_fd = os.pipe()
        os.set_blocking(self._report_fd, False)
        orders = warden.Orders(
            lifeline_fd=lifeline_fd,
            report_fd=report_fd,
            tuner_pid=os.getpid(),
            cores=tuple(d.index for d in spec.devices if d.kind is DeviceKind.CPU),
            record=str(records / f"{os.getpid()}-{self._lifeline_fd}-{time.monotonic_ns()}.json"),
            grace_s=stop_grace_s,
        )
        with log_path.open("wb") as log:
            # The warden alone gets these ends of the pipes: an end held elsewhere would hide that one closed.
            self._warden = subprocess.Popen(
                [sys.executable, "-I", "-S", warden.__file__, json.dumps(orders._asdict()), *argv],
                env={**os.environ, "TMPDIR": scratch, **env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(lifeline_fd, report_fd),
                start_new_session=True,
            )
        os.close(lifeline_fd)
        os.close(report_fd)

    def exit_code(self) -> int | None:
        """Exit code of the engine, negative for a signal, None while it runs."""
        if self._exit_code is None:
            self._read_report()
        return self._exit_code

    def evidence(self, phase: Phase, *, timed_out: bool = False, stream_error: str = "") -> Evidence:
        """What is left of the process by now."""
        log = self.log_path.read_text(errors="replace")
        return Evidence(
            phase=phase, exit_code=self.exit_code(), log=log, timed_out=timed_out, stream_error=stream_error
        )

    def stop(self) -> None:
        """End the process and all its descendants; raises BenchError naming those that would not."""
        os.close(self._lifeline_fd)
        try:
            # The margin lets a warden that gave up say so.
            self._warden.wait(self._stop_timeout_s + 5.0)
        except subprocess.TimeoutExpired:
            self._warden.kill()
            self._warden.wait(5.0)
        self._read_report()
        os.close(self._report_fd)
        # Empty unless the warden was killed: whatever it watched over is still of its session.
        remains = warden.signal_until_gone(self._session, signal.SIGKILL, warden.KILL_TIMEOUT_S)
        if left := sorted({*self._left, *(process.pid for process in remains)}):
            raise BenchError(f"processes {left} of the engine would not end; log: {self.log_path}")

    def _session(self) -> list[warden.Process]:
        return [process for process in warden.processes() if process.session == self._warden.pid]

    def _read_report(self) -> None:
        try:
            while report := os.read(self._report_fd, 1 << 16):
                for line in report.splitlines():
                    message = json.loads(line)
                    self._exit_code = message.get("exit", self._exit_code)
                    self._left = message.get("left", self._left)
        except BlockingIOError:
            return
        if self._exit_code is None:
            # The warden was killed, and the kernel killed the engine with it.
            self._exit_code = -signal.SIGKILL


def reap_orphans(runtime_dir: Path) -> tuple[int, ...]:
    """End what is left of launches whose tuner and warden are both dead; returns the pids killed.

    A process is known by its id and its start together, or by the session and group of a launch. Waits for
    wardens that are about to end the engine of a dead tuner. Raises BenchError for what would not end.
    """
    killed: list[int] = []
    for path in _records(runtime_dir).glob("*.json"):
        try:
            record = warden.Record(*(tuple(identity) for identity in json.loads(path.read_text())))
        except FileNotFoundError:  # its warden is done
            continue
        if _lives(record.tuner) or not _wait_gone(record.warden):
            continue
        killed += [process.pid for process in _members(record)]
        if warden.signal_until_gone(partial(_members, record), signal.SIGKILL, warden.KILL_TIMEOUT_S):
            raise BenchError(f"processes {killed} of an engine that a dead tuner left would not end")
        path.unlink(missing_ok=True)
    return tuple(killed)


def _records(runtime_dir: Path) -> Path:
    return runtime_dir / "engines"


def _lives(identity: tuple[int, int]) -> bool:
    process = warden.find(identity[0])
    return process is not None and process.identity == identity


def _wait_gone(identity: tuple[int, int]) -> bool:
    """Wait for a process to end, as long as a warden may take."""
    deadline_s = time.monotonic() + 2 * warden.KILL_TIMEOUT_S
    while alive := _lives(identity):
        if time.monotonic() > deadline_s:
            break
        time.sleep(POLL_S)
    return not alive


def _members(record: warden.Record) -> list[warden.Process]:
    """Living processes of a launch whose warden is dead, with their descendants."""
    holder = warden.find(record.engine[0])
    if holder is not None and holder.identity != record.engine:
        # A process id is not given out again while a group of that number lives: the group is gone too.
        return []
    session, group = record.warden[0], record.engine[0]
    members = [p for p in warden.processes() if (p.session, p.group) == (session, group)]
    return list({p for member in members for p in (member, *warden.descendants(member.pid))})


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
        if dead := next((p for p in started if p.exit_code() is not None), None):
            raise EngineDiedError(dead.evidence(Phase.STARTING), dead.log_path)
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise EngineDiedError(process.evidence(Phase.STARTING, timed_out=True), process.log_path)
        if not process.ready_path:
            return
        if _ask(process.port, "GET", process.ready_path, min(left_s, HEALTH_TIMEOUT_S))[0] == HTTP_OK:
            return
        time.sleep(POLL_S)


def _ask(port: int, method: str, path: str, timeout_s: float) -> tuple[int, bytes]:
    """Ask a process of this machine; returns (0, nothing) when it does not answer."""
    connection = http.client.HTTPConnection(HOST, port, timeout=timeout_s)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def _free_ports(roles: Iterable[str]) -> dict[str, int]:
    """Choose a free port for each role; all are held until the last is chosen, so that they differ."""
    with ExitStack() as held:
        sockets = {role: held.enter_context(socket.socket()) for role in roles}
        for each in sockets.values():
            each.bind((HOST, 0))
        return {role: each.getsockname()[1] for role, each in sockets.items()}


def _fill(text: str, ports: Mapping[str, int]) -> str:
    """Replace ``{host:ROLE}`` and ``{port:ROLE}``; raises ValueError for a role that is not launched."""

    def value(found: re.Match[str]) -> str:
        what, role = found.groups()
        if role not in ports:
            raise ValueError(f"{found[0]} names no process of this launch; there are {', '.join(ports)}")
        return HOST if what == "host" else str(ports[role])

    return _PLACEHOLDER.sub(value, text)
