"""Our load driver beside `vllm bench serve`, aiperf and guidellm, against one engine whose times are known.

    python bench/load.py [--quick] [--tools autotune,vllm]     # a table, and build/bench/load.json

Every run starts a mock engine (bench/mock_engine.py) on one core and a load generator on another. What the
mock logged is the truth. Tools are installed under build/bench-envs/, each in an environment of its own;
`vllm bench serve` is that of the installed engine. Loads go round the tools in turn, so that what drifts on
the machine meets all of them.

Ceiling (streamed tokens per second with a core each)
    128 tokens, one per event and HTTP chunk, at 64 concurrent, from the mock's flood: prepared bytes, 1 to 3
    events a write at random, all streams by turns, as fast as the engine's core allows. (More events a write
    spare every client reads, which real engines do not: they write each stream's token as it comes. `--flood`
    sets another mean.) Counted from the first request to the arrival of the last one, when the client must
    be done with all but 64 of the answers, and only those. `engine busy` well below 100 % shows that the mock
    was not the limit, and a line says so where it was; tokens per CPU second of the client's core are what
    the client would reach if it were never kept waiting.

Error of TTFT and TPOT
    Timed load: first token after 20 ms on average, then one every 10 ms, both jittered, and whole requests
    faster or slower by 20 % so that a closed loop does not run in lockstep; 128 tokens at 5 and 50
    concurrent, 32 at 20 and 100 requests/s (Poisson). Truth is the engine's own share: TTFT from the
    request received to the first token written, TPOT between first and last token written. Whatever a tool
    reports beyond that was added by the client (and some 0.1 ms of loopback): its queue, its connection
    set-up, its late reading. Ours reports TTFT from when the request was due, so its late sending counts
    against it; the others report from their own send, so theirs does not.
    Requests are matched one by one: by the id that the client sent and the engine gave back, ours by its
    prompt. The headline error is the 99th percentile of single requests' errors at 100 requests/s. Beside
    it stands how late the engine was with its own first tokens, by its own clock: on a virtual machine
    whose idle cores are slow to wake, that is not nothing, and every client is woken as late.

Overhead
    Wall-clock time of the whole command less the load's (first request received to last token written),
    median of the timed loads.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import load_tools
from load_processes import Cores, Finished, mock_engine, run
from load_tools import ROOT, Load, Tool
from load_truth import Account, Errors, Served, ToolError, errors, load_duration_s, read_log, steady_part
from rich.console import Console
from rich.table import Table

TIMED = {
    "MOCK_TTFT_MS": "20",
    "MOCK_TTFT_JITTER": "0.1",
    "MOCK_TPOT_MS": "10",
    "MOCK_JITTER": "0.1",
    "MOCK_PACE_JITTER": "0.2",
}
EVENTS_PER_WRITE = 2
ENGINE_WAS_LIMIT = 0.9
CEILING = Load(output_tokens=128, requests=0, concurrency=64)
LOADS = (
    Load(output_tokens=128, requests=40, concurrency=5),
    Load(output_tokens=128, requests=400, concurrency=50),
    Load(output_tokens=32, requests=200, rate_rps=20),
    Load(output_tokens=32, requests=1000, rate_rps=100),
)
HEADLINE = LOADS[-1].label
ERROR_LINES = (
    ("TTFT median", "ttft_median"),
    ("TTFT p99", "ttft_p99"),
    ("TTFT, each, p99", "ttft_each_p99"),
    ("TPOT median", "tpot_median"),
    ("TPOT p99", "tpot_p99"),
    ("TPOT, each, p99", "tpot_each_p99"),
    ("engine late, p99", "engine_late_p99"),
)
"""Words of the table, and fields of Errors."""
RUN_TIMEOUT_S = 150.0
RUNS = ROOT / "build" / "bench" / "load-runs"
"""What every tool wrote and what the engine logged, until the next run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """How this run measures: ``scale`` of the requests, ``flood`` events a write on average."""

    cores: Cores
    scale: float
    flood: int


@dataclass(slots=True)
class Report:
    """What is known of a tool; ``failed`` says, per step, why something is not."""

    name: str
    version: str = ""
    ceiling: dict[str, float] = field(default_factory=dict)
    errors_ms: dict[str, Errors] = field(default_factory=dict)
    overhead_s: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        headline = self.errors_ms.get(HEADLINE)
        return {
            "version": self.version,
            "tokens_per_s_per_core": self.ceiling.get("tokens_per_s"),
            "ttft_p99_error_ms": headline.ttft_each_p99 if headline else None,
            "overhead_s": median(self.overhead_s.values()) if self.overhead_s else None,
            "ceiling": self.ceiling,
            "errors_ms": {label: asdict(e) for label, e in self.errors_ms.items()},
            "overhead_by_load_s": self.overhead_s,
            "failed": self.failed,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description="compare load generators")
    parser.add_argument("--quick", action="store_true", help="a tenth of the load: shows that all of it runs")
    parser.add_argument("--tools", default="autotune,vllm,aiperf,guidellm")
    parser.add_argument("--flood", type=int, default=EVENTS_PER_WRITE, help="mean events a write, ceiling")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench" / "load.json")
    args = parser.parse_args()
    bench = Bench(cores=Cores.choose(), scale=0.1 if args.quick else 1.0, flood=args.flood)
    reports = {name: Report(name) for name in args.tools.split(",")}
    tools = find_tools(reports)
    shutil.rmtree(RUNS, ignore_errors=True)
    for load in (CEILING, *LOADS):
        for tool in tools:
            step = "ceiling" if load is CEILING else load.label
            print(f"{step}: {tool.name} …", flush=True)
            folder = RUNS / f"{tool.name} {step}".replace(" ", "-").replace("/", "-per-")
            folder.mkdir(parents=True)
            try:
                measure(tool, load, bench, report=reports[tool.name], folder=folder)
            except (ToolError, OSError, ValueError, LookupError, TypeError) as error:
                reports[tool.name].failed[step] = f"{type(error).__name__}: {error}"
                print(f"  failed: {error}", flush=True)
    write(args.out, list(reports.values()), quick=args.quick)
    show(list(reports.values()), quick=args.quick)
    if reports.get("autotune", Report("")).failed:
        sys.exit("our own driver failed")


def find_tools(reports: dict[str, Report]) -> list[Tool]:
    """Find or install the tools; one that cannot be had is a failure in its report."""
    environments = ROOT / "build" / "bench-envs"
    makers: dict[str, Callable[[], Tool]] = {
        "autotune": lambda: load_tools.autotune(sys.executable),
        "vllm": lambda: load_tools.vllm(sys.executable),
        "aiperf": lambda: load_tools.aiperf(environments),
        "guidellm": lambda: load_tools.guidellm(environments),
    }
    tools = []
    for name, report in reports.items():
        try:
            tools.append(makers[name]())
            report.version = tools[-1].version
        except ToolError as error:
            report.failed["install"] = str(error)
            print(f"{name}: {error}", flush=True)
    return tools


def measure(tool: Tool, load: Load, bench: Bench, *, report: Report, folder: Path) -> None:
    """Run one tool at one load and add what comes of it to its report."""
    is_ceiling = load is CEILING
    asked = tool.ceiling_requests if is_ceiling else load.requests
    least = 3 * load.concurrency if load.concurrency else 1
    load = replace(load, requests=max(int(asked * bench.scale), least))
    settings = {"MOCK_FLOOD": str(bench.flood)} if is_ceiling else TIMED
    with mock_engine(load_tools.MODEL, bench.cores, settings=settings, folder=folder) as site:
        env = {k: v for k, v in os.environ.items() if k not in load_tools.OFFLINE} | tool.env
        finished = run(tool.command(load, site), site, env=env, timeout_s=RUN_TIMEOUT_S)
    served = read_log(folder / "truth.jsonl")
    account = tool.read(folder)
    if is_ceiling:
        report.ceiling = ceiling(account, served, load=load, finished=finished)
        print(f"  {report.ceiling['tokens_per_s']:,.0f} tokens/s", flush=True)
        return
    report.overhead_s[load.label] = finished.wall_s - load_duration_s(served)
    found = report.errors_ms[load.label] = errors(account, served)
    print(f"  TTFT off by {found.ttft_each_p99:.2f} ms (p99 of {found.requests} requests)", flush=True)


def ceiling(
    account: Account, served: Sequence[Served], *, load: Load, finished: Finished
) -> dict[str, float]:
    """Speed at which a closed loop went through a flood, and how busy both sides were with it."""
    if len(account.claims) < load.requests:
        raise ToolError(f"{len(account.claims)} of {load.requests} requests went well by its own account")
    start_s, end_s, tokens = steady_part(served, load.concurrency or 1)
    length_s = end_s - start_s
    engine_s, client_s = finished.busy.between(start_s, end_s)
    return {
        "tokens_per_s": tokens / length_s,
        "tokens_per_client_cpu_s": tokens / client_s if client_s else float("nan"),
        "client_core_busy": client_s / length_s,
        "engine_busy": engine_s / length_s,
        "seconds": length_s,
    }


def write(out: Path, reports: Sequence[Report], *, quick: bool) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "quick": quick,
        "loads": [load.label for load in LOADS],
        "tools": {report.name: report.as_json() for report in reports},
    }
    out.write_text(json.dumps(document, indent=2))


def figures(report: Report) -> list[tuple[str, str]]:
    """A tool's column of the table: what a line is, and its figure."""

    def cell(words: str, value: float | None, form: str) -> tuple[str, str]:
        return words, "failed" if value is None else format(value, form)

    whole = report.as_json()
    lines = [
        cell("ceiling, tokens/s/core", whole["tokens_per_s_per_core"], ",.0f"),
        cell("  tokens/client CPU s", report.ceiling.get("tokens_per_client_cpu_s"), ",.0f"),
        cell("  client core busy", report.ceiling.get("client_core_busy"), ".0%"),
        cell("  engine busy", report.ceiling.get("engine_busy"), ".0%"),
    ]
    for load in LOADS:
        errors_ms = report.errors_ms.get(load.label)
        lines.append((f"{load.label}: error, ms", ""))
        lines += [cell(f"  {words}", getattr(errors_ms, name, None), ".2f") for words, name in ERROR_LINES]
    return [*lines, cell("beyond the load, s", whole["overhead_s"], ".1f")]


def show(reports: Sequence[Report], *, quick: bool) -> None:
    table = Table("", *(f"{r.name}\n{r.version}" for r in reports), title="Load generators on one core")
    for column in zip(*map(figures, reports), strict=True):
        table.add_row(column[0][0], *(figure for _, figure in column))
    console = Console()
    console.print(table)
    for report in reports:
        for step, reason in report.failed.items():
            console.print(f"{report.name} failed at {step}: {reason}", style="red", markup=False)
        if report.ceiling.get("engine_busy", 0) > ENGINE_WAS_LIMIT:
            console.print(f"{report.name}'s ceiling is at least this: the engine was the limit")
    if quick:
        console.print("a quick run: it shows that everything works, the figures mean little")


if __name__ == "__main__":
    main()
