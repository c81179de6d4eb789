"""Stands between the tuner and one engine process, and ends the engine when the tuner ends, however it ends.

Run by the host as ``python -I -S warden.py ORDERS ARGV...``, in a session of its own. Standard library only:
it starts before every engine and must cost next to nothing.

::

    tuner ──> warden ──> engine ──> its workers ...
      │  lifeline  │  report
      └────────────┘  a pipe each way

The lifeline carries no data: its end (closed by the tuner, or by the kernel with a tuner that was killed) is
the order to end the engine. The warden adopts orphaned descendants (PR_SET_CHILD_SUBREAPER), so that none
escapes by losing its parent, and the engine gets SIGKILL should the warden itself be killed
(PR_SET_PDEATHSIG). What survives even that is found again by the record that a killed warden leaves.

What does not descend from the warden, such as a container, is ended by a stop command: the warden runs it
when all else is gone, and whoever finds the record of a killed warden runs it instead.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

KILL_TIMEOUT_S = 30.0
"""How long killed processes may take to go; freeing the memory of many GPUs takes seconds."""

STOP_TIMEOUT_S = 30.0
"""How long a stop command may take."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_EXIT_CANNOT_START = 127
_STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


class Orders(NamedTuple):
    """What the host tells a warden: its ends of the pipes, whom it serves, and how to treat the engine."""

    lifeline_fd: int
    report_fd: int
    tuner_pid: int
    cores: tuple[int, ...]
    record: str
    grace_s: float
    stop_argv: tuple[str, ...] = ()


class Process(NamedTuple):
    """One row of the process table; ``started`` is in clock ticks since the machine started."""

    pid: int
    parent: int
    group: int
    session: int
    started: int

    @property
    def identity(self) -> tuple[int, int]:
        """Process id and start, which no two processes share while the machine is up."""
        return (self.pid, self.started)


class Record(NamedTuple):
    """Identities of the processes of one launch, and its stop command, as kept on disk."""

    tuner: tuple[int, int]
    warden: tuple[int, int]
    engine: tuple[int, int]
    stop_argv: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path) -> Record:
        """Read the file that a warden wrote; raises FileNotFoundError when its warden is done."""
        return cls(*(tuple(part) for part in json.loads(path.read_text())))


def find(pid: int) -> Process | None:
    """Look up one process; None when it is gone, or is only waiting to be reaped."""
    try:
        # The command's name stands in parentheses and may itself hold some.
        stat = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    if stat[0] in {b"Z", b"X"}:
        return None
    return Process(pid, int(stat[1]), int(stat[2]), int(stat[3]), int(stat[19]))


def processes() -> list[Process]:
    """Every living process of the machine."""
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [process for pid in pids if (process := find(pid))]


def descendants(pid: int) -> list[Process]:
    """Living descendants of a process, itself left out."""
    children: dict[int, list[Process]] = {}
    for process in processes():
        children.setdefault(process.parent, []).append(process)
    found = list(children.get(pid, []))
    for process in found:  # grows as it goes
        found.extend(children.get(process.pid, []))
    return found


def signal_until_gone(
    list_living: Callable[[], list[Process]], signal_number: int, timeout_s: float
) -> list[Process]:
    """Send each process one signal, latecomers too, until none is left; returns what is left in the end."""
    deadline_s = time.monotonic() + timeout_s
    signalled: set[tuple[int, int]] = set()
    while (left := list_living()) and time.monotonic() < deadline_s:
        for process in left:
            if process.identity not in signalled:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal_number)
                signalled.add(process.identity)
        time.sleep(0.02)
    return left


def run_stop(argv: tuple[str, ...] | list[str]) -> str:
    """Run a stop command; returns why it failed, in words, empty where it did its work."""
    if not argv:
        return ""
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=STOP_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    said = (done.stderr or done.stdout).decode(errors="replace").strip()
    return f"exit code {done.returncode}: {said}" if done.returncode else ""


class Warden:
    """Runs one engine process by its orders."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._engine_pid = 0
        self._engine_runs = False

    def run(self, argv: list[str]) -> None:
        """Start the engine, watch it, and leave nothing of it."""
        wakeup_fd = _signal_pipe()
        tuner = find(self._orders.tuner_pid)
        if tuner is None or os.getppid() != tuner.pid:
            return
        try:
            engine = subprocess.Popen(argv, process_group=0, preexec_fn=_die_with(os.getpid()))  # noqa: PLW1509
        except OSError as error:
            sys.stderr.write(f"cannot start {argv[0]}: {error}\n")
            self._report(exit=_EXIT_CANNOT_START, at_s=time.monotonic())
            return
        self._engine_pid, self._engine_runs = engine.pid, True
        self._write_record(tuner)
        self._watch(wakeup_fd)
        signal_until_gone(self._left, signal.SIGTERM, self._orders.grace_s)
        left = signal_until_gone(self._left, signal.SIGKILL, KILL_TIMEOUT_S)
        unstopped = run_stop(self._orders.stop_argv)
        if left or unstopped:
            self._report(left=[process.pid for process in left], unstopped=unstopped)
        else:
            Path(self._orders.record).unlink(missing_ok=True)

    def _watch(self, wakeup_fd: int) -> None:
        """Return when the engine ended, or is to end."""
        while self._engine_runs:
            readable, _, _ = select.select([self._orders.lifeline_fd, wakeup_fd], [], [], 1.0)
            # A child that the tuner forked may hold the lifeline open after it: look for the tuner as well.
            if self._orders.lifeline_fd in readable or os.getppid() != self._orders.tuner_pid:
                return
            if wakeup_fd in readable and _STOP_SIGNALS & set(os.read(wakeup_fd, 512)):
                return
            self._reap()

    def _left(self) -> list[Process]:
        self._reap()
        return descendants(os.getpid())

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self._engine_pid:
                    self._engine_runs = False
                    # The clock is the machine's: the deaths of several engines can be put in order.
                    self._report(exit=os.waitstatus_to_exitcode(ended[1]), at_s=time.monotonic())

    def _report(self, **message: object) -> None:
        with contextlib.suppress(BrokenPipeError):  # the tuner is gone
            os.write(self._orders.report_fd, json.dumps(message).encode() + b"\n")

    def _write_record(self, tuner: Process) -> None:
        warden, engine = find(os.getpid()), find(self._engine_pid)
        if warden and engine:
            path = Path(self._orders.record)
            half = path.with_suffix(".tmp")
            record = Record(tuner.identity, warden.identity, engine.identity, self._orders.stop_argv)
            half.write_text(json.dumps(record))
            half.replace(path)


def _signal_pipe() -> int:
    """Have signals written to a pipe, one byte each; returns the end to read."""
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    signal.set_wakeup_fd(write_fd)
    for number in (signal.SIGCHLD, *_STOP_SIGNALS):
        signal.signal(number, lambda *_: None)
    return read_fd


def _die_with(parent_pid: int) -> Callable[[], None]:
    """Return what a child calls before exec so that the kernel kills it when its parent dies."""
    libc = ctypes.CDLL(None, use_errno=True)

    def arm() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent_pid:
            os.kill(os.getpid(), signal.SIGKILL)

    return arm


def main() -> None:
    """Do as ordered by the command line."""
    orders = Orders(**json.loads(sys.argv[1]))
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "cannot adopt orphaned processes")
    if orders.cores:
        os.sched_setaffinity(0, orders.cores)
    Warden(orders).run(sys.argv[2:])


if __name__ == "__main__":
    main()
