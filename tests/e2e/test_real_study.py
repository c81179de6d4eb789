"""Whole studies on a real vLLM, through the command line: to the end, and through kill -9."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest
from real_engine import tiny_study

from autotune import wiring
from autotune.domain.studies.study import EngineSpec

pytestmark = [pytest.mark.e2e, pytest.mark.engine, pytest.mark.timeout(900)]

STUDY = """
name: real
model: {model}
engines: [{{ name: vllm, fixed: {{ context_length: 2048, eager: true }} }}]
workloads: [{{ name: chat, input_tokens: 64, output_tokens: 32 }}]
slas:
  - {{ name: interactive, attainment: 0.3, slos: {{ ttft: 10s, tpot: 1s }} }}
  - {{ name: bulk, contract: percentile, slos: {{ e2e: {{ p80: 40s }} }} }}
space:
  dimensions:
    pipeline_parallel: [default, 2] # healthy, then dead at the first request
try_first: [{{ pipeline_parallel: 2 }}]
quality: {{ prompts: 4, concurrency: 4 }}
budget: {{ launches: 5, wall_time: 12m }}
measurement:
  warmup: 1s
  window: 4s
  longest_window: 6s
  final_window: 4s
  longest_warmup: 5s
  most_levels: 3
  saturating_concurrency: 16
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    study = tiny_study(tmp_path)
    (tmp_path / "real.yaml").write_text(STUDY.format(model=study.model))
    return tmp_path


def autotune(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "autotune", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=720, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def trials(folder: Path) -> list[dict[str, Any]]:
    shown: list[dict[str, Any]] = json.loads(autotune(folder, "show", "real", "--json"))["trials"]
    return shown


def engines(folder: Path) -> list[psutil.Process]:
    """Processes that serve this test's model; workers are known by their parents, not by their line."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        if f"{folder}/model" in line and "autotune tune" not in line:
            found += [process, *process.children(recursive=True)]
    return found


def is_rank(process: psutil.Process) -> bool:
    try:
        return process.name().startswith("VLLM::Worker")
    except psutil.NoSuchProcess:
        return False


def ranks_started(folder: Path, deadline_s: float = 120.0) -> list[psutil.Process]:
    """Waits until an engine of several ranks has started them; returns all of its processes."""
    until = time.monotonic() + deadline_s
    while not any(map(is_rank, found := engines(folder))):
        assert time.monotonic() < until, found
        time.sleep(0.2)
    return found


def test_kill_9_then_resume_ends_with_a_recommendation(folder: Path) -> None:
    command = [sys.executable, "-m", "autotune", "tune", "real.yaml"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as tuner:
        assert tuner.stdout is not None
        next(line for line in tuner.stdout if "trial 1: starting" in line)
        running = ranks_started(folder)
        os.kill(tuner.pid, signal.SIGKILL)
    _, left = psutil.wait_procs(running, timeout=30)
    assert not left
    before = trials(folder)
    assert [t["state"] for t in before] == ["measured", "running"]

    printed = autotune(folder, "resume", "real")
    assert "vllm serve" in printed
    assert "no prior roofline" not in printed  # a core was measured with the engine's torch
    shown = trials(folder)
    assert shown[0] == before[0]
    assert shown[1]["failure_class"] == "interrupted"
    assert [t["purpose"] for t in shown[2:]] == ["search", "final"]
    assert [t["state"] for t in shown[2:]] == ["infeasible", "measured"]
    assert not engines(folder)

    died = shown[2]
    assert died["failure_class"] == "died at first request"
    kind, _, statement = died["failure_line"].partition(": ")
    assert kind == "AssertionError"  # a bare one, which is told with the statement that raised it
    assert statement in Path(died["log"]).read_text()

    slas = json.loads(autotune(folder, "recommend", "real", "--json"))["slas"]
    assert [sla["name"] for sla in slas] == ["interactive", "bulk"]
    for sla in slas:
        assert sla["goodput_tok_per_s"] > 0
        assert sla["launches"] == 2
        assert sla["command"].split(" vllm serve ")[1]
    check_contract(folder)


def check_contract(folder: Path) -> None:
    """The exported script serves as it stands; its contract holds, and breaks where a bound is too low."""
    autotune(folder, "recommend", "real", "-o", "rec.yaml")
    autotune(folder, "export", "rec.yaml", "--sla", "bulk", "--form", "shell", "-o", "serve.sh")
    contract = (folder / "rec.yaml").read_text()
    assert "p80: 40s" in contract
    (folder / "broken.yaml").write_text(contract.replace("p80: 40s", "p80: 1ms"))
    engine = wiring.environment_for(EngineSpec(name="vllm")).executable.parent
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "HOST": "127.0.0.1", "PORT": str(port)}
    env["PATH"] = os.pathsep.join((str(engine), env["PATH"]))
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(["./serve.sh"], cwd=folder, env=env) as server:
        try:
            wait_for_health(url, server)
            assert "bulk: holds" in autotune(folder, "verify", "rec.yaml", "--sla", "bulk", "--url", url)
            verify = ["-m", "autotune", "verify", "broken.yaml", "--sla", "bulk", "--url", url]
            broken = subprocess.run(
                [sys.executable, *verify],
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            assert broken.returncode == 1, broken.stdout + broken.stderr
            assert "e2e<=1ms: p80 is " in broken.stdout
        finally:
            server.terminate()
    assert not engines(folder)


def wait_for_health(url: str, server: subprocess.Popen[bytes]) -> None:
    until_s = time.monotonic() + 240
    while time.monotonic() < until_s:
        assert server.poll() is None, "the exported script ended"
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5):
            return
        time.sleep(0.5)
    raise AssertionError("the exported script does not serve")


def test_sigterm_ends_engine_and_study(folder: Path) -> None:
    command = [sys.executable, "-m", "autotune", "tune", "real.yaml", "--name", "stopped"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as tuner:
        assert tuner.stdout is not None
        next(line for line in tuner.stdout if "trial 0: starting" in line)
        time.sleep(5)  # in the midst of its imports
        tuner.terminate()
        rest = tuner.communicate(timeout=60)[0]
    assert tuner.returncode == 128 + signal.SIGTERM
    assert "autotune resume stopped" in rest
    assert not engines(folder)
