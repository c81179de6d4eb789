"""How many numbers a model's weights are, and how many bytes of them each device holds.

The arithmetic follows the published model definitions (Hugging Face ``transformers``, ``modeling_*.py``);
tests hold it against published parameter counts. Splits are those of Megatron-LM (Shoeybi et al. 2019,
section 3), which every engine here uses: columns, then rows, with key and value heads repeated once there are
more ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from autotune.domain.models.checkpoint import Part, StoredWeights
from autotune.domain.models.model import LayerKind, ModelShape
from autotune.domain.models.precision import WeightBits

VOCABULARY_PADDING = 64
"""Engines pad the vocabulary to a multiple of this (vLLM, SGLang: ``DEFAULT_VOCAB_PADDING_SIZE``)."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bytes: at the very least, provably, and as expected."""

    least: float
    expected: float

    def __add__(self, other: Bounds) -> Bounds:
        return Bounds(self.least + other.least, self.expected + other.expected)


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """How a worker's devices share a model, in ranks.

    ``sharing_replicas`` is how many data-parallel replicas share one set of experts. ``whole_experts``:
    each rank holds whole experts rather than a slice of each. ``expert_replicas`` are experts held twice.
    """

    tensor: int = 1
    pipeline: int = 1
    sharing_replicas: int = 1
    context: int = 1
    whole_experts: bool = False
    expert_replicas: int = 0

    @property
    def expert_ranks(self) -> int:
        """Ranks of one pipeline stage that hold the experts between them."""
        return self.tensor * self.sharing_replicas


def stages(layers: int, pipeline: int) -> tuple[range, ...]:
    """Layers of each pipeline stage: as even as can be, what remains from the last but one stage backwards.

    As vLLM and SGLang do (``get_pp_indices``): the last stage holds the head too.
    """
    counts = [layers // pipeline] * pipeline
    for extra in range(layers % pipeline):
        counts[-2 - extra if pipeline > 1 else 0] += 1
    starts = [sum(counts[:stage]) for stage in range(pipeline)]
    return tuple(range(start, start + count) for start, count in zip(starts, counts, strict=True))


def parameters(model: ModelShape) -> int:
    """Numbers in the weights of the language model, layers that only draft left out."""
    layers = range(model.layers)
    return _ends(model) + sum(sum(layer_weights(model, layer).values()) for layer in layers)


def layer_weights(model: ModelShape, layer: int) -> Mapping[Part, int]:
    """Numbers in one layer, by part; norms are the attention's, the router the shared experts'."""
    hidden = model.hidden_size
    kind = model.kinds[layer] if layer < len(model.kinds) else LayerKind.FULL
    attention = _state_layer(model) if kind is LayerKind.STATE else _attention(model)
    if not (layer < len(model.with_experts) and model.with_experts[layer]):
        return {Part.ATTENTION: attention + 2 * hidden, Part.DENSE: 3 * hidden * model.intermediate_size}
    biases = 2 * model.expert_size + hidden if model.model_type == "gpt_oss" else 0
    return {
        Part.ATTENTION: attention + 2 * hidden,
        Part.SHARED: 3 * hidden * model.shared_size + hidden * model.experts,
        Part.EXPERTS: model.experts * (3 * hidden * model.expert_size + biases),
    }


def part_bytes(model: ModelShape, split: Split, bits: WeightBits) -> dict[Part, float]:
    """Bytes, by part, of all layers that a token passes on its way through one rank of every stage."""
    table = _padded(model.vocab_size) * model.hidden_size / split.tensor
    held = {part: table * bits.expected[part] / 8 for part in (Part.EMBEDDING, Part.HEAD)}
    for layer in range(model.layers):
        for part, size in _layer_bytes(model, layer, split, bits).items():
            held[part] = held.get(part, 0.0) + size
    return held


def part_numbers(model: ModelShape) -> dict[Part, int]:
    """Numbers of the whole model, by part; the head's also where its table is the embedding's."""
    return {Part.HEAD: model.vocab_size * model.hidden_size, **_by_part(model)}


def weight_bytes(
    model: ModelShape, split: Split, bits: WeightBits, *, stored: StoredWeights | None = None
) -> Bounds:
    """Bytes of weights on the device that holds most of them.

    The least is an average, which the fullest device cannot be below: all weights, none of them twice, spread
    over every rank (the attention's over those of one replica). It is 0 for an architecture that is not
    reckoned in full here, unless the checkpoint's files were read. Sizes that are not told count as 0.
    """
    return Bounds(_least(model, split, bits, stored), _expected(model, split, bits))


def _least(model: ModelShape, split: Split, bits: WeightBits, stored: StoredWeights | None) -> float:
    ranks, expert_ranks = split.tensor * split.pipeline, split.expert_ranks * split.pipeline
    if stored is not None and bits.as_stored and not model.multimodal:
        loaded = _stored_bytes(stored, bits.dtype_least)
        return loaded / expert_ranks
    if not model.proven:
        return 0.0
    least = {part: numbers * bits.least[part] / 8 for part, numbers in _by_part(model).items()}
    # Replicas repeat their attention by definition; SGLang spreads even dense layers over them.
    attention = least.pop(Part.ATTENTION, 0.0)
    return attention / ranks + sum(least.values()) / expert_ranks


def _stored_bytes(stored: StoredWeights, float_bits: float) -> float:
    """Bytes that a checkpoint takes once its wide floats are cast to the precision that is served."""
    wide = stored.bytes_by_dtype.get("F32", 0) + stored.bytes_by_dtype.get("F64", 0)
    numbers = stored.numbers_by_dtype.get("F32", 0) + stored.numbers_by_dtype.get("F64", 0)
    return stored.total_bytes - stored.draft_bytes - wide + numbers * min(float_bits, 32) / 8


def _by_part(model: ModelShape) -> dict[Part, int]:
    parts = {Part.EMBEDDING: model.vocab_size * model.hidden_size}
    if not model.tied_embeddings:
        parts[Part.HEAD] = parts[Part.EMBEDDING]
    for layer in range(model.layers):
        for part, numbers in layer_weights(model, layer).items():
            parts[part] = parts.get(part, 0) + numbers
    return parts


def _expected(model: ModelShape, split: Split, bits: WeightBits) -> float:
    """Bytes on a rank of the fullest stage."""
    table = _padded(model.vocab_size) * model.hidden_size / split.tensor
    embedding, head = (table * bits.expected[part] / 8 for part in (Part.EMBEDDING, Part.HEAD))
    fullest = 0.0
    parts = stages(model.layers, split.pipeline)
    for at, layers in enumerate(parts):
        held = sum(sum(_layer_bytes(model, layer, split, bits).values()) for layer in layers)
        first, last = at == 0, at == len(parts) - 1
        held += embedding if first or (last and model.tied_embeddings) else 0.0
        held += head if last and not model.tied_embeddings else 0.0
        fullest = max(fullest, held)
    return fullest


def _layer_bytes(model: ModelShape, layer: int, split: Split, bits: WeightBits) -> dict[Part, float]:
    held = {}
    for part, numbers in layer_weights(model, layer).items():
        share: float
        if part is Part.EXPERTS:
            share = _share_of_experts(model, split)
        elif part is Part.ATTENTION:
            share = 1 / split.tensor + _repeated(model, layer, split) / max(numbers, 1)
        else:
            share = 1 / split.tensor
        held[part] = numbers * share * bits.expected[part] / 8
    return held


def _share_of_experts(model: ModelShape, split: Split) -> float:
    if not split.whole_experts:
        return 1 / split.expert_ranks
    return ceil((model.experts + split.expert_replicas) / split.expert_ranks) / model.experts


def _repeated(model: ModelShape, layer: int, split: Split) -> float:
    """Numbers of one layer's attention that a rank holds beyond its share, since all ranks need them."""
    hidden, tensor = model.hidden_size, split.tensor
    if layer < len(model.kinds) and model.kinds[layer] is LayerKind.STATE:
        return 0.0
    if latent := model.latent:
        whole = hidden * (latent.query_rank + latent.width) + _indexer(model)
        return whole * (1 - 1 / tensor)
    share = model.kv_heads / tensor
    return 2 * hidden * model.head_dim * (max(share, 1.0) - share)


def _padded(vocabulary: int) -> int:
    return ceil(vocabulary / VOCABULARY_PADDING) * VOCABULARY_PADDING


def _ends(model: ModelShape) -> int:
    """Embedding, head and the last norm."""
    tables = 1 if model.tied_embeddings else 2
    return tables * model.vocab_size * model.hidden_size + model.hidden_size


def _attention(model: ModelShape) -> int:
    if model.latent:
        return _latent_attention(model)
    hidden, queries = model.hidden_size, model.attention_heads * model.head_dim
    keys = model.kv_heads * model.head_dim
    biases = queries + 2 * keys if model.biased else 0
    sinks = model.attention_heads + hidden if model.model_type == "gpt_oss" else 0
    return hidden * (queries * (3 if model.gated_attention else 2) + 2 * keys) + biases + sinks


def _latent_attention(model: ModelShape) -> int:
    latent, hidden, heads = model.latent, model.hidden_size, model.attention_heads
    assert latent is not None
    query_width = heads * (latent.nope_dim + latent.rope_dim)
    queries = (hidden + query_width) * latent.query_rank if latent.query_rank else hidden * query_width
    up = latent.kv_rank * heads * (latent.nope_dim + latent.value_dim)
    out = heads * latent.value_dim * hidden
    return queries + hidden * latent.width + up + out + _indexer(model)


def _indexer(model: ModelShape) -> int:
    """The indexer of sparse attention (DeepSeek-V3.2): queries, one key, and a weight per head."""
    latent = model.latent
    if latent is None or not latent.index_heads:
        return 0
    queries = latent.query_rank * latent.index_heads * latent.index_dim
    return queries + model.hidden_size * (latent.index_dim + latent.index_heads)


def _state_layer(model: ModelShape) -> int:
    """A gated delta rule: projections in, of two gates, and out; the short convolution."""
    state, hidden = model.state, model.hidden_size
    if state is None:
        return 0
    values = state.value_heads * state.value_dim
    inwards = hidden * (state.channels + values + 2 * state.value_heads)
    return inwards + state.channels * state.kernel + values * hidden + 2 * state.value_heads + state.value_dim
