"""Tables for people."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from autotune.domain.config import EngineConfig
from autotune.domain.power import EnergyVerdict
from autotune.domain.quantities import show_duration
from autotune.domain.recommendation import Recommendation, Standing
from autotune.domain.records import StudyRow, TrialRow, TrialState
from autotune.domain.scoring import LevelScore, SlaVerdict
from autotune.domain.stats import Interval

STYLES = {
    TrialState.MEASURED: "green",
    TrialState.INFEASIBLE: "red",
    TrialState.REJECTED: "yellow",
    TrialState.CENSORED: "magenta",
    TrialState.BENCH_ERROR: "bold red",
    TrialState.RUNNING: "cyan",
}


def recommendations(found: Sequence[Recommendation], defaults: EngineConfig) -> RenderableType:
    """Per SLA a table of the recommended configuration against the references, and its command."""
    return Group(*(part for recommendation in found for part in _recommendation(recommendation, defaults)))


def _recommendation(found: Recommendation, defaults: EngineConfig) -> list[RenderableType]:
    title = Text(f"\n{found.sla.name}", style="bold") + Text(f"  {found.sla.describe()}", style="dim")
    if found.best is None:
        return [title, Text(f"  withheld: {found.reason}", style="yellow")]
    columns = [("recommended", found.best), ("engine defaults", found.defaults)]
    if found.has_baseline:
        columns.append(("production", found.baseline))
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    table.add_column("")
    for heading, standing in columns:
        number = f" (trial {standing.candidate.row.number})" if standing else ""
        table.add_column(heading + number, justify="left", overflow="fold")
    modelled = not found.best.figures.power_basis.is_measured
    for name, show in _ROWS:
        heading = f"{name} (a model's)" if modelled and name.startswith("good ") else name
        table.add_row(heading, *(show(s) if s else "-" for _, s in columns))
    labels = (s.candidate.row.config.label(defaults) if s else "-" for _, s in columns)
    table.add_row("configuration", *labels)
    lines: list[RenderableType] = [title, table]
    if found.defaults is None:
        lines.append(Text(f"the engine's defaults met {found.sla.name} at no measured load", style="yellow"))
    if found.reason:
        lines.append(Text(f"note: {found.reason}", style="yellow"))
    if modelled:
        lines.append(Text(f"goodput ranks; watts: {found.best.figures.power_source}", style="dim"))
    lines.append(Text(found.best.candidate.command, style="cyan", overflow="fold", no_wrap=False))
    return lines


def _attainment(figures: LevelScore) -> str:
    shown = "" if figures.verdict is SlaVerdict.MET else f"  {figures.verdict}"
    return f"{figures.attainment:.3f} {_interval(figures.attainment_interval, '.3f')}{shown}"


def _power(figures: LevelScore) -> str:
    if figures.energy_verdict is EnergyVerdict.INVALID:
        return f"invalid: {', '.join(figures.energy_reasons)}"
    return f"{figures.mean_power_w:.4g} ({figures.power_basis})"


def _joules(figures: LevelScore) -> str:
    if not figures.tokens_per_joule:
        return "-"
    return f"{figures.tokens_per_joule:.4g} {_interval(figures.tokens_per_joule_interval, '.4g')}"


def _latencies(percentiles: dict[int, float]) -> str:
    return " / ".join(show_duration(value) for value in percentiles.values()) or "-"


def _interval(interval: Interval, spec: str) -> str:
    return f"[{interval.low:{spec}}, {interval.high:{spec}}]"


_ROWS: tuple[tuple[str, Callable[[Standing], str]], ...] = (
    (
        "goodput tok/s",
        lambda s: f"{s.figures.goodput_tok_per_s:.4g} {_interval(s.figures.goodput_interval, '.4g')}",
    ),
    ("mean W (basis)", lambda s: _power(s.figures)),
    ("good tokens/J", lambda s: _joules(s.figures)),
    ("good tok/s/MW", lambda s: f"{s.figures.tok_per_s_per_mw:.4g}" if s.figures.tokens_per_joule else "-"),
    ("attainment", lambda s: _attainment(s.figures)),
    ("TTFT p50/p95/p99", lambda s: _latencies(s.figures.ttft_s)),
    ("TPOT p50/p95/p99", lambda s: _latencies(s.figures.tpot_s)),
    ("load req/s", lambda s: f"{s.figures.rate_rps:.3g}, capacity {s.capacity_rps:.3g}"),
    ("launches", lambda s: "2" if s.confirmed else "1"),
)


def studies(rows: Sequence[StudyRow]) -> RenderableType:
    """One line per study."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for heading in ("study", "status", "started", "ran for"):
        table.add_column(heading)
    for row in rows:
        table.add_row(row.name, row.status, row.started_at, show_duration(row.spent_s))
    return table


def trials(rows: Sequence[TrialRow], defaults: EngineConfig, slas: Sequence[str]) -> RenderableType:
    """One line per trial; a failure's class and telling line stand where the figures would."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("trial", "purpose", "state", "launch", "load", *slas):
        table.add_column(heading, no_wrap=True)
    table.add_column("configuration, or why it failed", overflow="fold")
    for row in rows:
        again = f" of {row.final_of}" if row.final_of is not None else ""
        figures = [f"{row.objectives[sla]:.4g}" if sla in row.objectives else "-" for sla in slas]
        text = row.config.label(defaults)
        if row.failure_class:
            text += f"\n{row.failure_class}: {row.failure_line}"
        if row.failure_class and row.log_path:
            text += f"\nlog: {row.log_path}"
        table.add_row(
            str(row.number),
            row.purpose + again,
            Text(row.state, style=STYLES[row.state]),
            show_duration(row.launch_s) if row.launch_s else "-",
            show_duration(row.load_s) if row.load_s else "-",
            *figures,
            Text(text),
        )
    return table


def engines(rows: Sequence[dict[str, Any]]) -> RenderableType:
    """One line per engine."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for heading in ("engine", "installed", "version", "device", "evidence", "path"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        installed = "yes" if row["installed"] else f"no: autotune engines install {row['id']}"
        cells = (row["id"], installed, row["version"], row["device"], row["evidence"], row["path"])
        table.add_row(*(Text(str(cell or "-")) for cell in cells))
    return table


def print_json(document: Any) -> None:
    """Print plain data as JSON."""
    print_plain(json.dumps(document, indent=2, allow_nan=False))


def print_plain(text: str) -> None:
    """Print to standard output as it stands, for machines: no wrapping, no colour."""
    Console(soft_wrap=True, highlight=False, markup=False).print(text)
