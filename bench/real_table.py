"""A table of real launches to replay a search on: configurations of vLLM on CPU, each measured once.

    python bench/real_table.py [--configurations 48] [--model dense]     # about a minute a launch

Draws points of ``search_spaces/vllm-quickstart.yaml`` at random, the defaults first, launches each on the
real engine and measures it as a search would, for two SLAs. A line per configuration goes to
``bench/data/vllm_cpu_table.jsonl``: its words, what became of it, its objective for each SLA, and what each
load level showed. Configurations that are there already are left out, so that an interrupted run goes on.
Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from autotune import wiring
from autotune.domain.basics.errors import BenchError, InfeasibleConfigError
from autotune.domain.configs.config import EngineConfig, Value
from autotune.domain.configs.space import DEFAULT
from autotune.domain.judging.scoring import score_curve, score_level
from autotune.domain.measuring.measurement import Measurement
from autotune.domain.studies.feasibility import Setting, why_infeasible
from autotune.domain.studies.records import LaunchRecord, Purpose
from autotune.domain.studies.study import StudySpec
from autotune.runs.launch import Bench, LaunchTask, run_launch
from autotune.runs.quality import QualityKnown

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "bench" / "data" / "vllm_cpu_table.jsonl"
SPACE = ROOT / "search_spaces" / "vllm-quickstart.yaml"
ATTEMPTS = 3
LEFT_ALONE = 0.6
"""Chance that a dimension stays at its default: of points drawn evenly hardly one in ten would run."""
DRAWS = 10_000
"""Random points looked at, at most, for as many configurations as are wanted."""


def study_of(model: str) -> StudySpec:
    """The quickstart's question with shorter windows: what is compared differs by more than their noise."""
    return StudySpec.model_validate(
        {
            "name": "real-table",
            "model": str(ROOT / ".models" / f"tiny-{model}"),
            "engines": [{"name": "vllm", "fixed": {"context_length": 2048, "eager": True}}],
            "workloads": [
                {
                    "name": "chat",
                    "input_tokens": {"median": 64, "sigma": 0.5, "low": 16, "high": 256},
                    "output_tokens": {"median": 32, "sigma": 0.5, "low": 8, "high": 128},
                }
            ],
            "slas": [
                {"name": "interactive", "attainment": 0.9, "slos": {"ttft": "500ms", "tpot": "40ms"}},
                {
                    "name": "bulk",
                    "contract": "percentile",
                    "slos": {"ttft": {"p90": "3s"}, "e2e": {"p90": "8s"}},
                },
            ],
            "space": YAML(typ="safe", pure=True).load(SPACE),
            "budget": {"launches": 1},
            "measurement": {
                "warmup": "1s",
                "longest_warmup": "3s",
                "window": "4s",
                "longest_window": "4s",
                "precision": 0.2,
                "most_levels": 4,
                "saturating_concurrency": 48,
                "start_timeout": "3m",
            },
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--configurations", type=int, default=48)
    parser.add_argument("--model", choices=("dense", "moe"), default="dense")
    args = parser.parse_args()
    study = study_of(args.model)
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    known = {json.loads(line)["id"] for line in TABLE.read_text().splitlines()} if TABLE.exists() else set()
    configs = list(drawn(study, args.configurations))
    with (
        tempfile.TemporaryDirectory(prefix="autotune-table-") as folder,
        wiring.benches_for(study) as benches,
    ):
        setting = wiring.setting_for(study, wiring.hardware_for(study, benches["vllm"].environment.kind))
        launcher = Launcher(study, benches["vllm"], Path(folder))
        for number, config in enumerate(configs):
            if config.label() in known:
                continue
            row = measured(study, setting, launcher, config)
            with TABLE.open("a") as table:
                table.write(json.dumps(row) + "\n")
            print(f"{number + 1}/{len(configs)} {row['state']}: {row['id']} {row['objectives']}", flush=True)


def drawn(study: StudySpec, wanted: int) -> Iterator[EngineConfig]:
    """The defaults and random points of the space, each configuration once; the same for the same study."""
    rng = random.Random(study.seed)
    (branch,) = study.branches
    seen = {branch.base.key}
    yield branch.base
    for _ in range(DRAWS):
        if len(seen) == wanted:
            return
        point: dict[str, Any] = {}
        for name in branch.space.dimensions:
            if branch.space.applies(name, point):
                point[name] = value_of(rng, branch.space.choices(name))
        config = branch.config_at(point)
        if config.key not in seen:
            seen.add(config.key)
            yield config
    sys.exit(f"the space holds {len(seen)} configurations, no {wanted}")


def value_of(rng: random.Random, choices: Sequence[Value]) -> Value:
    """A random value, the default more often than others."""
    leave = rng.random() < LEFT_ALONE and DEFAULT in choices
    return DEFAULT if leave else rng.choice(choices)


def measured(study: StudySpec, setting: Setting, launcher: Launcher, config: EngineConfig) -> dict[str, Any]:
    """The table's line of a configuration: launched, unless the rules refuse it on paper."""
    row: dict[str, Any] = {"id": config.label(), "words": config.words}
    nothing = {"objectives": {sla.name: 0.0 for sla in study.slas}, "levels": [], "seconds": 0.0}
    if (why := why_infeasible(config, setting)) is not None:
        return {**row, "state": "rejected", "why": why, **nothing}
    started_s = time.monotonic()
    try:
        record = launcher.launched(config)
    except InfeasibleConfigError as refused:
        return {**row, "state": "rejected", "why": str(refused), **nothing}
    return {
        **row,
        "state": "measured" if record.failure is None else record.failure.reaction.value,
        "why": f"{record.failure.failure_class}: {record.failure.line}" if record.failure else "",
        "quality": record.quality.state if record.quality else None,
        "objectives": objectives_of(study, record),
        "levels": [level(study, m) for m in record.curve],
        "seconds": round(time.monotonic() - started_s, 1),
    }


def objectives_of(study: StudySpec, record: LaunchRecord) -> dict[str, float]:
    """What a launch is worth to every SLA; nothing where its precision failed the quality gate."""
    barred = record.quality is not None and study.quality.bars(record.quality)
    scores = {sla.name: score_curve(record.curve, sla, study.workload_of(sla)) for sla in study.slas}
    return {name: 0.0 if barred else score.objective for name, score in scores.items()}


def level(study: StudySpec, measurement: Measurement) -> dict[str, Any]:
    """What one load level showed, for every SLA."""
    scores = [score_level(measurement, sla) for sla in study.slas]
    by_sla = {sla.name: score for sla, score in zip(study.slas, scores, strict=True)}
    return {
        "rate_rps": measurement.level.rate_rps,
        "concurrency": measurement.level.concurrency,
        "requests": scores[0].requests,
        "window_s": scores[0].window_s,
        "mean_power_w": scores[0].mean_power_w,
        "ttft_s": {f"p{p}": value for p, value in scores[0].ttft_s.items()},
        "tpot_s": {f"p{p}": value for p, value in scores[0].tpot_s.items()},
        "goodput_tok_per_s": {name: score.goodput_tok_per_s for name, score in by_sla.items()},
        "attainment": {name: score.attainment for name, score in by_sla.items()},
    }


class Launcher:
    """Launches configurations; the defaults come first, and what others answer is compared with theirs."""

    def __init__(self, study: StudySpec, bench: Bench, folder: Path) -> None:
        self._study, self._bench, self._folder = study, bench, folder
        self._launches = 0
        self._known = QualityKnown()
        reference = self.launched(study.default_config())
        self._known = QualityKnown(reference=reference.answers)

    def launched(self, config: EngineConfig, study: StudySpec | None = None) -> LaunchRecord:
        """One launch, of another study if given; one that the bench broke is launched again, and said so."""
        for _ in range(ATTEMPTS):
            task = LaunchTask(
                study=study or self._study,
                number=self._launches,
                purpose=Purpose.SEARCH if self._known.reference else Purpose.DEFAULTS,
                config=config,
                workdir=self._folder / f"{self._launches:03}",
                known=self._known,
            )
            self._launches += 1
            try:
                return run_launch(task, self._bench, lambda _event: None, lambda: False)
            except BenchError as broken:
                print(f"{config.label()} again: {broken}", flush=True)
        sys.exit(f"{config.label()} broke {ATTEMPTS} times")


if __name__ == "__main__":
    main()
