"""A whole study on a real ``transformers serve``, and one of the same server as an endpoint by its URL."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from autotune import wiring
from autotune.adapters.engines.host import LocalEngineHost
from autotune.adapters.files.synthetic_model import make_tiny_model
from autotune.domain.basics.errors import InputError
from autotune.domain.configs.config import EngineConfig
from autotune.domain.hardware.hardware import Device
from autotune.domain.launches.launch import EngineEnvironment
from autotune.domain.studies.study import EngineSpec
from launchers.transformers_serve import LAUNCHER

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.timeout(1500)]

COMMON = """
model: {model}
workloads: [{{ name: chat, api: chat, input_tokens: 32, output_tokens: 8 }}]
slas: [{{ name: bulk, contract: percentile, slos: {{ e2e: {{ p80: 30s }} }} }}]
quality: {{ gate: "off" }}
measurement:
  warmup: 1s
  longest_warmup: 10s
  window: 4s
  longest_window: 5s
  final_window: 5s
  most_levels: 3
  saturating_concurrency: 4
  start_timeout: 5m
"""

LAUNCHED = """
name: launched
engines: [{ name: transformers }]
space: { dimensions: { max_num_batched_tokens: [default, 256] } }
try_first: [{ max_num_batched_tokens: 256 }]
budget: { launches: 4, wall_time: 15m }
"""

BY_URL = """
name: by-url
engines: [{{ name: url, url: "{url}/v1" }}]
space: {{ dimensions: {{ context_length: [default] }} }}
hardware: {{ {hardware} }}
power: {{ prices: {{ accelerator_hour: 2.0 }} }}
budget: {{ launches: 2, wall_time: 8m }}
"""


@pytest.fixture(scope="module")
def environment() -> EngineEnvironment:
    try:
        return wiring.environment_for(EngineSpec(name="transformers"))
    except InputError as absent:
        pytest.skip(str(absent))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that chats: the engine takes prompts as text, and the model has no template of its own."""
    model = tmp_path_factory.mktemp("transformers") / "model"
    make_tiny_model(model)
    tokenizer = model / "tokenizer_config.json"
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    tokenizer.write_text(json.dumps({**json.loads(tokenizer.read_text()), "chat_template": template}))
    return model


@pytest.fixture(scope="module")
def running(
    environment: EngineEnvironment, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """URL of a server that nobody of the study started."""
    devices = (Device(kind=environment.kind, index=0, name="", uid="0", memory_bytes=0),)
    context = EngineSpec(name="transformers").context(str(model), environment, devices)
    spec = LAUNCHER.launch_spec(EngineConfig(engine="transformers"), context)
    folder = tmp_path_factory.mktemp("running")
    host = LocalEngineHost(counters={}, runtime_dir=folder / "runtime")
    with host.serving(spec, workdir=folder, start_timeout_s=300.0, cancelled=lambda: False) as engine:
        yield engine.endpoint.base_url


def autotune(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "autotune", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tuned(folder: Path, model: Path, study: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Trials and recommendation of a study that was run to its end."""
    (folder / "study.yaml").write_text(COMMON.format(model=model) + study)
    name = study.split("name: ", 1)[1].split(maxsplit=1)[0]
    autotune(folder, "tune", "study.yaml")
    trials: list[dict[str, Any]] = json.loads(autotune(folder, "show", name, "--json"))["trials"]
    (sla,) = json.loads(autotune(folder, "recommend", name, "--json"))["slas"]
    return trials, sla


def test_a_study_ends_with_a_recommendation(
    environment: EngineEnvironment, model: Path, tmp_path: Path
) -> None:
    trials, sla = tuned(tmp_path, model, LAUNCHED)
    assert [trial["state"] for trial in trials] == ["measured"] * len(trials)
    assert len({json.dumps(trial["configuration"], sort_keys=True) for trial in trials}) == 2
    assert sla["goodput_tok_per_s"] > 0
    assert "transformers serve" in sla["command"]
    left = [p for p in psutil.process_iter(["cmdline"]) if str(model) in " ".join(p.info["cmdline"] or ())]
    assert not left


@pytest.mark.parametrize(
    ("hardware", "basis"), [("accelerator: H200 SXM, gpus: 2", "provisioned"), ("gpus: 2", "none")]
)
def test_the_same_server_is_measured_by_its_url(
    hardware: str, basis: str, running: str, model: Path, tmp_path: Path
) -> None:
    trials, sla = tuned(tmp_path, model, BY_URL.format(url=running, hardware=hardware))
    assert {trial["state"] for trial in trials} == {"measured"}
    assert sla["goodput_tok_per_s"] > 0
    assert sla["power_basis"] == basis
