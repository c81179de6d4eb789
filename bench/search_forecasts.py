"""The roofline's forecast of every candidate's curve, and how far a launch's levels are from it.

All values are logarithms. An *error* of a forecast is a pair: by how much interactivity, and by how much the
value sought, are above what was forecast at the same concurrency. It belongs to a configuration and changes
slowly along its curve, so that a launch, met or missed, tells where the curves of its neighbours really lie.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from recorded import accelerator, inferencex_config, served_as
from search_tables import Levels, Problem, Track

from autotune.domain.basics.errors import AutotuneError
from autotune.domain.models.checkpoint import Part
from autotune.domain.models.model import ModelShape
from autotune.domain.models.weights import part_numbers
from autotune.domain.search.forecast import Deployment, Traffic

Floats = NDArray[np.float64]

CONCURRENCIES = tuple(2.0**k for k in range(14))
NEAR = 0.7
"""Levels count by how near their interactivity is to the SLA's: a step of so much in logarithms is 1/e."""
MISSED_SLOPE = 4.0
"""Of the value's logarithm, by how far the logarithm of interactivity stays below the SLA's."""
_UNIT_W = {Track.THROUGHPUT: 1e6, Track.ENERGY: 1.0}
"""Per megawatt; and per watt, for tokens per joule: measured watts are all-in ones but for a factor."""
SPEEDS = np.linspace(-4.0, 10.0, 561)
"""Logarithms of interactivity at which each forecast's best value is kept."""


class Shapes:
    """The shapes of models whose ``config.json`` is known, by the name that tables give them."""

    def __init__(self, configs: Mapping[str, Mapping[str, Any]]) -> None:
        self._shapes: dict[str, ModelShape] = {}
        for name, config in configs.items():
            try:
                self._shapes[name] = ModelShape.from_config(config)
            except (TypeError, ValueError, ZeroDivisionError):
                continue  # a file that is no model's: carry on without it

    def find(self, model: str) -> ModelShape | None:
        return self._shapes.get(model)

    def numbers(self, model: str) -> tuple[float, ...]:
        """Logarithms of all and of active numbers, layers, width, KV heads, latent attention; -1 unknown."""
        shape = self.find(model)
        if shape is None:
            return (-1.0,) * 7
        try:
            parts = part_numbers(shape)
        except (AutotuneError, ValueError, ZeroDivisionError):
            return (-1.0,) * 7
        total = max(sum(parts.values()), 1)
        asleep = parts.get(Part.EXPERTS, 0) * (1 - shape.experts_per_token / max(shape.experts, 1))
        active = max(total - asleep, 1)
        return (
            math.log(total),
            math.log(active),
            total / active,
            float(shape.layers),
            float(shape.hidden_size),
            float(shape.kv_heads),
            float(shape.latent is not None),
        )


@dataclass(frozen=True, slots=True)
class Forecasts:
    """Curves of all candidates, [candidates, concurrencies]; ``best`` is by SPEEDS, see ``best_at``."""

    interactivity: Floats
    values: Floats
    best: Floats

    def best_at(self, sla: float, errors: Floats) -> Floats:
        """The best value at an interactivity of ``sla`` or more, if curves are off by ``errors``.

        ``errors`` is [candidates, 2]. Below the SLA it falls with MISSED_SLOPE, so that misses have an order.
        """
        asked = np.clip(math.log(sla) - errors[:, 0], SPEEDS[0], SPEEDS[-1])
        place = (asked - SPEEDS[0]) / (SPEEDS[1] - SPEEDS[0])
        below = np.minimum(place.astype(int), len(SPEEDS) - 2)
        rows, share = np.arange(len(asked)), place - below
        found: Floats = (1 - share) * self.best[rows, below] + share * self.best[rows, below + 1]
        return found + errors[:, 1]

    def error(self, index: int, levels: Levels, sla: float) -> Floats:
        """How far the levels of a candidate are from its forecast, [2]; those near an SLA count for most."""
        at, grid = np.log(levels.concurrency), np.log(CONCURRENCIES)
        speed = np.log(levels.interactivity)
        off = np.column_stack(
            [
                speed - np.interp(at, grid, self.interactivity[index]),
                np.log(levels.values) - np.interp(at, grid, self.values[index]),
            ]
        )
        near = np.exp(-np.abs(speed - math.log(sla)) / NEAR)
        found: Floats = np.average(off, axis=0, weights=near)
        return found


def forecasts(problem: Problem, shapes: Shapes) -> Forecasts | None:
    """Forecast every candidate; None where the model or all accelerators are unknown.

    A candidate that cannot be forecast stands in the middle of the others.
    """
    shape = shapes.find(problem.model)
    if shape is None or problem.family != "curves":
        return None
    prompt, output = map(float, problem.workload.split("/"))
    curves = [
        _curve(shape, tuple(sorted(c.knobs.items())), prompt, output, _UNIT_W[problem.track])
        for c in problem.candidates
    ]
    known = [curve for curve in curves if curve is not None]
    if not known:
        return None
    middle = np.median(np.array(known), axis=0)
    both = np.array([middle if curve is None else curve for curve in curves])
    speed, value = both[:, 0], both[:, 1]
    return Forecasts(
        speed, value, np.array([_best_by_speed(s, v) for s, v in zip(speed, value, strict=True)])
    )


def _best_by_speed(speed: Floats, value: Floats) -> Floats:
    """The best value at each of SPEEDS or more; beyond the fastest it falls with MISSED_SLOPE."""
    falling = np.minimum.accumulate(speed)
    most = np.maximum.accumulate(value)
    within = np.interp(SPEEDS, falling[::-1], most[::-1])
    beyond = value[0] - MISSED_SLOPE * (SPEEDS - falling[0])
    return np.where(falling[0] >= SPEEDS, within, beyond)


@lru_cache(maxsize=20_000)
def _curve(
    shape: ModelShape, items: tuple[tuple[str, float | str], ...], prompt: float, output: float, unit_w: float
) -> Floats | None:
    """Logarithms of interactivity and of output tok/s per ``unit_w`` all-in watts, [2, concurrencies]."""
    knobs = dict(items)
    chip = accelerator(str(knobs["hardware"]))
    if chip is None or chip.performance is None:
        return None
    row = {name: value if isinstance(value, str) else f"{value:.0f}" for name, value in knobs.items()}
    try:
        deployed = Deployment(served_as(shape, row["precision"]), chip.performance, inferencex_config(row))
        seen = [
            deployed.forecast(Traffic(prompt_tokens=prompt, output_tokens=output, concurrency=c))
            for c in CONCURRENCIES
        ]
    except (AutotuneError, ValueError, ZeroDivisionError, KeyError):
        return None  # a configuration that the roofline cannot express: others may tell of it
    units = gpus(knobs) * chip.all_in_kw * 1e3 / unit_w
    return np.log([[1 / f.tpot_s for f in seen], [f.output_tok_s / units for f in seen]])


def gpus(knobs: Mapping[str, float | str]) -> float:
    """GPUs of a configuration; from its pools where the table does not say."""
    stated = number(knobs, "n_gpus")
    decode = number(knobs, "decode_tp") * max(number(knobs, "decode_num_workers"), 1)
    return stated or max(number(knobs, "num_prefill_gpu") + decode, 1)


def number(knobs: Mapping[str, float | str], name: str) -> float:
    value = knobs.get(name, 0.0)
    return 0.0 if isinstance(value, str) or not math.isfinite(value) else float(value)
