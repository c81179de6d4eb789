"""Traffic: real requests by column, for workloads that replay them or draw their lengths from them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Traffic:
    """Requests in order of arrival.

    ``block`` holds the keys of each request's leading prompt blocks, one request after another, and
    ``block_end`` where each request's keys end. A key stands for a block and all before it in its prompt:
    two requests with the same key have the same beginning. Blocks hold ``block_tokens`` tokens, no whole
    number once scaled. ``conversation`` numbers what belongs together, -1 for nothing. ``arrival_s`` is None
    where a file holds lengths alone, and ``left_out`` the share of its requests that are not here.
    """

    input_tokens: Ints
    output_tokens: Ints
    arrival_s: Floats | None = None
    block: Ints
    block_end: Ints
    block_tokens: float = 1.0
    conversation: Ints
    left_out: float = 0.0

    def __post_init__(self) -> None:
        rows = {len(self.input_tokens), len(self.output_tokens), len(self.block_end), len(self.conversation)}
        if self.arrival_s is not None:
            rows.add(len(self.arrival_s))
            if (np.diff(self.arrival_s) < 0).any():
                raise ValueError("requests must be in order of arrival")
        if len(rows) != 1 or len(self) == 0:
            raise ValueError("every column needs one value for each of at least one request")
        if self.input_tokens.min() < 1 or self.output_tokens.min() < 1:
            raise ValueError("prompts and answers have at least one token")
        if self.block_end[-1] != len(self.block) or (np.diff(self.block_end, prepend=0) < 0).any():
            raise ValueError("block_end does not divide the blocks among the requests")

    @classmethod
    def of(
        cls,
        input_tokens: Ints,
        output_tokens: Ints,
        *,
        arrival_s: Floats | None = None,
        blocks: tuple[Ints, Ints, float] | None = None,
        conversation: Ints | None = None,
    ) -> Traffic:
        """Take columns of any order and any keys; ``blocks`` are the keys, their ends and a block's tokens.

        Requests without a token in prompt or answer, which no engine is asked for, are left out.
        """
        count = len(input_tokens)
        keys, ends, block_tokens = blocks or (_none(0), np.zeros(count, dtype=np.int64), 1.0)
        groups = _none(count) if conversation is None else conversation
        order = np.arange(count) if arrival_s is None else np.argsort(arrival_s, kind="stable")
        order = order[(input_tokens[order] > 0) & (output_tokens[order] > 0)]
        block, block_end = _gather(keys, ends, order)
        return cls(
            input_tokens=input_tokens[order],
            output_tokens=output_tokens[order],
            arrival_s=None if arrival_s is None or not len(order) else arrival_s[order] - arrival_s[order[0]],
            block=_numbered(block),
            block_end=block_end,
            block_tokens=block_tokens,
            conversation=_numbered(groups[order]),
            left_out=1 - len(order) / max(count, 1),
        )

    def __len__(self) -> int:
        return len(self.input_tokens)

    @property
    def blocks(self) -> Ints:
        """Blocks of each request."""
        return np.diff(self.block_end, prepend=0)

    @property
    def rate_rps(self) -> float:
        """Mean rate, NaN where no time passes or none is known."""
        span_s = 0.0 if self.arrival_s is None else float(self.arrival_s[-1] - self.arrival_s[0])
        return (len(self) - 1) / span_s if span_s > 0 else float("nan")

    @property
    def gap_cv(self) -> float:
        """Burstiness: standard deviation / mean of the gaps between arrivals, 1 for Poisson; NaN as above."""
        gaps_s = np.zeros(0) if self.arrival_s is None else np.diff(self.arrival_s)
        return float(gaps_s.std() / gaps_s.mean()) if gaps_s.sum() > 0 else float("nan")

    @property
    def prefix_share(self) -> float:
        """Share of prompt tokens in blocks that an earlier prompt began with."""
        _, first, inverse = np.unique(self.block, return_index=True, return_inverse=True)
        owner = np.repeat(np.arange(len(self)), self.blocks)
        known = np.bincount(owner, weights=first[inverse] < np.arange(len(self.block)), minlength=len(self))
        tokens = np.minimum(known * self.block_tokens, self.input_tokens)
        return float(tokens.sum() / self.input_tokens.sum())

    @property
    def turns(self) -> Ints:
        """Requests of each conversation."""
        return np.bincount(self.conversation[self.conversation >= 0]).astype(np.int64)

    def take(self, rows: Ints) -> Traffic:
        """Return some requests, in the order given; arrivals must still ascend."""
        block, block_end = _gather(self.block, self.block_end, rows)
        return replace(
            self,
            input_tokens=self.input_tokens[rows],
            output_tokens=self.output_tokens[rows],
            arrival_s=None if self.arrival_s is None else self.arrival_s[rows],
            block=block,
            block_end=block_end,
            conversation=self.conversation[rows],
        )

    def fitting(self, *, scale: float, longest: int) -> Traffic:
        """Return the traffic with every length scaled, without requests of more than ``longest`` tokens.

        Raises ValueError when none is short enough.
        """
        scaled = replace(
            self,
            input_tokens=np.maximum(np.rint(self.input_tokens * scale), 1).astype(np.int64),
            output_tokens=np.maximum(np.rint(self.output_tokens * scale), 1).astype(np.int64),
            block_tokens=self.block_tokens * scale,
        )
        rows = np.flatnonzero(scaled.input_tokens + scaled.output_tokens <= longest)
        if not len(rows):
            shortest = int((scaled.input_tokens + scaled.output_tokens).min())
            raise ValueError(f"every request is longer than {longest} tokens; the shortest has {shortest}")
        kept = (1 - self.left_out) * len(rows) / len(self)
        return replace(scaled.take(rows), left_out=1 - kept)

    def segment(self, start: int, count: int) -> Traffic:
        """Return ``count`` requests from ``start`` on; after the last comes the first, as new traffic.

        Each lap begins a mean gap after the one before ended, and shares no block and no conversation with
        it. Arrivals count from the segment's first.
        """
        lap, rows = np.divmod(start + np.arange(count), len(self))
        block, block_end = _gather(self.block, self.block_end, rows)
        arrival_s = None
        if self.arrival_s is not None:
            span_s = float(self.arrival_s[-1] - self.arrival_s[0])
            lap_s = span_s * len(self) / max(len(self) - 1, 1)
            arrival_s = self.arrival_s[rows] + lap * lap_s
            arrival_s -= arrival_s[0]
        block_lap = np.repeat(lap, np.diff(block_end, prepend=0))
        talks = self.conversation[rows]
        return replace(
            self,
            input_tokens=self.input_tokens[rows],
            output_tokens=self.output_tokens[rows],
            arrival_s=arrival_s,
            block=block + block_lap * (int(self.block.max(initial=-1)) + 1),
            block_end=block_end,
            conversation=np.where(talks < 0, -1, talks + lap * (int(self.conversation.max()) + 1)),
        )


def _none(count: int) -> Ints:
    return np.full(count, -1, dtype=np.int64)


def _numbered(keys: Ints) -> Ints:
    """Keys as numbers from 0; negative ones, which stand for none, stay."""
    numbers = np.unique(np.maximum(keys, -1), return_inverse=True)[1].astype(np.int64)
    return numbers - 1 if (keys < 0).any() else numbers


def _gather(values: Ints, ends: Ints, rows: Ints) -> tuple[Ints, Ints]:
    """The values of some rows of a ragged table, and their ends."""
    counts = np.diff(ends, prepend=0)
    new_ends = np.cumsum(counts[rows])
    # Each value's place: its row's start, plus how far into the row it is.
    shift = np.repeat((ends - counts)[rows] - (new_ends - counts[rows]), counts[rows])
    return values[shift + np.arange(len(shift))], new_ends
