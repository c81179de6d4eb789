"""``autotune workload``: workloads from one's own traffic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from autotune.adapters.files.logged_requests import FIELDS, LogFormat, ReadingTally, Tell, logged_requests
from autotune.adapters.files.traffic_files import write_traffic
from autotune.adapters.files.traffic_logs import BLOCK_TOKENS, LoggedTraffic, traffic_from
from autotune.cli import render
from autotune.domain.basics.errors import InputError, InputProblem
from autotune.domain.basics.quantities import show_duration
from autotune.domain.load.traffic import Traffic

app = typer.Typer(help="Make workloads from one's own traffic.")

EXAMPLES = """Examples:

autotune workload from-logs access.jsonl.gz -o workload.parquet --tokenizer models/my-model

autotune workload from-logs traces.jsonl --format otel -o workload.parquet

autotune workload from-logs gw.jsonl -o w.parquet --field start=req.ts --field messages=req.body.messages"""


@app.callback()
def group() -> None:
    """Make workloads from one's own traffic."""


@app.command("from-logs", epilog=EXAMPLES)
def from_logs(
    logs: Annotated[
        list[Path], typer.Argument(metavar="LOGS", help="Log files, JSON lines; gzipped or not.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Workload file to write.")],
    log_format: Annotated[
        LogFormat, typer.Option("--format", help="gateway: a request per line; otel: OTLP traces.")
    ] = LogFormat.AUTO,
    tokenizer: Annotated[
        Path | None, typer.Option(help="The model's folder: shared prefixes are then counted in its tokens.")
    ] = None,
    block_tokens: Annotated[
        int, typer.Option(min=1, help="Prompts are compared in blocks of this many tokens.")
    ] = BLOCK_TOKENS,
    field: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH", help=f"Where a gateway logs {', '.join(FIELDS)}; dots go into objects."
        ),
    ] = None,
) -> None:
    """Make a workload file from gateway or OpenTelemetry logs; no prompt text is kept.

    The file holds arrivals, lengths, which prompts begin alike, and turns; a study replays it with
    `trace:`, or draws from its lengths with `lengths:`.
    """
    fields = _fields(field or [])
    tally = ReadingTally()
    with _progress(logs) as tell:
        requests = logged_requests(logs, tally, log_format=log_format, fields=fields, tell=tell)
        found = traffic_from(requests, tokenizer=tokenizer, block_tokens=block_tokens)
    facts = {"source": sorted(tally.formats), "tokenizer": tokenizer.resolve().name if tokenizer else None}
    try:
        write_traffic(output, found.traffic, facts)
    except OSError as error:
        problem = InputProblem(str(output), f"cannot be written: {error.strerror}", "name another -o FILE")
        raise InputError(problem) from error
    _print_summary(found, tally)
    render.print_plain(_study_lines(output, found.traffic))


def _fields(given: Sequence[str]) -> dict[str, str]:
    fields = dict(text.partition("=")[::2] for text in given)
    if unknown := [name for name, place in fields.items() if name not in FIELDS or not place]:
        remedy = f"write NAME=PATH with one of {', '.join(FIELDS)}"
        raise InputError(InputProblem("--field", f"{unknown[0]!r} is not understood", remedy))
    return fields


@contextmanager
def _progress(logs: Sequence[Path]) -> Iterator[Tell]:
    total = sum(path.stat().st_size for path in logs if path.is_file())
    columns = (TextColumn("reading"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("reading", total=total)
        yield lambda done: shown.update(task, completed=done)


def _print_summary(found: LoggedTraffic, tally: ReadingTally) -> None:
    traffic = found.traffic
    assert traffic.arrival_s is not None
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 3, 0, 0))
    table.add_row("requests", f"{len(traffic)}")
    table.add_row("left out", _left_out(found, tally))
    table.add_row("span", show_duration(float(traffic.arrival_s[-1])))
    table.add_row("rate", f"{traffic.rate_rps:.3g} req/s")
    table.add_row("burstiness", f"{traffic.gap_cv:.2f} (cv of gaps; 1 is Poisson)")
    table.add_row("prompt tokens", _percentiles(traffic.input_tokens))
    table.add_row("answer tokens", _percentiles(traffic.output_tokens))
    shared = (
        f"{traffic.prefix_share:.1%} of prompt tokens" if found.with_text else "not known: no text is logged"
    )
    table.add_row("shared prefixes", shared)
    turns = traffic.turns
    known = len(turns) and turns.max() > 1
    many = (
        f"{len(turns)} conversations of {turns.mean():.1f} turns, at most {turns.max()}"
        if known
        else "none seen"
    )
    table.add_row("turns", many)
    render.wide_console().print(table)


def _left_out(found: LoggedTraffic, tally: ReadingTally) -> str:
    counts = {
        "malformed lines": tally.malformed,
        "failed or unanswered": found.unanswered,
        "without a time or lengths": found.incomplete,
    }
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count) or "nothing"


def _percentiles(lengths: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> str:
    p50, p95, p99 = np.percentile(lengths, (50, 95, 99))
    return f"p50 {p50:.0f}, p95 {p95:.0f}, p99 {p99:.0f}, longest {lengths.max()}"


def _study_lines(output: Path, traffic: Traffic) -> str:
    longest = int((traffic.input_tokens + traffic.output_tokens).max())
    return f"""
To replay it, in a study file beside {output.name}:

workloads:
  - name: {output.stem if output.stem.replace("-", "").replace("_", "").isalnum() else "own"}
    trace: {output.name}
    longest: {longest} # tokens of the longest request; longer ones than this are left out"""
