"""What a sequence occupies in the KV cache of one device, by how its layers keep what they have seen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil

from autotune.domain.models.model import LayerKind, ModelShape
from autotune.domain.models.weights import Split, stages

INDEX_BYTES_PER_TOKEN = 4
"""Scale that the indexer of sparse attention keeps with each key, itself one byte per number (vLLM)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KvLayout:
    """Bytes on one device: of each token everywhere, of each token within the window, of each sequence.

    ``window`` is how many tokens of a sequence the layers with sliding attention keep, 0 without such layers.
    """

    token_bytes: float
    window_token_bytes: float = 0.0
    window: int = 0
    state_bytes: float = 0.0

    def sequence_bytes(self, tokens: float) -> float:
        """Bytes of a sequence of so many tokens."""
        kept = min(tokens, self.window) if self.window else tokens
        return tokens * self.token_bytes + kept * self.window_token_bytes + self.state_bytes

    def sequences(self, available_bytes: float, tokens: float) -> float:
        """How many sequences of so many tokens each fit."""
        return max(available_bytes, 0.0) / max(self.sequence_bytes(tokens), 1.0)

    def tokens(self, available_bytes: float, tokens_per_sequence: float) -> float:
        """How many tokens fit where every sequence has so many.

        What vLLM 0.32 logs as ``GPU KV cache size``, with the longest context as the length of a sequence.
        """
        return self.sequences(available_bytes, tokens_per_sequence) * tokens_per_sequence


def expected_layout(model: ModelShape, split: Split, bits: float, *, tokens_in_flight: int = 0) -> KvLayout:
    """The layout on a device of the stage that keeps most.

    ``tokens_in_flight`` are those of one step, which layers with a window hold beside it (vLLM,
    ``SlidingWindowSpec.max_admission_blocks_per_request``).
    """
    parts = stages(model.layers, split.pipeline)
    layouts = [_layout(model, split, bits, layers, tokens_in_flight) for layers in parts]
    return max(layouts, key=lambda layout: layout.sequence_bytes(model.most_positions or 1))


def least_layout(model: ModelShape, split: Split, bits: float) -> KvLayout:
    """No device can do with less: nothing is repeated, and every stage keeps an equal part.

    A window is taken as it is, without what is in flight; a state as its recurrent part at two bytes each.
    """
    ranks = split.tensor * split.pipeline
    full, sliding, recurrent = _count(model, range(model.layers))
    per_layer = _numbers(model) * bits / 8 / ranks
    state = recurrent * (model.state.numbers if model.state else 0) * 2 / ranks
    return KvLayout(
        token_bytes=full * per_layer,
        # Of a window whose length is not told nothing is certain.
        window_token_bytes=sliding * per_layer if model.window else 0.0,
        window=model.window,
        state_bytes=state,
    )


def _layout(
    model: ModelShape, split: Split, bits: float, layers: Iterable[int], tokens_in_flight: int
) -> KvLayout:
    full, sliding, recurrent = _count(model, layers)
    indexer = 0.0
    if model.latent:
        per_layer = (
            model.latent.width * bits / 8
        )  # every rank of a tensor-parallel group keeps the whole vector
        if model.latent.index_dim:
            indexer = model.latent.index_dim + INDEX_BYTES_PER_TOKEN
    else:
        per_layer = 2 * ceil(model.kv_heads / split.tensor) * model.head_dim * bits / 8
    return KvLayout(
        token_bytes=full * (per_layer + indexer) / split.context,
        window_token_bytes=sliding * per_layer / split.context,
        window=model.window + tokens_in_flight if sliding else 0,
        state_bytes=recurrent * _state_bytes(model) / split.tensor,
    )


def _numbers(model: ModelShape) -> int:
    """Numbers that one layer keeps of one token, all devices together."""
    return model.latent.width if model.latent else 2 * model.kv_heads * model.head_dim


def _count(model: ModelShape, layers: Iterable[int]) -> tuple[int, int, int]:
    """How many of the layers attend to everything, to a window, and keep a state."""
    kinds = [model.kinds[layer] if layer < len(model.kinds) else LayerKind.FULL for layer in layers]
    return kinds.count(LayerKind.FULL), kinds.count(LayerKind.SLIDING), kinds.count(LayerKind.STATE)


def _state_bytes(model: ModelShape) -> float:
    """Bytes of one recurrent layer and sequence: its state, and the inputs its convolution looks back on."""
    state = model.state
    if state is None:
        return 0.0
    return state.numbers * state.bytes_per_number + state.channels * (state.kernel - 1) * 2
