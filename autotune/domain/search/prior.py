"""Priors: what a configuration is thought to be worth before it is launched, and where nothing is known.

A prior ranks; it never scores. What it says of a configuration stands beside what is measured, and how far
it is believed is learned from the launches made (``domain/search/trust.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from autotune.domain.judging.sla import Metric, Sla
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

    ``rate_rps`` is the capacity, the highest load that keeps the SLA.
    """

    rate_rps: float
    goodput_tok_per_s: float
    power_w: float
    ttft_s: float
    tpot_s: float


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


def within(forecast: Forecast, sla: Sla, output_tokens: float) -> bool:
    """Whether a forecast keeps an SLA, late requests taken as a fixed factor later than the mean one."""
    return all(
        _keeps(forecast, metric, bound, output_tokens)
        for bounds, _ in sla.goals()
        for metric, bound in bounds
    )


def _keeps(forecast: Forecast, metric: Metric, bound: float, output_tokens: float) -> bool:
    ttft_s, tpot_s = forecast.ttft_s * TTFT_TAIL, forecast.tpot_s * TPOT_TAIL
    match metric:
        case Metric.TTFT:
            return ttft_s <= bound
        case Metric.TPOT:
            return tpot_s <= bound
        case Metric.E2E:
            return ttft_s + output_tokens * tpot_s <= bound
        case Metric.STALL:
            return max(tpot_s, forecast.ttft_s) <= bound  # a prompt read between two steps
        case Metric.INTERACTIVITY:
            return 1 / tpot_s >= bound


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
