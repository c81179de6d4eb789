"""Rows of ML.ENERGY and measured watts, against the roofline: saturated vLLM, and what a GPU draws."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from autotune.domain.configs.config import EngineConfig
from autotune.domain.search.forecast import Deployment, Forecast, Traffic
from autotune.domain.search.prior import PowerModel
from bench.recorded import Row, accelerator, model_shape, read_rows, served_as

MODELS = {
    "Qwen/Qwen3-32B": "qwen3-32b",
    "Qwen/Qwen3-30B-A3B-Instruct-2507": "qwen3-30b-a3b",
    "Qwen/Qwen3-30B-A3B-Thinking-2507": "qwen3-30b-a3b",
    "Qwen/Qwen3-235B-A22B-Instruct-2507": "qwen3-235b-a22b",
    "Qwen/Qwen3-235B-A22B-Instruct-2507-FP8": "qwen3-235b-a22b",
    "Qwen/Qwen3-235B-A22B-Thinking-2507": "qwen3-235b-a22b",
    "Qwen/Qwen3-235B-A22B-Thinking-2507-FP8": "qwen3-235b-a22b",
    "deepseek-ai/DeepSeek-R1-0528": "dsr1",
    "deepseek-ai/DeepSeek-V3.1": "dsr1",
    "meta-llama/Llama-3.1-8B-Instruct": "llama-3.1-8b",
    "meta-llama/Llama-3.1-70B-Instruct": "llama70b",
    "openai/gpt-oss-120b": "gptoss120b",
}
"""Rows' models whose config.json there is."""

PROMPT_TOKENS = {"lm-arena-chat": 250.0, "gpqa": 250.0}
"""The table does not tell them: a guess, which hardly weighs beside outputs of hundreds and more."""


def mlenergy(table: Path, models: Path) -> list[tuple[Row, Forecast]]:
    """Forecasts of the rows that are text, of models that are known; in flight is what was measured to be."""
    found = []
    for row in read_rows(table):
        name = MODELS.get(row["model_id"])
        shape = model_shape(models, name) if name else None
        chip = accelerator(row["gpu_model"])
        if shape is None or chip is None or chip.performance is None or row["task"] not in PROMPT_TOKENS:
            continue
        replicas, gpus = int(row["data_parallel"]), int(row["num_gpus"])
        config = EngineConfig.model_validate(
            {
                "engine": "vllm",
                "tensor_parallel": gpus // replicas,
                "data_parallel": replicas,
                "expert_parallel": int(row["expert_parallel"]) > 1,
                "max_num_seqs": int(row["max_num_seqs"]),
            }
        )
        traffic = Traffic(
            prompt_tokens=PROMPT_TOKENS[row["task"]],
            output_tokens=float(row["avg_output_len"]),
            concurrency=max(float(row["avg_batch_size"]), 1.0),
        )
        deployment = Deployment(served_as(shape, row["weight_precision"]), chip.performance, config)
        found.append((row, deployment.forecast(traffic)))
    return found


def throughput_errors(found: Sequence[tuple[Row, Forecast]]) -> tuple[list[float], list[float]]:
    """Forecast and measured output tokens per second, of all GPUs."""
    measured = [float(row["output_throughput_tokens_per_sec"]) for row, _ in found]
    return [forecast.output_tok_s for _, forecast in found], measured


def power_errors(found: Sequence[tuple[float, float, Forecast]]) -> np.ndarray:
    """|forecast / measured - 1| of one GPU's watts, from (TDP, measured watts, forecast)."""
    return np.array(
        [
            abs(PowerModel(tdp_w=tdp_w).power_w(forecast) / forecast.devices / measured_w - 1)
            for tdp_w, measured_w, forecast in found
        ]
    )


def fitted_power(found: Sequence[tuple[float, float, Forecast]]) -> np.ndarray:
    """Least squares of measured watts over TDP: idle, memory, compute."""
    shares = [(1.0, forecast.memory_share, forecast.compute_share) for _, _, forecast in found]
    return np.linalg.lstsq(np.array(shares), np.array([w / tdp for tdp, w, _ in found]), rcond=None)[0]
