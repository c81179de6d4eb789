"""NVIDIA's measured kernels as a prior, through aiconfigurator: an optional extra.

Every estimate makes a backend object of its own: those keep what they computed by batch and lengths alone,
and would give one configuration's figures for another's (aiconfigurator 0.12).
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

from autotune.domain.configs.config import EngineConfig
from autotune.domain.hardware.accelerators import Accelerator
from autotune.domain.measuring.power import PowerBasis
from autotune.domain.models.model import ModelShape
from autotune.domain.search.forecast import Forecast
from autotune.domain.search.prior import Expected, NotCovered, Prediction, objective_of, within
from autotune.domain.search.roofline_prior import Promise

SOURCE = "aiconfigurator"
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

SYSTEMS = {
    "H100 SXM": "h100_sxm",
    "H200 SXM": "h200_sxm",
    "B200 SXM": "b200_sxm",
    "B300 SXM": "b300_sxm",
    "GB200 NVL72": "gb200",
    "GB300 NVL72": "gb300",
    "RTX PRO 6000 Server Edition": "rtx_pro_6000_server",
}
"""Its names of systems, by ours."""

_BACKENDS = frozenset({"vllm", "sglang", "trtllm"})
_KV = {"fp8": "fp8", "fp8_e4m3": "fp8", "bfloat16": "bfloat16", "float16": "bfloat16"}


class Estimate(Protocol):
    """An estimate: milliseconds, watts of one GPU where known, and the version of the engine it is of."""

    ttft: float
    tpot: float
    power_w: float | None
    backend_version: str


Estimator = Callable[..., Estimate]


def estimator() -> Estimator | None:
    """The package's own; None where it is not installed."""
    try:
        found: Estimator = importlib.import_module("aiconfigurator.cli.api").cli_estimate
    except ModuleNotFoundError:
        return None
    return found


def knows(model: str) -> bool:
    """Whether it has a model's config.json, or the model is a folder here; of others it would ask the hub."""
    if Path(model).is_dir():
        return True
    kept = files("aiconfigurator_core") / "model_configs" / f"{model.replace('/', '--')}_config.json"
    return kept.is_file()


class AiconfiguratorPrior:
    """Estimates configurations of one engine each, without pools and without speculation."""

    def __init__(
        self,
        estimate: Estimator,
        model: str,
        shape: ModelShape,
        accelerator: Accelerator,
        promises: Sequence[Promise],
        *,
        basis: PowerBasis,
    ) -> None:
        self._estimate, self._model, self._shape = estimate, model, shape
        self._accelerator, self._promises, self._basis = accelerator, tuple(promises), basis
        self._versions: dict[str, str] = {}
        self._made: dict[str, Prediction | NotCovered] = {}

    def predict(self, config: EngineConfig) -> Prediction | NotCovered:
        """Predict the objective of every SLA; a pair that it has no measurements of is not covered."""
        if self._accelerator.name not in SYSTEMS:
            return NotCovered(f"{SOURCE} has no measurements of {self._accelerator.name}")
        if config.engine not in _BACKENDS or config.pools or config.speculation not in {None, "none"}:
            return NotCovered(
                f"{SOURCE} is asked of vllm, sglang and trtllm alone, without pools or speculation"
            )
        words = self._words(config)
        key = repr((config.engine, sorted(words.items()), config.max_num_seqs))
        if key not in self._made:
            self._made[key] = self._predicted(config, words)
        return self._made[key]

    def _predicted(self, config: EngineConfig, words: Mapping[str, Any]) -> Prediction | NotCovered:
        expected, objectives = {}, {}
        for promise in self._promises:
            best: Expected | None = None
            for batch in self._batches(config):
                try:
                    seen = self._ask(config.engine, words, promise, batch)
                except (RuntimeError, ValueError, KeyError, NotImplementedError) as refused:
                    if best is not None or "OOM" in str(refused):
                        break  # larger batches do not fit either
                    return NotCovered(f"{SOURCE}: {str(refused).splitlines()[0][:200]}")
                at = self._expected(seen, promise, batch, config.devices)
                if at is not None and (best is None or at.goodput_tok_per_s > best.goodput_tok_per_s):
                    best = at
            if best is not None:
                expected[promise.sla.name] = best
            objectives[promise.sla.name] = objective_of(best)
        return Prediction(source=SOURCE, objectives=objectives, expected=expected)

    def _batches(self, config: EngineConfig) -> tuple[int, ...]:
        return tuple(batch for batch in BATCHES if batch <= (config.max_num_seqs or BATCHES[-1]))

    def _words(self, config: EngineConfig) -> dict[str, Any]:
        ranks, replicas = config.tensor_parallel or 1, config.data_parallel or 1
        words: dict[str, Any] = {
            "tp_size": ranks,
            "pp_size": config.pipeline_parallel or 1,
            "attention_dp_size": replicas,
            "kvcache_quant_mode": _KV.get(config.kv_cache_dtype or ""),
        }
        if self._shape.experts:
            experts = ranks * replicas
            words["moe_ep_size" if config.expert_parallel else "moe_tp_size"] = experts
            words["moe_tp_size" if config.expert_parallel else "moe_ep_size"] = 1
        return words

    def _ask(self, engine: str, words: Mapping[str, Any], promise: Promise, batch: int) -> Estimate:
        """One estimate; its versions are looked up once, which takes it ten seconds each time."""
        before = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            seen = self._estimate(
                self._model,
                SYSTEMS[self._accelerator.name],
                backend_name=engine,
                backend_version=self._versions.get(engine),
                isl=round(promise.prompt_tokens),
                osl=max(round(promise.output_tokens), 2),
                batch_size=batch,
                **words,
            )
        finally:
            logging.disable(before)
        self._versions[engine] = seen.backend_version
        return seen

    def _expected(self, seen: Estimate, promise: Promise, batch: int, devices: int) -> Expected | None:
        """Where the estimate keeps the SLA; its batch is that of every replica of the attention."""
        ttft_s, tpot_s = float(seen.ttft) / 1e3, float(seen.tpot) / 1e3
        request_s = ttft_s + promise.output_tokens * tpot_s
        forecast = Forecast(
            ttft_s=ttft_s,
            tpot_s=tpot_s,
            output_tok_s=batch * promise.output_tokens / request_s,
            devices=devices,
            decoding=batch,
            memory_share=0.0,
            compute_share=0.0,
        )
        if not within(forecast, promise.sla, promise.output_tokens):
            return None
        return Expected(
            rate_rps=forecast.output_tok_s / promise.output_tokens,
            goodput_tok_per_s=forecast.output_tok_s,
            power_w=self._power_w(seen) * devices if self._basis.ranks else None,
            ttft_s=ttft_s,
            tpot_s=tpot_s,
        )

    def _power_w(self, seen: Estimate) -> float:
        if self._basis is PowerBasis.PROVISIONED:
            return self._accelerator.all_in_kw * 1e3
        return seen.power_w or self._accelerator.tdp_w
