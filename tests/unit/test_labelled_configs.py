"""Rules on paper against what became of configurations on a real engine (``bench/label_configs.py``)."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from autotune.adapters.files.model_files import ModelFiles
from autotune.adapters.files.synthetic_model import make_tiny_model
from autotune.domain.basics.errors import InfeasibleConfigError
from autotune.domain.configs.config import EngineConfig
from autotune.domain.hardware.hardware import Device, DeviceKind, Hardware
from autotune.domain.launches.launch import EngineEnvironment, FailureClass, LaunchContext, Phase
from autotune.domain.studies.feasibility import Setting, why_infeasible
from autotune.domain.studies.study import Requirements
from launchers.vllm import LAUNCHER

DATA = Path(__file__).parents[1] / "data" / "labelled_configs.jsonl"
RUNS = "runs"
BY_SHAPE_OR_ARGUMENTS = frozenset(
    {
        FailureClass.REFUSED_ARGUMENTS,
        FailureClass.UNSUPPORTED_COMBINATION,
        FailureClass.UNSUPPORTED_QUANTIZATION,
        FailureClass.CONTEXT_TOO_LONG,
    }
)
"""What a configuration says of itself; memory, and death at the first request, are found out by launching."""

DEVICES = tuple(Device(DeviceKind.CPU, core, "core", f"cpu-{core}", 4 << 30) for core in range(8))


@cache
def lines() -> tuple[dict[str, Any], ...]:
    return tuple(json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines())


@cache
def environment() -> EngineEnvironment:
    answers = lines()[0]["environment"]
    flags = {flag: tuple(choices) for flag, choices in answers["flags"].items()}
    return EngineEnvironment(
        engine="vllm",
        executable=Path("vllm"),
        version=answers["version"],
        kind=DeviceKind(answers["kind"]),
        flags=flags,
    )


def cases(*, running: bool) -> list[Any]:
    def wanted(case: dict[str, Any]) -> bool:
        return case["outcome"] == RUNS if running else _was_refused(case)

    return [pytest.param(case, id=case["id"]) for case in lines()[1:] if wanted(case)]


def _was_refused(case: dict[str, Any]) -> bool:
    """Whether an engine would not start by reason of shape or arguments, or of what no rule recognises."""
    strange = case["outcome"] == FailureClass.UNRECOGNISED and case["phase"] == Phase.STARTING
    return strange or case["outcome"] in BY_SHAPE_OR_ARGUMENTS


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    for name, moe in (("tiny-dense", False), ("tiny-moe", True)):
        make_tiny_model(folder / name, moe=moe)
    return {name: folder / name for name in ("tiny-dense", "tiny-moe")}


def refused_on_paper(case: dict[str, Any], models: dict[str, Path]) -> str | None:
    model = str(models[case["model"]])
    setting = Setting(
        hardware=Hardware(DeviceKind.CPU, DEVICES),
        model=ModelFiles({}).shape(model),
        stored=ModelFiles({}).weights(model),
        requirements=Requirements(),
        longest_request_tokens=44,
        real_text=True,
    )
    config = EngineConfig.model_validate({"engine": "vllm", **case["words"]})
    if why := why_infeasible(config, setting):
        return why
    context = LaunchContext(
        model=model, environment=environment(), devices=DEVICES[: config.devices], env=case["env"]
    )
    try:
        LAUNCHER.launch_spec(config, context)
    except InfeasibleConfigError as refused:
        return str(refused)
    return None


def test_there_are_enough_of_both_kinds() -> None:
    assert len(lines()) - 1 >= 60
    assert len(cases(running=True)) >= 25
    assert len(cases(running=False)) >= 15


@pytest.mark.parametrize("case", cases(running=True))
def test_what_runs_is_not_refused(case: dict[str, Any], models: dict[str, Path]) -> None:
    assert refused_on_paper(case, models) is None
    assert case["checked"] == ""


@pytest.mark.parametrize("case", cases(running=False))
def test_what_cannot_start_is_refused(case: dict[str, Any], models: dict[str, Path]) -> None:
    """By rules, launcher and flags; of arguments without a word only the engine's own validation knows."""
    why = refused_on_paper(case, models)
    assert why or ("extra_args" in case["words"] and case["checked"]), case["line"]


def test_no_line_names_a_place_of_the_machine_that_made_it() -> None:
    places = ("/tmp/", "/home/", "/root", "/work", "/opt/", "/usr/")
    for case in lines()[1:]:
        assert not any(place in case["line"] for place in places), case["line"]
