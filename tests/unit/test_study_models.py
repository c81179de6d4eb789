"""Models that configurations name, beside the study's own: resolved as that is, known to the rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from autotune.adapters.files.synthetic_model import make_tiny_model
from autotune.domain.basics.errors import InputError
from autotune.domain.hardware.hardware import Device, DeviceKind, Hardware
from autotune.domain.judging.quality import QualitySpec
from autotune.domain.studies.study import StudySpec
from autotune.wiring.studies import _with_models, _with_tasks, setting_for

CORES = Hardware(DeviceKind.CPU, (Device(DeviceKind.CPU, 0, "a core", "cpu-0", 1 << 30),))


def study(folder: Path, checkpoint: str) -> StudySpec:
    return StudySpec.model_validate(
        {
            "name": "s",
            "model": str(folder / "tiny"),
            "engines": [{"name": "vllm", "fixed": {"context_length": 512}}],
            "workloads": [{"name": "chat", "input_tokens": 8, "output_tokens": 8}],
            "slas": [{"name": "fast", "attainment": 0.9, "slos": {"ttft": "1s"}}],
            "space": {
                "dimensions": {
                    "checkpoint": ["default", checkpoint],
                    "speculation": ["default", "draft_model"],
                    "speculative_model": {
                        "choices": [checkpoint, "some/draft"],
                        "when": {"speculation": "draft_model"},
                    },
                }
            },
            "try_first": [{"checkpoint": checkpoint}],
            "budget": {"launches": 1},
        }
    )


def test_folders_are_resolved_wherever_a_word_names_them(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "tiny")
    make_tiny_model(tmp_path / "int8", int8=True)
    file = tmp_path / "study.yaml"
    spec = StudySpec.model_validate(_with_models(study(tmp_path, "./int8").model_dump(), file))
    at = str(tmp_path / "int8")
    assert spec.space is not None
    assert spec.space.choices("checkpoint") == ("default", at)
    assert spec.space.choices("speculative_model") == (at, "some/draft")
    assert spec.space.choices("speculation") == ("default", "draft_model")
    assert spec.try_first == ({"checkpoint": at},)

    setting = setting_for(spec, CORES)
    assert set(setting.named) == {at, "some/draft"}
    quantised = setting.of(spec.default_config().replaced({"checkpoint": at})).model
    assert quantised is not None
    assert quantised.quantization is not None
    assert setting.of(spec.default_config()) is setting


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no folder '\./none'"):
        _with_models(study(tmp_path, "./none").model_dump(), tmp_path / "study.yaml")


def tasks(**words: object) -> QualitySpec:
    return QualitySpec.model_validate({"tasks": {"names": ["sums"], **words}})


def test_a_harness_and_tasks_are_found_beside_the_study_file(tmp_path: Path) -> None:
    harness, folder = tmp_path / "env" / "lm_eval", tmp_path / "own"
    harness.parent.mkdir()
    folder.mkdir()
    harness.write_text("#!/bin/sh\n")
    harness.chmod(0o755)
    found = _with_tasks(tasks(command="env/lm_eval", folder="own"), tmp_path / "study.yaml").tasks
    assert found is not None
    assert (found.command, found.folder) == (str(harness), str(folder))
    assert _with_tasks(QualitySpec(), tmp_path / "study.yaml") == QualitySpec()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ({"command": "env/lm_eval"}, "there is no command 'env/lm_eval' here"),
        ({"command": "no-such-harness"}, "pip install 'lm_eval"),
        ({"command": "sh", "folder": "own"}, "no folder"),
    ],
)
def test_a_harness_or_tasks_that_are_not_there_are_told(
    tmp_path: Path, words: dict[str, object], why: str
) -> None:
    with pytest.raises(InputError, match=why):
        _with_tasks(tasks(**words), tmp_path / "study.yaml")
