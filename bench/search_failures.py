"""A simulated space in which some configurations fail: launches wasted on them, ours beside random and TPE.

    python bench/search_failures.py ../shared/replay

Recorded runs (columns llm, gpu, n_gpus, users, oom): one problem per model that ran out of memory somewhere.
Every search starts cold; a point is a recorded run, what is suggested elsewhere goes to the nearest one.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import create_trial
from rich.console import Console
from rich.table import Table
from search_tables import Row, read_tables

from autotune.adapters.search.sampler import SurrogateSampler

LAUNCHES, FREE, SEEDS = 25, 10, 10
DIMENSIONS = ("gpu", "n_gpus", "users")

METHODS: dict[str, Callable[[int, Sequence[Row]], BaseSampler]] = {
    "random": lambda seed, _: RandomSampler(seed=seed),
    "tpe": lambda seed, _: TPESampler(seed=seed, multivariate=True, n_startup_trials=5),
    "autotune": lambda seed, rows: SurrogateSampler(seed=seed, points=lambda _best: points_of(rows)),
}


def points_of(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What ours chooses among, as in a study: configurations that there are."""
    return [{name: row[name] for name in DIMENSIONS} for row in rows]


def played(rows: Sequence[Row], sampler: BaseSampler) -> tuple[int, float]:
    """Launches wasted after the first ten, and the share of the best that was missed."""
    space: dict[str, BaseDistribution] = {
        name: CategoricalDistribution(sorted({row[name] for row in rows})) for name in DIMENSIONS
    }
    places = np.array([[_place(space[n], row[n]) for n in DIMENSIONS] for row in rows])
    values = np.array([0.0 if row["oom"] else row["out_tok_s_per_gpu"] for row in rows])
    study = optuna.create_study(direction="maximize", sampler=sampler)
    left, wasted, best = set(range(len(rows))), 0, 0.0
    for number in range(min(LAUNCHES, len(rows))):
        asked = study.ask(space)
        at = np.array([_place(space[n], asked.params[n]) for n in DIMENSIONS])
        study.tell(asked, state=optuna.trial.TrialState.FAIL)
        index = min(sorted(left), key=lambda k: float(np.abs(places[k] - at).sum()))
        left.remove(index)
        fails = bool(rows[index]["oom"])
        wasted += fails and number >= FREE
        best = max(best, values[index])
        params = {name: rows[index][name] for name in DIMENSIONS}
        trial = create_trial(params=params, distributions=space, value=float(values[index]))
        trial.set_constraint("runs", 1.0 if fails else -1.0)
        study.add_trial(trial)
    return wasted, 1 - best / values.max()


def _place(distribution: BaseDistribution, value: object) -> float:
    assert isinstance(distribution, CategoricalDistribution)
    return distribution.choices.index(value) / max(len(distribution.choices) - 1, 1)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", type=Path)
    tables = read_tables(parser.parse_args().tables)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    by_model: dict[str, list[Row]] = defaultdict(list)
    for row in tables.failures:
        by_model[row["llm"]].append(row)
    problems = {m: rows for m, rows in sorted(by_model.items()) if any(row["oom"] for row in rows)}
    if not problems:
        raise SystemExit("no recorded run was out of memory: columns llm, gpu, n_gpus, users, oom are needed")
    table = Table(title=f"{len(problems)} models, {LAUNCHES} launches, {SEEDS} seeds, cold")
    for name in ("method", f"wasted after {FREE}", f"share lost after {LAUNCHES}"):
        table.add_column(name)
    console = Console()
    for method, make in METHODS.items():
        with console.status(method):
            runs = [played(rows, make(seed, rows)) for rows in problems.values() for seed in range(SEEDS)]
        wasted, lost = np.mean(runs, axis=0)
        table.add_row(method, f"{wasted:.2f}", f"{lost:.1%}")
    console.print(table)


if __name__ == "__main__":
    main()
