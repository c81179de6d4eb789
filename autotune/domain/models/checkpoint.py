"""What a checkpoint's files hold: how its weights are quantised, and what each number takes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any


class Part(StrEnum):
    """Parts of a model that are split, and quantised, each in its own way."""

    EMBEDDING = "embedding"
    HEAD = "head"
    ATTENTION = "attention"
    DENSE = "dense"
    SHARED = "shared experts"
    EXPERTS = "experts"


_MODULE_OF = {
    Part.HEAD: "lm_head",
    Part.ATTENTION: "model.layers.0.self_attn.q_proj",
    Part.DENSE: "model.layers.0.mlp.gate_proj",
    Part.SHARED: "model.layers.0.mlp.shared_experts.gate_proj",
    Part.EXPERTS: "model.layers.0.mlp.experts.0.gate_proj",
}
"""One module of each part that a checkpoint may name among those it does not quantise."""

_BITS = {
    "fp8": 8.0,
    "fbgemm_fp8": 8.0,
    "deepseek_v4_fp8": 8.0,
    "mxfp8": 8.0,
    "mxfp4": 4.0,
    "gpt_oss_mxfp4": 4.0,
    "awq": 4.0,
    "gptq": 4.0,
    "bitsandbytes": 4.0,
}
_OF_ALGORITHM = {"NVFP4": 4.0, "W4A16": 4.0, "W4A8": 4.0, "MXFP4": 4.0, "FP8": 8.0, "MXFP8": 8.0, "INT8": 8.0}
_LEAST_BITS = 2.0
"""Of what is not known: no format in use has less."""

_SCALE_BITS = {"mxfp4": 8 / 32, "gpt_oss_mxfp4": 8 / 32, "nvfp4": 8 / 16}
"""Bits that scales add to each weight: one byte per 32 numbers in MXFP4 (OCP MX 1.0), per 16 in NVFP4."""

_GROUPED_SCALE_BITS = 20.0
"""A 16-bit scale and a 4-bit zero per group of an integer format (AWQ, GPTQ)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """How a checkpoint was quantised.

    ``bits`` of a quantised weight are those of the number alone, ``scale_bits`` come on top. ``block`` is the
    tile, rows by columns, that shares a scale; empty for other granularities. ``kept`` are patterns of
    modules that were left as they were.
    """

    method: str
    bits: float
    scale_bits: float = 0.0
    block: tuple[int, ...] = ()
    kept: tuple[str, ...] = ()

    @classmethod
    def from_config(cls, given: Mapping[str, Any]) -> Quantization:
        """Read ``quantization_config``; what it does not say is assumed as small as can be."""
        method = str(given.get("quant_method") or given.get("quant_algo") or "").lower()
        kept = (
            given.get("modules_to_not_convert") or given.get("ignore") or given.get("exclude_modules") or ()
        )
        algorithm = str(given.get("quant_algo") or "").upper()
        bits, scale_bits = _bits(method, algorithm, given)
        block = given.get("weight_block_size") or ()
        return cls(
            method="nvfp4" if "NVFP4" in algorithm else method,
            bits=bits,
            scale_bits=scale_bits,
            block=tuple(int(size) for size in block),
            kept=tuple(str(pattern) for pattern in kept),
        )

    def keeps(self, part: Part) -> bool:
        """Whether a part is left as it was; the embedding always is, in every format that engines load."""
        if part is Part.EMBEDDING:
            return True
        if part is Part.HEAD and self.method in {"fp8", "deepseek_v4_fp8", "mxfp4", "gpt_oss_mxfp4", "awq"}:
            return True
        if part is not Part.EXPERTS and self.method in {"mxfp4", "gpt_oss_mxfp4"}:
            return True
        return any(_names(pattern, _MODULE_OF[part]) for pattern in self.kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredWeights:
    """What the headers of a checkpoint's safetensors files say: bytes and numbers, by their dtype there.

    ``bytes_by_dtype`` and ``numbers_by_dtype`` have the names of safetensors (BF16, F8_E4M3, U8); packed
    formats hold two weights in a U8. Layers that only draft (MTP) are also counted apart, in ``draft_bytes``.
    """

    bytes_by_dtype: Mapping[str, int]
    numbers_by_dtype: Mapping[str, int]
    draft_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """All of it, drafting layers too."""
        return sum(self.bytes_by_dtype.values())


def _bits(method: str, algorithm: str, given: Mapping[str, Any]) -> tuple[float, float]:
    """Bits of a quantised weight, and what scales add."""
    if method == "compressed-tensors":
        groups = (given.get("config_groups") or {}).values()
        weights = [group.get("weights") or {} for group in groups]
        bits = min((float(w["num_bits"]) for w in weights if w.get("num_bits")), default=_LEAST_BITS)
        sizes = [int(w["group_size"]) for w in weights if w.get("group_size")]
        return bits, 16 / min(sizes) if sizes else 0.0
    if algorithm:
        found = [bits for name, bits in _OF_ALGORITHM.items() if name in algorithm]
        return min(found, default=_LEAST_BITS), _SCALE_BITS["nvfp4"] if "NVFP4" in algorithm else 0.0
    bits = float(given.get("bits") or given.get("w_bit") or _BITS.get(method, _LEAST_BITS))
    group = int(given.get("group_size") or 0)
    return bits, _SCALE_BITS.get(method, _GROUPED_SCALE_BITS / group if group > 0 else 0.0)


def _names(pattern: str, module: str) -> bool:
    """Whether a pattern of a quantisation configuration means a module, or all that is below it."""
    if pattern.startswith("re:"):
        return re.match(pattern.removeprefix("re:"), module) is not None
    if "*" in pattern:
        return fnmatchcase(module, pattern) or fnmatchcase(module, f"{pattern}.*")
    return f".{pattern}." in f".{module}."
