"""Whether a printed interval covers a second measurement: one configuration, launched afresh again and again.

    python bench/repeats.py [--pairs 20]     # about 40 s a launch; writes build/bench/repeats.json

Fresh launches of the tiny model on the real engine, in its fastest-starting form, measured at one offered
load with seeds of their own; a pair is a launch and the next one. The 90 % interval printed for the first
should cover the second in 80-98 % of pairs. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

from rich.console import Console
from rich.table import Table

from autotune import wiring
from autotune.domain.basics.errors import BenchError
from autotune.domain.judging.scoring import LevelScore, score_level
from autotune.domain.load.level import Level
from autotune.domain.measuring.stats import Interval
from autotune.domain.studies.records import LaunchRecord, Purpose
from autotune.domain.studies.study import StudySpec
from autotune.runs.launch import Bench, LaunchTask, run_launch

ROOT = Path(__file__).resolve().parents[1]
RATE_RPS = 8.0
ATTEMPTS = 3
STUDY = {
    "name": "repeats",
    "model": str(ROOT / ".models" / "tiny-dense"),
    "engines": [{"name": "vllm", "fixed": {"context_length": 2048, "eager": True, "max_num_seqs": 16}}],
    "workloads": [
        {
            "name": "chat",
            "input_tokens": {"median": 64, "sigma": 0.5, "low": 16, "high": 256},
            "output_tokens": {"median": 32, "sigma": 0.5, "low": 8, "high": 128},
        }
    ],
    "slas": [{"name": "steady", "attainment": 0.9, "slos": {"ttft": "1s", "tpot": "100ms"}}],
    "space": {"dimensions": {"max_num_seqs": ["default"]}},
    "budget": {"launches": 1},
    "measurement": {"warmup": "2s", "longest_warmup": "15s", "window": "10s", "longest_window": "10s"},
}
FIGURES = {
    "goodput tok/s": lambda s: (s.goodput_tok_per_s, s.goodput_interval),
    "good tokens/J (estimated)": lambda s: (s.tokens_per_joule, s.tokens_per_joule_interval),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20)
    pairs = parser.parse_args().pairs
    study = StudySpec.model_validate(STUDY)
    scores = []
    with (
        tempfile.TemporaryDirectory(prefix="autotune-repeats-") as folder,
        wiring.benches_for(study) as benches,
    ):
        for number in range(pairs + 1):
            record = launched(study, benches["vllm"], number, Path(folder))
            scores.append(score_level(record.curve[0], study.slas[0]))
            tell(number, scores[-1])
    report = {
        "command": " ".join(["python", *sys.argv]),
        "rate_rps": RATE_RPS,
        "window_s": scores[0].window_s,
        "launches": [
            {name: {"value": value, "interval": asdict(interval)} for name, (value, interval) in of.items()}
            for of in ({name: read(score) for name, read in FIGURES.items()} for score in scores)
        ],
        "covered": {name: covered([read(score) for score in scores]) for name, read in FIGURES.items()},
    }
    out = ROOT / "build" / "bench" / "repeats.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1))
    show(report["covered"], pairs)


def launched(study: StudySpec, bench: Bench, number: int, folder: Path) -> LaunchRecord:
    """One fresh launch; one that the bench broke is launched again, and said so."""
    for attempt in range(ATTEMPTS):
        task = LaunchTask(
            study=study,
            # Seeds come from the number: no launch sees another's arrivals.
            number=number + 1000 * attempt,
            purpose=Purpose.SEARCH,
            config=study.default_config(),
            workdir=folder / f"{number:03}-{attempt}",
            levels=(Level("chat", rate_rps=RATE_RPS),),
        )
        try:
            record = run_launch(task, bench, lambda _event: None, lambda: False)
        except BenchError as broken:
            print(f"launch {number} again: {broken}", flush=True)
            continue
        if record.failure is None:
            return record
        sys.exit(f"launch {number} failed: {record.failure.line}")
    sys.exit(f"launch {number} broke {ATTEMPTS} times")


def covered(figures: list[tuple[float, Interval]]) -> int:
    """In how many pairs the first interval covers the second value."""
    return sum(first.low <= value <= first.high for (_, first), (value, _) in pairwise(figures))


def tell(number: int, score: LevelScore) -> None:
    interval = score.goodput_interval
    print(
        f"launch {number}: {score.goodput_tok_per_s:.1f} good tok/s "
        f"[{interval.low:.1f}, {interval.high:.1f}], attainment {score.attainment:.3f}, "
        f"{score.requests} requests, TPOT p50 {score.tpot_s[50] * 1e3:.2f} ms",
        flush=True,
    )


def show(counts: dict[str, int], pairs: int) -> None:
    table = Table("figure", "pairs covered", "share", title="90 % interval of the first covers the second")
    for name, count in counts.items():
        table.add_row(name, f"{count} of {pairs}", f"{count / pairs:.0%}")
    Console().print(table)


if __name__ == "__main__":
    main()
