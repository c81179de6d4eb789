"""Tables of what pipelines do with a recommendation: fleets, verdicts, drift, what others measured."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from autotune.cli.render import wide_console
from autotune.domain.basics.quantities import show_duration
from autotune.domain.recommending.contract import RecommendationDocument
from autotune.domain.recommending.study_drift import StudyDrift
from autotune.domain.recommending.verification import Outcome, Verification
from autotune.domain.studies.observations import Observation

OUTCOME_STYLES = {Outcome.HOLDS: "green", Outcome.BROKEN: "bold red", Outcome.NOT_JUDGED: "yellow"}


def print_fleets(document: RecommendationDocument) -> None:
    """Print for each SLA what a fleet for the demand is made of and draws."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for heading in ("fleet for", "replicas", "N+1", "devices (N+1)", "kWh/day always on", "kWh/day scaled"):
        table.add_column(heading)
    for answer in document.slas:
        if (plan := answer.fleet) is None:
            table.add_row(answer.name, f"withheld: {answer.fleet_reason}")
            continue
        spent = (
            f"{each.joules_per_day / 3.6e6:.4g}" if each else "-" for each in (plan.always_on, plan.scaled)
        )
        counts = (plan.replicas, plan.replicas_n_plus_1, f"{plan.devices} ({plan.devices_n_plus_1})")
        table.add_row(answer.name, *map(str, counts), *spent)
    wide_console().print("", table)


def print_verifications(found: Sequence[Verification]) -> None:
    """Print each SLA's verdict, what decided it, and every SLO with its figure."""
    console = wide_console()
    for each in found:
        heading = Text(f"{each.sla}: {each.outcome}", style=OUTCOME_STYLES[each.outcome])
        if each.rate_rps is not None:
            measured = (
                f"{each.rate_rps:.3g} req/s, {each.requests} requests in {show_duration(each.window_s)}"
            )
            heading.append(f"  {measured}", style="dim")
        console.print(heading, soft_wrap=True)
        for line in each.reasons:
            console.print(Text(f"  {line}"), soft_wrap=True)
        for line in (*map(str, each.slos), *map(str, each.figures), *each.remarks):
            if line not in each.reasons:
                console.print(Text(f"  {line}", style="dim"), soft_wrap=True)


def print_drift(found: StudyDrift) -> None:
    """Print what differs between two studies and, for each SLA, what changed and what to do."""
    console = wide_console()
    for line in (*found.different, *found.hindrances):
        console.print(Text(line, style="dim"), soft_wrap=True)
    for each in found.slas:
        todo = "tune again" if each.tune_again else ""
        heading = Text(f"{each.sla}: {each.change}", style="bold")
        console.print(heading + Text(f"  {todo}", style="bold yellow"), soft_wrap=True)
        for who, standing in (("first", each.before), ("second", each.after)):
            if standing is not None:
                label = standing.candidate.row.config.label()
                objective = f"{standing.figures.objective:.4g}"
                ends = standing.figures.objective_interval
                interval = f"[{ends.low:.4g}, {ends.high:.4g}]"
                console.print(Text(f"  {who:<7}{objective} {interval}  {label}", style="dim"), soft_wrap=True)
        for reason in each.reasons:
            console.print(Text(f"  {reason}"), soft_wrap=True)


def print_observations(found: Sequence[Observation]) -> None:
    """Print what other tools measured, one run to a line."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", title_justify="left")
    table.title = "measured by others, not ranked"
    for heading in ("tool", "load", "requests", "tok/s", "TTFT p50/p99", "TPOT p50/p99", "file"):
        table.add_column(heading, overflow="fold")
    for each in found:
        latencies = (
            " / ".join(show_duration(of.get(p, float("nan"))) for p in ("p50", "p99"))
            for of in (each.ttft_s, each.tpot_s)
        )
        failed = f", {each.failed} failed" if each.failed else ""
        tokens = "-" if each.output_tok_per_s is None else f"{each.output_tok_per_s:.4g}"
        cells = (each.tool, each.load, f"{each.requests}{failed}", tokens, *latencies, each.source)
        table.add_row(*(Text(cell) for cell in cells))
    wide_console().print("", table)
