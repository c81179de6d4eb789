"""What a model's ``config.json`` says of its shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes that decide what a model can be split into; 0 where the file does not say."""

    attention_heads: int
    kv_heads: int
    layers: int
    vocab_size: int
    experts: int
    most_positions: int

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelShape:
        """Read a Hugging Face ``config.json``; multimodal files keep the text model under ``text_config``."""
        text: Mapping[str, Any] = config.get("text_config") or config

        def first(*names: str) -> int:
            return next((int(text[name]) for name in names if text.get(name)), 0)

        heads = first("num_attention_heads")
        return cls(
            attention_heads=heads,
            kv_heads=first("num_key_value_heads") or heads,
            layers=first("num_hidden_layers"),
            vocab_size=first("vocab_size"),
            experts=first("num_experts", "n_routed_experts", "num_local_experts"),
            most_positions=first("max_position_embeddings"),
        )
