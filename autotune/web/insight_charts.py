"""Figures of what mattered: importances, slices, and predictions against what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autotune.domain.studies.records import TrialRow
from autotune.web.charts import Chart
from autotune.web.palette import GREY, PALETTE


def importance_bars(by_sla: Mapping[str, Mapping[str, float]]) -> Chart:
    """Bars by parameter, a colour for each SLA; the most important above."""
    together: dict[str, float] = {}
    for shares in by_sla.values():
        for name, share in shares.items():
            together[name] = together.get(name, 0.0) + share
    names = sorted(together, key=lambda name: together[name])
    return {
        "data": [
            {
                "type": "bar",
                "orientation": "h",
                "name": sla,
                "y": names,
                "x": [shares.get(name, 0.0) for name in names],
                "marker": {"color": PALETTE[index % len(PALETTE)]},
            }
            for index, (sla, shares) in enumerate(by_sla.items())
        ],
        "layout": {
            "xaxis": {"title": {"text": "share of importance (PED-ANOVA)"}, "tickformat": ".0%"},
            "yaxis": {"automargin": True},
            "barmode": "group",
            "height": max(240, 60 + 26 * len(names) * max(1, len(by_sla))),
            "margin": {"l": 10, "r": 20, "t": 20, "b": 50},
            "legend": {"orientation": "h", "y": 1.1},
        },
    }


def slices(rows: Sequence[TrialRow], sla: str, words: Sequence[str], links: Mapping[int, str]) -> Chart:
    """The objective against each word, side by side: a point for each judged trial."""
    data: list[Chart] = []
    layout: dict[str, object] = {
        "grid": {"rows": 1, "columns": max(len(words), 1), "pattern": "independent"},
        "showlegend": False,
        "height": 320,
        "margin": {"l": 60, "r": 20, "t": 20, "b": 70},
    }
    judged = [row for row in rows if sla in row.objectives]
    for index, word in enumerate(words, start=1):
        axis = "" if index == 1 else str(index)
        values = [str(row.config.words.get(word, "default")) for row in judged]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": values,
                "y": [row.objectives[sla] for row in judged],
                "xaxis": f"x{axis}",
                "yaxis": f"y{axis}",
                "customdata": [links[row.number] for row in judged],
                "text": [f"trial {row.number}" for row in judged],
                "hovertemplate": "%{text}: %{x}, %{y:.4g}<extra></extra>",
                "marker": {"size": 9, "opacity": 0.75, "color": PALETTE[(index - 1) % len(PALETTE)]},
            }
        )
        order = sorted(set(values), key=_numeric)
        layout[f"xaxis{axis}"] = {
            "title": {"text": word},
            "type": "category",
            "categoryorder": "array",
            "categoryarray": order,
        }
        layout[f"yaxis{axis}"] = {"rangemode": "tozero", "tickformat": "~s"}
    return {"data": data, "layout": layout}


def predictions(rows: Sequence[TrialRow], links: Mapping[int, str]) -> Chart | None:
    """What a prior said of each objective against what was measured, a colour for each SLA; None without."""
    slas = list(dict.fromkeys(sla for row in rows for sla in row.predicted if sla in row.objectives))
    data: list[Chart] = []
    highest = 0.0
    for index, sla in enumerate(slas):
        both = [row for row in rows if sla in row.predicted and sla in row.objectives]
        said, found = [row.predicted[sla] for row in both], [row.objectives[sla] for row in both]
        highest = max(highest, *said, *found)
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": sla,
                "x": said,
                "y": found,
                "customdata": [links[row.number] for row in both],
                "text": [f"trial {row.number}" for row in both],
                "hovertemplate": "%{text}: predicted %{x:.4g}, measured %{y:.4g}<extra></extra>",
                "marker": {"size": 9, "opacity": 0.8, "color": PALETTE[index % len(PALETTE)]},
            }
        )
    if not data:
        return None
    same = {"type": "scatter", "mode": "lines", "name": "as predicted", "hoverinfo": "skip"}
    data.append({**same, "x": [0, highest], "y": [0, highest], "line": {"color": GREY, "dash": "dot"}})
    layout = {
        "xaxis": {"title": {"text": "predicted objective"}, "rangemode": "tozero", "tickformat": "~s"},
        "yaxis": {"title": {"text": "measured"}, "rangemode": "tozero", "tickformat": "~s"},
        "height": 420,
        "margin": {"l": 70, "r": 20, "t": 20, "b": 60},
        "legend": {"orientation": "h", "y": 1.1},
    }
    return {"data": data, "layout": layout}


def _numeric(value: str) -> tuple[float, str]:
    try:
        return float(value), value
    except ValueError:
        return (-1.0 if value == "default" else float("inf")), value
