"""Searches replayed on recorded measurements: ours beside random search, TPE, GP, a forest, and transfer.

    make bench-search TABLES=../shared/replay MODELS=../shared/models
    make bench-search TABLES=new PRIORS=../shared/replay MODELS=../shared/models
    make bench-search TABLES=../shared/replay MODELS=../shared/models LEAVE_OUT=hardware
    python bench/search.py TABLES --methods random,autotune --track throughput    # some of it

Writes build/bench/search.json (output tok/s per all-in MW) and build/bench/search_energy.json (tokens per
measured joule), and build/bench/search_several.json (one search for several SLAs). Baselines are kept in
build/bench/search_cache by what they depend on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from search_cache import Cache
from search_methods import DEAR, METHODS, SEEDS, SEEDS_OF_DEAR, Bench, available, play
from search_prior import LeaveOut
from search_replay import Replay
from search_report import print_tables
from search_score import intervals, lead, summary
from search_several import shared_launches
from search_tables import Problem, Track, energy_problems, read_models, read_tables, throughput_problems

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "build" / "bench"
OURS = "autotune"
WIDTH = 110
"""Columns that the tables need."""


@dataclass(frozen=True, slots=True)
class Job:
    """One method on one problem, all its seeds; ``place`` is the problem's in the bench."""

    method: str
    place: int


_bench: Bench


def _start(bench: Bench) -> None:
    global _bench  # noqa: PLW0603 - one per worker process, sent once
    _bench = bench


def _work(job: Job) -> tuple[Job, list[Replay]]:
    seeds = SEEDS_OF_DEAR if job.method in DEAR else SEEDS
    return job, [play(_bench, job.method, job.place, seed) for seed in range(seeds)]


def _jobs(methods: Sequence[str], problems: Sequence[Problem]) -> list[Job]:
    """The dear ones and the large first, so that both cores end together."""
    order = sorted(range(len(problems)), key=lambda k: -len(problems[k].candidates))
    return [Job(m, k) for m in sorted(methods, key=lambda m: m not in DEAR) for k in order]


def _run(bench: Bench, methods: Sequence[str], cache: Cache, processes: int) -> dict[Job, list[Replay]]:
    results: dict[Job, list[Replay]] = {}
    todo = []
    for job in _jobs(methods, bench.problems):
        kept = cache.get(job.method, bench.problems[job.place].name)
        if kept is None:
            todo.append(job)
        else:
            results[job] = kept
    console = Console(stderr=True)
    with Progress(console=console) as progress:
        task = progress.add_task(f"{len(todo)} replays, {len(results)} kept", total=len(todo))
        with ProcessPoolExecutor(processes, initializer=_start, initargs=(bench,)) as pool:
            for done in as_completed([pool.submit(_work, job) for job in todo]):
                job, replays = done.result()
                results[job] = replays
                cache.put(job.method, bench.problems[job.place].name, replays)
                progress.advance(task)
    return results


def _by_view(
    bench: Bench, results: dict[Job, list[Replay]], track: Track
) -> dict[str, dict[str, dict[str, list[Replay]]]]:
    """view -> method -> problem -> seeds."""
    views: dict[str, dict[str, dict[str, list[Replay]]]] = defaultdict(lambda: defaultdict(dict))
    for job in sorted(results, key=lambda job: job.place):
        problem = bench.problems[job.place]
        if problem.track is track:
            view = "pooled" if problem.pooled else "per_hardware"
            views[view][job.method][problem.name] = results[job]
    return views


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", type=Path, help="folder of recorded tables")
    parser.add_argument("--models", type=Path, help="folder of NAME.json, each a model's config.json")
    parser.add_argument("--priors", type=Path, help="folder of tables to learn from (default: the same)")
    parser.add_argument("--methods", default=",".join(METHODS), help="which methods, with commas between")
    parser.add_argument("--track", choices=[*Track], action="append", help="only this track")
    parser.add_argument(
        "--leave-out",
        type=LeaveOut,
        choices=[*LeaveOut],
        default=LeaveOut.MODEL,
        help="never learn from problems of the same one; hardware: pooled problems are left out",
    )
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    unknown = set(given.methods.split(",")) - set(METHODS)
    if unknown:
        parser.error(f"no method {', '.join(sorted(unknown))}; there are {', '.join(METHODS)}")
    for folder in filter(None, (given.tables, given.models, given.priors)):
        if not folder.is_dir():
            parser.error(f"{folder} is no folder")
    return given


def _all_problems(folder: Path, tracks: Iterable[str]) -> list[Problem]:
    tables = read_tables(folder)
    makers = {Track.THROUGHPUT: throughput_problems, Track.ENERGY: energy_problems}
    return [
        p for track in tracks for pooled in (False, True) for p in makers[Track(track)](tables, pooled=pooled)
    ]


def _tell_shared(bench: Bench, console: Console) -> None:
    """One search for several SLAs beside one for each."""
    shared = shared_launches(bench, SEEDS_OF_DEAR)
    if not shared:
        return
    found = {
        "sets_of_slas": len(shared),
        "launches_per_sla_together": sum(s.together for s in shared) / sum(s.slas for s in shared),
        "launches_per_sla_apart": sum(s.apart for s in shared) / sum(s.slas for s in shared),
    }
    _write(OUT / "search_several.json", found)
    console.print(
        f"{len(shared)} sets of 2 or 3 SLAs, launches per SLA until all are within 5 %: "
        f"{found['launches_per_sla_together']:.2f} in one search for all, "
        f"{found['launches_per_sla_apart']:.2f} in one for each"
    )


def main() -> None:
    given = _arguments()
    started = time.monotonic()
    console = Console(width=max(Console().width, WIDTH))
    tracks = given.track or list(Track)
    problems = _all_problems(given.tables, tracks)
    if not problems:
        raise SystemExit(f"{given.tables}: no problem with enough configurations")
    known = _all_problems(given.priors or given.tables, tracks)
    if given.leave_out is LeaveOut.HARDWARE:
        problems = [problem for problem in problems if not problem.pooled]
    methods = [m for m in given.methods.split(",") if available(m, console)]
    console.print(f"{len(problems)} problems; learning from {len(known)}, which takes a minute")
    bench = Bench.prepared(problems, known, read_models(given.models), given.leave_out)
    cache = Cache(OUT / "search_cache", given.tables, len(problems))
    results = _run(bench, methods, cache, given.processes)
    for track in tracks:
        views = _by_view(bench, results, Track(track))
        suffix = "" if track == Track.THROUGHPUT else f"_{track}"
        _write(
            OUT / f"search{suffix}.json",
            {v: {m: summary(r) for m, r in ms.items()} for v, ms in views.items()},
        )
        details = {
            view: {
                method: {
                    "intervals_90pct": intervals(r),
                    "lead_of_autotune_90pct": lead(of[OURS], r) if OURS in of else None,
                }
                for method, r in of.items()
            }
            for view, of in views.items()
        }
        _write(OUT / f"search{suffix}_intervals.json", details)
        print_tables(console, Track(track), views, details)
    _tell_shared(bench, console)
    console.print(f"{time.monotonic() - started:.0f} s; figures in {OUT.relative_to(ROOT)}/search*.json")


if __name__ == "__main__":
    main()
