"""Prompts as segments: what is shared between requests has the same key, what is not has a key of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Role = Literal["system", "user", "assistant"]


class Segment(NamedTuple):
    """A run of tokens; segments of one key and length hold the same tokens in every prompt of a plan."""

    key: int
    tokens: int
    role: Role = "user"


class PromptSource(Protocol):
    """Turns segments into what is sent; the same segments always give the same."""

    def token_ids(self, segments: Sequence[Segment]) -> list[int]:
        """The prompt as token ids, of exactly the segments' lengths."""

    def messages(self, segments: Sequence[Segment]) -> list[dict[str, str]]:
        """The prompt as chat messages, neighbouring segments of one role in one message."""


@dataclass(frozen=True, slots=True)
class RandomTokens:
    """Uniform random ids: no two keys share a prefix block, so no cache can flatter a run.

    The lowest ids, where vocabularies keep their special tokens, are left out. A different ``seed`` gives
    different tokens for every key.
    """

    vocab_size: int
    seed: int

    def token_ids(self, segments: Sequence[Segment]) -> list[int]:
        """The prompt as token ids."""
        lowest = min(1000, self.vocab_size // 10)
        ids: list[int] = []
        for segment in segments:
            rng = np.random.default_rng((self.seed, segment.key))
            ids += rng.integers(lowest, self.vocab_size, segment.tokens).tolist()
        return ids

    def messages(self, segments: Sequence[Segment]) -> list[dict[str, str]]:  # noqa: ARG002 - one signature
        """Raise ValueError: ids without a tokenizer are no text."""
        raise ValueError("chat prompts are text; a tokenizer is needed to make them")


def shared_tokens(
    prompts: Iterable[Sequence[Segment]], *, block_tokens: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens of each of some prompts, in order, that a prefix cache of any size could serve, and all of each.

    A cache keeps whole blocks alone, and the last block of a prompt is always computed (vLLM, SGLang and
    TensorRT-LLM all need at least one token to run on).
    """
    # A number for each sequence of segments that some prompt began with, by that of all but its last.
    known: dict[tuple[int, int, int], int] = {}
    shared: list[int] = []
    totals: list[int] = []
    for segments in prompts:
        head = tokens = found = 0
        for segment in segments:
            tokens += segment.tokens
            step = (head, segment.key, segment.tokens)
            if step in known:
                found = tokens
            head = known.setdefault(step, len(known) + 1)
        totals.append(tokens)
        shared.append(min(found, tokens - 1) // block_tokens * block_tokens)
    return np.array(shared, dtype=np.int64), np.array(totals, dtype=np.int64)
