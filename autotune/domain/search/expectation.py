"""Where the capacity of a configuration is expected, from earlier launches and from a prior's prediction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from autotune.domain.configs.config import EngineConfig
from autotune.domain.search.capacity import Expectation

FORGETTING = 0.5
"""Weight of an earlier launch for each word in which its configuration differs."""
FLOOR = 0.2
"""A capacity is never expected more exactly than this (spread of its logarithm): launches have their luck."""
ALONE, UNTRIED = 0.35, 0.8
"""Spread that one launch of the same words leaves, and that of a prior which no launch has tried yet."""

Capacities = Sequence[tuple[EngineConfig, Mapping[str, float]]]
"""Configurations with the capacity of each SLA that they met, requests per second."""


def expected_capacity(
    config: EngineConfig,
    sla: str,
    measured: Capacities,
    predicted: Sequence[Mapping[str, float]] = (),
    prediction: Mapping[str, float] | None = None,
) -> Expectation | None:
    """Expect a capacity: that of configurations like it, or what a prior predicts, whichever was more right.

    ``predicted`` are the prior's predictions of those measured: what it was off by corrects what it says of
    this one, and how much that scattered is how far it is trusted. None where nothing is known.
    """
    near = [(_weight(config, other), math.log(held[sla])) for other, held in measured if sla in held]
    found = [_pooled(near)] if near else []
    if prediction is not None and prediction.get(sla, 0.0) > 0:
        off = [
            (_weight(config, other), math.log(held[sla] / guess[sla]))
            for (other, held), guess in zip(measured, predicted, strict=False)
            if sla in held and guess.get(sla, 0.0) > 0
        ]
        shift, spread = _pooled(off) if off else (0.0, UNTRIED)
        found.append((math.log(prediction[sla]) + shift, spread))
    if not found:
        return None
    log_rps, spread = min(found, key=lambda entry: entry[1])
    return Expectation(rps=math.exp(log_rps), spread=spread)


def _weight(config: EngineConfig, other: EngineConfig) -> float:
    if config.engine != other.engine:
        return FORGETTING**4
    words = config.words.keys() | other.words.keys()
    return float(FORGETTING ** sum(config.words.get(word) != other.words.get(word) for word in words))


def _pooled(entries: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Weighted mean, and the spread about it of one more value: the wider, the less alike the likest was."""
    weights = np.array([weight for weight, _ in entries])
    values = np.array([value for _, value in entries])
    mean = float(np.average(values, weights=weights))
    variance = float(np.average((values - mean) ** 2, weights=weights))
    count = float(weights.sum() ** 2 / (weights**2).sum())
    return mean, math.sqrt(FLOOR**2 + variance + ALONE**2 / (count * float(weights.max())))
