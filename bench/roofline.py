"""How near the built-in roofline comes to published measurements; ``--fit`` calibrates its constants anew.

Prints, for throughput per GPU and TPOT of the rows of ``inferencex.csv``: error, and rank correlation within
each problem (model, hardware, prompt, output) and over all; then what launching the forecast's favourites
would have cost at an SLA, which is what a prior is for.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from math import erf, log, sqrt
from pathlib import Path
from typing import TypeVar

import numpy as np

from autotune.domain.search.forecast import Deployment, Forecast, Traffic
from autotune.domain.search.roofline import EFFICIENCY, Efficiency
from bench.recorded import Row, accelerator, inferencex_config, model_shape, read_rows, served_as
from bench.roofline_power import fitted_power, mlenergy, power_errors, throughput_errors

INTERACTIVITY = (20.0, 50.0, 100.0)
FEWEST_CONFIGS = 12
SPREAD = 1.25
"""First step of the calibration, as a factor on a constant."""

CAPPED = {"memory": 0.95, "compute": 0.95, "attention": 0.95, "link": 0.95, "acceptance": 0.9}
KEPT = {"drafted"}

TPOT_DEVIATION = 0.3
"""Of the logarithm of measured over forecast TPOT."""

T = TypeVar("T")
Problem = tuple[str, str, str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A recorded row beside its forecast; throughput is output tokens per second of one GPU."""

    row: Row
    forecast: Forecast

    @property
    def problem(self) -> Problem:
        return self.row["model"], self.row["hardware"], self.row["isl"], self.row["osl"]

    @property
    def measured(self) -> float:
        return float(self.row["out_tput_per_gpu_est"])

    @property
    def forecast_rate(self) -> float:
        return self.forecast.output_tok_s / float(self.row["n_gpus"])

    @property
    def measured_tpot_s(self) -> float:
        return float(self.row["median_tpot_s"])


def points(rows: Sequence[Row], models: Path, efficiency: Efficiency) -> list[Point]:
    """Forecasts of the rows whose model and accelerator are known."""
    deployments: dict[str, Deployment | None] = {}
    found = []
    for row in rows:
        if row["config_id"] not in deployments:
            deployments[row["config_id"]] = _deployment(row, models, efficiency)
        deployment = deployments[row["config_id"]]
        if deployment is not None and row["n_gpus"]:
            found.append(Point(row=row, forecast=deployment.forecast(_traffic(row))))
    return found


def _deployment(row: Row, models: Path, efficiency: Efficiency) -> Deployment | None:
    shape, chip = model_shape(models, row["model"]), accelerator(row["hardware"])
    if shape is None or chip is None or chip.performance is None:
        return None
    return Deployment(
        served_as(shape, row["precision"]), chip.performance, inferencex_config(row), efficiency
    )


def _traffic(row: Row) -> Traffic:
    return Traffic(
        prompt_tokens=float(row["isl"]), output_tokens=float(row["osl"]), concurrency=float(row["conc"])
    )


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's, ties by order."""
    ranks = [np.argsort(np.argsort(values)) for values in (one, other)]
    return float(np.corrcoef(*ranks)[0, 1])


def loss(found: Sequence[Point]) -> float:
    """Mean absolute log error of throughput and TPOT; every pair of model and hardware counts alike."""
    errors: dict[tuple[str, str], list[float]] = defaultdict(list)
    for point in found:
        rate = abs(np.log(point.forecast_rate / point.measured))
        tpot = abs(np.log(point.forecast.tpot_s / point.measured_tpot_s))
        errors[point.problem[:2]].append(float(rate + tpot) / 2)
    return float(np.mean([np.mean(each) for each in errors.values()]))


def fitted(rows: Sequence[Row], models: Path, start: Efficiency, rounds: int) -> Efficiency:
    """A pattern search over the constants, one at a time, each by a factor that shrinks."""
    best, least, factor = start, loss(points(rows, models, start)), SPREAD
    names = [field.name for field in fields(Efficiency) if field.name not in KEPT]
    for _ in range(rounds):
        for name in names:
            for step in (factor, 1 / factor):
                value = min(getattr(best, name) * step, CAPPED.get(name, np.inf))
                tried = replace(best, **{name: float(value)})
                if (now := loss(points(rows, models, tried))) < least:
                    best, least = tried, now
                    break
        factor = 1 + (factor - 1) * 0.7
    return best


def report(found: Sequence[Point]) -> dict[str, float]:
    """Errors as factors, correlations, and what the favourite loses; medians unless named otherwise."""
    rate = np.log([p.forecast_rate / p.measured for p in found])
    tpot = np.log([p.forecast.tpot_s / p.measured_tpot_s for p in found])
    by_problem = _grouped(found, lambda p: p.problem)
    large = [g for g in by_problem.values() if len({p.row["config_id"] for p in g}) >= FEWEST_CONFIGS]
    correlations = [rank_correlation([p.forecast_rate for p in g], [p.measured for p in g]) for g in large]
    return {
        "rows": len(found),
        "throughput_error": float(np.median(np.expm1(abs(rate)))),
        "throughput_error_p90": float(np.quantile(np.expm1(abs(rate)), 0.9)),
        "throughput_bias": float(np.exp(np.median(rate))),
        "tpot_error": float(np.median(np.expm1(abs(tpot)))),
        "tpot_bias": float(np.exp(np.median(tpot))),
        "rank_pooled": rank_correlation([p.forecast_rate for p in found], [p.measured for p in found]),
        "problems": len(large),
        "rank_within": float(np.median(correlations)) if large else float("nan"),
        "rank_within_p10": float(np.quantile(correlations, 0.1)) if large else float("nan"),
    }


def choices(found: Sequence[Point], pooled: bool) -> list[dict[str, float]]:
    """For every problem and SLA: rank correlation of configurations, and regret of those forecast best."""
    groups = _grouped(found, lambda p: (p.problem[0], *p.problem[2:]) if pooled else p.problem)
    rows = []
    for group in groups.values():
        for least in INTERACTIVITY:
            worth = _worth(group, least)
            measured, forecast = (np.array([pair[k] for pair in worth.values()]) for k in (0, 1))
            if len(worth) < FEWEST_CONFIGS or np.count_nonzero(measured) < 3:
                continue
            order = np.argsort(-forecast, kind="stable")
            regret = [1 - measured[order[:n]].max() / measured.max() for n in (1, 3, 5)]
            launches = int(np.argmax(measured[order] >= 0.95 * measured.max())) + 1
            rows.append(
                {
                    "rank": rank_correlation(forecast, measured),
                    "regret_1": regret[0],
                    "regret_3": regret[1],
                    "regret_5": regret[2],
                    "launches": launches,
                }
            )
    return rows


def _worth(group: Sequence[Point], least: float) -> dict[str, tuple[float, float]]:
    """Output tokens per provisioned kilojoule at this interactivity: most measured, most forecast."""
    worth: dict[str, tuple[float, float]] = {}
    for point in group:
        kilowatts = float(point.row["allin_kw_per_gpu"])
        measured = point.measured / kilowatts if 1 / point.measured_tpot_s >= least else 0.0
        # Worth what it serves times the chance that it does so fast enough, since recorded loads are steps.
        deviations = log(1 / point.forecast.tpot_s / least) / TPOT_DEVIATION
        forecast = point.forecast_rate / kilowatts * (1 + erf(deviations / sqrt(2))) / 2
        before = worth.get(point.row["config_id"], (0.0, 0.0))
        worth[point.row["config_id"]] = (max(before[0], measured), max(before[1], forecast))
    return worth


def _grouped(found: Iterable[T], key: Callable[[T], object]) -> dict[object, list[T]]:
    groups: dict[object, list[T]] = defaultdict(list)
    for point in found:
        groups[key(point)].append(point)
    return groups


def show(title: str, figures: Mapping[str, float]) -> None:
    print(f"{title:24}" + "  ".join(f"{name} {value:.3g}" for name, value in figures.items()))


def show_choices(found: Sequence[Point]) -> None:
    for pooled in (False, True):
        rows = choices(found, pooled)
        if rows:
            means = {f"mean {k}": float(np.mean([r[k] for r in rows])) for k in rows[0]}
            medians = {f"median {k}": float(np.median([r[k] for r in rows])) for k in rows[0]}
            show("pooled" if pooled else "per hardware", {"problems": len(rows), **means, **medians})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", type=Path, help="folder with inferencex.csv")
    parser.add_argument(
        "models", type=Path, help="folder with a config.json per model, named as the tables do"
    )
    parser.add_argument(
        "--fit", type=int, metavar="ROUNDS", default=0, help="calibrate, leaving each model out"
    )
    given = parser.parse_args()
    rows = [row for row in read_rows(given.tables / "inferencex.csv") if row["n_gpus"]]
    found = points(rows, given.models, EFFICIENCY)
    for key in ("model", "hardware", "disagg", "spec_method"):
        for name, group in sorted(_grouped(found, lambda p: p.row[key]).items(), key=str):  # noqa: B023
            show(f"{key} {name}", report(group))
    show("all", report(found))
    show_choices(found)
    show_mlenergy(given.tables / "mlenergy.csv", given.models, found)
    if given.fit:
        fit(rows, given.models, given.fit)


def show_mlenergy(table: Path, models: Path, found: Sequence[Point]) -> None:
    """Throughput of ML.ENERGY's rows, and watts of both tables: as shipped, and by the other table's fit."""
    if not table.is_file():
        return
    saturated = mlenergy(table, models)
    forecast, measured = throughput_errors(saturated)
    ratios = np.log(np.array(forecast) / np.array(measured))
    figures = {
        "rows": len(saturated),
        "throughput_error": float(np.median(np.expm1(abs(ratios)))),
        "throughput_bias": float(np.exp(np.median(ratios))),
        "rank_pooled": rank_correlation(forecast, measured),
    }
    groups = _grouped(range(len(saturated)), lambda n: (saturated[n][0]["task"], saturated[n][0]["model_id"]))
    large = [g for g in groups.values() if len(g) >= FEWEST_CONFIGS]
    within = [rank_correlation([forecast[n] for n in g], [measured[n] for n in g]) for g in large]
    show("mlenergy", figures | {"problems": len(large), "rank_within": float(np.median(within))})
    gpus = [(float(r["avg_power_watts"]) / int(r["num_gpus"]), f, r["gpu_model"]) for r, f in saturated]
    watts = {"mlenergy": [(_tdp_w(gpu), w, f) for w, f, gpu in gpus]}
    watts["inferencex"] = [
        (float(p.row["tdp_w"]), float(p.row["measured_avg_gpu_power_w_est"]), p.forecast)
        for p in found
        if p.row["energy_measured"] == "True"
    ]
    for name, rows in watts.items():
        errors = power_errors(rows)
        idle, memory, compute = fitted_power(rows)
        figures = {"rows": len(rows), "watts_error": float(np.median(errors))}
        show(f"watts {name}", figures | {"idle": idle, "memory": memory, "compute": compute})


def _tdp_w(name: str) -> float:
    chip = accelerator(name)
    assert chip is not None
    return chip.tdp_w


def fit(rows: Sequence[Row], models: Path, rounds: int) -> None:
    """Print constants fitted to all rows, and errors on each model by those fitted to the others."""
    thinned = rows[::5]
    for left in sorted({row["model"] for row in rows}):
        efficiency = fitted([r for r in thinned if r["model"] != left], models, EFFICIENCY, rounds)
        show(f"without {left}", report(points([r for r in rows if r["model"] == left], models, efficiency)))
    print(json.dumps(asdict(fitted(thinned, models, EFFICIENCY, rounds))))


if __name__ == "__main__":
    main()
