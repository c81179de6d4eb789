"""The tables that the benchmark of searches prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from search_score import Results, summary
from search_tables import Track

_TITLES = {
    Track.THROUGHPUT: "output tok/s per all-in MW at an SLA",
    Track.ENERGY: "output tokens per measured joule",
}


def print_tables(
    console: Console,
    track: Track,
    views: Mapping[str, Mapping[str, Results]],
    details: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> None:
    """One table per view; brackets hold 90 % intervals over problems."""
    for view, methods in views.items():
        table = Table(title=f"{view.replace('_', ' ')}: {_TITLES[track]}")
        for name in ("method", "problems", "median to 5 %", "mean to 5 %", "median to 1 %"):
            table.add_column(name, justify="left" if name == "method" else "right")
        for name in ("regret after 3", "after 5", "after 10"):
            table.add_column(name, justify="right")
        for method, results in methods.items():
            of, within = summary(results), details[view][method]["intervals_90pct"]
            low, high = within["mean_launches_5pct"]
            lowest, highest = within["regret_after_5"]
            regret = of["regret_after"]
            table.add_row(
                method,
                str(of["problems"]),
                f"{of['median_launches_5pct']:.1f}",
                f"{of['mean_launches_5pct']:.1f} [{low:.1f}, {high:.1f}]",
                f"{of['median_launches_1pct']:.1f}",
                f"{regret['3']:.1%}",
                f"{regret['5']:.1%} [{lowest:.1%}, {highest:.1%}]",
                f"{regret['10']:.1%}",
            )
        console.print(table)
