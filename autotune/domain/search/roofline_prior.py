"""The roofline as a prior: goodput, and goodput per watt, at the highest load at which an SLA holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from autotune.domain.configs.config import EngineConfig
from autotune.domain.hardware.accelerators import Accelerator
from autotune.domain.judging.sla import Sla
from autotune.domain.measuring.power import PowerBasis
from autotune.domain.models.model import ModelShape
from autotune.domain.search.forecast import Deployment
from autotune.domain.search.prior import Expected, NotCovered, PowerModel, Prediction, best_within

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


class RooflinePrior:
    """Forecasts configurations of one model on one kind of accelerator; each distinct forecast is made once.

    ``headroom`` is the share of the highest load that keeps an SLA at which a study compares.
    """

    def __init__(
        self,
        model: ModelShape,
        accelerator: Accelerator,
        promises: Sequence[Promise],
        *,
        basis: PowerBasis,
        headroom: float = 1.0,
    ) -> None:
        self._model, self._accelerator = model, accelerator
        self._promises, self._basis, self._headroom = tuple(promises), basis, headroom
        self._made: dict[str, Prediction] = {}

    def predict(self, config: EngineConfig) -> Prediction | NotCovered:
        """Predict the objective of every SLA on the study's power basis."""
        chip = self._accelerator.performance
        if chip is None:
            return NotCovered(f"no peaks are known of {self._accelerator.name}")
        words = {word: getattr(config, word) for word in _SEEN}
        alike = EngineConfig.model_validate(
            {"engine": config.engine, **words, "prefill": config.prefill, "decode": config.decode}
        )
        if alike.key not in self._made:
            expected = self._expected(Deployment(self._model, chip, alike))
            objectives = {p.sla.name: self._objective(expected.get(p.sla.name)) for p in self._promises}
            self._made[alike.key] = Prediction(source=SOURCE, objectives=objectives, expected=expected)
        return replace(self._made[alike.key])

    def _expected(self, deployment: Deployment) -> Mapping[str, Expected]:
        expected = {}
        for promise in self._promises:
            lengths = {"prompt_tokens": promise.prompt_tokens, "output_tokens": promise.output_tokens}
            fits = deployment.probability_of_fitting(sum(lengths.values())) >= LEAST_CHANCE_OF_FITTING
            seen = best_within(deployment, promise.sla, **lengths) if fits else None
            if seen is not None:
                expected[promise.sla.name] = Expected(
                    rate_rps=seen.output_tok_s / promise.output_tokens,
                    goodput_tok_per_s=seen.output_tok_s * self._headroom,
                    power_w=self._power_w(
                        seen.devices, PowerModel(tdp_w=self._accelerator.tdp_w).power_w(seen)
                    ),
                    ttft_s=seen.ttft_s,
                    tpot_s=seen.tpot_s,
                )
        return expected

    def _power_w(self, devices: int, modelled_w: float) -> float:
        provisioned = self._basis is PowerBasis.PROVISIONED
        return self._accelerator.all_in_kw * 1e3 * devices if provisioned else modelled_w

    def _objective(self, expected: Expected | None) -> float:
        """As a study scores: good tokens per joule, or goodput where no watts rank."""
        if expected is None:
            return 0.0
        return expected.goodput_tok_per_s / (expected.power_w if self._basis.ranks else 1.0)
