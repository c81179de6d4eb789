"""Figures of one trial: its latencies by load level, and what happened while it was loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from autotune.domain.judging.sla import Metric, Sla
from autotune.domain.measuring.measurement import Floats, LoadCurve, Measurement
from autotune.domain.measuring.queueing import in_flight
from autotune.web.charts import Chart
from autotune.web.palette import GREY, PALETTE

MOST_SAMPLES = 1500
"""Of one series: more than a screen has pixels for."""
_QUANTILES = np.linspace(0, 1, 101)


def latencies(curve: LoadCurve, slas: Sequence[Sla]) -> Chart:
    """Cumulative shares of TTFT and TPOT, a line for each level; bounds of the SLAs as dotted lines."""
    data: list[Chart] = []
    for index, m in enumerate(curve):
        due, requests = m.due_in_window, m.requests
        for axis, values in (("", requests.ttft_s[due]), ("2", requests.tpot_s[due & requests.ok])):
            data += _share_line(m, values, axis, PALETTE[index % len(PALETTE)], index)
    bounds = list(_bounds(slas))
    return {
        "data": data,
        "layout": {
            "grid": {"rows": 1, "columns": 2, "pattern": "independent"},
            "xaxis": {"title": {"text": "TTFT, ms"}, "type": "log"},
            "xaxis2": {"title": {"text": "TPOT, ms"}, "type": "log"},
            "yaxis": {"title": {"text": "share of requests"}, "range": [0, 1.02], "tickformat": ".0%"},
            "yaxis2": {"range": [0, 1.02], "tickformat": ".0%"},
            "shapes": [_bound_line(axis, ms) for axis, ms, _ in bounds],
            "annotations": [_bound_label(axis, ms, name) for axis, ms, name in bounds],
            "legend": {"orientation": "h", "y": -0.3},
            "margin": {"l": 60, "r": 20, "t": 40, "b": 60},
            "height": 400,
        },
    }


def timeline(curve: LoadCurve) -> Chart:
    """Load, queue, KV use, throughput and watts over the launch, windows shaded."""
    if not curve:
        return {"data": [], "layout": {}}
    start_s = min(_begins(m) for m in curve)
    rows = ("requests due /s", "in flight · waiting", "KV in use", "output tok/s", "watts")
    data = [trace for m in curve for trace in _level_traces(m, start_s)]
    seen: set[str] = set()
    for trace in data:
        trace["showlegend"] = trace["name"] not in seen
        trace["legendgroup"] = trace["name"]
        seen.add(trace["name"])
    layout: dict[str, Any] = {
        "grid": {"rows": len(rows), "columns": 1, "pattern": "coupled", "roworder": "top to bottom"},
        "xaxis": {"title": {"text": "seconds since the first level began"}},
        "shapes": [_window_shape(m, start_s, i) for i, m in enumerate(curve)],
        "annotations": [_window_label(m, start_s) for m in curve],
        "legend": {"orientation": "h", "y": -0.1},
        "margin": {"l": 60, "r": 20, "t": 50, "b": 60},
        "hovermode": "x unified",
        "height": 720,
    }
    for row, title in enumerate(rows, start=1):
        axis = {"title": {"text": title, "font": {"size": 11}}, "rangemode": "tozero", "zeroline": False}
        layout["yaxis" if row == 1 else f"yaxis{row}"] = axis
    layout["yaxis3"]["tickformat"] = ".2~%"
    return {"data": data, "layout": layout}


def _share_line(m: Measurement, values: Floats, axis: str, hue: str, index: int) -> Iterator[Chart]:
    known = values[np.isfinite(values)]
    if not len(known):
        return
    of_all = len(known) / max(len(values), 1)
    yield {
        "type": "scatter",
        "mode": "lines",
        "name": m.level.label,
        "legendgroup": f"{index}",
        "showlegend": axis == "",
        "x": _round(np.quantile(known, _QUANTILES) * 1e3),
        "y": _round(_QUANTILES * of_all),
        "xaxis": f"x{axis}",
        "yaxis": f"y{axis}",
        "line": {"color": hue, "width": 2, "dash": "solid" if m.level.rate_rps else "dot"},
        "hovertemplate": f"{m.level.label}: %{{y:.1%}} within %{{x:.4g}} ms<extra></extra>",
    }


def _bounds(slas: Sequence[Sla]) -> Iterator[tuple[str, float, str]]:
    """(axis, milliseconds, name) of every bound that can be drawn."""
    for sla in slas:
        for bounds, share in sla.goals():
            for metric, bound in bounds:
                if metric is Metric.TTFT:
                    yield "", bound * 1e3, f"{sla.name} {share:.0%}"
                elif metric is Metric.TPOT:
                    yield "2", bound * 1e3, f"{sla.name} {share:.0%}"
                elif metric is Metric.INTERACTIVITY:
                    yield "2", 1e3 / bound, f"{sla.name} {share:.0%}"


def _bound_line(axis: str, ms: float) -> dict[str, Any]:
    line = {"color": GREY, "width": 1.5, "dash": "dot"}
    return {
        "type": "line",
        "xref": f"x{axis}",
        "yref": f"y{axis} domain",
        "x0": ms,
        "x1": ms,
        "y0": 0,
        "y1": 1,
        "line": line,
    }


def _bound_label(axis: str, ms: float, name: str) -> dict[str, Any]:
    return {
        "xref": f"x{axis}",
        "yref": f"y{axis} domain",
        "x": float(np.log10(ms)),
        "y": 1,
        "yanchor": "bottom",
        "showarrow": False,
        "text": name,
        "font": {"size": 11},
    }


def _begins(m: Measurement) -> float:
    return float(m.requests.due_s.min()) if len(m.requests) else m.window.start_s


def _level_traces(m: Measurement, start_s: float) -> Iterator[Chart]:
    requests = m.requests
    if len(requests):
        last_s = max(float(np.nanmax(np.append(requests.finished_s, m.window.end_s))), m.window.end_s)
        edges = np.arange(_begins(m), last_s + 1.0, 1.0)
        due, _ = np.histogram(requests.due_s, bins=edges)
        tokens, _ = np.histogram(requests.chunk_s, bins=edges, weights=requests.chunk_tokens)
        middle = edges[:-1] + 0.5
        yield _line("due", middle, due.astype(np.float64), start_s, 1, PALETTE[0])
        yield _line(
            "in flight (client)",
            edges,
            in_flight(requests.due_s, requests.finished_s, edges),
            start_s,
            2,
            PALETTE[0],
        )
        yield _line("output", middle, tokens, start_s, 4, PALETTE[2])
    counters = m.counters
    for name, key, row, hue in (
        ("running (engine)", "requests_running", 2, PALETTE[2]),
        ("waiting (engine)", "requests_waiting", 2, PALETTE[1]),
        ("KV cache", "kv_cache_usage", 3, PALETTE[4]),
    ):
        if key in counters.values:
            yield _line(name, counters.time_s, counters.values[key], start_s, row, hue)
    for index, device in enumerate(m.power.devices):
        if len(device.time_s):
            hue = PALETTE[(index + 3) % len(PALETTE)]
            name = f"W {device.uid} ({m.power.basis})"
            yield _line(name, device.time_s, device.power_w, start_s, 5, hue)


def _line(name: str, time_s: Floats, values: Floats, start_s: float, row: int, hue: str) -> Chart:
    step = max(1, len(time_s) // MOST_SAMPLES)
    axis = "" if row == 1 else str(row)
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        # Ends in a gap: levels are not joined, for nothing was measured between them.
        "x": [*_round(time_s[::step] - start_s), None],
        "y": [*_round(np.asarray(values, dtype=np.float64)[::step]), None],
        "xaxis": "x",
        "yaxis": f"y{axis}",
        "line": {"color": hue, "width": 1.4},
    }


def _window_shape(m: Measurement, start_s: float, index: int) -> dict[str, Any]:
    return {
        "type": "rect",
        "xref": "x",
        "yref": "paper",
        "x0": m.window.start_s - start_s,
        "x1": m.window.end_s - start_s,
        "y0": 0,
        "y1": 1,
        "fillcolor": PALETTE[index % len(PALETTE)],
        "opacity": 0.1,
        "line": {"width": 0},
        "layer": "below",
    }


def _window_label(m: Measurement, start_s: float) -> dict[str, Any]:
    return {
        "xref": "x",
        "yref": "paper",
        "x": m.window.start_s - start_s,
        "y": 1,
        "xanchor": "left",
        "yanchor": "bottom",
        "showarrow": False,
        "textangle": -18,
        "text": m.level.label,
        "font": {"size": 10},
    }


def _round(values: Floats) -> list[float | None]:
    """Five digits: figures of a page, not of an archive; JSON has no NaN."""
    return [float(f"{v:.5g}") if np.isfinite(v) else None for v in values]
