"""What a model's ``config.json`` says of its shape: what decides how it splits and what it occupies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from autotune.domain.models.checkpoint import Quantization

REFERENCE_TYPES = frozenset(
    {
        "deepseek_v2",
        "deepseek_v3",
        "deepseek_v32",
        "glm_moe_dsa",
        "gpt_oss",
        "kimi_k2",
        "llama",
        "minimax_m2",
        "mistral",
        "mixtral",
        "qwen2",
        "qwen3",
        "qwen3_5_moe_text",
        "qwen3_moe",
        "qwen3_next",
    }
)
"""Architectures (``model_type``) whose weights are reckoned in full: of others nothing is proven."""


class LayerKind(StrEnum):
    """What a layer keeps of the tokens it has seen."""

    FULL = "full"
    SLIDING = "sliding"
    STATE = "state"


_KINDS = {
    "full_attention": LayerKind.FULL,
    "attention": LayerKind.FULL,
    "sliding_attention": LayerKind.SLIDING,
    "chunked_attention": LayerKind.SLIDING,
    "linear_attention": LayerKind.STATE,
    "mamba": LayerKind.STATE,
    "mamba2": LayerKind.STATE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Latent:
    """Latent attention (MLA): one compressed vector per token stands for the keys and values of all heads.

    ``query_rank`` 0: queries are not compressed. ``index_heads`` and ``index_dim`` are those of the indexer
    that chooses tokens in sparse attention (DSA), 0 without one.
    """

    kv_rank: int
    rope_dim: int
    nope_dim: int
    value_dim: int
    query_rank: int = 0
    index_heads: int = 0
    index_dim: int = 0

    @property
    def width(self) -> int:
        """Numbers kept per token and layer, the indexer's keys left out."""
        return self.kv_rank + self.rope_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Recurrent layers (gated delta rule, Mamba): a state of fixed size per sequence."""

    key_heads: int
    key_dim: int
    value_heads: int
    value_dim: int
    kernel: int
    bytes_per_number: int = 2

    @property
    def channels(self) -> int:
        """Channels of the short convolution over queries, keys and values."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim

    @property
    def numbers(self) -> int:
        """Numbers of the recurrent state of one layer and sequence, the convolution's left out."""
        return self.value_heads * self.value_dim * self.key_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes that decide what a model can be split into and what it occupies; 0 where the file does not say.

    ``kinds`` and ``with_experts`` have an entry per layer. ``shared_size`` is the intermediate size of all
    shared experts together. ``sparse_tokens`` is how many tokens sparse attention chooses among all.
    """

    attention_heads: int
    kv_heads: int
    layers: int
    vocab_size: int
    experts: int
    most_positions: int
    head_dim: int = 0
    hidden_size: int = 0
    intermediate_size: int = 0
    expert_size: int = 0
    experts_per_token: int = 0
    shared_size: int = 0
    kinds: tuple[LayerKind, ...] = ()
    with_experts: tuple[bool, ...] = ()
    window: int = 0
    latent: Latent | None = None
    state: State | None = None
    gated_attention: bool = False
    biased: bool = False
    tied_embeddings: bool = False
    draft_layers: int = 0
    dtype: str = ""
    quantization: Quantization | None = None
    model_type: str = ""
    multimodal: bool = False
    sparse_tokens: int = 0

    @property
    def proven(self) -> bool:
        """Whether the weights reckoned from this shape are known to be all of the language model."""
        return self.model_type in REFERENCE_TYPES

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelShape:
        """Read a Hugging Face ``config.json``; multimodal files keep the text model under ``text_config``.

        Raises TypeError or ValueError for a size that is no number.
        """
        return _Reader(config).shape()


@dataclass(frozen=True, slots=True)
class _Reader:
    """Finds sizes under the names that model families give them."""

    whole: Mapping[str, Any]
    text: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", self.whole.get("text_config") or self.whole)

    def number(self, *names: str) -> int:
        return next((int(self.text[name]) for name in names if self.text.get(name)), 0)

    def shape(self) -> ModelShape:
        text, heads, layers = self.text, self.number("num_attention_heads"), self.number("num_hidden_layers")
        hidden, experts = self.number("hidden_size"), self.number(*_EXPERTS)
        quantized = text.get("quantization_config") or self.whole.get("quantization_config")
        model_type = str(text.get("model_type") or "")
        return ModelShape(
            attention_heads=heads,
            kv_heads=self.number("num_key_value_heads") or heads,
            layers=layers,
            vocab_size=self.number("vocab_size"),
            experts=experts,
            most_positions=self._positions(),
            head_dim=self.number("head_dim") or (hidden // heads if heads else 0),
            hidden_size=hidden,
            intermediate_size=self.number("dense_intermediate_size", "intermediate_size"),
            expert_size=self.number("moe_intermediate_size", "intermediate_size") if experts else 0,
            experts_per_token=self.number("num_experts_per_tok", "experts_per_token"),
            shared_size=self._shared_size(),
            kinds=self._kinds(layers),
            with_experts=tuple(bool(experts) and self._has_experts(layer) for layer in range(layers)),
            window=self.number("sliding_window"),
            latent=self._latent(),
            state=self._state(),
            gated_attention=bool(text.get("attn_output_gate")) or model_type == "qwen3_next",
            biased=bool(text.get("attention_bias")) or model_type == "qwen2",
            tied_embeddings=bool(text.get("tie_word_embeddings", self.whole.get("tie_word_embeddings"))),
            draft_layers=self.number("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_modules"),
            dtype=str(_first(text, self.whole, "dtype", "torch_dtype") or ""),
            quantization=Quantization.from_config(quantized) if quantized else None,
            model_type=model_type,
            multimodal=bool(self.whole.get("vision_config") or self.whole.get("audio_config")),
            sparse_tokens=self._sparse_tokens(),
        )

    def _sparse_tokens(self) -> int:
        """Tokens that an indexer chooses, by themselves (DSA) or in blocks (MiniMax-M3)."""
        blocks = self.text.get("sparse_attention_config") or {}
        chosen = int(blocks.get("sparse_topk_blocks") or 0) * int(blocks.get("sparse_block_size") or 0)
        return self.number("index_topk") or chosen

    def _positions(self) -> int:
        """Positions with what scaling of rotary embeddings adds; no engine counts further."""
        most = self.number("max_position_embeddings")
        scaling = self.text.get("rope_scaling") or self.text.get("rope_parameters") or {}
        per_kind = [part for part in scaling.values() if isinstance(part, Mapping)]
        return max(_scaled_positions(most, part) for part in (scaling, *per_kind))

    def _shared_size(self) -> int:
        if size := self.number("shared_expert_intermediate_size"):
            return size
        return self.number("n_shared_experts") * self.number("moe_intermediate_size", "intermediate_size")

    def _has_experts(self, layer: int) -> bool:
        """Whether a layer has experts: by a list, or by the first and the last of a regular pattern."""
        text = self.text
        frequency = text.get("moe_layer_freq", 1)
        if isinstance(frequency, Sequence):
            return bool(frequency[layer])
        if layer < self.number("first_k_dense_replace") or layer in (text.get("mlp_only_layers") or ()):
            return False
        step = self.number("decoder_sparse_step") or 1
        return (layer + 1) % step == 0 and layer % max(int(frequency), 1) == 0

    def _kinds(self, layers: int) -> tuple[LayerKind, ...]:
        text = self.text
        if named := text.get("layer_types") or text.get("layers_block_type"):
            return tuple(_KINDS.get(str(name), LayerKind.FULL) for name in named)
        if interval := self.number("full_attention_interval"):
            return _every(interval, layers, LayerKind.STATE)
        if not text.get("sliding_window") or text.get("use_sliding_window") is False:
            return (LayerKind.FULL,) * layers
        if pattern := self.number("sliding_window_pattern"):
            return _every(pattern, layers, LayerKind.SLIDING)
        return (LayerKind.SLIDING,) * layers

    def _latent(self) -> Latent | None:
        if not self.number("kv_lora_rank"):
            return None
        return Latent(
            kv_rank=self.number("kv_lora_rank"),
            rope_dim=self.number("qk_rope_head_dim"),
            nope_dim=self.number("qk_nope_head_dim"),
            value_dim=self.number("v_head_dim"),
            query_rank=self.number("q_lora_rank"),
            index_heads=self.number("index_n_heads"),
            index_dim=self.number("index_head_dim"),
        )

    def _state(self) -> State | None:
        if not self.number("linear_num_value_heads"):
            return None
        return State(
            key_heads=self.number("linear_num_key_heads"),
            key_dim=self.number("linear_key_head_dim"),
            value_heads=self.number("linear_num_value_heads"),
            value_dim=self.number("linear_value_head_dim"),
            kernel=self.number("linear_conv_kernel_dim"),
            bytes_per_number=4 if self.text.get("mamba_ssm_dtype") == "float32" else 2,
        )


_EXPERTS = ("num_experts", "n_routed_experts", "num_local_experts")


def _first(text: Mapping[str, Any], whole: Mapping[str, Any], *names: str) -> Any:
    return next((place[name] for place in (text, whole) for name in names if place.get(name)), None)


def _scaled_positions(most: int, scaling: Mapping[str, Any]) -> int:
    factor = scaling.get("factor")
    if not factor or scaling.get("rope_type", scaling.get("type")) in {"llama3", "longrope", "su"}:
        return most  # it is in the number already
    return max(most, int(float(factor) * float(scaling.get("original_max_position_embeddings") or most)))


def _every(step: int, layers: int, others: LayerKind) -> tuple[LayerKind, ...]:
    """Each ``step``-th layer attends to everything."""
    return tuple(LayerKind.FULL if (layer + 1) % step == 0 else others for layer in range(layers))
