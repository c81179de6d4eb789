"""Processes of the load benchmark: pinned to a core, with a deadline, ended with all their children."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from load_truth import ToolError

SAMPLE_S = 0.1
START_TIMEOUT_S = 20.0
END_TIMEOUT_S = 5.0
TAIL_LINES = 4


@dataclass(frozen=True, slots=True)
class Cores:
    """The core that the engine has to itself, and the one that the load generator has."""

    server: int
    client: int

    @classmethod
    def choose(cls) -> Cores:
        allowed = sorted(os.sched_getaffinity(0))
        if len(allowed) < 2:
            raise SystemExit("the load benchmark needs two cores: one for the engine, one for its client")
        return cls(allowed[0], allowed[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where a tool runs: the engine to load, the core to run on, a folder for its files."""

    url: str
    engine: psutil.Process
    core: int
    folder: Path


@dataclass(slots=True)
class BusyTimes:
    """CPU time over time: the engine's process, and whatever ran on the client's core."""

    site: Site
    at_s: list[float] = field(default_factory=list)
    engine_s: list[float] = field(default_factory=list)
    client_core_s: list[float] = field(default_factory=list)

    def sample(self) -> None:
        core = psutil.cpu_times(percpu=True)[self.site.core]
        engine = self.site.engine.cpu_times()
        self.at_s.append(time.monotonic())
        self.engine_s.append(engine.user + engine.system)
        self.client_core_s.append(sum(core) - core.idle - core.iowait)

    def between(self, start_s: float, end_s: float) -> tuple[float, float]:
        """CPU seconds of the engine and of the client's core."""
        engine = np.interp((start_s, end_s), self.at_s, self.engine_s)
        client = np.interp((start_s, end_s), self.at_s, self.client_core_s)
        return float(engine[1] - engine[0]), float(client[1] - client[0])


@dataclass(frozen=True, slots=True)
class Finished:
    """A command that ended well: its wall-clock time, and who was busy meanwhile."""

    wall_s: float
    busy: BusyTimes


def free_port() -> int:
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        return int(chosen.getsockname()[1])


def start(argv: Sequence[str], *, core: int, env: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start a command in a group of its own; all its children inherit ``core``."""
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        with log.open("wb") as output:
            return subprocess.Popen(
                argv,
                env=dict(env),
                cwd=log.parent,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    finally:
        os.sched_setaffinity(0, mine)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a command and whatever is left of its group."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_TIMEOUT_S)
    process.wait(END_TIMEOUT_S)


def run(argv: Sequence[str], site: Site, *, env: Mapping[str, str], timeout_s: float) -> Finished:
    """Run a tool to its end; raises ToolError with the end of its output, which is ``tool.log``."""
    log = site.folder / "tool.log"
    busy = BusyTimes(site)
    began_s = time.monotonic()
    try:
        process = start(argv, core=site.core, env=env, log=log)
    except OSError as error:
        raise ToolError(f"it could not be started: {error}") from error
    try:
        while True:
            busy.sample()
            with contextlib.suppress(subprocess.TimeoutExpired):
                exit_code = process.wait(SAMPLE_S)
                break
            if time.monotonic() - began_s > timeout_s:
                raise ToolError(f"it did not end within {timeout_s:.0f} s: {tail(log)}")
        wall_s = time.monotonic() - began_s
        busy.sample()
    finally:
        end(process)
    if exit_code != 0:
        raise ToolError(f"exit code {exit_code}: {tail(log)}")
    return Finished(wall_s, busy)


def tail(log: Path) -> str:
    """The last lines that a command wrote, without colours."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(errors="replace"))
    lines = [line.strip() for line in text.splitlines()]
    return " | ".join([line for line in lines if line][-TAIL_LINES:])[-600:]


@contextlib.contextmanager
def mock_engine(model: str, cores: Cores, *, settings: Mapping[str, str], folder: Path) -> Iterator[Site]:
    """Run the mock engine, logging to ``folder/truth.jsonl``."""
    port = free_port()
    script = Path(__file__).with_name("mock_engine.py")
    env = {**os.environ, **settings, "MOCK_LOG": str(folder / "truth.jsonl")}
    argv = [sys.executable, str(script), "serve", model, "--port", str(port), "--max-num-seqs", "4096"]
    process = start(argv, core=cores.server, env=env, log=folder / "engine.log")
    try:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise SystemExit(f"the mock engine did not start: {tail(folder / 'engine.log')}")
            time.sleep(0.02)
        yield Site(
            url=f"http://127.0.0.1:{port}",
            engine=psutil.Process(process.pid),
            core=cores.client,
            folder=folder,
        )
    finally:
        end(process)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
