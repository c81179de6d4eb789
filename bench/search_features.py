"""What a search is told of a candidate before any launch: features for a forest, and resemblance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from recorded import accelerator
from search_forecasts import Shapes, excess_of, gpus, number
from search_tables import Problem

from autotune.domain.hardware.accelerators import Accelerator
from autotune.domain.search.curves import Curves

Floats = NDArray[np.float64]

FEATURE_SLAS = (20.0, 50.0, 100.0)

_BITS = {"fp4": 4.0, "mxfp4": 4.0, "nvfp4": 4.0, "int4": 4.0, "fp8": 8.0, "int8": 8.0}
_ENGINES = ("trt", "vllm", "sglang", "atom")


def _log2(knobs: Mapping[str, float | str], name: str) -> float:
    return math.log2(max(number(knobs, name), 1))


def bits(knobs: Mapping[str, float | str]) -> float:
    """Bits of a weight; 16 for a precision that is not in the table."""
    return _BITS.get(str(knobs.get("precision", "")).lower(), 16.0)


def _engine(knobs: Mapping[str, float | str]) -> list[float]:
    framework = str(knobs.get("framework", "vllm"))
    return [float(name in framework) for name in _ENGINES]


def _prefill_share(knobs: Mapping[str, float | str]) -> float:
    total = gpus(knobs)
    share = number(knobs, "num_prefill_gpu") / total if number(knobs, "disagg") else 0.5
    return min(max(share, 0.02), 0.98)


def features(problem: Problem, expected: Curves | None, shapes: Shapes) -> Floats:
    """What a forest sees, [candidates, features]; without ``expected`` nothing of the roofline."""
    task = [*shapes.numbers(problem.model), problem.sla, *_workload(problem.workload)]
    rows = [
        [*_configuration(c.knobs), *_hardware(str(c.knobs["hardware"])), *task] for c in problem.candidates
    ]
    plain = np.array(rows)
    if expected is None:
        return plain
    none = np.zeros((len(plain), 2))
    at = expected.best_at(excess_of(problem.sla), none)
    fastest = -expected.figures[0, :, 0]
    relative = [at, at - at.max(), at - np.median(at), fastest - _log(problem.sla)]
    curve = [expected.best_at(excess_of(sla), none) for sla in FEATURE_SLAS]
    return np.column_stack([plain, *relative, *curve, fastest, expected.figures[1].max(axis=1)])


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
        *(number(knobs, name) for name in flags),
        *(number(knobs, name) for name in sizes),
        gpus(knobs),
        gpus(knobs) - number(knobs, "num_prefill_gpu"),
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


def resemblance(problem: Problem) -> Floats:
    """How alike candidates are, 1 to 0: an exponential kernel of their weighted distances, [n, n]."""
    places = sorted({str(c.knobs["hardware"]) for c in problem.candidates})
    features = np.array(
        [
            [*(float(c.knobs["hardware"] == h) for h in places), *_coordinates(c.knobs)]
            for c in problem.candidates
        ]
    )
    weights = [0.7] * len(places) + [weight for _, weight in _COORDINATES]
    distance = np.zeros((len(features), len(features)))
    for column, weight in zip(features.T, weights, strict=True):
        distance += weight * np.abs(column[:, None] - column[None, :])
    alike: Floats = np.exp(-distance)
    return alike


def _coordinates(knobs: Mapping[str, float | str]) -> list[float]:
    share = _prefill_share(knobs)
    own = {
        "fine": float(bits(knobs) < 8),
        "coarse": float(bits(knobs) > 8),
        "speculates": float(knobs.get("spec_method", "none") != "none"),
        "dynamo": float("dynamo" in str(knobs.get("framework", ""))),
        "many_experts": float(number(knobs, "decode_ep") > 1),
        "gpus": math.log2(gpus(knobs)),
        "prefill": math.log2(share / (1 - share)),
        **{f"engine_{k}": flag for k, flag in enumerate(_engine(knobs))},
    }
    return [
        own[name]
        if name in own
        else number(knobs, name)
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
