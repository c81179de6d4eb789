"""Figures as Plotly takes them, made of plain data; the page adds the colours of its theme."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from autotune.domain.basics.quantities import show_duration
from autotune.domain.configs.config import EngineConfig
from autotune.domain.judging.scoring import SlaVerdict
from autotune.domain.measuring.stats import Figure
from autotune.domain.recommending.picture import Point, Region, pareto_front
from autotune.web import lettering
from autotune.web.palette import GREY, PALETTE, SYMBOLS, escape

Chart = dict[str, Any]
"""``data`` and ``layout``."""

MOST_COLOURED = 8
"""Configurations that get a colour of their own where each could; the rest are grey."""


class Measure(StrEnum):
    """What the picture shows upwards."""

    PER_MW = "mw"
    COST = "cost"
    PER_DEVICE = "device"

    @property
    def axis(self) -> str:
        """Title of its axis."""
        return {
            Measure.PER_MW: "output tok/s per MW",
            Measure.COST: "cost per million output tokens",
            Measure.PER_DEVICE: "output tok/s per accelerator",
        }[self]

    @property
    def lower_is_better(self) -> bool:
        """Whether less is more."""
        return self is Measure.COST

    def of(self, point: Point) -> Figure | None:
        """A point's figure."""
        match self:
            case Measure.PER_MW:
                return point.per_mw
            case Measure.COST:
                return point.cost
            case Measure.PER_DEVICE:
                return point.per_device


class Colour(StrEnum):
    """What colours tell apart."""

    CONFIGURATION = "configuration"
    ENGINE = "engine"
    TENSOR_PARALLEL = "tensor_parallel"
    PRECISION = "precision"
    SPECULATION = "speculation"

    @property
    def heading(self) -> str:
        """For the menu."""
        return self.value.replace("_", " ")

    def of(self, config: EngineConfig, label: str) -> str:
        """The group a configuration belongs to."""
        match self:
            case Colour.CONFIGURATION:
                return label
            case Colour.ENGINE:
                return config.engine
            case Colour.TENSOR_PARALLEL:
                return f"TP {config.widest_tensor_parallel}"
            case Colour.PRECISION:
                parts = (config.quantization, config.dtype, config.kv_cache_dtype)
                names = ("weights", "dtype", "KV")
                said = [f"{n} {p}" for n, p in zip(names, parts, strict=True) if p]
                return ", ".join(said) or "as the checkpoint"
            case Colour.SPECULATION:
                return config.speculation or "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One configuration of the picture; ``link`` opens it, ``source`` names its study where several are."""

    trial: int
    config: EngineConfig
    label: str
    link: str
    points: Sequence[Point]
    source: str = ""


def picture(  # noqa: PLR0913 - all of it is on the picture
    configurations: Sequence[Series],
    regions: Sequence[Region],
    *,
    measure: Measure,
    colour: Colour,
    focus: str | None = None,
    winners: Mapping[str, int] | None = None,
    remark: str = "",
    currency: str = "USD",
) -> Chart:
    """Each configuration's curve, the Pareto front, SLAs as regions, winners as stars.

    With ``focus`` points that keep this SLA are filled and the others hollow. ``winners`` are trials by SLA.
    """
    shown = [(c, [p for p in c.points if measure.of(p) is not None]) for c in configurations]
    everything = [(c, p, _y(measure, p)) for c, points in shown for p in points]
    front = pareto_front(
        [(p.interactivity.value, y) for _, p, y in everything], lower_is_better=measure.lower_is_better
    )
    on_front = [everything[i] for i in front]
    groups = _groups([c for c, points in shown if points], on_front, winners or {}, colour)
    data = [
        _curve(c, points, measure, groups[_group(c, colour, groups)], _group(c, colour, groups), focus)
        for c, points in shown
        if points
    ]
    _one_legend_entry(data)
    data.append(_front_line(on_front))
    data += _stars(shown, winners or {}, measure)
    title = measure.axis if measure is not Measure.COST else f"{currency} per million output tokens"
    widest = max((p.interactivity.value for _, p, _ in everything), default=1.0) * 1.12
    at = [(p.interactivity.value, y) for _, p, y in on_front]
    notes = [
        *lettering.ends(at, lower_is_better=measure.lower_is_better),
        *lettering.region_labels(regions, widest),
    ]
    if remark:
        notes.append(lettering.note(remark, len(regions)))
    return {
        "data": data,
        "layout": {
            "xaxis": {
                "title": {"text": "interactivity, tok/s/user (1 / median TPOT)"},
                "range": [0, widest],
                "zeroline": False,
            },
            "yaxis": {"title": {"text": title}, "rangemode": "tozero", "zeroline": False, "tickformat": "~s"},
            "shapes": [lettering.region_shape(r, widest, i) for i, r in enumerate(regions)],
            "annotations": notes,
            "hovermode": "closest",
            "legend": {"orientation": "h", "y": -0.18, "x": 0, "font": {"size": 11}},
            "margin": {"l": 70, "r": 20, "t": 58 + 14 * len(regions), "b": 60},
        },
    }


def _y(measure: Measure, point: Point) -> float:
    figure = measure.of(point)
    assert figure is not None, "points without it were left out"
    return figure.value


def _group(configuration: Series, colour: Colour, groups: Mapping[str, Any]) -> str:
    name = colour.of(configuration.config, f"{configuration.source}{configuration.label}")
    return name if name in groups else "others"


def _groups(
    shown: Sequence[Series],
    on_front: Sequence[tuple[Series, Point, float]],
    winners: Mapping[str, int],
    colour: Colour,
) -> dict[str, tuple[str, str]]:
    """(colour, symbol) by group, in a stable order; those that matter most come first."""

    def name(c: Series) -> str:
        return colour.of(c.config, f"{c.source}{c.label}")

    leading = [name(c) for c in shown if c.trial in winners.values()] + [name(c) for c, _, _ in on_front]
    names = list(dict.fromkeys([*leading, *map(name, shown)]))
    kept = names[:MOST_COLOURED]
    found = {n: (PALETTE[i % len(PALETTE)], SYMBOLS[i % len(SYMBOLS)]) for i, n in enumerate(kept)}
    return found | ({"others": (GREY, "circle")} if len(names) > len(kept) else {})


def _curve(
    configuration: Series,
    points: Sequence[Point],
    measure: Measure,
    look: tuple[str, str],
    group: str,
    focus: str | None,
) -> Chart:
    """Levels of the search launch joined by a line, those of the final one loose between them."""
    ordered = sorted(points, key=lambda p: (p.final, -p.interactivity.value))
    hue, symbol = look
    y = [measure.of(p) or p.throughput for p in ordered]
    symbols = [_mark(p, symbol, focus) for p in ordered]
    gaps = [i for i, p in enumerate(ordered) if p.final and i > 0]  # in the line, before each final
    row: dict[str, list[Any]] = {
        "x": [p.interactivity.value for p in ordered],
        "y": [f.value for f in y],
        "symbol": symbols,
        "up": [_finite(f.interval.high - f.value) for f in y],
        "down": [f.value - f.interval.low for f in y],
        "right": [p.interactivity.interval.high - p.interactivity.value for p in ordered],
        "left": [p.interactivity.value - p.interactivity.interval.low for p in ordered],
        "text": [_hover(configuration, p, measure, focus) for p in ordered],
    }
    for values in row.values():
        for gap in reversed(gaps):
            values.insert(gap, None)
    bars = {"type": "data", "symmetric": False, "color": hue, "thickness": 0.8, "width": 0}
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": group,
        "legendgroup": group,
        "x": row["x"],
        "y": row["y"],
        "text": row["text"],
        "hovertemplate": "%{text}<extra></extra>",
        "customdata": [configuration.link] * len(row["x"]),
        "line": {"color": hue, "width": 1.6, "shape": "linear"},
        "opacity": 0.45 if group == "others" else 1.0,
        "marker": {"color": hue, "size": 9, "symbol": row["symbol"], "line": {"width": 1.4, "color": hue}},
        "error_y": {"array": row["up"], "arrayminus": row["down"], **bars},
        "error_x": {"array": row["right"], "arrayminus": row["left"], **bars},
    }


def _mark(point: Point, symbol: str, focus: str | None) -> str:
    """Finals are diamonds; what does not keep the SLA in focus is hollow."""
    shape = "diamond" if point.final else symbol
    return shape if focus is None or _keeps(point, focus) else f"{shape}-open"


def _keeps(point: Point, sla: str) -> bool:
    return point.verdicts.get(sla) in {SlaVerdict.MET, SlaVerdict.NOT_SHOWN} and point.open_loop


def _finite(value: float) -> float | None:
    return value if value < float("inf") else None


def _hover(configuration: Series, p: Point, measure: Measure, focus: str | None) -> str:
    x, y = p.interactivity, measure.of(p) or p.throughput
    again = ", launched again" if p.final else ""
    lines = [
        f"<b>{escape(configuration.source)}trial {configuration.trial}{again}</b>",
        escape(configuration.label)[:120],
        f"{p.load}: {p.throughput.value:.4g} tok/s, {p.requests} requests",
        f"{y.value:.4g} {measure.axis} [{y.interval.low:.4g}, {y.interval.high:.4g}]",
        f"{x.value:.4g} tok/s/user [{x.interval.low:.4g}, {x.interval.high:.4g}]",
    ]
    if p.ttft_p95_s is not None:
        lines.append(f"TTFT p95 {show_duration(p.ttft_p95_s)}")
    verdicts = {k: v for k, v in p.verdicts.items() if focus in {None, k}}
    lines += [f"{escape(sla)}: {verdict}" for sla, verdict in verdicts.items()]
    if not p.open_loop:
        lines.append("closed loop: for comparison, no SLA is judged on it")
    return "<br>".join(lines)


def _one_legend_entry(data: Sequence[Chart]) -> None:
    seen: set[str] = set()
    for trace in data:
        trace["showlegend"] = trace["legendgroup"] not in seen
        seen.add(trace["legendgroup"])


def _front_line(on_front: Sequence[tuple[Series, Point, float]]) -> Chart:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "Pareto front",
        "x": [p.interactivity.value for _, p, _ in on_front],
        "y": [y for _, _, y in on_front],
        "line": {
            "width": 2.4,
            "dash": "dot",
            "color": GREY,
            "shape": "vh",
        },
        "hoverinfo": "skip",
    }


def _stars(
    shown: Sequence[tuple[Series, Sequence[Point]]], winners: Mapping[str, int], measure: Measure
) -> list[Chart]:
    """A star on the point that keeps an SLA at the highest load, of the trial that is recommended for it."""
    stars = []
    for sla, trial in winners.items():
        points = [p for c, points in shown if c.trial == trial for p in points]
        held = [p for p in points if _keeps(p, sla)]
        at = max(held, key=lambda p: (p.final, p.rate_rps), default=None)
        if at is not None:
            stars.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": f"★ recommended for {sla}",
                    "x": [at.interactivity.value],
                    "y": [_y(measure, at)],
                    "marker": {"symbol": "star", "size": 17, "line": {"width": 1}},
                    "hovertemplate": f"recommended for {escape(sla)}: trial {trial}<extra></extra>",
                    "meta": "star",
                }
            )
    return stars
