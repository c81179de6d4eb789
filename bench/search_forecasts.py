"""The roofline's forecast of every candidate's curve, and recorded levels, in terms of the search."""

from __future__ import annotations

import math
from collections.abc import Mapping
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
from autotune.domain.search.curves import CONCURRENCIES, Curves, Excess, SeenLevels
from autotune.domain.search.forecast import Deployment, Traffic

Floats = NDArray[np.float64]

_UNIT_W = {Track.THROUGHPUT: 1e6, Track.ENERGY: 1.0}
"""Per megawatt; and per watt, for tokens per joule: measured watts are all-in ones but for a factor."""


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


def seen_levels(levels: Levels) -> SeenLevels:
    """Levels of a table as forecasts tell them: TPOT and the value sought."""
    return SeenLevels(levels.concurrency, np.array([-np.log(levels.interactivity), np.log(levels.values)]))


def excess_of(sla: float) -> Excess:
    """By how much TPOT exceeds that of ``sla`` tok/s/user."""
    return lambda latency: latency[0] + math.log(sla)


def forecasts(problem: Problem, shapes: Shapes) -> Curves | None:
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
    return Curves(np.stack([middle if curve is None else curve for curve in curves], axis=1))


@lru_cache(maxsize=20_000)
def _curve(
    shape: ModelShape, items: tuple[tuple[str, float | str], ...], prompt: float, output: float, unit_w: float
) -> Floats | None:
    """Logarithms of TPOT and of output tok/s per ``unit_w`` all-in watts, [2, concurrencies]."""
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
    return np.log([[f.tpot_s for f in seen], [f.output_tok_s / units for f in seen]])


def gpus(knobs: Mapping[str, float | str]) -> float:
    """GPUs of a configuration; from its pools where the table does not say."""
    stated = number(knobs, "n_gpus")
    decode = number(knobs, "decode_tp") * max(number(knobs, "decode_num_workers"), 1)
    return stated or max(number(knobs, "num_prefill_gpu") + decode, 1)


def number(knobs: Mapping[str, float | str], name: str) -> float:
    value = knobs.get(name, 0.0)
    return 0.0 if isinstance(value, str) or not math.isfinite(value) else float(value)
