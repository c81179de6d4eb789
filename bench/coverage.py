"""How often intervals (``domain/measuring/stats.py``) hold, and how often a trend is seen, by simulation.

    python bench/coverage.py            # prints the tables, writes build/bench/coverage.json; about 2 minutes
    python bench/coverage.py --runs 50  # coarser

The engine is a toy: Poisson arrivals, log-normal lengths, and either a queue before slots of fixed speed
or a batch without end in which every request slows all others, as in decoding. Bounds of the SLA are the
simulation's own quantiles, so that the true attainment is known; the mean over all windows is the truth.
"""

from __future__ import annotations

import argparse
import heapq
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from autotune.domain.measuring.stats import (
    BLOCKS,
    Interval,
    proportion_interval,
    ratio_interval,
    repeat_interval,
    requests_to_show,
    trend,
)

Floats = NDArray[np.float64]

MEAN_TOKENS, SPREAD = 64.0, 0.7
PREFILL_S = 0.05
WARMUP_S, TAIL_S = 60.0, 10.0
HEADROOM = 0.8
SHARES = (0.9, 0.95, 0.99)
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Engine:
    """``slots`` requests at a time, each a token every ``step_s`` + ``share_s`` x (those running)."""

    slots: int
    step_s: float
    share_s: float

    @property
    def capacity_rps(self) -> float:
        per_token_s = self.step_s / self.slots + self.share_s
        return 1 / (MEAN_TOKENS * per_token_s)


ENGINES = {"queue": Engine(16, 0.02, 0.0), "batch": Engine(10**9, 0.01, 0.001)}
WINDOWS = ((0.5, 10), (0.5, 30), (0.5, 60), (0.7, 30), (0.7, 60), (0.8, 60), (0.8, 240), (0.9, 60))
"""(Share of capacity that is offered, seconds)"""


@dataclass(frozen=True, slots=True)
class Run:
    """One simulated window; by request and, along the path of the engine, time, tokens each got, joules."""

    due_s: Floats
    ttft_s: Floats
    tpot_s: Floats
    tokens: Floats
    begun_at_token: Floats
    path: Floats


@dataclass(frozen=True, slots=True)
class Blocks:
    """What a window's intervals are made of, by block."""

    good: Floats
    offered: Floats
    tokens: Floats
    tokens_by_due: Floats
    joules: Floats


def simulate(engine: Engine, rate_rps: float, window_s: float, rng: np.random.Generator) -> Run:
    """Run from empty, ``WARMUP_S`` before the window, event by event."""
    count = rng.poisson(rate_rps * (WARMUP_S + window_s + TAIL_S))
    due_s = np.sort(rng.uniform(-WARMUP_S, window_s + TAIL_S, count))
    tokens = rng.lognormal(np.log(MEAN_TOKENS) - SPREAD**2 / 2, SPREAD, count)
    prefill_s = rng.lognormal(np.log(PREFILL_S), 0.5, count)
    begun_s, begun_at, ended_s = np.zeros(count), np.zeros(count), np.zeros(count)
    arrivals, lengths = [*due_s.tolist(), np.inf], tokens.tolist()
    running: list[tuple[float, int]] = []
    now, token, joules = -WARMUP_S, 0.0, 0.0
    path = [(now, token, joules)]
    arrived = begun = 0
    while arrived < count or running:
        step_s = engine.step_s + engine.share_s * len(running)
        ends_s = now + (running[0][0] - token) * step_s if running else np.inf
        then = min(arrivals[arrived], ends_s)
        joules += (then - now) * (100 + 300 * len(running) / (len(running) + 10))
        if ends_s <= arrivals[arrived]:
            token, row = heapq.heappop(running)
            ended_s[row] = then
        else:
            token += (then - now) / step_s if running else 0.0
            arrived += 1
        now = then
        while begun < arrived and len(running) < engine.slots:
            begun_s[begun], begun_at[begun] = now, token
            heapq.heappush(running, (token + lengths[begun], begun))
            begun += 1
        path.append((now, token, joules))
    tpot_s = (ended_s - begun_s) / tokens
    return Run(due_s, begun_s - due_s + prefill_s, tpot_s, tokens, begun_at, np.array(path).T)


def blocks_of(run: Run, good: NDArray[np.bool_], window_s: float) -> Blocks:
    edges = np.linspace(0.0, window_s, BLOCKS + 1)
    time_s, token, joules = run.path
    reached = np.interp(edges, time_s, token)
    streamed = np.clip(reached[None] - run.begun_at_token[good, None], 0.0, run.tokens[good, None])
    return Blocks(
        good=np.histogram(run.due_s[good], edges)[0].astype(float),
        offered=np.histogram(run.due_s, edges)[0].astype(float),
        tokens=np.diff(streamed.sum(axis=0)),
        tokens_by_due=np.histogram(run.due_s[good], edges, weights=run.tokens[good])[0],
        joules=np.diff(np.interp(edges, time_s, joules)),
    )


def judged_s(run: Run, engine: Engine) -> Floats:
    """The latency that suffers: waiting where slots are few, speed where requests share it."""
    return run.tpot_s if engine.share_s else run.ttft_s


def windows_at(engine: Engine, load: float, window_s: float, runs: int) -> tuple[list[Run], Floats]:
    """Simulated windows, and the judged latencies of all requests due in them."""
    rng = np.random.default_rng(0)
    drawn = [simulate(engine, load * engine.capacity_rps, window_s, rng) for _ in range(runs)]
    inside = [judged_s(run, engine)[(run.due_s >= 0) & (run.due_s < window_s)] for run in drawn]
    return drawn, np.concatenate(inside)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Shares of windows in which an interval held; ``false_pass``: its lower end lay above the truth.

    ``far_false_pass``: above it by more than a third of what is missing to 1. ``plain_*`` take requests for
    independent, or tokens for scattered as they stream. ``at_headroom``: true share at ``HEADROOM`` x load.
    """

    engine: str
    load: float
    window_s: float
    share: float
    at_headroom: float
    requests: float
    design_effect: float
    plain_confidence: float
    confidence: float
    plain_false_pass: float
    false_pass: float
    far_false_pass: float
    mean: float
    plain_repeat: float
    repeat: float
    repeat_per_joule: float


def measure(case: tuple[str, tuple[float, float], int]) -> list[Row]:
    name, (load, window_s), runs = case
    engine = ENGINES[name]
    drawn, latencies_s = windows_at(engine, load, window_s, runs)
    _, relaxed_s = windows_at(engine, HEADROOM * load, window_s, runs)
    rows = []
    for share in SHARES:
        bound_s = np.quantile(latencies_s, share)
        windows = [blocks_of(run, judged_s(run, engine) <= bound_s, window_s) for run in drawn]
        known = {"engine": name, "load": load, "window_s": window_s, "share": share}
        rows.append(
            Row(**known, at_headroom=float(np.mean(relaxed_s <= bound_s)), **held_by(windows, window_s))
        )
    return rows


def held_by(windows: list[Blocks], window_s: float) -> dict[str, float]:
    offered = np.array([w.offered.sum() for w in windows])
    good = np.array([w.good.sum() for w in windows])
    share = good.sum() / offered.sum()
    rate = np.array([w.tokens.sum() for w in windows]) / window_s
    per_joule = np.array([w.tokens.sum() / w.joules.sum() for w in windows])
    seconds = np.full(BLOCKS, window_s / BLOCKS)
    shown = [proportion_interval(w.good, w.offered) for w in windows]
    plain = [wilson(g, n) for g, n in zip(good, offered, strict=True)]
    repeats = [repeat_interval(r, w.tokens_by_due, seconds) for r, w in zip(rate, windows, strict=True)]
    streamed = [repeat_interval(r, w.tokens, seconds) for r, w in zip(rate, windows, strict=True)]
    means = [ratio_interval(w.tokens_by_due, seconds) for w in windows]
    joules = [repeat_interval(r, w.tokens_by_due, w.joules) for r, w in zip(per_joule, windows, strict=True)]
    return {
        "requests": float(offered.mean()),
        "design_effect": float((good / offered).var() / (share * (1 - share) / offered.mean())),
        "plain_confidence": held(plain, np.full(len(windows), share)),
        "confidence": held(shown, np.full(len(windows), share)),
        "plain_false_pass": float(np.mean([i.low > share for i in plain])),
        "false_pass": float(np.mean([i.low > share for i in shown])),
        "far_false_pass": float(np.mean([i.low > share + (1 - share) / 3 for i in shown])),
        "mean": held(means, np.full(len(windows), rate.mean())),
        # Each window's neighbour is an independent repeat of it.
        "plain_repeat": held(streamed, np.roll(rate, 1)),
        "repeat": held(repeats, np.roll(rate, 1)),
        "repeat_per_joule": held(joules, np.roll(per_joule, 1)),
    }


def wilson(good: float, offered: float, z: float = 1.645) -> Interval:
    """Interval of a proportion of independent requests."""
    share = good / offered
    centre = (share + z**2 / (2 * offered)) / (1 + z**2 / offered)
    half = z / (1 + z**2 / offered) * np.sqrt(share * (1 - share) / offered + z**2 / (4 * offered**2))
    return Interval(centre - half, centre + half)


def held(intervals: list[Interval], truths: Floats) -> float:
    return float(np.mean([i.low <= t <= i.high for i, t in zip(intervals, truths, strict=True)]))


def autoregression(correlation: float, count: int, rng: np.random.Generator) -> Floats:
    values = np.empty(count)
    values[0] = rng.normal()
    for i in range(1, count):
        values[i] = correlation * values[i - 1] + np.sqrt(1 - correlation**2) * rng.normal()
    return values


def queue_lengths(
    slots: int, load: float, requests: int, rng: np.random.Generator, *, samples: int = 64
) -> Floats:
    """Requests in an M/M/c queue, sampled evenly while so many arrive; steady at first where it can be."""
    arrive = load * slots
    events_per_sample = max(1, round(requests * (arrive + slots) / arrive / samples))
    skipped = 40 if load < 1 else 0
    draws = rng.random((samples + skipped) * max(events_per_sample, 50)) * (arrive + slots)
    count, path = int(slots * min(load, 0.8)), []
    for draw in draws.tolist():
        path.append(count)
        if draw < arrive:
            count += 1
        elif draw >= arrive + slots - min(count, slots):
            count -= 1
    return np.array(path[-samples * events_per_sample :: events_per_sample], dtype=float)


def trends(runs: int) -> list[dict[str, object]]:
    """Shares of series in which a trend is significant and upward."""
    rng = np.random.default_rng(0)
    series = {
        f"AR(1), correlation {rho}, {count} values": lambda rho=rho, count=count: autoregression(
            rho, count, rng
        )
        for rho, count in product((0.0, 0.5, 0.8), (20, 60))
    } | {
        f"M/M/{slots} at {load} of capacity, {count} requests": lambda slots=slots, load=load, count=count: (
            queue_lengths(slots, load, count, rng)
        )
        for load, slots, count in product((0.8, 1.2, 1.5), (4, 16), (100, 300))
    }
    rows: list[dict[str, object]] = []
    for name, draw in series.items():
        found = [trend(draw()) for _ in range(runs)]
        rising = np.mean([t.significant and t.slope > 0 for t in found])
        either = np.mean([t.significant for t in found])
        rows.append({"series": name, "rising": float(rising), "significant": float(either)})
    return rows


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--runs", type=int, default=400)
    runs = options.parse_args().runs
    with ProcessPoolExecutor(2) as pool:
        measured = pool.map(measure, [(n, w, runs) for n, w in product(ENGINES, WINDOWS)])
        rows = [asdict(row) for part in measured for row in part]
    report = {
        "intervals": rows,
        "trends": trends(5 * runs),
        "requests_to_show": {str(share): requests_to_show(share) for share in SHARES},
    }
    out = ROOT / "build" / "bench" / "coverage.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=2))
    show(rows)
    show(report["trends"])
    print(report["requests_to_show"])


def show(rows: list[dict]) -> None:
    table = Table(*(str(key).replace("_", " ") for key in rows[0]))
    for row in rows:
        cells = [
            f"{v:.3g}" if k in COUNTS else f"{v:.2f}" if isinstance(v, float) else str(v)
            for k, v in row.items()
        ]
        table.add_row(*cells)
    Console(width=200).print(table)


COUNTS = ("requests", "design_effect", "window_s", "share", "load")


if __name__ == "__main__":
    main()
