"""The roofline as a prior: goodput, and goodput per watt, at the highest load at which an SLA holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autotune.domain.configs.config import EngineConfig
from autotune.domain.hardware.accelerators import Accelerator, Performance
from autotune.domain.judging.sla import Sla
from autotune.domain.measuring.power import PowerBasis
from autotune.domain.models.model import ModelShape
from autotune.domain.search.choosing import ByCurve
from autotune.domain.search.cores import ON_CORES, core_among
from autotune.domain.search.curves import CONCURRENCIES, NOTHING, Curves, Floats
from autotune.domain.search.forecast import Deployment, Forecast, Traffic
from autotune.domain.search.prior import (
    Expected,
    PowerModel,
    Prediction,
    best_within,
    excess_of,
    objective_of,
    per_watt,
    tails,
)
from autotune.domain.search.roofline import EFFICIENCY, Efficiency

SOURCE = "roofline"
LEAST_CHANCE_OF_FITTING = 0.1
"""Of weights and a sequence; below it a configuration is not thought to serve anything."""

_SEEN = (
    "tensor_parallel",
    "pipeline_parallel",
    "data_parallel",
    "dp_attention",
    "expert_parallel",
    "context_parallel",
    "max_num_seqs",
    "max_num_batched_tokens",
    "memory_fraction",
    "eager",
    "graph_capture",
    "speculation",
    "speculative_tokens",
    "dtype",
    "quantization",
    "kv_cache_dtype",
)
"""Words that change a forecast, the pools' apart: configurations alike in them are forecast alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """An SLA with the mean lengths, in tokens, of the workload that it is judged on."""

    sla: Sla
    prompt_tokens: float
    output_tokens: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Footing:
    """What forecasts stand on.

    ``device`` is one of a configuration's, given how many it has; ``watts`` are of all of them, None where no
    power ranks.
    """

    device: Callable[[int], Performance]
    efficiency: Efficiency
    watts: Callable[[Forecast], float] | None

    @classmethod
    def of_accelerators(cls, accelerator: Accelerator, peaks: Performance, basis: PowerBasis) -> Footing:
        """Accelerators of the table, on a study's power basis."""

        def provisioned(seen: Forecast) -> float:
            return accelerator.all_in_kw * 1e3 * seen.devices

        drawn = PowerModel(tdp_w=accelerator.tdp_w).power_w
        watts = provisioned if basis is PowerBasis.PROVISIONED else drawn
        return cls(device=lambda _: peaks, efficiency=EFFICIENCY, watts=watts if basis.ranks else None)

    @classmethod
    def of_cores(cls, core: Performance, count: int) -> Footing:
        """Cores of this machine, of which a rank has one; nothing is known of their watts."""
        return cls(device=lambda ranks: core_among(core, count, ranks), efficiency=ON_CORES, watts=None)


class RooflinePrior:
    """Forecasts configurations of one model on one kind of device; each distinct forecast is made once.

    ``headroom`` is the share of the highest load that keeps an SLA at which a study compares.
    """

    def __init__(
        self,
        model: ModelShape,
        footing: Footing,
        promises: Sequence[Promise],
        *,
        headroom: float = 1.0,
    ) -> None:
        self._model, self._footing = model, footing
        self._promises, self._headroom = tuple(promises), headroom
        self._deployments: dict[str, Deployment] = {}
        self._made: dict[str, Prediction] = {}
        self._curves: dict[tuple[str, float, float], Floats] = {}

    def predict(self, config: EngineConfig) -> Prediction:
        """Predict the objective of every SLA on the study's power basis."""
        key, deployment = self._deployed(config)
        if key not in self._made:
            expected = self._expected(deployment)
            objectives = {p.sla.name: objective_of(expected.get(p.sla.name)) for p in self._promises}
            self._made[key] = Prediction(source=SOURCE, objectives=objectives, expected=expected)
        return self._made[key]

    def curves(self, configs: Sequence[EngineConfig], sla: str, /) -> ByCurve:
        """Forecast whole load curves, for one SLA: TTFT and TPOT of late requests, and the objective."""
        promise = next(p for p in self._promises if p.sla.name == sla)
        figures = np.stack([self._curve(config, promise) for config in configs], axis=1)
        excess = excess_of(promise.sla, promise.output_tokens)
        return ByCurve(Curves(figures), excess, np.zeros((len(configs), len(figures))))

    def _curve(self, config: EngineConfig, promise: Promise) -> Floats:
        """Logarithms by concurrency, [3, concurrencies]."""
        key, deployment = self._deployed(config)
        lengths = {"prompt_tokens": promise.prompt_tokens, "output_tokens": promise.output_tokens}
        at = key, promise.prompt_tokens, promise.output_tokens
        if at not in self._curves:
            self._curves[at] = self._forecast(deployment, lengths)
        return self._curves[at]

    def _forecast(self, deployment: Deployment, lengths: Mapping[str, float]) -> Floats:
        if not self._fits(deployment, lengths):
            return np.full((3, len(CONCURRENCIES)), NOTHING)
        seen = [deployment.forecast(Traffic(**lengths, concurrency=c)) for c in CONCURRENCIES]
        yields = [per_watt(f.output_tok_s, self._watts(f)) for f in seen]
        return np.vstack([np.array([tails(f) for f in seen]).T, np.log(yields)])

    def _deployed(self, config: EngineConfig) -> tuple[str, Deployment]:
        """The deployment that all configurations alike share, with a key of its own."""
        words = {word: getattr(config, word) for word in _SEEN}
        alike = EngineConfig.model_validate(
            {"engine": config.engine, **words, "prefill": config.prefill, "decode": config.decode}
        )
        if alike.key not in self._deployments:
            device = self._footing.device(alike.devices)
            self._deployments[alike.key] = Deployment(self._model, device, alike, self._footing.efficiency)
        return alike.key, self._deployments[alike.key]

    def _fits(self, deployment: Deployment, lengths: Mapping[str, float]) -> bool:
        return deployment.probability_of_fitting(sum(lengths.values())) >= LEAST_CHANCE_OF_FITTING

    def _expected(self, deployment: Deployment) -> Mapping[str, Expected]:
        expected = {}
        for promise in self._promises:
            lengths = {"prompt_tokens": promise.prompt_tokens, "output_tokens": promise.output_tokens}
            fits = self._fits(deployment, lengths)
            seen = best_within(deployment, promise.sla, **lengths) if fits else None
            if seen is not None:
                expected[promise.sla.name] = Expected(
                    rate_rps=seen.output_tok_s / promise.output_tokens,
                    goodput_tok_per_s=seen.output_tok_s * self._headroom,
                    power_w=self._watts(seen),
                    ttft_s=seen.ttft_s,
                    tpot_s=seen.tpot_s,
                )
        return expected

    def _watts(self, seen: Forecast) -> float | None:
        return self._footing.watts(seen) if self._footing.watts else None
