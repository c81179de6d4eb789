"""A real vLLM: asked what it refuses; launched once, loaded open and closed loop, metered, ended."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from real_engine import launch, tiny_study
from typer.testing import CliRunner

from autotune import wiring
from autotune.adapters.engines.core_peaks import core_peaks
from autotune.adapters.engines.environments import EngineEnvironments, interpreter_of
from autotune.cli.app import app
from autotune.domain.hardware.accelerators import Performance
from autotune.domain.hardware.hardware import Device, DeviceKind
from autotune.domain.judging.scoring import SlaVerdict, score_at
from autotune.domain.launches.launch import LaunchContext
from autotune.domain.load.level import Level
from autotune.domain.measuring.power import PowerBasis
from autotune.domain.studies.study import EngineSpec
from launchers.vllm import LAUNCHER

pytestmark = pytest.mark.alone

REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "unknown flag": ({"extra_args": ("--no-such-flag",)}, "unrecognized arguments: --no-such-flag"),
    "bad choice": ({"kv_cache_dtype": "int3"}, "argument --kv-cache-dtype: invalid choice: 'int3'"),
    "TP over the heads": ({"tensor_parallel": 3}, "attention heads (8) must be divisible by tensor parallel"),
    "context": ({"context_length": 100_000}, "User-specified max_model_len (100000) is greater than"),
    "quantization": ({"quantization": "awq"}, "Cannot find the config file for awq"),
    "key of a JSON flag": (
        {"extra_args": ("--compilation-config", '{"nope": 1}')},
        "argument --compilation-config/-cc: 1 validation error for CompilationConfig nope Unexpected keyword",
    ),
}
TAKEN: dict[str, dict[str, object]] = {
    "defaults": {},
    "words that are JSON": {"compilation": False, "graph_capture": False, "eager": False},
    "speculation": {"speculation": "ngram", "speculative_tokens": 3, "prompt_lookup_max": 2},
    "data parallel": {"data_parallel": 2},
    # Validation knows nothing of these: the first dies at its first request, the second at its start.
    "PP2": {"pipeline_parallel": 2},
    "block size 16": {"block_size": 16},
}


@pytest.mark.engine
def test_an_installed_engine_is_listed_with_its_place(tmp_path: Path) -> None:
    answer = CliRunner().invoke(app, ["engines", "list", "--json", "--storage", f"sqlite:///{tmp_path}/s.db"])
    vllm = {engine["id"]: engine for engine in json.loads(answer.stdout)}["vllm"]
    assert vllm["installed"]
    assert Path(vllm["path"]).is_file()


@pytest.mark.engine
def test_a_core_is_measured_with_the_engines_own_torch() -> None:
    environment = wiring.environment_for(EngineSpec(name="vllm"))
    interpreter = interpreter_of(environment.executable)
    assert interpreter is not None
    peaks = core_peaks(interpreter, memory_gb=24.0)
    assert isinstance(peaks, Performance), peaks
    # Any core of the last ten years lies within these.
    assert 0.005 < peaks.dense_tflops[32] < 2
    assert 0.001 < peaks.dense_tflops[16] < 8
    assert 1 < peaks.memory_gb_s < 200


@pytest.mark.engine
@pytest.mark.timeout(900)
def test_a_real_engine_says_what_it_refuses_and_one_answer_leaves_no_trace_in_the_next(
    tmp_path: Path,
) -> None:
    study = tiny_study(tmp_path)
    environment = wiring.environment_for(study.engines[0])
    core = Device(DeviceKind.CPU, 0, "a core", "cpu-0", 1 << 30)
    context = LaunchContext(model=study.model, environment=replace(environment, flags={}), devices=(core,))
    # The same question before and after each refusal.
    asked = [words for _, words in sorted(TAKEN.items())]
    asked += [words for refused, _ in REFUSED.values() for words in (refused, {})]
    processes = [
        LAUNCHER.launch_spec(study.default_config().replaced(words), context).processes[0] for words in asked
    ]
    commands = [tuple(word.replace("{port:server}", "8000") for word in p.argv) for p in processes]
    answers = EngineEnvironments(cache=tmp_path / "cache").refusals(
        LAUNCHER, environment, commands, env=processes[0].env
    )
    assert answers[: len(TAKEN)] == (None,) * len(TAKEN)
    for (_, says), answer, after in zip(
        REFUSED.values(), answers[len(TAKEN) :: 2], answers[len(TAKEN) + 1 :: 2], strict=True
    ):
        assert says in (answer or "")
        assert "input_value" not in (answer or "")
        assert after is None


@pytest.mark.engine
def test_a_real_engine_is_launched_measured_and_ended(tmp_path: Path) -> None:
    study = tiny_study(tmp_path)
    closed, open_loop = Level("chat", concurrency=8), Level("chat", rate_rps=4.0)
    record = launch(tmp_path, study, {"max_num_seqs": 16}, closed, open_loop)

    assert record.failure is None
    assert "vllm serve" in record.command
    assert [m.level for m in record.curve] == [closed, open_loop]
    for measured in record.curve:
        requests = measured.requests.take(np.flatnonzero(measured.due_in_window))
        assert len(requests) > 0
        assert requests.ok.all()
        assert (requests.output_tokens == 32).all()
        assert (requests.prompt_tokens == 64).all()
        # One token to a chunk: what the server counts is what was timed.
        assert (requests.chunks == 32).all()
        assert (np.diff(requests.chunk_s)[np.diff(requests.chunk_owner) == 0] >= 0).all()
        assert not measured.health.was_limit
        counted = measured.counters.gained("generation_tokens_total", measured.window)
        assert counted == pytest.approx(measured.throughput_tok_per_s * measured.window.length_s, rel=0.2)
        # No prompt shares a prefix with another, so no cache can flatter the figures.
        assert measured.counters.prefix_hit_rate(measured.window) == 0
    assert record.before is not None
    assert record.before.idle_power_w is not None

    score = score_at(record.curve, study.slas[0], "chat", 4.0)
    assert score is not None
    assert score.verdict is not SlaVerdict.MISSED
    assert score.power_basis is PowerBasis.ESTIMATED
    assert score.mean_power_w > 0
    # What was offered is what came: 4 requests of 32 tokens a second, as Poisson has it.
    assert 0.4 < score.goodput_tok_per_s / (4.0 * 32) < 1.9
    assert not [
        p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or ())
    ]
