"""SGLang's own parser and validation, asked about the commands that the launchers write.

No accelerator is needed. AUTOTUNE_SGLANG_ENV names a virtual environment with SGLang in it.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest
from sglang_goldens import GOLDEN, GOLDEN_PD

from autotune.adapters.engines.environments import EngineEnvironments
from autotune.adapters.files.synthetic_model import make_tiny_model
from autotune.domain.configs.config import EngineConfig
from autotune.domain.hardware.hardware import Device
from autotune.domain.launches.launch import EngineEnvironment, LaunchContext
from autotune.domain.studies.ports import Launcher
from launchers.sglang import LAUNCHER as SGLANG
from launchers.sglang_pd import LAUNCHER as SGLANG_PD

pytestmark = pytest.mark.skipif(
    "AUTOTUNE_SGLANG_ENV" not in os.environ,
    reason="AUTOTUNE_SGLANG_ENV names no virtual environment with SGLang in it",
)


@pytest.fixture(scope="module")
def environments(tmp_path_factory: pytest.TempPathFactory) -> EngineEnvironments:
    folder = tmp_path_factory.mktemp("sglang")
    return EngineEnvironments(folder / "engines", folder / "probes")


@pytest.fixture(scope="module")
def environment(environments: EngineEnvironments) -> EngineEnvironment:
    return environments.find(SGLANG, Path(os.environ["AUTOTUNE_SGLANG_ENV"]))


def commands(
    launcher: Launcher, words: dict[str, object], environment: EngineEnvironment, model: str = "some/model"
) -> list[tuple[str, ...]]:
    config = EngineConfig.model_validate({"engine": launcher.traits.engine, **words})
    devices = tuple(
        Device(kind=environment.kind, index=index, name="", uid=str(index), memory_bytes=1 << 30)
        for index in range(config.devices)
    )
    context = LaunchContext(model=model, environment=environment, devices=devices)
    return [process.argv for process in launcher.launch_spec(config, context).processes]


def refusals(
    environments: EngineEnvironments, environment: EngineEnvironment, argvs: Sequence[tuple[str, ...]]
) -> tuple[str | None, ...]:
    return environments.refusals(SGLANG, environment, argvs, env={"HF_HUB_OFFLINE": "1"})


def test_the_probe_reads_the_real_parser(environment: EngineEnvironment) -> None:
    assert environment.version
    assert {"--tp-size", "--disable-radix-cache"} <= environment.flags.keys()
    assert "fp8_e4m3" in environment.flags["--kv-cache-dtype"]


def test_the_parser_accepts_the_golden_commands(
    environments: EngineEnvironments, environment: EngineEnvironment
) -> None:
    argvs = [argv for words, _ in GOLDEN.values() for argv in commands(SGLANG, words, environment)]
    argvs += [argv for words in GOLDEN_PD.values() for argv in commands(SGLANG_PD, words, environment)]
    # The model is nowhere at hand, so that nothing but the arguments is judged; the last shows that they are.
    *golden, wrong = refusals(environments, environment, [*argvs, (*argvs[0], "--no-such-flag")])
    assert wrong == "unrecognized arguments: --no-such-flag"
    assert dict.fromkeys(map(shlex.join, argvs)) == dict(zip(map(shlex.join, argvs), golden, strict=True))


def test_the_validation_says_what_a_model_cannot_do(
    environments: EngineEnvironments, environment: EngineEnvironment, tmp_path: Path
) -> None:
    make_tiny_model(tmp_path / "model")
    model = str(tmp_path / "model")
    asked: list[dict[str, object]] = [
        {},
        {"context_length": 10**6},
        {"extra_args": ("--page-size", "64", "--chunked-prefill-size", "100")},
    ]
    argvs = [argv for words in asked for argv in commands(SGLANG, words, environment, model)]
    fine, too_long, uneven = refusals(environments, environment, argvs)
    assert fine is None
    assert "context_length (1000000) is greater than" in (too_long or "")
    assert "chunked_prefill_size must be divisible by page_size" in (uneven or "")
