"""Every listed way in which a real vLLM on CPU refuses or dies, launched for real and classified.

One of each kind of path is launched every time: refused arguments, a start that fails later, an engine killed
while it is healthy; death at the first request is in ``test_real_study``. The others are `long`: the rules
that know them are held to logs of such launches in the unit tests.
"""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import Any

import psutil
import pytest
from real_engine import MEASUREMENT, launch, tiny_study

from autotune.adapters.engines import places as launch_places
from autotune.adapters.engines import warden
from autotune.domain.basics.errors import BenchError
from autotune.domain.launches.launch import FailureClass, Phase
from autotune.domain.load.level import Level
from autotune.domain.studies.events import Event, LevelProgress
from autotune.domain.studies.ports import EventSink

pytestmark = [pytest.mark.e2e, pytest.mark.engine]

CASES: dict[str, tuple[dict[str, Any], dict[str, str], FailureClass, str]] = {
    "unknown flag": (
        {"extra_args": ("--no-such-flag",)},
        {},
        FailureClass.REFUSED_ARGUMENTS,
        "unrecognized arguments",
    ),
    "bad choice": ({"kv_cache_dtype": "int3"}, {}, FailureClass.REFUSED_ARGUMENTS, "invalid choice"),
    "TP does not divide the heads": (
        {"extra_args": ("--tensor-parallel-size", "3", "--distributed-executor-backend", "mp")},
        {},
        FailureClass.UNSUPPORTED_COMBINATION,
        "must be divisible by tensor parallel size",
    ),
    "TP2 with automatic binding": (
        {"tensor_parallel": 2},
        {"VLLM_CPU_OMP_THREADS_BIND": "auto"},
        FailureClass.UNSUPPORTED_COMBINATION,
        "Not enough allowed NUMA nodes",
    ),
    "context too long": (
        {"context_length": 100_000},
        {},
        FailureClass.CONTEXT_TOO_LONG,
        "User-specified max_model_len",
    ),
    "KV cache too small": (
        {"extra_args": ("--kv-cache-memory-bytes", "1000000")},
        {"VLLM_CPU_KVCACHE_SPACE": ""},
        FailureClass.KV_CACHE_TOO_SMALL,
        "To serve at least one request",
    ),
    "KV cache larger than memory": (
        {},
        {"VLLM_CPU_KVCACHE_SPACE": "4000"},
        FailureClass.OUT_OF_MEMORY_PROFILING,
        "Available memory on node",
    ),
    "batched tokens below context": (
        {"extra_args": ("--max-num-batched-tokens", "512", "--no-enable-chunked-prefill")},
        {},
        FailureClass.UNSUPPORTED_COMBINATION,
        "is smaller than max_model_len",
    ),
    "block size 16": ({"block_size": 16}, {}, FailureClass.UNSUPPORTED_COMBINATION, "No common block size"),
    "ranks that find no network": (
        {"tensor_parallel": 2},
        {"GLOO_SOCKET_IFNAME": "nosuch0"},
        FailureClass.COMMUNICATION,
        "Unable to find address for: nosuch0",
    ),
    "no compiler": (
        {"eager": False},
        {"CXX": "/bin/false"},
        FailureClass.COMPILATION,
        "No working C++ compiler found",
    ),
    "quantization not there": ({"quantization": "awq"}, {}, FailureClass.UNSUPPORTED_QUANTIZATION, "awq"),
}


EVERY_TIME = {"unknown flag", "KV cache too small"}


def assert_nothing_left(folder: Path) -> None:
    left = [p for p in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(p.info["cmdline"] or ())]
    assert not left


@pytest.mark.parametrize(
    "case", [case if case in EVERY_TIME else pytest.param(case, marks=pytest.mark.long) for case in CASES]
)
def test_a_start_that_fails_is_classified(case: str, tmp_path: Path) -> None:
    words, env, expected, line = CASES[case]
    engine = {"name": "vllm", "fixed": {"context_length": 2048, "eager": True}, "env": env}
    record = launch(tmp_path, tiny_study(tmp_path, engines=[engine]), words, parser_asked=False)
    assert record.failure is not None
    assert record.failure.failure_class is expected, record.failure
    assert line in record.failure.line
    assert record.failure.phase is Phase.STARTING
    assert_nothing_left(tmp_path)


@pytest.mark.long
def test_a_model_without_weights_is_a_checkpoint_failure(tmp_path: Path) -> None:
    study = tiny_study(tmp_path)
    (tmp_path / "model" / "model.safetensors").unlink()
    record = launch(tmp_path, study)
    assert record.failure is not None
    assert record.failure.failure_class is FailureClass.CHECKPOINT


@pytest.mark.long
def test_a_model_that_is_not_there_is_a_checkpoint_failure(tmp_path: Path) -> None:
    engine = {"name": "vllm", "fixed": {"eager": True}, "env": {"HF_HUB_OFFLINE": "1"}}
    study = tiny_study(tmp_path, engines=[engine]).model_copy(update={"model": "nobody/no-such-model"})
    record = launch(tmp_path, study)
    assert record.failure is not None
    assert record.failure.failure_class is FailureClass.CHECKPOINT, record.failure


@pytest.mark.long
def test_a_taken_port_is_the_benchs_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind((launch_places.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(launch_places, "_free_ports", lambda names: dict.fromkeys(names, port))
        with pytest.raises(BenchError, match="port taken"):
            launch(tmp_path, tiny_study(tmp_path))


@pytest.mark.long
@pytest.mark.parametrize(
    ("moe", "words"),
    [(False, {"pipeline_parallel": 2}), (True, {"tensor_parallel": 2, "expert_parallel": True})],
    ids=["PP2", "MoE TP2 + EP"],
)
def test_healthy_is_not_working(moe: bool, words: dict[str, Any], tmp_path: Path) -> None:
    record = launch(tmp_path, tiny_study(tmp_path, moe=moe), words)
    assert record.failure is not None
    assert record.failure.failure_class is FailureClass.DIED_AT_FIRST_REQUEST
    assert record.failure.phase is Phase.FIRST_REQUEST
    assert_nothing_left(tmp_path)


def signal_core(number: int) -> None:
    """Signal the process that computes; the server in front of it goes on."""
    (core,) = (
        process.pid
        for process in warden.descendants(os.getpid())
        if Path(f"/proc/{process.pid}/comm").read_text().startswith("VLLM::EngineCor")
    )
    os.kill(core, number)


def in_window(number: int) -> EventSink:
    """Send a signal to the engine as its first window opens."""

    def sink(event: Event) -> None:
        match event:
            case LevelProgress(stage="measuring"):
                signal_core(number)

    return sink


BRIEF = {**MEASUREMENT, "request_timeout": "10s"}


@pytest.mark.long
def test_an_engine_that_hangs_has_stalled_though_its_health_is_well(tmp_path: Path) -> None:
    study = tiny_study(tmp_path, measurement=BRIEF)
    level = Level("chat", concurrency=2)
    record = launch(tmp_path, study, {}, level, sink=in_window(signal.SIGSTOP))
    assert record.failure is not None
    assert record.failure.failure_class is FailureClass.STALLED
    assert (record.failure.phase, record.failure.exit_code) == (Phase.LOADING, None)
    assert_nothing_left(tmp_path)


def test_an_engine_whose_core_is_killed_died_under_load(tmp_path: Path) -> None:
    """Its server outlives it by a moment and tells no signal: the kernel's log is what would."""
    study = tiny_study(tmp_path, measurement=BRIEF)
    record = launch(tmp_path, study, {}, Level("chat", concurrency=2), sink=in_window(signal.SIGKILL))
    assert record.failure is not None
    assert record.failure.failure_class is FailureClass.DIED_UNDER_LOAD
