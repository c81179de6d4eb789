"""Tables for people."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from autotune.domain.basics.quantities import show_duration
from autotune.domain.configs.config import EngineConfig
from autotune.domain.judging.ledger import Basis, Ledger
from autotune.domain.judging.quality import QualityState, QualityVerdict
from autotune.domain.judging.scoring import LevelScore, SlaVerdict
from autotune.domain.measuring.measurement import Floats, Measurement
from autotune.domain.measuring.power import EnergyVerdict, PowerBasis, energy_in
from autotune.domain.measuring.stats import Figure, Interval
from autotune.domain.recommending.document import Ledgers
from autotune.domain.recommending.recommendation import Recommendation, Standing, quality_of
from autotune.domain.recommending.relaxation import Unmet
from autotune.domain.studies.records import LaunchRecord, StudyRow, TrialRow, TrialState

STYLES = {
    TrialState.MEASURED: "green",
    TrialState.INFEASIBLE: "red",
    TrialState.REJECTED: "yellow",
    TrialState.CENSORED: "magenta",
    TrialState.BENCH_ERROR: "bold red",
    TrialState.RUNNING: "cyan",
}
QUALITY_STYLES = {
    QualityState.PASSED: "green",
    QualityState.FAILED: "bold red",
    QualityState.NOT_JUDGED: "yellow",
}


def wide_console() -> Console:
    """Standard output; where it is no terminal its width is not known, and tables get room."""
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 120
    return console


def print_recommendations(
    console: Console,
    found: Sequence[Recommendation],
    defaults: EngineConfig,
    ledger: Ledgers,
    unmet: Mapping[str, Unmet | None],
) -> None:
    """Print per SLA a table of the recommended configuration against the references, and its command.

    Of an SLA that nothing met, what came nearest and what relaxing it would buy.
    """
    for recommendation in found:
        contract = recommendation.sla.describe()
        console.print(Text(f"\n{recommendation.sla.name}", style="bold") + Text(f"  {contract}", style="dim"))
        if recommendation.best is None:
            console.print(Text(f"  withheld: {recommendation.reason}", style="yellow"))
            if (why := unmet.get(recommendation.sla.name)) is not None:
                console.print(_nearest(why))
            continue
        console.print(_comparison(recommendation, recommendation.best, defaults, ledger))
        console.print(_remarks(recommendation, recommendation.best, ledger), end="")
        # In one line however narrow the terminal is: it is there to be copied.
        console.print(Text(recommendation.best.candidate.row.command, style="cyan"), soft_wrap=True)


def _nearest(unmet: Unmet) -> RenderableType:
    """What came nearest to an SLA, what was in the way, and what each relaxation would buy."""
    shares = ", ".join(f"{slo} by {share:.1%}" for slo, share in unmet.shares.items())
    text = Text(
        f"  nearest: trial {unmet.trial} at {unmet.rate_rps:.3g} req/s, kept by {unmet.attainment:.1%} "
        f"of its requests, {unmet.wanted:.1%} are wanted\n"
        f"  each alone: {shares}\n  in the way: {unmet.binding}"
    )
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 2), header_style="bold")
    for heading in ("relaxed", "instead of", "would be kept by", "at req/s", "with good tok/s"):
        table.add_column(heading)
    for offer in unmet.offers:
        figures = (f"{offer.rate_rps:.3g}", f"{offer.goodput_tok_per_s:.4g}")
        table.add_row(offer.relaxed, offer.slo, f"trial {offer.trial}", *figures)
    nothing = Text("  no single SLO, relaxed, would let a measured level keep the rest", style="dim")
    return Group(text, table if unmet.offers else nothing)


def _comparison(found: Recommendation, best: Standing, defaults: EngineConfig, ledger: Ledgers) -> Table:
    columns = [("recommended", best), ("engine defaults", found.defaults)]
    if found.has_baseline:
        columns.append(("production", found.baseline))
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    table.add_column("")
    for heading, standing in columns:
        number = f" (trial {standing.candidate.row.number})" if standing else ""
        table.add_column(heading + number, overflow="fold")
    for name, show in _ROWS:
        modelled = name.startswith("good ") and best.figures.power_basis is PowerBasis.ESTIMATED
        heading = f"{name} (a model's)" if modelled else name
        table.add_row(heading, *(show(s) if s else "-" for _, s in columns))
    ledgers = [ledger(standing) if standing else None for _, standing in columns]
    for heading, show_line in _ledger_rows(ledgers):
        table.add_row(heading, *(show_line(each) if each else "-" for each in ledgers))
    labels = (s.candidate.row.config.label(defaults) if s else "-" for _, s in columns)
    table.add_row("configuration", *labels)
    return table


def _ledger_rows(ledgers: Sequence[Ledger | None]) -> Iterator[tuple[str, Callable[[Ledger], str]]]:
    """Rows of what any of some ledgers knows beside the basis that ranks."""
    known = [ledger for ledger in ledgers if ledger]
    bases = dict.fromkeys(line.basis for each in known for line in each.lines)
    for basis in bases:
        if any(each.ranking != basis and (each.ranking or len(each.lines) > 1) for each in known):
            yield f"{basis} W, tok/s/MW", lambda each, basis=basis: _basis_line(each, basis)  # type: ignore[misc]
    if any(each.idle_share is not None for each in known):
        yield "idle share of W", lambda each: "-" if each.idle_share is None else f"{each.idle_share:.0%}"
    for basis in bases:
        if any((line := each.line(basis)) and line.energy_per_mtok for each in known):
            yield (
                f"energy / Mtok ({basis})",
                lambda each, basis=basis: _cost(each, (line := each.line(basis)) and line.energy_per_mtok),  # type: ignore[misc]
            )
    if any(each.rental_per_mtok for each in known):
        yield "rental / Mtok", lambda each: _cost(each, each.rental_per_mtok)


def _basis_line(ledger: Ledger, basis: Basis) -> str:
    line = ledger.line(basis)
    return f"{line.power_w:.4g}, {line.tok_per_s_per_mw.value:.4g}" if line else "-"


def _cost(ledger: Ledger, cost: Figure | None) -> str:
    return f"{cost.value:.4g} {ledger.currency} {_interval(cost.interval, '.4g')}" if cost else "-"


def _remarks(found: Recommendation, best: Standing, ledger: Ledgers) -> Text:
    remarks = Text()
    if found.defaults is None:
        remarks.append(f"the engine's defaults met {found.sla.name} at no measured load\n", style="yellow")
    if (gain := found.over_defaults) is not None:
        remarks.append(f"over the engine's defaults: {gain.describe()}\n")
    if (gain := found.over_runner_up) is not None and found.runner_up is not None:
        number = found.runner_up.candidate.row.number
        remarks.append(f"over the runner-up, trial {number}: {gain.describe()}\n")
    if found.reason:
        remarks.append(f"note: {found.reason}\n", style="yellow")
    if not best.figures.power_basis.ranks:
        remarks.append(f"goodput ranks; watts: {best.figures.power_source}\n", style="dim")
    for remark in ledger(best).remarks:
        remarks.append(f"{remark}\n", style="dim")
    return remarks


def _attainment(figures: LevelScore) -> str:
    shown = "" if figures.verdict is SlaVerdict.MET else f"  {figures.verdict}"
    return f"{figures.attainment:.3f} {_interval(figures.attainment_interval, '.3f')}{shown}"


def _power(figures: LevelScore) -> str:
    if figures.power_basis is PowerBasis.NONE:
        return "unknown"
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
    (
        "window",
        lambda s: (
            f"{show_duration(s.figures.window_s)}, {s.figures.requests} requests, {s.figures.ended}"
            + ("" if s.figures.steady else ", unsteady")
        ),
    ),
    ("launches", lambda s: "2" if s.confirmed else "1"),
    ("quality", lambda s: _quality(quality_of(s.candidate.launch))),
)


def _quality(verdict: QualityVerdict) -> str:
    """State of a verdict, with the largest of its figures against their thresholds, or why there are none."""
    worst = max(verdict.figures, key=lambda f: f.value / f.threshold, default=None)
    why = str(worst) if worst else ", ".join(verdict.reasons)
    return f"{verdict.state}: {why}" if why else verdict.state


def quality(verdict: QualityVerdict) -> RenderableType:
    """A verdict with every figure, one to a line."""
    against = "" if verdict.reference is None else f", judged by trial {verdict.reference}"
    text = Text(f"quality {verdict.state}", style=QUALITY_STYLES[verdict.state])
    text.append(f"  {verdict.precision.label}{against}", style="dim")
    for line in (verdict.known, *verdict.reasons, *map(str, verdict.figures)):
        text.append(f"\n  {line}" if line else "", style="default")
    return text


def levels(record: LaunchRecord) -> RenderableType:
    """A launch's verdict on quality, and a line per load level: window, latency, counters, energy."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading, _ in _LEVEL_COLUMNS:
        table.add_column(heading, overflow="fold")
    for measurement in record.curve:
        table.add_row(*(show(measurement) for _, show in _LEVEL_COLUMNS))
    return Group(quality(quality_of(record)), "", table)


def _window(measurement: Measurement) -> str:
    unsteady = "" if measurement.steady else ", unsteady"
    return f"{show_duration(measurement.window.length_s)} {measurement.ended}{unsteady}"


def _p99(measurement: Measurement, values: Floats) -> str:
    """99th percentile over requests due in the window, of those that have the value."""
    known = values[measurement.due_in_window]
    known = known[np.isfinite(known)]
    return show_duration(float(np.percentile(known, 99))) if len(known) else "-"


def _watts(measurement: Measurement) -> str:
    energy = energy_in(measurement.power, measurement.window)
    return f"{energy.mean_w:.4g} ({measurement.power.scope}) {' '.join([energy.verdict, *energy.reasons])}"


_LEVEL_COLUMNS: tuple[tuple[str, Callable[[Measurement], str]], ...] = (
    ("load", lambda m: m.level.label),
    ("window", _window),
    ("requests", lambda m: str(int(m.due_in_window.sum()))),
    ("tok/s", lambda m: f"{m.throughput_tok_per_s:.4g}"),
    ("TTFT p99", lambda m: _p99(m, m.requests.ttft_s)),
    ("2nd token p99", lambda m: _p99(m, m.requests.second_token_s - m.requests.due_s)),
    ("stall p99", lambda m: _p99(m, m.requests.stall_s)),
    ("running", lambda m: _number(m.counters.mean("requests_running", m.window))),
    ("waiting", lambda m: _number(m.counters.mean("requests_waiting", m.window))),
    ("KV", lambda m: _share(m.counters.mean("kv_cache_usage", m.window))),
    ("preempted", lambda m: _number(m.counters.gained("preemptions_total", m.window))),
    ("prefix hits", lambda m: _share(m.counters.prefix_hit_rate(m.window))),
    ("accepted", lambda m: _share(m.counters.acceptance(m.window))),
    ("W", _watts),
    ("client lag", lambda m: show_duration(m.health.lag_p99_s)),
)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def studies(rows: Sequence[StudyRow]) -> RenderableType:
    """One line per study."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for heading in ("study", "status", "started", "ran for"):
        table.add_column(heading)
    for row in rows:
        table.add_row(row.name, row.status, row.started_at, show_duration(row.spent_s))
    return table


def print_trials(
    console: Console, rows: Sequence[TrialRow], defaults: EngineConfig, slas: Sequence[str]
) -> None:
    """Print a line of figures per trial, and under it what it is and, where it failed, why."""
    widths = [max(len(sla), 9) for sla in slas]
    headings = [f"{sla:>{width}}" for sla, width in zip(slas, widths, strict=True)]
    console.print(
        Text("  ".join([f"{'trial':>5}", _TRIAL_HEADINGS, *headings]), style="bold"), soft_wrap=True
    )
    for row in rows:
        again = f" of {row.final_of}" if row.final_of is not None else ""
        figures = [f"{row.objectives[sla]:.4g}" if sla in row.objectives else "-" for sla in slas]
        times = [show_duration(seconds) if seconds else "-" for seconds in (row.launch_s, row.load_s)]
        line = Text(f"{row.number:>5}  {row.purpose + again:<12}")
        line.append(f"{row.state:<12}", style=STYLES[row.state])
        line.append(f"{times[0]:>7}  {times[1]:>7}")
        line.append("".join(f"  {figure:>{width}}" for figure, width in zip(figures, widths, strict=True)))
        line.append(f"\n       {row.config.label(defaults)}", style="dim")
        if row.predicted:
            line.append(f"\n       predicted {_predicted(row)}", style="dim")
        if row.quality and row.quality != QualityState.PASSED:
            line.append(f"\n       quality {row.quality}", style=QUALITY_STYLES[QualityState(row.quality)])
        if row.failure_class:
            line.append(f"\n       {row.failure_class}: {row.failure_line}")
        if row.failure_class and row.log_path:
            line.append(f"\n       log: {row.log_path}", style="dim")
        console.print(line, soft_wrap=True)


def _predicted(row: TrialRow) -> str:
    """What a prior said before the launch, and how much of it was measured."""
    parts = []
    for sla, predicted in row.predicted.items():
        measured = row.objectives.get(sla)
        share = f" (measured {measured / predicted:.0%} of it)" if predicted and measured is not None else ""
        parts.append(f"{sla} {predicted:.4g}{share}")
    return ", ".join(parts)


_TRIAL_HEADINGS = f"{'purpose':<12}{'state':<12}{'launch':>7}  {'load':>7}"


def print_json(document: Any) -> None:
    """Print plain data as JSON."""
    print_plain(json.dumps(document, indent=2, allow_nan=False))


def print_plain(text: str) -> None:
    """Print to standard output as it stands, for machines: no wrapping, no colour."""
    Console(soft_wrap=True, highlight=False, markup=False).print(text)
