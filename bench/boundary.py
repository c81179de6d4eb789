"""What the search for the load boundary costs and how well it finds capacity, on simulated engines.

    python bench/boundary.py           # prints a table, writes build/bench/boundary.json; about 3 minutes
    python bench/boundary.py --runs 5  # coarser

The engines are those of ``coverage.py``: Poisson arrivals, log-normal lengths, a queue before slots or a
batch in which every request slows the others. Windows are steered as on a real engine. Each engine has
two SLAs, whose bounds are the simulation's own quantiles at a known load: that load is the true capacity.
``halving`` is the search that this one took the place of: down by halves, up by thirds, then bisection.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
from coverage import ENGINES as TOYS
from coverage import WARMUP_S, Engine, Run, judged_s, simulate
from rich.console import Console
from rich.table import Table

from autotune.domain.judging.scoring import holding, is_same_rate, score_curve, score_level
from autotune.domain.judging.sla import Bounds, JointSla, Sla
from autotune.domain.judging.window import Over, Stage, Warming, WindowRules, advance
from autotune.domain.load.level import Level
from autotune.domain.load.progress import EndedRequests, Progress
from autotune.domain.measuring.measurement import (
    ClientHealth,
    LoadCurve,
    Measurement,
    RequestRecord,
    RequestTable,
    WindowEnd,
)
from autotune.domain.measuring.power import PowerBasis, PowerTrace, Window
from autotune.domain.search.boundary import BoundarySettings, Foreknowledge, Length, Step, Stop, next_level
from autotune.domain.search.capacity import Expectation

ROOT = Path(__file__).resolve().parents[1]
ENGINES = TOYS | {"queue": Engine(3, 0.004, 0.0)}
LOADS = (0.5, 0.85)
"""True capacities of the two SLAs, as shares of what the engine sustains."""
ATTAINMENT = 0.95
SETTINGS = BoundarySettings()
LONGEST_S = {Length.BRIEF: 60.0, Length.SHORT: 60.0, Length.LONG: 120.0}
PRECISION = {Length.BRIEF: 1.0, Length.SHORT: 0.1, Length.LONG: 0.05}
NO_POWER = PowerTrace(basis=PowerBasis.NONE, source="none", period_s=1.0, devices=())
HEALTHY = ClientHealth(lag_p99_s=0.0, cpu_share=0.1)
SCALES = (0.3, 1.0, 3.0)
"""Speeds of the engines: a slow one offers fewer requests to tell by."""
Chooser = Callable[[LoadCurve, Sequence[Sla]], Step | Stop]


def scaled(engine: Engine, scale: float) -> Engine:
    return replace(engine, step_s=engine.step_s / scale, share_s=engine.share_s / scale)


def slas_of(engine: Engine) -> tuple[Sla, ...]:
    """SLAs whose capacities are LOADS of what the engine sustains."""
    slas = []
    metric = "tpot" if engine.share_s else "ttft"
    for load in LOADS:
        run = simulate(
            engine, load * engine.capacity_rps, 20_000 / engine.capacity_rps, np.random.default_rng(1)
        )
        bound_s = float(np.quantile(judged_s(run, engine)[run.due_s >= 0], ATTAINMENT))
        bounds = Bounds.model_validate({metric: f"{bound_s * 1e6:.0f}us"})
        slas.append(JointSla(name=f"{load:g}", attainment=ATTAINMENT, slos=bounds))
    return tuple(slas)


def table_of(run: Run) -> RequestTable:
    """Requests from time 0, each with a first chunk and a last one."""
    records = []
    columns = (run.due_s + WARMUP_S, run.ttft_s, run.tpot_s, np.maximum(np.round(run.tokens), 2))
    for due_s, ttft_s, tpot_s, tokens in zip(*(c.tolist() for c in columns), strict=True):
        first_s = due_s + ttft_s
        last_s = first_s + tpot_s * (tokens - 1)
        records.append(
            RequestRecord(
                due_s=due_s,
                sent_s=due_s,
                finished_s=last_s,
                chunk_s=(first_s, last_s),
                output_tokens=int(tokens),
                status=200,
            )
        )
    return RequestTable.of(records)


def measure(
    engine: Engine, step: Step, slas: Sequence[Sla], rng: np.random.Generator
) -> tuple[Measurement, float]:
    """A level on a simulated engine, and the seconds it took."""
    if step.level.concurrency is not None:
        return closed_loop(engine, step.level), 15.0
    rate_rps = step.level.rate_rps or 0.0
    rules = WindowRules(
        slas=tuple(slas),
        rate_rps=rate_rps,
        dispersion=1.0,
        warmup_s=2.0,
        longest_warmup_s=60.0,
        shortest_s=10.0,
        longest_s=LONGEST_S[step.length],
        precision=PRECISION[step.length],
    )
    table = table_of(simulate(engine, rate_rps, rules.longest_run_s - WARMUP_S, rng))
    stage: Stage = Warming()
    at_s = 0.0
    while not isinstance(stage, Over):
        at_s += 1.0
        stage = advance(stage, progress_at(table, at_s), rules)
    known = table.take(np.flatnonzero(table.due_s < at_s))
    if stage.end is WindowEnd.OVERSATURATED:
        unfinished = known.finished_s > at_s
        errors = tuple("cut" if late else "" for late in unfinished)
        known = replace(known, error=errors)
    found = Measurement(
        level=step.level,
        window=stage.window,
        requests=known,
        power=NO_POWER,
        health=HEALTHY,
        ended=stage.end,
        steady=stage.steady,
    )
    return found, at_s


def progress_at(table: RequestTable, at_s: float) -> Progress:
    ended = np.flatnonzero(table.finished_s < at_s)
    rows = table.take(ended)
    return Progress(
        started_s=0.0,
        at_s=at_s,
        due_s=table.due_s[table.due_s < at_s],
        ended=EndedRequests(
            due_s=rows.due_s,
            first_token_s=rows.first_token_s,
            last_token_s=rows.last_token_s,
            finished_s=rows.finished_s,
            tpot_s=rows.tpot_s,
            stall_s=np.zeros(len(rows)),
            output_tokens=rows.output_tokens,
            ok=rows.ok,
        ),
    )


def closed_loop(engine: Engine, level: Level) -> Measurement:
    """What so many users at once sustain, in a steady stream."""
    running = min(level.concurrency or 1, engine.slots)
    rate_rps = running / (64.0 * (engine.step_s + engine.share_s * running))
    window = Window(0.0, 10.0)
    due_s = np.arange(0.0, window.end_s, 1 / rate_rps)
    zeros = np.zeros(len(due_s))
    run = Run(due_s - WARMUP_S, zeros, zeros + 1e-6, zeros + 64, zeros, zeros)
    return Measurement(level=level, window=window, requests=table_of(run), power=NO_POWER, health=HEALTHY)


# --- the search that was


def halving(curve: LoadCurve, slas: Sequence[Sla]) -> Step | Stop:
    level = _halving(curve, slas)
    return Step(level, Length.SHORT) if isinstance(level, Level) else level


def _halving(curve: LoadCurve, slas: Sequence[Sla]) -> Level | Stop:
    if not curve:
        return Level("w", concurrency=SETTINGS.saturating_concurrency)
    saturated_rps = curve[0].sustained_rps
    measured = [m.level.rate_rps for m in curve if m.level.rate_rps is not None]
    if not measured:
        return Level("w", rate_rps=0.9 * saturated_rps)
    brackets = []
    for sla in slas:
        scored = [score_level(m, sla) for m in curve if m.level.rate_rps is not None]
        met = max((s.rate_rps for s in holding(scored)), default=None)
        failed = [s.rate_rps for s in scored if not s.may_hold and s.rate_rps > (met or 0)]
        brackets.append((met, min(failed, default=None)))
    operating = [SETTINGS.headroom * met for met, _ in brackets if met is not None]
    due = [r for r in operating if not any(is_same_rate(m, r) for m in measured)]
    brackets.sort(key=lambda b: b[0] is not None)
    narrowing = [r for b in brackets if (r := _narrow(*b, saturated_rps)) is not None]
    narrowing = [r for r in narrowing if not any(is_same_rate(m, r) for m in measured)]
    spare = SETTINGS.most_levels - len(measured)
    if not narrowing and not due:
        return Stop("every capacity and operating point measured")
    if spare <= 0:
        return Stop("most levels measured")
    wanted = narrowing if narrowing and spare > len(due) else due or narrowing
    return Level("w", rate_rps=wanted[0])


def _narrow(met: float | None, failed: float | None, saturated: float) -> float | None:
    if met is None and failed is not None:
        lower = failed / (2 if failed > saturated / 4 else 4)
        return lower if lower > saturated / 64 else None
    if met is not None and failed is None:
        return met * 4 / 3 if met * 4 / 3 < saturated * 1.5 else None
    if met is not None and failed is not None and failed / met > 1 + SETTINGS.tolerance:
        return math.sqrt(met * failed)
    return None


# --- the comparison

OFF = {
    "cold": None,
    "expected within 20 %": 0.2,
    "expected 3 x too high": math.log(3),
    "3 x too low": -math.log(3),
}
"""How the new search starts: with nothing known, or with an expectation that is off by so much."""


def chooser(method: str, engine: Engine, rng: np.random.Generator) -> Chooser:
    if method == "halving":
        return halving
    off = OFF[method]
    expected = {}
    if off is not None:
        shift = rng.normal(0, off) if abs(off) < 1 else off
        expected = {
            f"{load:g}": Expectation(rps=load * engine.capacity_rps * math.exp(shift), spread=0.3)
            for load in LOADS
        }
    known = Foreknowledge(expected=expected)
    return lambda curve, slas: next_level(curve, slas, "w", SETTINGS, known)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One launch: ``capacity`` and ``operating`` are ratios to the truth, NaN for what was not found."""

    levels: int
    seconds: float
    capacity: tuple[float, ...]
    operating: tuple[float, ...]


def launch(method: str, engine: Engine, slas: Sequence[Sla], seed: int) -> Outcome:
    rng = np.random.default_rng(seed)
    choose, curve, seconds = chooser(method, engine, rng), (), 0.0
    while isinstance(step := choose(curve, slas), Step):
        found, took_s = measure(engine, replace(step), slas, rng)
        curve, seconds = (*curve, found), seconds + took_s
    scores = [score_curve(curve, sla, "w") for sla in slas]
    truths = [load * engine.capacity_rps for load in LOADS]
    return Outcome(
        len(curve),
        seconds,
        tuple((s.capacity_rps or math.nan) / t for s, t in zip(scores, truths, strict=True)),
        tuple(
            (s.operating.rate_rps if s.operating else math.nan) / (SETTINGS.headroom * t)
            for s, t in zip(scores, truths, strict=True)
        ),
    )


def case(which: tuple[str, float, int]) -> list[dict[str, object]]:
    name, scale, runs = which
    engine = scaled(ENGINES[name], scale)
    slas = slas_of(engine)
    rows = []
    for method in ("halving", *OFF):
        outcomes = [launch(method, engine, slas, seed) for seed in range(runs)]
        rows.append({"engine": f"{name} {scale:g}x", "method": method, **summary(outcomes)})
    return rows


def summary(outcomes: Sequence[Outcome]) -> dict[str, float]:
    capacity = np.array([o.capacity for o in outcomes])
    operating = np.array([o.operating for o in outcomes])
    error = np.abs(np.log(capacity))
    return {
        "levels": float(np.mean([o.levels for o in outcomes])),
        "seconds": float(np.mean([o.seconds for o in outcomes])),
        "capacity_over_truth": float(np.nanmedian(capacity)),
        "capacity_error": float(np.nanmean(error)),
        "too_high_by_15pct": float(np.nanmean(capacity > 1.15)),
        "operating_over_truth": float(np.nanmedian(operating)),
        "operating_error": float(np.nanmean(np.abs(np.log(operating)))),
        "not_found": float(np.mean(np.isnan(operating))),
    }


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--runs", type=int, default=30)
    runs = options.parse_args().runs
    with ProcessPoolExecutor(2) as pool:
        parts = list(pool.map(case, [(n, s, runs) for n, s in product(ENGINES, SCALES)]))
    rows = [row for part in parts for row in part]
    overall = []
    for method in ("halving", *OFF):
        own = [row for row in rows if row["method"] == method]
        means = {k: float(np.mean([row[k] for row in own])) for k in own[0] if k not in {"engine", "method"}}
        overall.append({"engine": "all", "method": method, **means})
    out = ROOT / "build" / "bench" / "boundary.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"runs": runs, "rows": rows, "overall": overall}, indent=2))
    table = Table(*(str(key).replace("_", " ") for key in overall[0]))
    for row in [*rows, *overall]:
        table.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console(width=180).print(table)


if __name__ == "__main__":
    main()
