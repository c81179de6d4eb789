"""Priors: what a configuration is thought to be worth before it is launched, and where nothing is known.

A prior ranks; it never scores. What it says of a configuration stands beside what is measured, and how far
it is believed is learned from the launches made (``domain/search/trust.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import log

import numpy as np

from autotune.domain.judging.sla import Metric, Sla
from autotune.domain.search.curves import Excess, Floats
from autotune.domain.search.forecast import Deployment, Forecast, Traffic

TTFT_TAIL, TPOT_TAIL = 3.0, 1.1
"""Late requests over the mean one. Of the rows of InferenceX that tell both, p99 over median of TPOT is 1.05
and of TTFT 7: in a closed loop prompts come in bursts, which studies do not have; 3 is our guess."""

_STEPS = 7
"""Halvings of the load's range: to within 5 % of the number in flight."""
_MOST_IN_FLIGHT = 4096.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """Where a configuration is thought to operate for an SLA: tok/s of all its devices, seconds, watts.

    ``rate_rps`` is the capacity, the highest load that keeps the SLA; ``power_w`` is None where no watts
    rank.
    """

    rate_rps: float
    goodput_tok_per_s: float
    power_w: float | None
    ttft_s: float
    tpot_s: float


def objective_of(expected: Expected | None) -> float:
    """As a study scores, 0 for what keeps no SLA."""
    return per_watt(expected.goodput_tok_per_s, expected.power_w) if expected else 0.0


def per_watt(goodput_tok_per_s: float, power_w: float | None) -> float:
    """Good tokens per joule, or goodput where no watts rank."""
    return goodput_tok_per_s if power_w is None else goodput_tok_per_s / power_w


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a prior says of a configuration: an objective per SLA, 0 where it would be missed at any load.

    ``source`` names the prior. ``expected`` has more of each SLA where the prior knows more; a prior may know
    objectives only up to a common factor (``relative``).
    """

    source: str
    objectives: Mapping[str, float]
    expected: Mapping[str, Expected] = field(default_factory=dict)
    relative: bool = False


@dataclass(frozen=True, slots=True)
class NotCovered:
    """Why a prior says nothing of a configuration, in words."""

    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerModel:
    """Watts of a device: idle, and what its memory and matrix units draw at their peaks; ``tdp_w`` at most.

    Shares of the thermal design power, by least squares over energy-measured rows (docs/design/roofline.md).
    """

    tdp_w: float
    idle: float = 0.35
    memory: float = 0.65
    compute: float = 0.6

    def power_w(self, forecast: Forecast) -> float:
        """Watts of all devices of a forecast."""
        share = self.idle + self.memory * forecast.memory_share + self.compute * forecast.compute_share
        return self.tdp_w * min(share, 1.0) * forecast.devices


def excess_of(sla: Sla, output_tokens: float) -> Excess:
    """By how much the tails of TTFT and of TPOT exceed an SLA: it takes their logarithms, [2, ...]."""
    bounds = [(metric, bound) for bounds, _ in sla.goals() for metric, bound in bounds]

    def excess(latency: Floats) -> Floats:
        each = [_exceeds(latency, metric, bound, output_tokens) for metric, bound in bounds]
        worst: Floats = np.max(each, axis=0)
        return worst

    return excess


def _exceeds(latency: Floats, metric: Metric, bound: float, output_tokens: float) -> Floats:
    ttft, tpot = latency
    match metric:
        case Metric.TTFT:
            found = ttft
        case Metric.TPOT | Metric.INTERACTIVITY:
            found = tpot
        case Metric.E2E:
            found = np.logaddexp(ttft, log(output_tokens) + tpot)
        case Metric.STALL:
            found = np.maximum(tpot, ttft - log(TTFT_TAIL))  # a prompt read between two steps
    limit = 1 / bound if metric is Metric.INTERACTIVITY else bound
    exceeds: Floats = found - log(limit)
    return exceeds


def tails(forecast: Forecast) -> Floats:
    """Logarithms of the TTFT and TPOT of late requests, [2], a fixed factor later than the mean one."""
    late: Floats = np.log([forecast.ttft_s * TTFT_TAIL, forecast.tpot_s * TPOT_TAIL])
    return late


def within(forecast: Forecast, sla: Sla, output_tokens: float) -> bool:
    """Whether a forecast keeps an SLA."""
    return bool(excess_of(sla, output_tokens)(tails(forecast)) <= 0)


def best_within(
    deployment: Deployment, sla: Sla, *, prompt_tokens: float, output_tokens: float
) -> Forecast | None:
    """The forecast at the highest load that keeps an SLA; None where one request alone misses it.

    More in flight is never sooner, so the bound is bisected, by the logarithm of the number in flight.
    """
    low, high = 0.0, 1.0
    found: Forecast | None = None
    for step in range(_STEPS + 1):
        at = 0.0 if step == 0 else (low + high) / 2
        traffic = Traffic(
            prompt_tokens=prompt_tokens, output_tokens=output_tokens, concurrency=_MOST_IN_FLIGHT**at
        )
        seen = deployment.forecast(traffic)
        if within(seen, sla, output_tokens):
            found, low = (seen if found is None or seen.output_tok_s > found.output_tok_s else found), at
        elif step == 0:
            return None
        else:
            high = at
    return found
