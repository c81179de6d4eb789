"""Colours and symbols of figures."""

from __future__ import annotations

PALETTE = (
    "#3987e5",
    "#d95926",
    "#199e70",
    "#c98500",
    "#9085e9",
    "#d55181",
    "#4aa3b5",
    "#8a6d3b",
    "#6b9c3e",
    "#b0609e",
)
"""Told apart on light and on dark, and by most eyes; symbols say the same once more."""
GREY = "#8b919c"
SYMBOLS = ("circle", "square", "triangle-up", "triangle-down", "pentagon", "hexagon", "cross", "x")


def escape(text: str) -> str:
    """Plotly reads a few tags in texts."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
