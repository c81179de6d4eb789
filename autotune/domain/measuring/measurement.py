"""What one load level leaves behind: a record of every request, a power trace, and the window to judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from autotune.domain.load.level import Level
from autotune.domain.measuring.counters import CounterTrace
from autotune.domain.measuring.power import PowerTrace, Window
from autotune.domain.measuring.queueing import TELLING_GROWTH, in_flight, queue_growth, sample_times

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

CLIENT_LAG_LIMIT_S = 0.02
"""A client that sends its p99 request later than this after it was due was itself the limit."""
CLIENT_CPU_LIMIT = 0.9
"""A client process that is busier than this share of a core reads answers late."""
REQUEST_COLUMNS = (
    "due_s",
    "sent_s",
    "finished_s",
    "prompt_tokens",
    "output_tokens",
    "status",
    "reasoning_chunks",
    "planned",
)
"""Columns of a RequestTable with one number for each request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One request as the client saw it; monotonic seconds, NaN for what never happened.

    ``chunk_s`` are the arrivals of the chunks that carried tokens, and ``output_tokens`` the server's own
    count of them. ``reasoning_chunks`` of the chunks carried reasoning, not answer. ``planned`` is its place
    in the plan. ``error`` is empty for a request that finished.
    """

    due_s: float
    sent_s: float = float("nan")
    finished_s: float = float("nan")
    chunk_s: tuple[float, ...] = ()
    prompt_tokens: int = 0
    output_tokens: int = 0
    status: int = 0
    reasoning_chunks: int = 0
    planned: int = 0
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
    reasoning_chunks: NDArray[np.int64]
    planned: NDArray[np.int64]
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
            reasoning_chunks=np.array([r.reasoning_chunks for r in records], dtype=np.int64),
            planned=np.array([r.planned for r in records], dtype=np.int64),
            error=tuple(r.error for r in records),
            chunk_s=np.array([at for r in records for at in r.chunk_s], dtype=np.float64),
            chunk_end=np.cumsum([len(r.chunk_s) for r in records], dtype=np.int64),
        )

    @classmethod
    def concat(cls, tables: Sequence[RequestTable]) -> RequestTable:
        """Put tables together in order of due time."""
        offsets = np.cumsum([0, *(len(t.chunk_s) for t in tables)])[:-1]
        columns = {
            name: np.concatenate([getattr(t, name) for t in tables] or [np.zeros(0)])
            for name in REQUEST_COLUMNS
        }
        whole = cls(
            **columns,
            error=tuple(error for t in tables for error in t.error),
            chunk_s=np.concatenate([t.chunk_s for t in tables] or [np.zeros(0)]),
            chunk_end=np.concatenate(
                [t.chunk_end + offset for t, offset in zip(tables, offsets, strict=True)]
                or [np.zeros(0, dtype=np.int64)]
            ),
        )
        return whole.take(np.argsort(whole.due_s, kind="stable"))

    def take(self, rows: NDArray[np.int64]) -> RequestTable:
        """Return some rows, in the order given."""
        chunks = self.chunks
        starts = (self.chunk_end - chunks)[rows]
        ends = np.cumsum(chunks[rows])
        # Each chunk's place: its row's start, plus how far into the row it is.
        places = np.repeat(starts - (ends - chunks[rows]), chunks[rows]) + np.arange(
            ends[-1] if len(ends) else 0
        )
        return RequestTable(
            **{name: getattr(self, name)[rows] for name in REQUEST_COLUMNS},
            error=tuple(self.error[row] for row in rows),
            chunk_s=self.chunk_s[places],
            chunk_end=ends,
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
        """(Last token - first token) / (output tokens - tokens in the first chunk); NaN for one chunk."""
        later = self.output_tokens - 1
        several = (self.chunks > 1) & (later > 0)
        return (self.last_token_s - self.first_token_s) / np.where(several, later, np.nan)

    @property
    def second_token_s(self) -> Floats:
        """Arrival of each second chunk; NaN where there is none."""
        at = np.full(len(self), np.nan)
        has = self.chunks > 1
        at[has] = self.chunk_s[(self.chunk_end - self.chunks)[has] + 1]
        return at

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
        """Tokens that each chunk counts for.

        Chunks do not say how many tokens they hold. A prefill samples one token, and engines send it on by
        itself (speculation and stream intervals begin after it); the later chunks share the rest evenly.
        """
        chunks = self.chunks
        shares = (self.output_tokens - 1) / np.maximum(chunks - 1, 1)
        tokens = np.repeat(shares, chunks)
        several = chunks > 1
        tokens[(self.chunk_end - chunks)[several]] = 1.0
        tokens[(self.chunk_end - 1)[chunks == 1]] = self.output_tokens[chunks == 1]
        return tokens

    def _chunk_at(self, index: NDArray[np.int64]) -> Floats:
        at = np.full(len(self), np.nan)
        has = self.chunks > 0
        at[has] = self.chunk_s[index[has]]
        return at


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientHealth:
    """How the load client itself fared, the worst of its processes.

    ``lag_p99_s`` is sent - due, ``loop_lag_p99_s`` how late its event loop came back to its timers, and
    ``cpu_share`` of one core.
    """

    lag_p99_s: float
    cpu_share: float
    loop_lag_p99_s: float = 0.0
    processes: int = 1

    @property
    def was_limit(self) -> bool:
        """Whether the client, not the engine, made requests late."""
        late = max(self.lag_p99_s, self.loop_lag_p99_s) > CLIENT_LAG_LIMIT_S
        return late or self.cpu_share > CLIENT_CPU_LIMIT


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """What a drive returned: every request that was due, in that order; ``started_s`` is the plan's time 0.

    ``engine_died`` if that cut it short.
    """

    requests: RequestTable
    started_s: float
    health: ClientHealth
    engine_died: bool = False


class WindowEnd(StrEnum):
    """Why a window ended: narrow enough intervals, the time that a level may take, a queue that only grew."""

    PRECISE = "precise"
    BUDGET = "budget"
    OVERSATURATED = "over-saturated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One measured load level: raw requests, the power trace over them, and the window both are judged in.

    ``power`` is of the reserved devices, on the basis that ranks; ``beside`` what other meters saw meanwhile.
    ``steady`` is false where the window was opened although the load had not settled. ``prefix_share`` is the
    share of the window's prompt tokens that a prefix cache could have served at most. ``dispersion`` is that
    of the arrivals' counts, variance / mean: 1 for Poisson.
    """

    level: Level
    window: Window
    requests: RequestTable
    power: PowerTrace
    health: ClientHealth
    beside: tuple[PowerTrace, ...] = ()
    counters: CounterTrace = field(default_factory=CounterTrace)
    ended: WindowEnd = WindowEnd.BUDGET
    steady: bool = True
    prefix_share: float = 0.0
    dispersion: float = 1.0

    @property
    def due_in_window(self) -> Bools:
        """Which requests count: those due inside the window."""
        return self.window.holds(self.requests.due_s)

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
        inside = self.window.holds(self.requests.chunk_s)
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

        What a window is too short to tell from a burst is not told. A closed-loop level never is.
        """
        if self.level.rate_rps is None:
            return False
        if self.ended is WindowEnd.OVERSATURATED:
            return True
        queue = in_flight(self.requests.due_s, self.requests.finished_s, sample_times(self.window))
        growth = queue_growth(queue, self.window, self.level.rate_rps, dispersion=self.dispersion)
        return growth > TELLING_GROWTH


LoadCurve = tuple[Measurement, ...]
"""Every level measured on one launch, in the order of measuring."""
