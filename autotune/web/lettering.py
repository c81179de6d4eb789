"""What is written on the picture: the front's parts, the regions of SLAs, what must be known of its watts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autotune.domain.recommending.picture import Region, goldilocks
from autotune.web.palette import PALETTE, escape


def ends(at: Sequence[tuple[float, float]], *, lower_is_better: bool) -> list[dict[str, Any]]:
    """Names of a front's parts: bulk where tokens are cheapest, premium where they are fastest."""
    if not at:
        return []
    named = {0: "bulk"} | ({len(at) - 1: "premium"} if len(at) > 1 else {})
    middle = goldilocks(at, lower_is_better=lower_is_better)
    if middle is not None:
        named[middle] = "Goldilocks"
    return [
        {
            "x": at[i][0],
            "y": at[i][1],
            "text": f"<b>{name}</b>",
            "showarrow": True,
            "arrowhead": 0,
            "arrowwidth": 1,
            "ax": 22,
            "ay": -30,
            "font": {"size": 12},
        }
        for i, name in named.items()
    ]


def region_shape(region: Region, widest: float, index: int) -> dict[str, Any]:
    """Where an SLA lies."""
    hue = PALETTE[index % len(PALETTE)]
    return {
        "type": "rect",
        "xref": "x",
        "yref": "paper",
        "x0": region.least,
        "x1": max(widest, region.least),
        "y0": 0,
        "y1": 1,
        "fillcolor": hue,
        "opacity": 0.07,
        "line": {"width": 1.5, "color": hue},
        "layer": "below",
    }


def region_labels(regions: Sequence[Region], widest: float) -> list[dict[str, Any]]:
    """One line above the plot for each SLA, in the colour of its region, from where the region begins."""
    return [
        {
            "xref": "x",
            "yref": "paper",
            "x": min(region.least, widest * 0.7),
            "y": 1,
            "yshift": 8 + 14 * index,
            "xanchor": "left",
            "yanchor": "bottom",
            "showarrow": False,
            "text": f"{escape(region.sla)}: {escape(region.contract)}"
            + (" →" if region.least else " (any interactivity)"),
            "font": {"size": 11, "color": PALETTE[index % len(PALETTE)]},
        }
        for index, region in enumerate(regions)
    ]


def note(text: str, above: int) -> dict[str, Any]:
    """What must stand on the picture, above so many lines of regions."""
    return {
        "xref": "paper",
        "yref": "paper",
        "x": 1,
        "y": 1,
        "yshift": 10 + 14 * above,
        "xanchor": "right",
        "align": "right",
        "yanchor": "bottom",
        "showarrow": False,
        "text": escape(text).replace(": ", ":<br>"),
        "font": {"size": 11},
        "meta": "note",
    }
