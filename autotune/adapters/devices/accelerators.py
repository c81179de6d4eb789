"""The shipped table of accelerators: constants kept as data, so that a new price is no change of code."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files

from ruamel.yaml import YAML

from autotune.domain.hardware.accelerators import AcceleratorTable


@lru_cache(maxsize=1)
def read_accelerators() -> AcceleratorTable:
    """Read the table; each entry names its sources and their dates."""
    text = files("autotune").joinpath("data", "accelerators.yaml").read_text(encoding="utf-8")
    data = YAML(typ="safe").load(text)
    return AcceleratorTable.model_validate({"accelerators": data["accelerators"]})
