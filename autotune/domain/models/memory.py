"""How much memory a configuration needs on each device, and how many tokens its KV cache then holds.

docs/design/memory.md tells the model, its sources, and how it compares with what engines have logged.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import erf, sqrt

from autotune.domain.configs.config import EngineConfig, Pool
from autotune.domain.models.checkpoint import StoredWeights
from autotune.domain.models.kv_layout import KvLayout, expected_layout, least_layout
from autotune.domain.models.model import ModelShape
from autotune.domain.models.precision import kv_bits, weight_bits
from autotune.domain.models.weights import Bounds, Split, weight_bytes

GIB = 1 << 30
UNCERTAINTY = 0.08
"""Standard deviation of the needed memory, relative: of the launches in docs/design/memory.md."""

_LARGE_DEVICE_BYTES = 70 * GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How engines of one kind share out a device's memory, and what they assume unless told.

    ``within``: activations, graphs and runtime are part of the fraction (vLLM), or beside it (SGLang).
    """

    fraction: float
    within: bool
    step_tokens: int
    step_tokens_large: int
    sequences: int
    sequences_large: int


FAMILIES = {
    # vLLM 0.32: config/cache.py (fraction), engine/arg_utils.py (steps of the API server), kv_cache_utils.py.
    "vllm": Family(
        fraction=0.92,
        within=True,
        step_tokens=2048,
        step_tokens_large=8192,
        sequences=256,
        sequences_large=1024,
    ),
    # SGLang, server_args.py: chunks of 8192 on large GPUs; the fraction is for weights and cache alone.
    "sglang": Family(
        fraction=0.88,
        within=False,
        step_tokens=2048,
        step_tokens_large=8192,
        sequences=256,
        sequences_large=512,
    ),
}
_FAMILY_OF = {
    "vllm": "vllm",
    "vllm-pd": "vllm",
    "sglang": "sglang",
    "sglang-pd": "sglang",
    "trtllm": "trtllm",
}
_OTHERS = replace(FAMILIES["vllm"], fraction=0.9)


def family_of(engine: str) -> str:
    """Engines of one family run the same kernels and checks; empty for one of which nothing is known."""
    return _FAMILY_OF.get(engine, "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """What no shape tells, from published logs (docs/design/memory.md).

    ``runtime_bytes``: the device's context, libraries, fragments; ``calibrated`` corrects it.
    ``communication_bytes``: buffers of collectives, with more than one rank. ``graph_bytes``: captured
    graphs. ``sampler_bytes``: per entry of the vocabulary and sequence, while the sampler sorts (logits,
    sorted copy, indices, probabilities, their sum).
    """

    runtime_bytes: float = 1.75 * GIB
    communication_bytes: float = 1.75 * GIB
    graph_bytes: float = 0.7 * GIB
    sampler_bytes: float = 24.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeed:
    """What one device of a worker needs, in bytes; ``budget_bytes`` is what the engine may take there.

    ``least_budget_bytes`` is what it certainly may not go beyond. ``replicas`` share no sequence.
    """

    budget_bytes: float
    least_budget_bytes: float
    weights: Bounds
    activation_bytes: float
    graph_bytes: float
    communication_bytes: float
    draft_bytes: float
    runtime_bytes: float
    layout: KvLayout
    least_layout: KvLayout
    replicas: int

    @property
    def beside_kv_bytes(self) -> float:
        """Expected use of the budget by all but the KV cache."""
        beside = self.activation_bytes + self.graph_bytes + self.communication_bytes + self.runtime_bytes
        return self.weights.expected + self.draft_bytes + beside

    @property
    def available_bytes(self) -> float:
        """Expected to be left for the KV cache; negative where it does not fit."""
        return self.budget_bytes - self.beside_kv_bytes

    def kv_tokens(self, tokens_per_sequence: float) -> float:
        """Tokens that are expected to fit into one replica's KV cache at that length of sequences."""
        return self.layout.tokens(self.available_bytes, tokens_per_sequence)

    def concurrency(self, tokens_per_sequence: float) -> float:
        """Sequences of a mean length that are expected to fit, all replicas together."""
        return self.replicas * self.layout.sequences(self.available_bytes, tokens_per_sequence)

    def least_bytes(self, tokens: float) -> float:
        """What weights and one sequence of so many tokens need at the very least."""
        return self.weights.least + self.least_layout.sequence_bytes(tokens)

    def probability_of_fitting(self, tokens: float) -> float:
        """Chance that weights, workspace and one sequence of so many tokens fit.

        The need is taken as normally distributed around what is expected, with UNCERTAINTY as its relative
        deviation. Exactly 0 only where the least does not fit.
        """
        if self.least_bytes(tokens) > self.least_budget_bytes:
            return 0.0
        needed = self.beside_kv_bytes + self.layout.sequence_bytes(tokens)
        deviations = (self.budget_bytes / needed - 1) / UNCERTAINTY
        return max(0.5 * (1 + erf(deviations / sqrt(2))), 0.01)


def split_of(shape: EngineConfig | Pool, model: ModelShape, *, expert_replicas: int = 0) -> Split:
    """How a worker's ranks share a model: replicas share the experts unless told otherwise."""
    shared = shape.dp_attention or (bool(model.experts) and shape.dp_attention is not False)
    return Split(
        tensor=shape.tensor_parallel or 1,
        pipeline=shape.pipeline_parallel or 1,
        sharing_replicas=(shape.data_parallel or 1) if shared else 1,
        context=shape.context_parallel or 1,
        whole_experts=bool(shape.expert_parallel),
        expert_replicas=expert_replicas,
    )


def memory_needs(
    config: EngineConfig,
    model: ModelShape,
    memory_bytes: int,
    *,
    stored: StoredWeights | None = None,
    draft: ModelShape | None = None,
    constants: Constants = Constants(),
) -> dict[str, MemoryNeed]:
    """What one device needs, by pool; ``""`` for an engine without pools.

    ``memory_bytes`` is what a device has. ``stored`` is what the checkpoint's files say, ``draft`` the shape
    of a draft model.
    """
    workers: dict[str, EngineConfig | Pool] = {**config.pools} or {"": config}
    ground = _Ground(model, memory_bytes, stored, draft, constants)
    return {name: _need(config, shape, ground) for name, shape in workers.items()}


def calibrated(constants: Constants, need: MemoryNeed, *, kv_tokens: float, context_length: int) -> Constants:
    """The constants under which ``need`` would have held the tokens that an engine logged.

    ``kv_tokens`` is vLLM's ``GPU KV cache size`` (blocks x block size in older versions), or SGLang's
    ``max_total_num_tokens``, of one replica; ``context_length`` the longest context that it served.
    """
    held = kv_tokens / context_length * need.layout.sequence_bytes(context_length)
    return replace(constants, runtime_bytes=constants.runtime_bytes + need.available_bytes - held)


@dataclass(frozen=True, slots=True)
class _Ground:
    """What is the same for all workers of a configuration."""

    model: ModelShape
    memory_bytes: int
    stored: StoredWeights | None
    draft: ModelShape | None
    constants: Constants


def _need(config: EngineConfig, shape: EngineConfig | Pool, ground: _Ground) -> MemoryNeed:
    model, memory_bytes, constants = ground.model, ground.memory_bytes, ground.constants
    name = family_of(config.engine)
    family = FAMILIES.get(name, _OTHERS)
    split = split_of(shape, model)
    bits = weight_bits(model, quantization=config.quantization, dtype=config.dtype)
    least_kv, expected_kv = kv_bits(model, config.kv_cache_dtype, config.dtype)
    large = memory_bytes >= _LARGE_DEVICE_BYTES
    step = shape.max_num_batched_tokens or (family.step_tokens_large if large else family.step_tokens)
    sequences = shape.max_num_seqs or (family.sequences_large if large else family.sequences)
    fraction = shape.memory_fraction or family.fraction
    graphs = shape.eager is not True and shape.graph_capture is not False and family.within
    # Only these two are known to take the fraction of the whole memory, and not of what is free.
    bounded = shape.memory_fraction if name in FAMILIES and shape.memory_fraction else 1.0
    return MemoryNeed(
        budget_bytes=memory_bytes * fraction,
        least_budget_bytes=memory_bytes * bounded,
        weights=weight_bytes(model, split, bits, stored=ground.stored),
        activation_bytes=_activations(model, split, step, sequences, constants) if family.within else 0.0,
        graph_bytes=constants.graph_bytes if graphs else 0.0,
        communication_bytes=constants.communication_bytes if split.expert_ranks * split.pipeline > 1 else 0.0,
        draft_bytes=_draft(config, model, split, ground.draft),
        runtime_bytes=constants.runtime_bytes,
        layout=expected_layout(model, split, expected_kv, tokens_in_flight=step),
        least_layout=least_layout(model, split, least_kv) if model.proven else KvLayout(token_bytes=0.0),
        replicas=(shape.data_parallel or 1) * (getattr(shape, "workers", None) or 1),
    )


def _activations(
    model: ModelShape, split: Split, step_tokens: int, sequences: int, constants: Constants
) -> float:
    """Peak of a step of the longest prompt: the widest layer's inputs and outputs, and then the sampler.

    Experts hold a token's states once for each expert that it goes to (vLLM's fused kernels). Two bytes each.
    """
    hidden, two_bytes = model.hidden_size, 2
    dense = 2 * hidden + 3 * model.intermediate_size / split.tensor
    expert_width = 3 * model.expert_size / (1 if split.whole_experts else split.expert_ranks)
    experts = 2 * hidden + model.experts_per_token * (hidden + expert_width)
    tokens = (
        step_tokens * split.sharing_replicas
    )  # gathered from all replicas before they go to their experts
    widest = max(step_tokens * dense, tokens * experts if model.experts else 0.0) * two_bytes
    sampled = min(sequences, step_tokens) * model.vocab_size * constants.sampler_bytes
    return widest + sampled


def _draft(config: EngineConfig, model: ModelShape, split: Split, draft: ModelShape | None) -> float:
    """Weights of what drafts: a model of its own, a layer and head (EAGLE), or the model's own (MTP)."""
    method = config.speculation
    if method == "draft_model" and draft:
        bits = weight_bits(draft, quantization=None, dtype=config.dtype)
        return weight_bytes(draft, Split(tensor=split.tensor), bits).expected
    if method not in {"eagle", "eagle3", "mtp"} or not model.layers:
        return 0.0
    last = replace(
        model,
        layers=1,
        kinds=model.kinds[-1:],
        with_experts=model.with_experts[-1:] if method == "mtp" else (),
        vocab_size=model.vocab_size if method != "mtp" else 0,
        intermediate_size=model.intermediate_size or 4 * model.hidden_size,
    )
    bits = weight_bits(last, quantization=config.quantization, dtype=config.dtype)
    return weight_bytes(last, replace(split, pipeline=1), bits).expected
