"""The files that ship as data are sound, and are what the code says they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from autotune import wiring
from autotune.adapters.files.study_file import SourceFile, check_against_hardware, read_study
from autotune.cli.app import app
from autotune.domain.configs.space import SearchSpace
from autotune.domain.hardware.hardware import Device, DeviceKind, Hardware

DOCS = Path(__file__).parents[2] / "docs"


def test_the_shipped_schema_is_the_one_that_the_command_prints() -> None:
    shipped = json.loads((wiring.SPACES / "study.schema.json").read_text())
    assert shipped == json.loads(CliRunner().invoke(app, ["schema"]).stdout)


def test_the_published_schema_of_recommendations_is_the_one_that_the_command_prints() -> None:
    published = json.loads((DOCS / "schemas" / "recommendation.schema.json").read_text())
    assert published == json.loads(CliRunner().invoke(app, ["schema", "recommendation"]).stdout)


def test_shipped_files_carry_the_line_by_which_editors_complete_them() -> None:
    for path in wiring.SPACES.glob("*.yaml"):
        assert path.read_text().startswith("# yaml-language-server: $schema=study.schema.json")


@pytest.mark.parametrize("path", sorted(wiring.SPACES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_spaces_and_studies_are_sound(path: Path) -> None:
    if "dimensions" in SourceFile(path).data:
        assert next(SearchSpace.model_validate(SourceFile(path).data).points())
    else:
        assert read_study(path, wiring.SPACES).branches


def test_spaces_of_an_engine_have_words_that_it_can_express() -> None:
    for name, launcher in wiring.launchers().items():
        path = wiring.SPACES / f"{name}.yaml"
        if path.exists():
            space = SearchSpace.model_validate(SourceFile(path).data)
            assert space.dimensions.keys() <= launcher.traits.dimensions


def test_a_space_by_name_may_be_larger_than_the_machine() -> None:
    study = read_study(wiring.SPACES / "quickstart.yaml", wiring.SPACES)
    assert 2 in study.branches[0].space.choices("tensor_parallel")
    core = Device(DeviceKind.CPU, 0, "core", "cpu-0", 1 << 30)
    check_against_hardware(wiring.SPACES / "quickstart.yaml", study, Hardware(DeviceKind.CPU, (core,)))
