"""Durations and sizes as people write them: ``500ms``, ``2s``, ``12m``, ``1GiB``."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator, ByteSize, Field, PlainSerializer, WithJsonSchema

LONGEST_S = 1e12
"""Longer than anyone waits; what is infinite could not be written."""
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)")


def parse_duration_s(text: Any) -> float:
    """Read a duration such as ``1m30s`` as seconds, to the microsecond; raises ValueError with the units."""
    if isinstance(text, str):
        parts = _DURATION.findall(text)
        whole = "".join(number + unit for number, unit in parts)
        if parts and whole == re.sub(r"\s+", "", text) and all(unit in _SECONDS for _, unit in parts):
            # To the microsecond, as write_duration: 9ms is 0.009 s, not 0.009000000000000001 s.
            seconds = round(sum(float(number) * _SECONDS[unit] for number, unit in parts), 6)
            if seconds <= LONGEST_S:
                return seconds
    raise ValueError(f"{text!r} is no duration; write a number with its unit, such as 500ms, 2s, 12m or 1h")


def write_duration(seconds: float) -> str:
    """Write seconds so that parse_duration_s reads the same, to the microsecond."""
    return f"{seconds:.6f}".rstrip("0").rstrip(".") + "s"


def show_duration(seconds: float) -> str:
    """Write seconds for people: ``83ms``, ``2.4s``, ``11m05s``, ``3h12m``; a dash for NaN."""
    if math.isnan(seconds):
        return "-"
    if seconds < 0.9995:  # noqa: PLR2004 - three digits of more are a second
        return f"{seconds * 1e3:.3g}ms"
    if seconds < 60:  # noqa: PLR2004 - a minute
        return f"{seconds:.3g}s"
    minutes, rest_s = divmod(round(seconds), 60)
    return f"{minutes}m{rest_s:02}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02}m"  # noqa: PLR2004


DurationS = Annotated[
    float,
    BeforeValidator(parse_duration_s),
    PlainSerializer(write_duration, return_type=str),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": r"^(\d+(\.\d+)?\s*(us|ms|s|m|min|h|d)\s*)+$",
            "examples": ["500ms", "2s", "12m"],
        }
    ),
]
"""Seconds, written as a duration in files."""

PositiveDurationS = Annotated[DurationS, Field(gt=0)]
"""Seconds above 0, written as a duration in files."""

Bytes = Annotated[ByteSize, WithJsonSchema({"type": "string", "examples": ["1GiB", "512MB"]})]
"""Bytes, written as a size in files."""
