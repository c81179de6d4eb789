"""How figures are written on pages."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from markupsafe import Markup

from autotune.domain.basics.quantities import show_duration
from autotune.domain.configs.config import EngineConfig

NONE = "-"
_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def figure(value: float | None, digits: int = 4) -> str:
    """A number in so many digits, thousands as k, M, G."""
    if value is None or not math.isfinite(value):
        return NONE
    for size, prefix in _PREFIXES:
        if abs(value) >= size * (10 if prefix == "k" else 1):
            return f"{value / size:.{digits}g} {prefix}"
    return f"{value:.{digits}g}"


def interval(ends: Sequence[float | None] | None) -> str:
    """Both ends of an interval; none without an end."""
    if not ends:
        return ""
    return " to ".join("∞" if end is None else figure(end, 3) for end in ends)


def share(value: float | None) -> str:
    """A share in per cent."""
    return NONE if value is None else f"{value:.1%}"


def duration(seconds: float | None) -> str:
    """Seconds for people."""
    return NONE if not seconds else show_duration(seconds)


def percentiles(values: dict[str, float] | None) -> str:
    """p50 / p95 / p99, as durations."""
    return " / ".join(show_duration(v) for v in (values or {}).values()) or NONE


def label(config: EngineConfig, defaults: EngineConfig) -> str:
    """A configuration in the words that set it apart."""
    return config.label(defaults)


def chart_json(chart: Any) -> Markup:
    """Data for a ``script`` element: nothing in it ends the element or begins another."""
    text = json.dumps(chart, allow_nan=False, separators=(",", ":"), default=str)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))  # noqa: S704


def date(text: str) -> str:
    """A timestamp without its seconds and zone: all are UTC."""
    return text[:16].replace("T", " ")


FILTERS: dict[str, Callable[..., Any]] = {
    "figure": figure,
    "interval": interval,
    "share": share,
    "duration": duration,
    "percentiles": percentiles,
    "label": label,
    "chart_json": chart_json,
    "date": date,
}
