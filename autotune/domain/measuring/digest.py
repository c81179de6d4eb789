"""What of a measured level no SLA changes: another SLA is judged on it without the raw records."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotune.domain.load.level import Level
from autotune.domain.measuring.measurement import Bools, Floats, Measurement, WindowEnd
from autotune.domain.measuring.power import (
    Energy,
    EnergyVerdict,
    PowerBasis,
    PowerScope,
    Window,
    energy_in,
    joules_by_block,
)
from autotune.domain.measuring.stats import (
    BLOCKS,
    LEAST_DESIGN_EFFECT,
    STUDENT_T,
    Figure,
    Interval,
    repeat_interval,
)

PERCENTILES = (50, 95, 99)
FEWEST = 5
"""With fewer token rates than this a level has no median worth a point."""


@dataclass(frozen=True, kw_only=True)
class LevelDigest:
    """A level, a number for each request and a few for all.

    Columns of one length, a row for each request: ``block`` of the window in which it came due (-1: outside),
    seconds (NaN for what never happened), ``window_tokens`` those of its tokens that arrived in the window.
    Of ``BLOCKS`` values: ``offered`` requests and ``block_j`` joules in each block of the window. Percentiles
    are of all requests due in the window that have the value. Without slots: its own figures are kept once
    they were asked for.
    """

    level: Level
    window: Window
    rate_rps: float
    requests: int
    block: NDArray[np.int64]
    ok: Bools
    ttft_s: Floats
    tpot_s: Floats
    e2e_s: Floats
    stall_s: Floats
    output_tokens: NDArray[np.int64]
    window_tokens: Floats
    offered: Floats
    ttft_percentiles_s: dict[int, float]
    tpot_percentiles_s: dict[int, float]
    throughput_tok_per_s: float
    energy: Energy
    block_j: Floats
    beside_w: dict[PowerScope, float]
    power_basis: PowerBasis
    power_source: str
    ended: WindowEnd
    steady: bool
    oversaturated: bool
    counters: Mapping[str, float]

    @cached_property
    def due_in_window(self) -> Bools:
        """Which requests were due in the window."""
        return self.block >= 0

    @cached_property
    def judged(self) -> dict[Hashable, Any]:
        """Verdicts that were asked for, kept by those who judge: pages ask for the same ones again."""
        return {}

    @cached_property
    def interactivity(self) -> Figure | None:
        """Median token rate, tok/s/user, of the requests due in the window; None where too few have one."""
        tpot_s = self.tpot_s[self.ok & self.due_in_window]
        tpot_s = tpot_s[np.isfinite(tpot_s) & (tpot_s > 0)]
        return _median(np.sort(1 / tpot_s)) if len(tpot_s) >= FEWEST else None

    @cached_property
    def throughput(self) -> Figure:
        """Output tokens of all requests, tok/s."""
        seconds = np.full(BLOCKS, self.window.length_s / BLOCKS)
        rate = self.throughput_tok_per_s
        return Figure(rate, repeat_interval(rate, self._tokens_by_due, seconds))

    @cached_property
    def throughput_per_joule(self) -> Figure | None:
        """Output tokens of all requests, good or not, per joule; None where either is not known."""
        joules = self.energy.joules if self.energy.verdict is not EnergyVerdict.INVALID else 0.0
        ratio = self.throughput_tok_per_s * self.window.length_s / joules if joules > 0 else 0.0
        return Figure(ratio, repeat_interval(ratio, self._tokens_by_due, self.block_j)) if ratio else None

    def draw_up(self) -> None:
        """Compute what the picture shows of the level, to be kept."""
        _ = self.interactivity, self.throughput, self.throughput_per_joule

    @property
    def _tokens_by_due(self) -> Floats:
        return self.by_block(np.ones(len(self.block), dtype=bool), self.output_tokens)

    def by_block(self, of: Bools, weights: NDArray[np.int64] | None = None) -> Floats:
        """Counts, or sums of ``weights``, of some requests due in the window by block."""
        there = of & self.due_in_window
        counted = weights[there] if weights is not None else None
        return np.bincount(self.block[there], counted, minlength=BLOCKS).astype(np.float64)


def digest(measurement: Measurement) -> LevelDigest:
    """Reduce a level to what scoring reads of it."""
    window, requests = measurement.window, measurement.requests
    due, ok = measurement.due_in_window, requests.ok
    block, ttft_s, tpot_s = _blocks(requests.due_s, window), requests.ttft_s, requests.tpot_s
    energy = energy_in(measurement.power, window)
    inside = (requests.chunk_s >= window.start_s) & (requests.chunk_s <= window.end_s)
    tokens = np.bincount(requests.chunk_owner[inside], requests.chunk_tokens[inside], minlength=len(requests))
    return LevelDigest(
        level=measurement.level,
        window=window,
        rate_rps=measurement.level.rate_rps or measurement.sustained_rps,
        requests=int(due.sum()),
        block=block,
        ok=ok,
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        e2e_s=requests.e2e_s,
        stall_s=requests.stall_s,
        output_tokens=requests.output_tokens,
        window_tokens=tokens.astype(np.float64),
        offered=np.bincount(block[block >= 0], minlength=BLOCKS).astype(np.float64),
        ttft_percentiles_s=_percentiles(ttft_s[due]),
        tpot_percentiles_s=_percentiles(tpot_s[due & ok]),
        throughput_tok_per_s=measurement.throughput_tok_per_s,
        energy=energy,
        block_j=np.zeros(BLOCKS)
        if energy.verdict is EnergyVerdict.INVALID
        else joules_by_block(measurement.power, window, BLOCKS),
        beside_w=_beside_w(measurement),
        power_basis=measurement.power.basis,
        power_source=measurement.power.source,
        ended=measurement.ended,
        steady=measurement.steady,
        oversaturated=measurement.oversaturated,
        counters=_gauges(measurement),
    )


def _median(rates: Floats) -> Figure:
    """The median with the order statistics around it, for half as many independent requests."""
    half = STUDENT_T * 0.5 / math.sqrt(len(rates) / LEAST_DESIGN_EFFECT)
    low, middle, high = np.quantile(rates, [max(0.0, 0.5 - half), 0.5, min(1.0, 0.5 + half)])
    return Figure(float(middle), Interval(float(low), float(high)))


def _blocks(due_s: Floats, window: Window) -> NDArray[np.int64]:
    """The window's block of each moment, as numpy's histogram counts: its end belongs to the last."""
    edges = np.linspace(window.start_s, window.end_s, BLOCKS + 1)
    block = np.searchsorted(edges, due_s, side="right") - 1
    block[due_s == window.end_s] = BLOCKS - 1
    block[(due_s < window.start_s) | (due_s > window.end_s)] = -1
    return block


def _beside_w(measurement: Measurement) -> dict[PowerScope, float]:
    around = {trace.scope: energy_in(trace, measurement.window) for trace in measurement.beside}
    return {
        scope: energy.mean_w
        for scope, energy in around.items()
        if energy.verdict is not EnergyVerdict.INVALID
    }


def _gauges(measurement: Measurement) -> dict[str, float]:
    """Means over the window of what the engine says of itself."""
    names = ("requests_running", "requests_waiting", "kv_cache_usage")
    means = {name: measurement.counters.mean(name, measurement.window) for name in names}
    return {name: value for name, value in means.items() if value is not None}


def _percentiles(values: Floats) -> dict[int, float]:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return {}
    return {p: float(v) for p, v in zip(PERCENTILES, np.percentile(finite, PERCENTILES), strict=True)}
