"""Live searches on the real engine, ours beside random search and TPE, each on the same wall-clock budget.

    python bench/search_live.py [--minutes 10] [--seeds 2]    # six searches, then their winners: 90 minutes

Every search begins with the defaults, launches vLLM on CPU in the space of ``bench/real_table.py``, and knows
nothing of the table; ours has the priors of any first study. Points that the rules refuse on paper cost none
of them a launch. Then each search's winner for each SLA is launched again, twice, in turns and with other
requests: that figure counts. Searches and winners go to ``bench/data/vllm_cpu_live.json``; nothing else
should run on the machine.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from real_table import ROOT, Launcher, objectives_of, study_of
from rich.console import Console
from rich.table import Table

from autotune import wiring
from autotune.adapters.search.study import OptunaSearch, open_study
from autotune.domain.basics.errors import InfeasibleConfigError
from autotune.domain.configs.config import EngineConfig
from autotune.domain.studies.feasibility import Setting, why_infeasible
from autotune.domain.studies.ports import Outcome, Suggestion
from autotune.domain.studies.study import StudySpec
from autotune.runs.priors import Priors
from autotune.wiring.priors import ground_of, priors_of
from autotune.wiring.store import open_store
from autotune.wiring.studies import sampler_for

OUT = ROOT / "bench" / "data" / "vllm_cpu_live.json"
METHODS = {"autotune": "surrogate", "random": "random", "tpe": "tpe"}
REPEATS = 2


@dataclass(frozen=True, slots=True)
class Launched:
    """One launch of a search: seconds since it began, and the objective of each SLA."""

    config: EngineConfig
    after_s: float
    objectives: Mapping[str, float]


def searched(
    study: StudySpec, launcher: Launcher, setting: Setting, priors: Priors, budget_s: float
) -> list[Launched]:
    """Search until another launch, as long as the longest so far, would not end in time."""
    slas = [sla.name for sla in study.slas]
    sampler = sampler_for(study, setting, priors)
    storage = optuna.storages.InMemoryStorage()
    search = OptunaSearch(
        open_study(study.name, storage, slas=slas, sampler=sampler), study.branches, known={}
    )
    began_s, longest_s = time.monotonic(), 0.0
    made: list[Launched] = []
    suggestion: Suggestion | None = search.begin(study.default_config())
    while suggestion is not None and time.monotonic() - began_s + longest_s < budget_s:
        outcome, launch_began_s = Outcome(objectives=(0.0,) * len(slas), feasible=False), time.monotonic()
        if why_infeasible(suggestion.config, setting) is None:
            try:
                record = launcher.launched(suggestion.config)
            except InfeasibleConfigError:
                record = None
            if record is not None:
                objectives, took_s = objectives_of(study, record), time.monotonic() - launch_began_s
                longest_s = max(longest_s, took_s)
                made.append(Launched(suggestion.config, time.monotonic() - began_s, objectives))
                feasible = record.failure is None
                outcome = Outcome(objectives=(*objectives.values(),), feasible=feasible, seconds=took_s)
        search.tell(suggestion.number, outcome)
        suggestion = search.ask()
    return made


def winners(made: Sequence[Launched], slas: Sequence[str]) -> dict[str, EngineConfig]:
    """The best of a search for each SLA that one met."""
    best = {sla: max(made, key=lambda one, s=sla: one.objectives[s]) for sla in slas}  # type: ignore[misc]
    return {sla: one.config for sla, one in best.items() if one.objectives[sla] > 0}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    study = study_of("dense")
    slas = [sla.name for sla in study.slas]
    found: dict[str, list[Launched]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="autotune-live-") as folder,
        wiring.benches_for(study) as benches,
    ):
        setting = wiring.setting_for(study, wiring.hardware_for(study, benches["vllm"].environment.kind))
        launcher = Launcher(study, benches["vllm"], Path(folder))
        ground = ground_of(study, benches, setting, open_store(f"sqlite:///{folder}/studies.db"))
        priors = priors_of(ground, lambda event: print(event, flush=True))
        for seed in range(args.seeds):
            for method, sampler in METHODS.items():
                own = study.model_copy(update={"seed": seed, "sampler": sampler})
                found[f"{method} {seed}"] = searched(own, launcher, setting, priors, 60 * args.minutes)
                keep(report(args.minutes, found, {}, {}))  # what an interruption must not lose
                print(f"{method} {seed}: {len(found[f'{method} {seed}'])} launches", flush=True)
        chosen = {name: winners(made, slas) for name, made in found.items()}
        again: dict[str, list[Mapping[str, float]]] = {}
        for repeat in range(REPEATS):
            for config in {c.key: c for each in chosen.values() for c in each.values()}.values():
                other = study.model_copy(update={"seed": 1000 + repeat})
                record = launcher.launched(config, other)
                again.setdefault(config.key, []).append(objectives_of(other, record))
                print(f"again: {config.label()} {again[config.key][-1]}", flush=True)
    truth = {
        key: {sla: float(np.mean([m[sla] for m in measured])) for sla in slas}
        for key, measured in again.items()
    }
    keep(report(args.minutes, found, chosen, truth))
    show(chosen, truth, found, slas)


def keep(told: Mapping[str, Any]) -> None:
    """Write what is known so far."""
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(told, indent=1) + "\n")


def report(
    minutes: float,
    found: Mapping[str, Sequence[Launched]],
    chosen: Mapping[str, Mapping[str, EngineConfig]],
    truth: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    """What is kept of the run."""
    return {
        "minutes": minutes,
        "searches": {
            name: [
                {"id": one.config.label(), "after_s": round(one.after_s, 1), "objectives": one.objectives}
                for one in made
            ]
            for name, made in found.items()
        },
        "winners": {
            name: {sla: {"id": config.label(), **truth[config.key]} for sla, config in each.items()}
            for name, each in chosen.items()
        },
    }


def show(
    chosen: Mapping[str, Mapping[str, EngineConfig]],
    truth: Mapping[str, Mapping[str, float]],
    found: Mapping[str, Sequence[Launched]],
    slas: Sequence[str],
) -> None:
    """Each search's winners as they were measured again, as shares of the best of all."""
    best = {sla: max(each[sla] for each in truth.values()) for sla in slas}
    table = Table(title="winners, measured again")
    for name in ("search", "launches", *slas, "mean share of the best"):
        table.add_column(name, justify="right")
    for name, each in chosen.items():
        values = [truth[each[sla].key][sla] if sla in each else 0.0 for sla in slas]
        share = np.mean([value / best[sla] for sla, value in zip(slas, values, strict=True)])
        table.add_row(name, str(len(found[name])), *(f"{value:.1f}" for value in values), f"{share:.0%}")
    Console().print(table)


if __name__ == "__main__":
    main()
