"""Precisions: bits per weight and per cached number, and the GPUs that cannot run them.

Two figures everywhere: the least that a precision can take, which may refuse, and the expected.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autotune.domain.models.checkpoint import Part
from autotune.domain.models.model import ModelShape

_DTYPE_BITS = {
    "float32": 32.0,
    "float": 32.0,
    "bfloat16": 16.0,
    "float16": 16.0,
    "half": 16.0,
}

_ONLINE_BITS = {
    "fp8": (8.0, 8.0),
    "fp8_per_tensor": (8.0, 8.0),
    "fp8_per_block": (8.0, 8.0),
    "fp8_per_channel": (8.0, 8.0),
    "w8a8_fp8": (8.0, 8.0),
    "w8a8_int8": (8.0, 8.0),
    "int8_per_channel_weight_only": (8.0, 8.0),
    "experts_int8": (8.0, 8.0),
    "mxfp8": (8.0, 8.25),
    "bitsandbytes": (4.0, 4.5),
    "mxfp4": (4.0, 4.25),
    "nvfp4_per_token": (4.0, 4.5),
}
"""Least and expected bits of weights that an engine quantises as it loads them."""

_UNKNOWN_BITS = (2.0, 16.0)

_KV_BITS = {
    "float16": (16.0, 16.0),
    "bfloat16": (16.0, 16.0),
    "fp8": (8.0, 8.0),
    "fp8_e4m3": (8.0, 8.0),
    "fp8_e5m2": (8.0, 8.0),
    "fp8_inc": (8.0, 8.0),
    "fp8_ds_mla": (8.0, 656 * 8 / 576),  # 656 bytes for the 576 numbers of a token in DeepSeek's layout
    "fp8_per_token_head": (8.0, 8.25),
    "int8_per_token_head": (8.0, 8.25),
    "int8": (8.0, 8.25),
    "nvfp4": (4.0, 4.5),
    "fp4_e2m1": (4.0, 4.5),
    "int4_per_token_head": (4.0, 4.25),
}
"""Least and expected bits of a cached number (vLLM ``CacheDType``, SGLang ``--kv-cache-dtype``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightBits:
    """Bits per weight of each part; ``as_stored``: served as the checkpoint holds them.

    ``dtype_least`` are the least bits of what is not quantised.
    """

    least: Mapping[Part, float]
    expected: Mapping[Part, float]
    as_stored: bool
    dtype_least: float


def weight_bits(model: ModelShape, *, quantization: str | None, dtype: str | None) -> WeightBits:
    """Bits of each part: what the checkpoint was quantised to, else what the engine quantises it to."""
    plain = _dtype_bits(dtype)
    online = None if quantization in {None, "none", "auto"} else quantization
    least: dict[Part, float] = {}
    expected: dict[Part, float] = {}
    for part in Part:
        least[part], expected[part] = _part_bits(part, model, online, plain)
    as_stored = online is None or model.quantization is not None
    return WeightBits(least=least, expected=expected, as_stored=as_stored, dtype_least=plain[0])


_WEIGHT_ONLY = frozenset(
    {"awq", "gptq", "bitsandbytes", "compressed-tensors", "int8_per_channel_weight_only"}
)
"""Formats whose products are computed in 16 bits, whatever the weights are kept in."""

_MIXED = frozenset({"mxfp4", "gpt_oss_mxfp4"})
"""Weights of 4 bits beside activations of 8, in one product (gpt-oss; on Blackwell and CDNA 4)."""


def compute_bits(model: ModelShape, quantization: str | None, bits: float) -> int:
    """Bits of the operands, 4, 8, 16 or 32, of products with weights of so many bits, scales included.

    Formats that quantise weights alone compute in 16 bits.
    """
    stored = model.quantization
    method = stored.method if stored else (quantization or "")
    if method in _WEIGHT_ONLY:
        return 16
    widths = (8, 16) if method in _MIXED else (4, 8, 16)
    return next((width for width in widths if bits < width + 1), 32)


def kv_bits(model: ModelShape, kv_cache_dtype: str | None, dtype: str | None) -> tuple[float, float]:
    """Least and expected bits of a number in the KV cache.

    Left to the engine it is what the model computes in, but a quantised checkpoint may ask for less.
    """
    if kv_cache_dtype in {None, "auto"}:
        least, expected = _dtype_bits(dtype)
        asks_for_less = model.quantization is not None or bool(model.latent and model.latent.index_dim)
        return (_UNKNOWN_BITS[0] if asks_for_less else least), expected
    return _KV_BITS.get(str(kv_cache_dtype), _UNKNOWN_BITS)


def _dtype_bits(dtype: str | None) -> tuple[float, float]:
    """Least and expected bits of what is not quantised; engines cast float32 down unless told not to."""
    if dtype in _DTYPE_BITS:
        return (_DTYPE_BITS[dtype],) * 2
    return 16.0, 16.0


def _part_bits(
    part: Part, model: ModelShape, online: str | None, plain: tuple[float, float]
) -> tuple[float, float]:
    stored = model.quantization
    if stored is not None:
        if stored.keeps(part):
            return (min(plain[0], _UNKNOWN_BITS[0]) if online else plain[0]), plain[1]
        least = min(stored.bits, _ONLINE_BITS.get(online, _UNKNOWN_BITS)[0]) if online else stored.bits
        return least, stored.bits + stored.scale_bits
    if online is None or part is Part.EMBEDDING:
        return plain
    bits = _ONLINE_BITS.get(online, _UNKNOWN_BITS)
    if part is Part.HEAD or (online == "experts_int8" and part is not Part.EXPERTS):
        return min(bits[0], plain[0]), plain[1]
    return bits


@dataclass(frozen=True, slots=True)
class Need:
    """The least compute capability that a precision wants of an NVIDIA GPU, and where that stands."""

    capability: tuple[int, int]
    source: str


_VLLM = "vLLM 0.32, get_min_capability in model_executor/layers/quantization"
_NEEDS: Mapping[str, Mapping[str, Need]] = {
    "vllm": {
        "awq": Need((7, 5), _VLLM),
        "experts_int8": Need((8, 0), _VLLM),
        "fbgemm_fp8": Need((8, 0), _VLLM),
        "fp8": Need((7, 5), _VLLM),  # below 8.9 by weight-only kernels (Marlin)
        "mxfp4": Need((8, 0), _VLLM),
        "gpt_oss_mxfp4": Need((8, 0), _VLLM),
        "modelopt": Need((8, 0), _VLLM),
        "nvfp4": Need((7, 5), _VLLM),  # below 10.0 by weight-only kernels (Marlin)
        "modelopt_fp4": Need((7, 5), _VLLM),
        "compressed-tensors": Need((7, 0), _VLLM),
        "bfloat16": Need((8, 0), "vLLM 0.32, check_if_supports_dtype in platforms/cuda.py"),
    },
    "sglang": {
        "w8a8_fp8": Need((8, 9), "SGLang, W8A8Fp8Config.get_min_capability in quantization/w8a8_fp8.py"),
        "nvfp4": Need((7, 5), "SGLang, pull request 19652: weight-only from 7.5 on"),
        "modelopt_fp4": Need((7, 5), "SGLang, pull request 19652: weight-only from 7.5 on"),
    },
    "trtllm": {
        "fp8": Need((8, 9), "TensorRT-LLM, reference/support-matrix: FP8 on Ada and Hopper, not Ampere"),
        "nvfp4": Need((10, 0), "TensorRT-LLM, features/quantization: FP4 on Blackwell"),
        "bfloat16": Need((8, 0), "TensorRT-LLM, reference/support-matrix"),
    },
}
"""Only what an engine itself refuses: a precision that is merely slow there is none of these."""


def why_too_old(
    family: str, model: ModelShape | None, words: Mapping[str, object], capability: tuple[int, ...]
) -> str | None:
    """Say which precision NVIDIA GPUs of this compute capability cannot run, and by which source; or None."""
    if not capability:
        return None
    stored = model.quantization.method if model and model.quantization else ""
    for wanted in (words.get("dtype"), words.get("quantization"), stored):
        need = _NEEDS.get(family, {}).get(str(wanted or ""))
        if need and capability[:2] < need.capability:
            least, here = (".".join(map(str, version)) for version in (need.capability, capability[:2]))
            return f"{wanted} needs compute capability {least}, the GPUs have {here} ({need.source})"
    return None


_NOT_ON_CPU: Mapping[str, frozenset[str]] = {"vllm": frozenset({"fp8", "experts_int8", "mxfp4"})}
"""Weights that a build for CPUs cannot quantise as it loads them.

vLLM 0.32, launched (tests/data/labelled_configs.jsonl): static_scaled_fp8_quant is a stub, there is no
backend for experts in int8 and no kernel for MXFP4.
"""


def why_not_on_cpu(family: str, model: ModelShape | None, quantization: str | None) -> str | None:
    """Say which quantisation on loading an engine does not do on CPUs; None where nothing is known of it."""
    if model is None or model.quantization is not None or quantization not in _NOT_ON_CPU.get(family, ()):
        return None
    if quantization == "experts_int8" and not model.experts:
        return None
    return f"{family} does not quantise weights to {quantization} on a CPU"
