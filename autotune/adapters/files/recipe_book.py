"""The shipped recipes: data, so that a new one is no change of code."""

from __future__ import annotations

from importlib.resources import files

from ruamel.yaml import YAML

from autotune.domain.configs.recipes import RecipeBook


def read_recipes() -> RecipeBook:
    """Read the recipes; each names its source."""
    text = files("autotune").joinpath("data", "recipes.yaml").read_text(encoding="utf-8")
    return RecipeBook.model_validate(YAML(typ="safe").load(text))
