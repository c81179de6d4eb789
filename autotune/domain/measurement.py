"""What one load level leaves behind: a record of every request, a power trace, and the window to judge."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from autotune.domain.power import PowerTrace, Window
from autotune.domain.workload import Level

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

CLIENT_LAG_LIMIT_S = 0.02
"""A client that sends its p99 request later than this after it was due was itself the limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One request as the client saw it; monotonic seconds, NaN for what never happened.

    ``chunk_s`` are the arrivals of the chunks that carried tokens, and ``output_tokens`` the server's own
    count of them. ``error`` is empty for a request that finished.
    """

    due_s: float
    sent_s: float = float("nan")
    finished_s: float = float("nan")
    chunk_s: tuple[float, ...] = ()
    prompt_tokens: int = 0
    output_tokens: int = 0
    status: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTable:
    """Requests by column, one row each; ``chunk_s`` holds every request's chunks end to end.

    Row ``i`` owns ``chunk_s[chunk_end[i - 1]:chunk_end[i]]``. Latencies count from due, so that queueing in
    the client shows; they are NaN where there is nothing to time.
    """

    due_s: Floats
    sent_s: Floats
    finished_s: Floats
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    status: NDArray[np.int64]
    error: tuple[str, ...]
    chunk_s: Floats
    chunk_end: NDArray[np.int64]

    @classmethod
    def of(cls, records: Sequence[RequestRecord]) -> RequestTable:
        """Lay records out by column."""
        return cls(
            due_s=np.array([r.due_s for r in records], dtype=np.float64),
            sent_s=np.array([r.sent_s for r in records], dtype=np.float64),
            finished_s=np.array([r.finished_s for r in records], dtype=np.float64),
            prompt_tokens=np.array([r.prompt_tokens for r in records], dtype=np.int64),
            output_tokens=np.array([r.output_tokens for r in records], dtype=np.int64),
            status=np.array([r.status for r in records], dtype=np.int64),
            error=tuple(r.error for r in records),
            chunk_s=np.array([at for r in records for at in r.chunk_s], dtype=np.float64),
            chunk_end=np.cumsum([len(r.chunk_s) for r in records], dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.due_s)

    @property
    def chunks(self) -> NDArray[np.int64]:
        """Chunks of each request."""
        return np.diff(self.chunk_end, prepend=0)

    @property
    def ok(self) -> Bools:
        """Which finished, with tokens."""
        return np.array([not error for error in self.error], dtype=bool) & (self.chunks > 0)

    @property
    def first_token_s(self) -> Floats:
        """Arrival of each first chunk."""
        return self._chunk_at(self.chunk_end - self.chunks)

    @property
    def last_token_s(self) -> Floats:
        """Arrival of each last chunk."""
        return self._chunk_at(self.chunk_end - 1)

    @property
    def ttft_s(self) -> Floats:
        """First token - due."""
        return self.first_token_s - self.due_s

    @property
    def tpot_s(self) -> Floats:
        """(Last token - first token) / (output tokens - tokens in the first chunk); NaN for one chunk.

        Chunks do not say how many tokens they hold: each counts as an even share of the server's total.
        """
        chunks = np.maximum(self.chunks, 1)
        later = self.output_tokens * (chunks - 1) / chunks
        return (self.last_token_s - self.first_token_s) / np.where(later > 0, later, np.nan)

    @property
    def e2e_s(self) -> Floats:
        """Last token - due."""
        return self.last_token_s - self.due_s

    @property
    def stall_s(self) -> Floats:
        """Longest gap between chunks; 0 for one chunk, NaN for none."""
        stalls = np.where(self.chunks > 0, 0.0, np.nan)
        gaps = np.diff(self.chunk_s)
        owner = self.chunk_owner
        inside = owner[1:] == owner[:-1]
        np.maximum.at(stalls, owner[1:][inside], gaps[inside])
        return stalls

    @property
    def chunk_owner(self) -> NDArray[np.int64]:
        """Row that each chunk belongs to."""
        return np.repeat(np.arange(len(self)), self.chunks)

    @property
    def chunk_tokens(self) -> Floats:
        """Tokens that each chunk counts for."""
        return np.repeat(self.output_tokens / np.maximum(self.chunks, 1), self.chunks)

    def _chunk_at(self, index: NDArray[np.int64]) -> Floats:
        at = np.full(len(self), np.nan)
        has = self.chunks > 0
        at[has] = self.chunk_s[index[has]]
        return at


@dataclass(frozen=True, slots=True)
class ClientHealth:
    """How the load client itself fared: ``lag_p99_s`` is sent - due, ``cpu_share`` of one core."""

    lag_p99_s: float
    cpu_share: float

    @property
    def was_limit(self) -> bool:
        """Whether the client, not the engine, made requests late."""
        return self.lag_p99_s > CLIENT_LAG_LIMIT_S


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What a drive returned; ``started_s`` is the plan's time 0; ``engine_died`` if that cut it short."""

    records: tuple[RequestRecord, ...]
    started_s: float
    health: ClientHealth
    engine_died: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One measured load level: raw requests, the power trace over them, and the window both are judged in."""

    level: Level
    window: Window
    requests: RequestTable
    power: PowerTrace
    health: ClientHealth
    counters: Mapping[str, float] = field(default_factory=dict)

    @property
    def due_in_window(self) -> Bools:
        """Which requests count: those due inside the window."""
        return (self.requests.due_s >= self.window.start_s) & (self.requests.due_s < self.window.end_s)

    @property
    def sustained_rps(self) -> float:
        """Requests per second that the window's throughput carries, at the mean length of those that ended.

        Tokens rather than completions: in closed loop many end together, and a short window may see none.
        """
        lengths = self.requests.output_tokens[self.requests.ok]
        return self.throughput_tok_per_s / float(lengths.mean()) if len(lengths) else 0.0

    @property
    def throughput_tok_per_s(self) -> float:
        """Output tokens that arrived inside the window, of whatever requests, per second."""
        at_s = self.requests.chunk_s
        inside = (at_s >= self.window.start_s) & (at_s < self.window.end_s)
        return float(self.requests.chunk_tokens[inside].sum()) / self.window.length_s

    @property
    def ttft_p99_s(self) -> float:
        """99th percentile of TTFT over requests due in the window; NaN where none got a token."""
        ttft_s = self.requests.ttft_s[self.due_in_window]
        ttft_s = ttft_s[np.isfinite(ttft_s)]
        return float(np.percentile(ttft_s, 99)) if len(ttft_s) else float("nan")

    @property
    def oversaturated(self) -> bool:
        """Whether the queue grew through the window, so that no longer run at this load could hold.

        In-flight requests grew, by a straight line through the window, by more than twice the standard
        deviation of arrivals less departures, were both Poisson at the offered rate: what a window is too
        short to tell from a burst is not told. A closed-loop level never is.
        """
        if self.level.rate_rps is None:
            return False
        at_s = np.linspace(self.window.start_s, self.window.end_s, 33)
        slope = float(np.polyfit(at_s - at_s[0], self._in_flight(at_s), 1)[0])
        arrivals = self.level.rate_rps * self.window.length_s
        return slope * self.window.length_s > 2 * math.sqrt(2 * arrivals)

    def _in_flight(self, at_s: Floats) -> Floats:
        due = np.sort(self.requests.due_s)
        ended = np.sort(np.nan_to_num(self.requests.finished_s, nan=np.inf))
        return (np.searchsorted(due, at_s, "right") - np.searchsorted(ended, at_s, "right")).astype(float)


LoadCurve = tuple[Measurement, ...]
"""Every level measured on one launch, in the order of measuring."""
