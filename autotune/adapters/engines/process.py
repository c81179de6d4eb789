"""One process of a launch under its warden, and what killed tuners left of theirs."""

from __future__ import annotations

import http.client
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from autotune.adapters.engines import warden
from autotune.adapters.engines.places import HOST
from autotune.domain.basics.errors import BenchError
from autotune.domain.hardware.hardware import DeviceKind
from autotune.domain.launches.launch import Evidence, Phase, ProcessSpec

HTTP_OK = http.HTTPStatus.OK
POLL_S = 0.1
LOOK_PERIOD_S = 1.0
"""How often a starting process is looked at for descendants: reading the process table costs milliseconds."""


class EngineProcess:
    """One process, started now; ``spec`` has no placeholders, ``port`` is where it listens, 0 for nowhere."""

    def __init__(
        self,
        spec: ProcessSpec,
        port: int,
        *,
        log_path: Path,
        scratch: str,
        records: Path,
        stop_grace_s: float,
    ) -> None:
        self.log_path = log_path
        self.ended_s = math.inf
        self._spec = spec
        self._port = port
        self._stop_timeout_s = stop_grace_s + warden.KILL_TIMEOUT_S
        if spec.stop_argv:
            self._stop_timeout_s += warden.STOP_TIMEOUT_S
        self._exit_code: int | None = None
        self._left: Sequence[int] = ()
        self._unstopped = ""
        self._pids: set[int] = set()
        self._looked_s = -math.inf
        lifeline_fd, self._lifeline_fd = os.pipe()
        self._report_fd, report_fd = os.pipe()
        os.set_blocking(self._report_fd, False)
        self._record = records / f"{os.getpid()}-{self._lifeline_fd}-{time.monotonic_ns()}.json"
        orders = warden.Orders(
            lifeline_fd=lifeline_fd,
            report_fd=report_fd,
            tuner_pid=os.getpid(),
            cores=tuple(d.index for d in spec.devices if d.kind is DeviceKind.CPU),
            record=str(self._record),
            grace_s=stop_grace_s,
            stop_argv=spec.stop_argv,
        )
        with log_path.open("wb") as log:
            # The warden alone gets these ends of the pipes: an end held elsewhere would hide that one closed.
            self._warden = subprocess.Popen(
                [sys.executable, "-I", "-S", warden.__file__, json.dumps(orders._asdict()), *spec.argv],
                env={**os.environ, "TMPDIR": scratch, **spec.env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(lifeline_fd, report_fd),
                start_new_session=True,
            )
        os.close(lifeline_fd)
        os.close(report_fd)

    @property
    def base_url(self) -> str:
        """Where it listens."""
        return f"http://{HOST}:{self._port}"

    @property
    def watched(self) -> bool:
        """Whether its record is on disk: from then on it is ended, and stopped, whatever becomes of us."""
        return self._record.exists()

    def exit_code(self) -> int | None:
        """Exit code of the engine, negative for a signal, None while it runs."""
        if self._exit_code is None:
            self._read_report()
        return self._exit_code

    def ready(self, timeout_s: float) -> bool:
        """Whether it answers its health check, or has none."""
        path = self._spec.ready_path
        is_ready = not path or self.ask("GET", path, timeout_s)[0] == HTTP_OK
        if is_ready or time.monotonic() - self._looked_s >= LOOK_PERIOD_S:
            self._look()
        return is_ready

    def _look(self) -> None:
        """Note of which processes it consists: the kernel may name one that is dead by the time one asks."""
        self._looked_s = time.monotonic()
        self._pids |= {process.pid for process in warden.descendants(self._warden.pid)}

    def ask(self, method: str, path: str, timeout_s: float) -> tuple[int, bytes]:
        """Ask it over HTTP for status and body; (0, nothing) when it does not answer."""
        connection = http.client.HTTPConnection(HOST, self._port, timeout=timeout_s)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()

    def evidence(
        self, phase: Phase, *, timed_out: bool = False, stream_error: str = "", stalled: bool = False
    ) -> Evidence:
        """What is left of the process by now."""
        self._look()
        return Evidence(
            phase=phase,
            exit_code=self.exit_code(),
            log=self.log_path.read_text(errors="replace"),
            timed_out=timed_out,
            stream_error=stream_error,
            stalled=stalled,
            pids=tuple(sorted(self._pids)),
        )

    def stop(self) -> None:
        """End the process, all its descendants, and what its stop command ends.

        Raises BenchError naming processes that would not end, or why the stop command failed.
        """
        os.close(self._lifeline_fd)
        try:
            # The margin lets a warden that gave up say so.
            self._warden.wait(self._stop_timeout_s + 5.0)
        except subprocess.TimeoutExpired:
            self._warden.kill()
            self._warden.wait(5.0)
        self._read_report()
        os.close(self._report_fd)
        if self._warden.returncode != 0:
            # It was killed: whatever it watched over is still of its session.
            remains = warden.signal_until_gone(self._session, signal.SIGKILL, warden.KILL_TIMEOUT_S)
            self._left = [*self._left, *(process.pid for process in remains)]
            self._unstopped = warden.run_stop(self._spec.stop_argv)
        if self._left:
            pids = sorted(set(self._left))
            raise BenchError(f"processes {pids} of the engine would not end; log: {self.log_path}")
        if self._unstopped:
            command = " ".join(self._spec.stop_argv)
            raise BenchError(f"`{command}` failed: {self._unstopped}; log: {self.log_path}")
        self._record.unlink(missing_ok=True)

    def _session(self) -> list[warden.Process]:
        return [process for process in warden.processes() if process.session == self._warden.pid]

    def _read_report(self) -> None:
        try:
            while report := os.read(self._report_fd, 1 << 16):
                for line in report.splitlines():
                    message = json.loads(line)
                    self._exit_code = message.get("exit", self._exit_code)
                    self.ended_s = message.get("at_s", self.ended_s)
                    self._left = message.get("left", self._left)
                    self._unstopped = message.get("unstopped", self._unstopped)
        except BlockingIOError:
            return
        if self._exit_code is None:
            # The warden was killed, and the kernel killed the engine with it.
            self._exit_code, self.ended_s = -signal.SIGKILL, time.monotonic()


def first_dead(processes: Iterable[EngineProcess]) -> EngineProcess | None:
    """The process that died before the others; None while all run."""
    dead = [process for process in processes if process.exit_code() is not None]
    return min(dead, key=lambda process: process.ended_s, default=None)


def records_in(runtime_dir: Path) -> Path:
    """Directory of the records of running processes; it is made."""
    records = runtime_dir / "engines"
    records.mkdir(parents=True, exist_ok=True)
    return records


def reap_orphans(runtime_dir: Path) -> tuple[int, ...]:
    """End what is left of launches whose tuner and warden are both dead; returns the pids killed.

    A process is known by its id and its start together, or by the session and group of a launch. Waits for
    wardens that are about to end the engine of a dead tuner. Raises BenchError for what would not end.
    """
    killed: list[int] = []
    for path in records_in(runtime_dir).glob("*.json"):
        try:
            record = warden.Record.read(path)
        except FileNotFoundError:  # its warden is done
            continue
        if _lives(record.tuner) or not _wait_gone(record.warden):
            continue
        if not path.exists():  # its warden was about to be done
            continue
        killed += [process.pid for process in _members(record)]
        if warden.signal_until_gone(partial(_members, record), signal.SIGKILL, warden.KILL_TIMEOUT_S):
            raise BenchError(f"processes {killed} of an engine that a dead tuner left would not end")
        if unstopped := warden.run_stop(record.stop_argv):
            command = " ".join(record.stop_argv)
            raise BenchError(
                f"a dead tuner left work for `{command}`, which fails: {unstopped}; "
                f"run it by hand, then delete {path}"
            )
        path.unlink(missing_ok=True)
    return tuple(killed)


def _lives(identity: tuple[int, int]) -> bool:
    process = warden.find(identity[0])
    return process is not None and process.identity == identity


def _wait_gone(identity: tuple[int, int]) -> bool:
    """Wait for a process to end, as long as a warden may take."""
    deadline_s = time.monotonic() + 2 * warden.KILL_TIMEOUT_S + warden.STOP_TIMEOUT_S
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
