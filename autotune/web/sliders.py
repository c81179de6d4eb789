"""Sliders of an SLA: each bound between an eighth and eight times what the study asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from autotune.domain.judging.sla import JointSla, Metric, Sla

FACTOR = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Slider:
    """One movable bound; ``path`` is its place in the SLA as a study file writes it, unit ms or tok/s."""

    path: tuple[str, ...]
    name: str
    unit: str
    value: float
    low: float
    high: float
    logarithmic: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SliderSet:
    """An SLA, as its file says it, and what of it can be moved."""

    name: str
    sla: dict[str, Any]
    sliders: tuple[Slider, ...]


def sliders_of(sla: Sla) -> SliderSet:
    """The sliders of an SLA."""
    found = []
    if isinstance(sla, JointSla):
        found += [_bound(("slos", m.value), m.value, m, bound) for m, bound in sla.slos.items()]
        found.append(
            Slider(
                path=("attainment",),
                name="attainment",
                unit="%",
                value=sla.attainment * 100,
                low=50,
                high=99.5,
                logarithmic=False,
            )
        )
    else:
        for metric, percentiles in sla.slos.model_dump().items():
            bounds = getattr(sla.slos, metric)
            for key, bound in zip(percentiles, bounds.values(), strict=True):
                found.append(_bound(("slos", metric, key), f"{key} {metric}", Metric(metric), bound))
    return SliderSet(name=sla.name, sla=sla.model_dump(mode="json", exclude_none=True), sliders=tuple(found))


def _bound(path: tuple[str, ...], name: str, metric: Metric, bound: float) -> Slider:
    rate = metric is Metric.INTERACTIVITY
    value = bound if rate else bound * 1e3
    return Slider(
        path=path,
        name=name,
        unit="tok/s" if rate else "ms",
        value=value,
        low=value / FACTOR,
        high=value * FACTOR,
        logarithmic=True,
    )
