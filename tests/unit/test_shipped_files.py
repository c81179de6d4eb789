"""The files that ship as data are sound, and are what the code says they are."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from autotune import wiring
from autotune.adapters.study_file import SourceFile
from autotune.cli.app import app
from autotune.domain.space import SearchSpace


def test_the_shipped_schema_is_the_one_that_the_command_prints() -> None:
    shipped = json.loads((wiring.SPACES / "study.schema.json").read_text())
    assert shipped == json.loads(CliRunner().invoke(app, ["schema"]).stdout)


def test_shipped_files_carry_the_line_by_which_editors_complete_them() -> None:
    shipped = sorted(wiring.SPACES.glob("*.yaml"))
    assert [path.stem for path in shipped] == ["quickstart", "vllm"]
    for path in shipped:
        assert path.read_text().startswith("# yaml-language-server: $schema=study.schema.json")


def test_the_shipped_space_is_sound() -> None:
    space = SearchSpace.model_validate(SourceFile(wiring.SPACES / "vllm.yaml").data)
    assert next(space.points())
