"""What a search is told of a candidate before any launch: a roofline's forecast, features, resemblance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from recorded import accelerator, inferencex_config, served_as
from search_tables import Candidate, Problem

from autotune.domain.accelerators import Accelerator
from autotune.domain.checkpoint import Part
from autotune.domain.errors import AutotuneError
from autotune.domain.forecast import Deployment, Traffic
from autotune.domain.model import ModelShape
from autotune.domain.weights import part_numbers

Floats = NDArray[np.float64]

CONCURRENCIES = tuple(2.0**k for k in range(14))
FEATURE_SLAS = (20.0, 50.0, 100.0)
MISSED_SLOPE = 4.0
"""Of the forecast's logarithm, by how far the logarithm of interactivity stays below the SLA's."""

_BITS = {"fp4": 4.0, "mxfp4": 4.0, "nvfp4": 4.0, "int4": 4.0, "fp8": 8.0, "int8": 8.0}
_ENGINES = ("trt", "vllm", "sglang", "atom")


@dataclass(frozen=True, slots=True)
class Forecasts:
    """Per candidate, logarithms: ``at_sla`` the value forecast at the problem's SLA, ``curve`` at others."""

    at_sla: Floats
    curve: Floats

    @property
    def known(self) -> bool:
        """Whether there is a forecast at all."""
        return bool(np.ptp(self.at_sla) > 0)


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
        latent = float(shape.latent is not None)
        return (
            math.log(total),
            math.log(active),
            total / active,
            float(shape.layers),
            float(shape.hidden_size),
            float(shape.kv_heads),
            latent,
        )


def forecasts(problem: Problem, shapes: Shapes) -> Forecasts:
    """Forecast every candidate by the roofline; zeros where the model or the accelerator is not known."""
    rows = np.array([_forecast(problem, candidate, shapes) for candidate in problem.candidates])
    known = np.isfinite(rows[:, 0])
    if not known.any():
        return Forecasts(np.zeros(len(rows)), np.zeros((len(rows), rows.shape[1] - 1)))
    rows[~known] = np.median(rows[known], axis=0)
    return Forecasts(rows[:, 0], rows[:, 1:])


def _forecast(problem: Problem, candidate: Candidate, shapes: Shapes) -> list[float]:
    unknown = [math.nan] * (len(FEATURE_SLAS) + 3)
    shape = shapes.find(problem.model)
    if shape is None or problem.family != "curves":
        return unknown
    prompt, output = map(float, problem.workload.split("/"))
    curve = _forecast_curve(shape, tuple(sorted(candidate.knobs.items())), prompt, output)
    if curve is None:
        return unknown
    interactivity, value = curve
    fastest, most = math.log(interactivity[0]), math.log(value.max())
    at = [_log_best(interactivity, value, sla) for sla in (problem.sla, *FEATURE_SLAS)]
    return [*at, fastest, most]


def _log_best(interactivity: Floats, value: Floats, sla: float) -> float:
    meets = interactivity >= sla
    if meets.any():
        return math.log(value[meets].max())
    return math.log(value[0]) + MISSED_SLOPE * math.log(interactivity[0] / sla)


@lru_cache(maxsize=20_000)
def _forecast_curve(
    shape: ModelShape, items: tuple[tuple[str, float | str], ...], prompt: float, output: float
) -> tuple[Floats, Floats] | None:
    """Interactivity, and output tok/s per all-in MW, by concurrency."""
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
    allin_mw = gpus(knobs) * chip.all_in_kw / 1000
    return np.array([1 / f.tpot_s for f in seen]), np.array([f.output_tok_s / allin_mw for f in seen])


def gpus(knobs: Mapping[str, float | str]) -> float:
    """GPUs of a configuration; from its pools where the table does not say."""
    stated = _number(knobs, "n_gpus")
    decode = _number(knobs, "decode_tp") * max(_number(knobs, "decode_num_workers"), 1)
    return stated or max(_number(knobs, "num_prefill_gpu") + decode, 1)


def _number(knobs: Mapping[str, float | str], name: str) -> float:
    value = knobs.get(name, 0.0)
    return 0.0 if isinstance(value, str) or not math.isfinite(value) else float(value)


def _log2(knobs: Mapping[str, float | str], name: str) -> float:
    return math.log2(max(_number(knobs, name), 1))


def bits(knobs: Mapping[str, float | str]) -> float:
    """Bits of a weight; 16 for a precision that is not in the table."""
    return _BITS.get(str(knobs.get("precision", "")).lower(), 16.0)


def _engine(knobs: Mapping[str, float | str]) -> list[float]:
    framework = str(knobs.get("framework", "vllm"))
    return [float(name in framework) for name in _ENGINES]


def _prefill_share(knobs: Mapping[str, float | str]) -> float:
    total = gpus(knobs)
    share = _number(knobs, "num_prefill_gpu") / total if _number(knobs, "disagg") else 0.5
    return min(max(share, 0.02), 0.98)


def features(problem: Problem, expected: Forecasts | None, shapes: Shapes) -> Floats:
    """What a forest sees, [candidates, features]; without ``expected`` nothing of the roofline."""
    task = [*shapes.numbers(problem.model), problem.sla, *_workload(problem.workload)]
    rows = [
        [*_configuration(c.knobs), *_hardware(str(c.knobs["hardware"])), *task] for c in problem.candidates
    ]
    plain = np.array(rows)
    if expected is None:
        return plain
    at = expected.at_sla
    relative = np.column_stack(
        [at, at - at.max(), at - np.median(at), expected.curve[:, 3] - _log(problem.sla)]
    )
    return np.hstack([plain, relative, expected.curve])


def _workload(name: str) -> tuple[float, float]:
    prompt, _, output = name.partition("/")
    return (float(prompt), float(output)) if output else (0.0, float(sum(map(ord, name)) % 97))


def _log(value: float) -> float:
    return math.log(max(value, 1.0))


def _configuration(knobs: Mapping[str, float | str]) -> list[float]:
    flags = ("disagg", "is_multinode", "prefill_dp_attention", "decode_dp_attention")
    sizes = [
        "prefill_tp",
        "prefill_ep",
        "prefill_num_workers",
        "num_prefill_gpu",
        "decode_tp",
        "decode_ep",
        "decode_num_workers",
        "data_parallel",
        "max_num_seqs",
        "total_params_billions",
        "activated_params_billions",
    ]
    framework = str(knobs.get("framework", ""))
    return [
        *(_number(knobs, name) for name in flags),
        *(_number(knobs, name) for name in sizes),
        gpus(knobs),
        gpus(knobs) - _number(knobs, "num_prefill_gpu"),
        _prefill_share(knobs),
        bits(knobs),
        float(knobs.get("spec_method", "none") != "none"),
        float("dynamo" in framework),
        float("mori" in framework),
        *_engine(knobs),
    ]


@lru_cache
def _hardware(name: str) -> list[float]:
    chip: Accelerator | None = accelerator(name)
    if chip is None or chip.performance is None:
        return [-1.0] * 5
    peak = chip.performance
    return [peak.memory_gb, peak.memory_gb_s, peak.peak_flops(8), peak.peak_flops(4), chip.all_in_kw]


def resemblance(problem: Problem) -> tuple[Floats, Floats]:
    """Coordinates of every candidate, [candidates, coordinates], and how much a step of each sets apart."""
    places = sorted({str(c.knobs["hardware"]) for c in problem.candidates})
    rows = [
        [*(float(c.knobs["hardware"] == h) for h in places), *_coordinates(c.knobs)]
        for c in problem.candidates
    ]
    weights = [0.7] * len(places) + [weight for _, weight in _COORDINATES]
    return np.array(rows), np.array(weights)


def _coordinates(knobs: Mapping[str, float | str]) -> list[float]:
    share = _prefill_share(knobs)
    own = {
        "fine": float(bits(knobs) < 8),
        "coarse": float(bits(knobs) > 8),
        "speculates": float(knobs.get("spec_method", "none") != "none"),
        "dynamo": float("dynamo" in str(knobs.get("framework", ""))),
        "many_experts": float(_number(knobs, "decode_ep") > 1),
        "gpus": math.log2(gpus(knobs)),
        "prefill": math.log2(share / (1 - share)),
        **{f"engine_{k}": flag for k, flag in enumerate(_engine(knobs))},
    }
    return [
        own[name]
        if name in own
        else _number(knobs, name)
        if "attention" in name or name == "disagg"
        else _log2(knobs, name)
        for name, _ in _COORDINATES
    ]


_COORDINATES = (
    *((f"engine_{k}", 0.375) for k in range(len(_ENGINES))),
    ("disagg", 0.75),
    ("fine", 1.5),
    ("coarse", 1.5),
    ("speculates", 1.5),
    ("dynamo", 0.45),
    ("decode_dp_attention", 0.75),
    ("prefill_dp_attention", 0.3),
    ("many_experts", 0.45),
    ("gpus", 0.3),
    ("decode_tp", 0.45),
    ("prefill_tp", 0.225),
    ("decode_ep", 0.15),
    ("data_parallel", 0.3),
    ("max_num_seqs", 0.45),
    ("prefill_num_workers", 0.3),
    ("decode_num_workers", 0.3),
    ("prefill", 0.45),
)
"""Coordinates of a configuration and their weights: flags, and logarithms to base 2."""
