"""Recipes: configurations of well-known models to begin with."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from autotune.domain.configs.config import EngineConfig, Words


class Recipe(BaseModel):
    """A configuration of one model on one kind of node, and who says so."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
    model: str
    accelerator: str
    hosts: PositiveInt = 1
    engine: str
    words: Words
    args: tuple[str, ...] = ()
    env: dict[str, str] = {}
    source: str

    @property
    def config(self) -> EngineConfig:
        """The configuration in the common vocabulary."""
        return EngineConfig.model_validate({"engine": self.engine, **self.words})


class RecipeBook(BaseModel):
    """All recipes; each id is there once."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipes: tuple[Recipe, ...]

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        ids = [recipe.id for recipe in self.recipes]
        if len(set(ids)) < len(ids):
            raise ValueError("two recipes have the same id")
        return self
