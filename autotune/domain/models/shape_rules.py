"""Rules on how a model's sizes can be split; pure, and each proven by the source that its docstring names.

Each takes the engine's id, a worker (the configuration, or one of its pools) and the model, and says why not.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, gcd

from autotune.domain.configs.config import EngineConfig, Pool
from autotune.domain.models.memory import family_of
from autotune.domain.models.model import ModelShape
from autotune.domain.models.weights import VOCABULARY_PADDING

_NARROWEST_TILE = 32

Worker = EngineConfig | Pool
ShapeRule = Callable[[str, Worker, ModelShape], str | None]


def heads(_engine: str, worker: Worker, model: ModelShape) -> str | None:
    """Every rank takes the same number of query heads (vLLM config/model.py; SGLang, TensorRT-LLM alike)."""
    tp = worker.tensor_parallel or 1
    if model.attention_heads % tp:
        return f"tensor_parallel {tp} does not divide the model's {model.attention_heads} attention heads"
    return None


def kv_heads(engine: str, worker: Worker, model: ModelShape) -> str | None:
    """Ranks share key and value heads, or repeat each, evenly (``QKVParallelLinear`` of vLLM, SGLang)."""
    tp, heads_ = worker.tensor_parallel or 1, model.kv_heads
    if family_of(engine) not in {"vllm", "sglang"} or model.latent or not heads_:
        return None
    if heads_ % tp and tp % heads_:
        return (
            f"neither of tensor_parallel {tp} and the model's {heads_} key and value heads divides the other"
        )
    return None


def layers(_engine: str, worker: Worker, model: ModelShape) -> str | None:
    """A stage has a layer at least."""
    pp = worker.pipeline_parallel or 1
    if model.layers and pp > model.layers:
        return f"pipeline_parallel {pp} is more than the model's {model.layers} layers"
    return None


def experts(_engine: str, worker: Worker, model: ModelShape) -> str | None:
    """There is nothing to spread in a dense model (vLLM ``_verify_with_expert_parallelism``)."""
    if worker.expert_parallel and not model.experts:
        return "expert_parallel needs a model with experts, and this one has none"
    return None


def vocabulary(engine: str, worker: Worker, model: ModelShape) -> str | None:
    """The padded vocabulary is cut evenly (vLLM ``VocabParallelEmbedding``: multiples of 64)."""
    tp = worker.tensor_parallel or 1
    padded = ceil(model.vocab_size / VOCABULARY_PADDING) * VOCABULARY_PADDING
    if family_of(engine) == "vllm" and padded % tp:
        return f"tensor_parallel {tp} does not divide the model's vocabulary of {padded} (padded)"
    return None


def widths(engine: str, worker: Worker, model: ModelShape) -> str | None:
    """Feed-forward layers are cut evenly (vLLM ``MergedColumnParallelLinear``, ``FusedMoEConfig``)."""
    tp = worker.tensor_parallel or 1
    if family_of(engine) != "vllm":
        return None
    dense = not all(model.with_experts) and model.intermediate_size
    if dense and model.intermediate_size % tp:
        return f"tensor_parallel {tp} does not divide the model's intermediate size {model.intermediate_size}"
    if _slices_experts(worker, model) and model.expert_size % tp:
        return f"tensor_parallel {tp} does not divide the experts' intermediate size {model.expert_size}"
    return None


def quantised_blocks(engine: str, worker: Worker, model: ModelShape) -> str | None:
    """A rank's slice of an expert is whole tiles of one scale, or parts of a tile that are 32 wide or more.

    vLLM 0.32 ``refine_fp8_moe_block_shape``; versions before it, and SGLang, want whole tiles.
    """
    tp = worker.tensor_parallel or 1
    if (
        family_of(engine) != "vllm"
        or worker.moe_backend not in {None, "auto"}
        or not cuts_tiles(worker, model)
    ):
        return None
    assert model.quantization is not None
    width = gcd(*model.quantization.block, model.expert_size // tp, model.hidden_size)
    if width < _NARROWEST_TILE:
        return (
            f"tensor_parallel {tp} cuts the experts' intermediate size {model.expert_size} into slices that "
            f"the checkpoint's blocks of {model.quantization.block[0]} do not divide, nor parts of them; "
            "expert_parallel keeps experts whole"
        )
    return None


def cuts_tiles(worker: Worker, model: ModelShape) -> bool:
    """Whether ranks get slices of experts that are not whole tiles of the checkpoint's scales."""
    block = model.quantization.block if model.quantization else ()
    slices = model.expert_size // (worker.tensor_parallel or 1)
    return bool(block) and _slices_experts(worker, model) and any(slices % side for side in block)


def context(engine: str, worker: Worker, model: ModelShape) -> str | None:
    """Context-parallel ranks are some of the tensor-parallel ones.

    With grouped heads they are those that would repeat a head (vLLM ``verify_with_parallel_config``).
    """
    tp, cp = worker.tensor_parallel or 1, worker.context_parallel or 1
    if tp % cp:
        return f"context_parallel {cp} does not divide tensor_parallel {tp}"
    if family_of(engine) != "vllm" or cp == 1 or model.latent or not model.kv_heads:
        return None
    if cp > tp // model.kv_heads:
        return (
            f"context_parallel {cp} is more than the ranks that repeat each of the model's {model.kv_heads} "
            f"key and value heads at tensor_parallel {tp}"
        )
    return None


SHAPE_RULES: dict[str, ShapeRule] = {
    "heads": heads,
    "kv-heads": kv_heads,
    "layers": layers,
    "experts": experts,
    "vocabulary": vocabulary,
    "widths": widths,
    "quantised-blocks": quantised_blocks,
    "context-parallel": context,
}


def _slices_experts(worker: Worker, model: ModelShape) -> bool:
    """Whether each expert is certainly cut over the tensor-parallel ranks, and over these alone."""
    return bool(model.experts) and not worker.expert_parallel and (worker.data_parallel or 1) == 1
