"""Rows of recorded tables in this project's words: which model, accelerator and configuration each was."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from autotune.adapters.devices.accelerators import read_accelerators
from autotune.domain.configs.config import EngineConfig
from autotune.domain.hardware.accelerators import Accelerator
from autotune.domain.models.checkpoint import Quantization
from autotune.domain.models.model import ModelShape

ACCELERATORS = {
    "h100": "H100 SXM",
    "h200": "H200 SXM",
    "b200": "B200 SXM",
    "b300": "B300 SXM",
    "gb200": "GB200 NVL72",
    "gb300": "GB300 NVL72",
    "mi300x": "MI300X",
    "mi325x": "MI325X",
    "mi355x": "MI355X",
    "rtx6000pro": "RTX PRO 6000 Server Edition",
}
"""Names in the tables, by those of the constants."""

_ENGINES = {"trt": "trtllm", "sglang": "sglang"}
"""By a part of the framework's name; every other is reckoned as vLLM."""

_TABLE = read_accelerators()

Row = Mapping[str, str]


def read_rows(table: Path) -> Iterator[Row]:
    with table.open(encoding="utf-8", newline="") as lines:
        yield from csv.DictReader(lines)


def accelerator(name: str) -> Accelerator | None:
    """The constants of a table's ``hardware`` or ``gpu_model``."""
    return _TABLE.find(ACCELERATORS.get(name.lower(), name))


def model_shape(folder: Path, model: str) -> ModelShape | None:
    """The shape of a table's ``model``; None where its config.json is not in the folder."""
    file = folder / f"{model}.json"
    return ModelShape.from_config(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


def served_as(shape: ModelShape, precision: str) -> ModelShape:
    """The checkpoint that a table's ``precision`` means: its own, or the one quantised for it.

    NVFP4 checkpoints of models with experts keep the attention in 16 bits (nvidia/DeepSeek-R1-FP4).
    """
    bits = {"fp4": 4.0, "fp8": 8.0}.get(precision)
    if bits is None or (shape.quantization and shape.quantization.bits == bits):
        return shape
    kept = ("lm_head", "self_attn") if bits == 4 and shape.experts else ("lm_head",)
    method, scale_bits = ("nvfp4", 0.5) if bits == 4 else ("fp8", 0.0)
    stored = Quantization(method=method, bits=bits, scale_bits=scale_bits, kept=kept)
    return replace(shape, quantization=stored)


def inferencex_config(row: Row) -> EngineConfig:
    """The configuration of a row of InferenceX; pools where it is disaggregated."""
    framework = row["framework"]
    engine = next((name for part, name in _ENGINES.items() if part in framework), "vllm")
    words: dict[str, Any] = {"engine": engine}
    if row["spec_method"] != "none":
        words["speculation"] = row["spec_method"]
    if row["disagg"] != "1":
        return EngineConfig.model_validate(words | _split(row, "decode"))
    pools = {
        name: {**_split(row, name), "workers": max(int(row[f"{name}_num_workers"]), 1)}
        for name in ("prefill", "decode")
    }
    return EngineConfig.model_validate(words | pools)


def _split(row: Row, pool: str) -> dict[str, Any]:
    """How one worker is split; with attention in data parallel the table's TP counts the replicas."""
    ranks, experts = int(row[f"{pool}_tp"]), int(row[f"{pool}_ep"])
    if row[f"{pool}_dp_attention"] != "1":
        return {"tensor_parallel": ranks, "expert_parallel": experts > 1}
    return {"data_parallel": max(ranks, experts), "dp_attention": True, "expert_parallel": experts > 1}
