"""The shipped recipes: every one is a launch that its engine's launcher writes, and is documented as that."""

from __future__ import annotations

from pathlib import Path

import pytest

from autotune import wiring
from autotune.adapters.files.recipe_book import read_recipes
from autotune.domain.basics.evidence import EvidenceLevel
from autotune.domain.launches.commands import shell_commands

DOCUMENT = Path(__file__).parents[2] / "docs/engines.md"


@pytest.fixture
def no_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOTUNE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.usefixtures("no_engine")
def test_the_document_has_the_command_of_every_recipe() -> None:
    document = DOCUMENT.read_text()
    for written in wiring.written_recipes():
        assert written.evidence is EvidenceLevel.RENDERED
        assert f"### {written.recipe.id}\n" in document
        for command in shell_commands(written.launch).values():
            assert command in document


def test_large_models_are_served_on_each_kind_of_node() -> None:
    recipes = read_recipes().recipes
    for model in ("DeepSeek-R1", "gpt-oss-120b", "Qwen3-235B", "Llama-3.3-70B"):
        served = {recipe.accelerator for recipe in recipes if model in recipe.model}
        assert {"H200 SXM", "B200 SXM", "MI355X"} <= served, model
    assert {recipe.engine for recipe in recipes if recipe.hosts > 1} == {"vllm-pd", "sglang-pd", "dynamo"}


@pytest.mark.engine
def test_the_real_parser_of_vllm_takes_its_recipes() -> None:
    evidence = {written.recipe.engine: written.evidence for written in wiring.written_recipes()}
    assert evidence["vllm"] is evidence["vllm-pd"] is EvidenceLevel.CHECKED
