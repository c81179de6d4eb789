"""Ours beside random search and TPE on the table of real launches that ``bench/real_table.py`` made.

    python bench/search_real.py          # seconds

A launch reveals what the table has of a configuration. All choose among those that nothing refuses on
paper, in one search for both SLAs, the defaults first, as a study does. What a sampler suggests elsewhere
goes to the nearest configuration left. Ours plays twice: knowing nothing, and with the roofline of a core.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import CategoricalDistribution
from optuna.samplers import BaseSampler
from real_table import study_of
from rich.console import Console
from rich.table import Table

from autotune.adapters.files.model_files import ModelFiles
from autotune.adapters.search.sampler import Foresee, SurrogateSampler
from autotune.adapters.search.study import FEASIBILITY, baseline_sampler
from autotune.domain.configs.space import DEFAULT
from autotune.domain.hardware.accelerators import Performance, Source
from autotune.domain.search.roofline_prior import SOURCE, Footing, RooflinePrior
from autotune.runs.priors import Priors
from autotune.wiring.bench import planner_for, traffic_of
from autotune.wiring.priors import promises

TABLE = Path(__file__).resolve().parent / "data" / "vllm_cpu_table.jsonl"
SEEDS = 10
CLOSE = 0.95
NOISE = 0.1
"""Of what a launch reveals: about what one launch of a configuration differs from another here."""
AFTER = (3, 5, 10)
CORES = 2
CORE = Performance(
    memory_gb=25.3,
    memory_gb_s=18.8,
    dense_tflops={32: 0.078, 16: 0.010},
    link_gb_s=18.8,
    network_gb_s=18.8,
    source=Source(
        where="adapters/engines/core_peaks.py on a machine like the table's, torch 2.13",
        date=datetime.date(2026, 11, 22),
    ),
)
Floats = NDArray[np.float64]
Params = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Recorded:
    """Configurations as points, their objectives [configurations, SLAs], and which could run."""

    points: tuple[Params, ...]
    objectives: Floats
    runs: tuple[bool, ...]

    @property
    def shares(self) -> Floats:
        """Objectives as shares of the best."""
        return self.objectives / self.objectives.max(axis=0)


def recorded(path: Path) -> Recorded:
    """The table without what was refused on paper; the words that all have in common are left out."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [row for row in rows if row["state"] != "rejected"]
    names = sorted({word for row in rows for word in row["words"]})
    varying = [name for name in names if len({repr(row["words"].get(name)) for row in rows}) > 1]
    return Recorded(
        tuple({name: row["words"].get(name, DEFAULT) for name in varying} for row in rows),
        np.array([list(row["objectives"].values()) for row in rows]),
        tuple(row["state"] == "measured" for row in rows),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """A search: the mean over SLAs of the best share so far, after each launch; launches that did not run."""

    shares: Floats
    failed: int

    def launches_to(self, share: float) -> int:
        """Launches until it has so much of the best, of every SLA in the mean."""
        return int(np.argmax(self.shares >= share)) + 1


def replayed(table: Recorded, sampler: BaseSampler, seed: int) -> Replay:
    """Launch all configurations in the order that a sampler gives them, the defaults first."""
    names = list(table.points[0])
    space = {
        name: CategoricalDistribution(list(dict.fromkeys(point[name] for point in table.points)))
        for name in names
    }
    study = optuna.create_study(directions=["maximize"] * table.objectives.shape[1], sampler=sampler)
    rng = np.random.default_rng(seed)
    left, order = list(range(len(table.points))), []
    while left:
        place = 0
        if order:
            asked = study.ask(space)
            study.tell(asked, state=optuna.trial.TrialState.FAIL)
            place = min(left, key=lambda k: sum(table.points[k][n] != asked.params[n] for n in names))
        left.remove(place)
        order.append(place)
        noise = np.exp(NOISE * rng.standard_normal(table.objectives.shape[1]))
        trial = optuna.trial.create_trial(
            params=dict(table.points[place]),
            distributions=space,
            values=list(table.objectives[place] * noise),
        )
        trial.set_constraint(FEASIBILITY, -1.0 if table.runs[place] else 1.0)
        study.add_trial(trial)
    shares = np.maximum.accumulate(table.shares[order], axis=0).mean(axis=1)
    return Replay(shares=shares, failed=sum(not table.runs[k] for k in order[:10]))


def roofline() -> Foresee:
    """What is foreseen of points on these cores, for each SLA."""
    study = study_of("dense")
    shape = ModelFiles().shape(study.model)
    assert shape is not None, f"{study.model} is missing; run: make bench-search-real"
    asked = promises(study, planner_for(study, traffic_of(study)))
    prior = RooflinePrior(shape, Footing.of_cores(CORE, CORES), asked)
    priors, (branch,) = Priors({SOURCE: prior}, [sla.name for sla in study.slas]), study.branches
    return lambda points: priors.foresee([branch.config_at(point) for point in points])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", type=Path, nargs="?", default=TABLE)
    table = recorded(parser.parse_args().table)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    foresee = roofline()
    methods: dict[str, Callable[[int], BaseSampler]] = {
        "random": lambda seed: baseline_sampler("random", seed),
        "tpe": lambda seed: baseline_sampler("tpe", seed),
        "autotune": lambda seed: SurrogateSampler(seed=seed, points=lambda _best: table.points),
        "autotune, roofline": lambda seed: SurrogateSampler(
            seed=seed, points=lambda _best: table.points, foresee=foresee
        ),
    }
    slas = table.objectives.shape[1]
    shown = Table(title=f"{len(table.points)} configurations, {slas} SLAs, {SEEDS} seeds")
    for name in ("method", "launches to 5 %", *(f"regret after {k}" for k in AFTER), "failed of 10"):
        shown.add_column(name, justify="right")
    for name, make in methods.items():
        runs = [replayed(table, make(seed), seed) for seed in range(SEEDS)]
        to = [run.launches_to(CLOSE) for run in runs]
        regret = [f"{np.mean([1 - run.shares[k - 1] for run in runs]):.1%}" for k in AFTER]
        failed = f"{np.mean([run.failed for run in runs]):.1f}"
        shown.add_row(name, f"{np.mean(to):.1f} ({np.median(to):g})", *regret, failed)
    Console().print(shown)


if __name__ == "__main__":
    main()
