"""The roofline: more of anything never makes a step slower, and its terms are those of paper and pencil."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_facts import DEEPSEEK_R1, GPT_OSS_120B, LLAMA_8B, LLAMA_70B, QWEN3_30B

from autotune.adapters.devices.accelerators import read_accelerators
from autotune.domain.configs.config import EngineConfig
from autotune.domain.hardware.accelerators import Performance
from autotune.domain.models.model import ModelShape
from autotune.domain.models.weights import parameters
from autotune.domain.search.cores import core_among
from autotune.domain.search.forecast import Deployment, Traffic
from autotune.domain.search.roofline import Efficiency, worker

TABLE = read_accelerators()
IDEAL = Efficiency(
    memory=1.0,
    compute=1.0,
    attention=1.0,
    link=1.0,
    layer_s=0.0,
    experts_s=0.0,
    collective_s=0.0,
    far_s=0.0,
    step_s=0.0,
    imbalance=1.0,
)
SHAPES = {
    name: ModelShape.from_config(config)
    for name, config in {
        "llama-8b": LLAMA_8B,
        "llama-70b": LLAMA_70B,
        "deepseek-r1": DEEPSEEK_R1,
        "gpt-oss": GPT_OSS_120B,
        "qwen3-moe": QWEN3_30B,
    }.items()
}
SPLITS = {
    "tp": {"tensor_parallel": 4},
    "ep": {"tensor_parallel": 4, "expert_parallel": True},
    "dp": {"data_parallel": 4, "dp_attention": True, "expert_parallel": True},
    "pp": {"tensor_parallel": 2, "pipeline_parallel": 2},
    "pools": {"prefill": {"tensor_parallel": 2}, "decode": {"tensor_parallel": 2, "workers": 3}},
    "mtp": {"tensor_parallel": 8, "speculation": "mtp"},
}


def chip(name: str = "H100 SXM") -> Performance:
    found = TABLE.find(name)
    assert found is not None
    assert found.performance is not None
    return found.performance


def config(split: str) -> EngineConfig:
    return EngineConfig.model_validate({"engine": "vllm", **SPLITS[split]})


def test_decoding_alone_reads_all_weights_once() -> None:
    model = SHAPES["llama-8b"]
    one = EngineConfig(engine="vllm")
    step = worker(model, chip(), one, one, IDEAL).decode(1, 0)
    read_bytes = 2 * (parameters(model) - model.vocab_size * model.hidden_size)  # all but the embedding
    assert step.seconds == pytest.approx(read_bytes / 3350e9, rel=1e-3)


def test_a_long_prompt_takes_two_operations_per_parameter_and_token() -> None:
    model = SHAPES["llama-8b"]
    one = EngineConfig(engine="vllm")
    tokens = 8192
    step = worker(model, chip(), one, one, IDEAL).prefill(tokens)
    products = 2 * (parameters(model) - model.vocab_size * model.hidden_size) * tokens
    scores = 4 * 32 * 32 * 128 * tokens * tokens / 2  # layers, heads, head's width, half of all pairs
    assert step.seconds == pytest.approx((products + scores) / 989e12, rel=1e-3)


def test_two_sequences_read_at_most_twice_the_experts_of_one() -> None:
    model = SHAPES["qwen3-moe"]
    one = EngineConfig(engine="vllm")
    whole = worker(model, chip(), one, one, IDEAL)
    single, pair, many = (whole.decode(n, 0).memory_s for n in (1, 2, 10_000))
    assert single < pair < 2 * single < many
    assert many == pytest.approx(
        2 * (parameters(model) - model.vocab_size * model.hidden_size) / 3350e9, rel=0.01
    )


def test_latent_attention_keeps_one_vector_on_every_rank() -> None:
    model = SHAPES["deepseek-r1"]
    split = worker(model, chip(), config("tp"), config("tp"), IDEAL)
    assert split.layout.token_bytes == 61 * 576 * 2


@given(
    name=st.sampled_from(sorted(SHAPES)),
    split=st.sampled_from(sorted(SPLITS)),
    faster=st.sampled_from(["memory_gb_s", "link_gb_s", "network_gb_s"]),
    traffic=st.builds(
        Traffic,
        prompt_tokens=st.integers(1, 20_000),
        output_tokens=st.integers(2, 10_000),
        concurrency=st.integers(1, 2000),
    ),
)
def test_a_faster_chip_never_serves_less(name: str, split: str, faster: str, traffic: Traffic) -> None:
    slow = chip()
    fast = slow.model_copy(update={faster: 2 * getattr(slow, faster)})
    before, after = (Deployment(SHAPES[name], c, config(split)).forecast(traffic) for c in (slow, fast))
    assert after.output_tok_s >= before.output_tok_s * (1 - 1e-6)


@given(
    name=st.sampled_from(sorted(SHAPES)),
    split=st.sampled_from(sorted(SPLITS)),
    concurrency=st.integers(1, 1000),
)
def test_more_in_flight_never_serves_less_nor_sooner(name: str, split: str, concurrency: int) -> None:
    deployment = Deployment(SHAPES[name], chip("H200 SXM"), config(split))
    few = Traffic(prompt_tokens=1024, output_tokens=512, concurrency=concurrency)
    fewer, more = (
        deployment.forecast(traffic) for traffic in (few, replace(few, concurrency=2 * concurrency))
    )
    assert more.output_tok_s >= fewer.output_tok_s * (1 - 1e-6)
    assert more.tpot_s >= fewer.tpot_s * (1 - 1e-6)
    assert more.ttft_s >= fewer.ttft_s * (1 - 1e-3)  # a small difference of bisected numbers


@given(
    name=st.sampled_from(sorted(SHAPES)),
    split=st.sampled_from(sorted(SPLITS)),
    concurrency=st.floats(1, 3000),
)
def test_what_is_forecast_obeys_littles_law(name: str, split: str, concurrency: float) -> None:
    traffic = Traffic(prompt_tokens=2000, output_tokens=300, concurrency=concurrency)
    seen = Deployment(SHAPES[name], chip("B200 SXM"), config(split)).forecast(traffic)
    in_flight = seen.output_tok_s / 300 * (seen.ttft_s + 300 * seen.tpot_s)
    assert in_flight == pytest.approx(concurrency, rel=0.02)
    assert 0 <= seen.memory_share <= 1
    assert 0 <= seen.compute_share <= 1


def test_float32_is_computed_at_its_own_peak_where_there_is_one() -> None:
    shape, known = SHAPES["llama-8b"], chip()
    slow_in_16 = known.model_copy(update={"dense_tflops": {32: 800.0, 16: 100.0}})
    half, whole = (EngineConfig(engine="vllm", dtype=dtype) for dtype in ("bfloat16", "float32"))

    def compute_s(chip: Performance, config: EngineConfig) -> float:
        return worker(shape, chip, config, config, IDEAL).prefill(4000).compute_s

    assert compute_s(slow_in_16, whole) == pytest.approx(compute_s(slow_in_16, half) / 8)
    assert compute_s(known, whole) == compute_s(known, half)


@given(st.integers(1, 128), st.integers(1, 128))
def test_ranks_on_cores_never_do_more_together_than_the_machine(cores: int, ranks: int) -> None:
    core = core_among(chip(), cores, ranks)
    assert 0 < core.pace * ranks <= max(cores - 1, 1) * chip().pace * (1 + 1e-9)
    assert core.pace <= chip().pace
    assert core.memory_gb * ranks == pytest.approx(chip().memory_gb)
