"""Launches of the mock engine and of small scripts through the host, for the tests of it."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
from fake_environment import MOCK_ENGINE

from autotune.adapters.engines import warden
from autotune.adapters.engines.host import LocalEngineHost
from autotune.domain.launches.launch import LaunchSpec, ProcessSpec

DEADLINE_S = 30.0
COUNTERS = {"generated_tokens": "vllm:generation_tokens_total", "absent": "vllm:no_such_thing"}

TUNER = """
import pickle, sys, time
from pathlib import Path
from autotune.adapters.engines.host import LocalEngineHost
folder = Path(sys.argv[1])
spec = pickle.loads((folder / "spec").read_bytes())
with LocalEngineHost({}, folder, stop_grace_s=5.0).serving(
    spec, workdir=folder, start_timeout_s=30, cancelled=lambda: False
):
    print("ready", flush=True)
    time.sleep(600)
"""


@contextmanager
def other_tuner(folder: Path, spec: LaunchSpec) -> Iterator[subprocess.Popen[str]]:
    """A tuner in a process of its own that serves; killed at the end if not before."""
    (folder / "spec").write_bytes(pickle.dumps(spec))
    command = [sys.executable, "-c", TUNER, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as tuner:
        assert tuner.stdout is not None
        assert tuner.stdout.readline() == "ready\n"
        try:
            yield tuner
        finally:
            tuner.kill()


def host(runtime_dir: Path, stop_grace_s: float = 5.0) -> LocalEngineHost:
    return LocalEngineHost(COUNTERS, runtime_dir, stop_grace_s=stop_grace_s)


def spec(*flags: str, **env: str) -> LaunchSpec:
    argv = (
        sys.executable,
        str(MOCK_ENGINE),
        "serve",
        "tiny",
        "--host",
        "{host:serve}",
        "--port",
        "{port:serve}",
    )
    process = ProcessSpec(role="serve", argv=(*argv, *flags), env=env, devices=())
    return LaunchSpec(processes=(process,), serving_role="serve", served_model="tiny")


def script(code: str, role: str = "serve", **more: object) -> ProcessSpec:
    process = ProcessSpec(role=role, argv=(sys.executable, "-c", code), env={}, devices=())
    return replace(process, **more)  # type: ignore[arg-type]


def launch(*processes: ProcessSpec) -> LaunchSpec:
    return LaunchSpec(processes=processes, serving_role=processes[-1].role, served_model="tiny")


def never() -> bool:
    return False


def serve(tmp_path: Path, what: LaunchSpec, start_timeout_s: float = DEADLINE_S) -> None:
    """Serve for no longer than it takes to get ready."""
    with host(tmp_path).serving(what, workdir=tmp_path, start_timeout_s=start_timeout_s, cancelled=never):
        pass


def wait_for(condition: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def complete(base_url: str) -> str:
    body = json.dumps({"prompt": [1, 2], "max_tokens": 4, "stream": True}).encode()
    with urllib.request.urlopen(f"{base_url}/v1/completions", body, timeout=DEADLINE_S) as response:
        return str(response.read().decode())


def child_pid(log: Path) -> int:
    found = re.search(r"mock child has pid (\d+)", log.read_text())
    assert found
    return int(found[1])


@pytest.fixture(autouse=True)
def nothing_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test does, no process of it may remain: all of them have a mark in their environment."""
    mark = uuid4().hex
    monkeypatch.setenv("AUTOTUNE_TEST", mark)
    yield
    remains = {
        (process.pid, _file(process.pid, "cmdline").replace("\0", " "))
        for process in warden.processes()
        if process.pid != os.getpid() and mark in _file(process.pid, "environ")
    }
    assert not remains, remains


def _file(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace")
    except OSError:  # it ended, or is nobody's to look into
        return ""
