"""vLLM in two pools, for real: prompts are computed by one engine and decoded by the other."""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from real_engine import tiny_study

from autotune import wiring
from autotune.adapters.engines.counters import read_counters
from autotune.adapters.engines.host import LocalEngineHost
from autotune.domain.configs.config import EngineConfig
from autotune.domain.hardware.hardware import Device, DeviceKind
from autotune.domain.launches.launch import LaunchContext, LaunchSpec
from autotune.domain.launches.transport import transport_of
from launchers.vllm_pd import LAUNCHER

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.engine, pytest.mark.timeout(900)]

START_TIMEOUT_S = 400.0
PROMPT_TOKENS = 300
OUTPUT_TOKENS = 16
SOURCES = {
    "given": "vllm:prompt_tokens_total",
    "from_prefill": "vllm:external_prefix_cache_hits_total",
}


def prompt(salt: int) -> list[int]:
    """Tokens that share no prefix with those of another salt."""
    return [10 + (salt + 7 * place) % 900 for place in range(PROMPT_TOKENS)]


def pd_launch(folder: Path, **words: object) -> LaunchSpec:
    study = tiny_study(folder)
    environment = replace(wiring.environment_for(study.engines[0]), engine="vllm-pd")
    python = environment.executable.parent / "python"
    if subprocess.run([python, "-c", "import nixl"], capture_output=True, check=False, timeout=60).returncode:
        pytest.skip(f"there is no NIXL in it: {python} -m pip install --no-deps nixl nixl-cu12")
    cores = tuple(Device(DeviceKind.CPU, index, "a core", f"cpu-{index}", 1 << 30) for index in range(2))
    config = EngineConfig.model_validate(
        {
            "engine": "vllm-pd",
            "context_length": 2048,
            "eager": True,
            "prefill.workers": 1,
            "decode.workers": 1,
            **words,
        }
    )
    context = LaunchContext(model=study.model, environment=environment, devices=cores)
    return LAUNCHER.launch_spec(config, context)


def complete(url: str, model: str, prompt: list[int]) -> list[Mapping[str, Any]]:
    """The events of one streamed request."""
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": OUTPUT_TOKENS,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as response:
        lines = [line.decode().strip() for line in response if line.strip()]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def tokens(events: list[Mapping[str, Any]]) -> list[int]:
    return [token for event in events for choice in event["choices"] for token in choice["token_ids"]]


def page(port: int) -> Mapping[str, float]:
    """How many prompt tokens a worker was given, and how many of them came from another."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        return read_counters(response.read().decode(), SOURCES)


def listening(folder: Path) -> dict[str, int]:
    """Ports of the workers that serve the model in ``folder``, by what they do for each other."""
    ports = {}
    for process in psutil.process_iter(["cmdline"]):
        argv = process.info["cmdline"] or []
        if f"{folder}/model" in argv and "--kv-transfer-config" in argv:
            role = json.loads(argv[argv.index("--kv-transfer-config") + 1])["kv_role"]
            ports[role] = int(argv[argv.index("--port") + 1])
    return ports


def test_prompts_are_computed_in_one_pool_and_decoded_in_the_other(tmp_path: Path) -> None:
    spec = pd_launch(tmp_path)
    host = LocalEngineHost(LAUNCHER.traits.counters, reset_path=LAUNCHER.traits.reset_path)
    with host.serving(
        spec, workdir=tmp_path / "logs", start_timeout_s=START_TIMEOUT_S, cancelled=lambda: False
    ) as engine:
        url, model = engine.endpoint.base_url, engine.endpoint.model
        ports = listening(tmp_path)
        streams = [complete(url, model, prompt(salt)) for salt in (1, 100, 200)]
        for events in streams:
            assert len(tokens(events)) == OUTPUT_TOKENS
            assert events[-1]["usage"]["prompt_tokens"] == PROMPT_TOKENS
        # What the prefill worker says of the same prompt by itself: the blocks that travelled are its own.
        alone = complete(f"http://127.0.0.1:{ports['kv_producer']}", model, prompt(1))
        assert tokens(streams[0]) == tokens(alone)

        assert page(ports["kv_consumer"]) == {
            "given": 3 * PROMPT_TOKENS,
            "from_prefill": 3 * PROMPT_TOKENS,
        }
        counted = engine.counters()
        assert counted["kv_transfers_total"] == 3
        assert counted["kv_transfer_bytes_total"] > 0
        assert counted["kv_transfer_seconds_total"] > 0
        assert counted["kv_transfer_failures_total"] == 0
        assert counted["generation_tokens_total"] == 3 * OUTPUT_TOKENS

        with pytest.raises(urllib.error.HTTPError) as refused:
            complete(url, "no such model", prompt(1))
        assert refused.value.code == 404
        refused.value.close()

    transport = transport_of((tmp_path / "logs/decode-0.log").read_text())
    assert transport.names
    assert transport.kind == "shared memory"
    assert not [
        p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or ())
    ]
