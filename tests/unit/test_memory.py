"""The memory model: bounds that hold, splits by hand, and what engines have logged in public."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_facts import (
    DEEPSEEK_R1,
    GLM_5,
    GPT_OSS_120B,
    LLAMA_8B,
    LLAMA_70B,
    PUBLISHED_PARAMETERS,
    QWEN3_1_7B,
    QWEN3_5,
    QWEN3_30B,
    QWEN3_235B_FP8,
    TINY_DENSE,
    shape,
)

from autotune.domain.configs.config import EngineConfig
from autotune.domain.models.checkpoint import Part, StoredWeights
from autotune.domain.models.kv_layout import KvLayout, expected_layout, least_layout
from autotune.domain.models.memory import GIB, Constants, MemoryNeed, calibrated, memory_needs
from autotune.domain.models.model import ModelShape
from autotune.domain.models.precision import kv_bits, weight_bits
from autotune.domain.models.weights import Bounds, Split, parameters, stages, weight_bytes

H100_BYTES = int(79.2 * GIB)
NAMES = sorted(PUBLISHED_PARAMETERS)
WHOLE = Split()


def config(**words: Any) -> EngineConfig:
    return EngineConfig.model_validate({"engine": "vllm", **words})


def need(facts: dict[str, Any], memory_bytes: int = H100_BYTES, **words: Any) -> MemoryNeed:
    return memory_needs(config(**words), shape(facts), memory_bytes)[""]


def weights_of(facts: dict[str, Any], split: Split = WHOLE, **words: Any) -> Bounds:
    model = shape(facts)
    bits = weight_bits(model, quantization=words.get("quantization"), dtype=words.get("dtype"))
    return weight_bytes(model, split, bits)


@given(
    name=st.sampled_from(NAMES),
    tensor=st.sampled_from([1, 2, 4, 8, 16]),
    pipeline=st.integers(1, 6),
    replicas=st.sampled_from([1, 2, 8]),
    whole=st.booleans(),
    quantization=st.sampled_from([None, "fp8", "int8_per_channel_weight_only", "nobodys"]),
)
def test_the_least_is_never_more_than_what_is_expected(
    name: str, tensor: int, pipeline: int, replicas: int, whole: bool, quantization: str | None
) -> None:
    model = shape(PUBLISHED_PARAMETERS[name][0])
    split = Split(tensor=tensor, pipeline=pipeline, sharing_replicas=replicas, whole_experts=whole)
    bits = weight_bits(model, quantization=quantization, dtype=None)
    weights = weight_bytes(model, split, bits)
    assert 0 < weights.least <= weights.expected * 1.0001
    least, expected = kv_bits(model, None, None)
    for tokens in (1, 500, 40_000):
        at_least = least_layout(model, split, least).sequence_bytes(tokens)
        assert 0 < at_least <= expected_layout(model, split, expected).sequence_bytes(tokens) * 1.0001


@given(name=st.sampled_from(NAMES), tensor=st.sampled_from([1, 2, 4, 8]), pipeline=st.integers(1, 4))
def test_all_ranks_together_hold_the_model_at_least_once(name: str, tensor: int, pipeline: int) -> None:
    model = shape(PUBLISHED_PARAMETERS[name][0])
    bits = weight_bits(model, quantization=None, dtype=None)
    weights = weight_bytes(model, Split(tensor=tensor, pipeline=pipeline), bits)
    whole = weight_bytes(model, Split(), bits).least
    assert weights.least * tensor * pipeline == pytest.approx(whole)
    assert weights.expected * tensor * pipeline >= whole * 0.9999


def test_half_precision_is_two_bytes_a_parameter() -> None:
    assert weights_of(LLAMA_8B).least == pytest.approx(2 * parameters(shape(LLAMA_8B)), rel=1e-3)
    assert weights_of(LLAMA_8B, dtype="float32").least == pytest.approx(
        4 * parameters(shape(LLAMA_8B)), rel=1e-3
    )


def test_stages_are_uneven_where_layers_do_not_divide() -> None:
    assert [len(stage) for stage in stages(61, 4)] == [15, 15, 16, 15]
    assert [len(stage) for stage in stages(94, 4)] == [23, 24, 24, 23]
    assert [list(stage) for stage in stages(3, 3)] == [[0], [1], [2]]
    for layers in range(1, 20):
        for pipeline in range(1, layers + 1):
            assert [at for stage in stages(layers, pipeline) for at in stage] == list(range(layers))


def test_key_and_value_heads_are_repeated_beyond_their_number() -> None:
    two, four, eight = (weights_of(QWEN3_30B, Split(tensor=tp)).expected for tp in (2, 4, 8))
    assert two == pytest.approx(2 * four, rel=0.001)
    # 4 key and value heads on 8 ranks: each rank holds a whole one of each, twice its share.
    repeated = 48 * 2 * 2048 * 128 * (1 - 0.5) * 2
    assert eight == pytest.approx(four / 2 + repeated, rel=0.001)


def test_latent_projections_are_on_every_rank() -> None:
    one, eight = (weights_of(DEEPSEEK_R1, Split(tensor=tp)).expected for tp in (1, 8))
    repeated = 61 * 7168 * (1536 + 576) * (1 - 1 / 8)
    assert eight == pytest.approx(one / 8 + repeated, rel=0.001)


def test_experts_are_spread_over_the_replicas_that_share_them() -> None:
    alone = weights_of(QWEN3_30B).expected
    shared = weights_of(QWEN3_30B, Split(sharing_replicas=8, whole_experts=True)).expected
    experts = 48 * 128 * 3 * 2048 * 768 * 2
    assert alone - shared == pytest.approx(experts * 7 / 8, rel=0.001)
    uneven = weights_of(QWEN3_30B, Split(sharing_replicas=3, whole_experts=True)).expected
    assert uneven == pytest.approx(alone - experts * (1 - 43 / 128), rel=0.001)
    twice = Split(sharing_replicas=8, whole_experts=True, expert_replicas=32)
    assert weights_of(QWEN3_30B, twice).expected == pytest.approx(shared + experts * 4 / 128, rel=0.001)


def test_a_quantised_checkpoint_keeps_what_it_names() -> None:
    bits = weight_bits(shape(GPT_OSS_120B), quantization=None, dtype=None)
    assert bits.expected[Part.EXPERTS] == 4.25
    assert bits.least[Part.EXPERTS] == 4
    assert {bits.expected[part] for part in Part if part is not Part.EXPERTS} == {16}
    assert bits.as_stored


def test_weights_may_be_quantised_as_they_are_loaded() -> None:
    half, quarter = weights_of(LLAMA_70B), weights_of(LLAMA_70B, quantization="fp8")
    tables = 2 * 2 * 128256 * 8192
    assert quarter.expected == pytest.approx((half.expected - tables) / 2 + tables, rel=0.001)
    assert quarter.least < quarter.expected  # the head may be quantised too
    unknown = weights_of(LLAMA_70B, quantization="nobodys")
    assert unknown.least < quarter.least / 2
    assert unknown.expected == pytest.approx(half.expected)


def test_of_an_unknown_architecture_nothing_is_certain_but_what_its_files_hold() -> None:
    novel = shape({**LLAMA_8B, "model_type": "novel"})
    bits = weight_bits(novel, quantization=None, dtype=None)
    assert weight_bytes(novel, Split(), bits).least == 0
    stored = StoredWeights(
        bytes_by_dtype={"BF16": 10_000, "F32": 400},
        numbers_by_dtype={"BF16": 5_000, "F32": 100},
        draft_bytes=2_000,
    )
    assert weight_bytes(novel, Split(tensor=2), bits, stored=stored).least == (10_000 - 2_000 + 200) / 2
    online = weight_bits(novel, quantization="fp8", dtype=None)
    assert weight_bytes(novel, Split(), online, stored=stored).least == 0
    seeing = replace(novel, multimodal=True)
    assert weight_bytes(seeing, Split(), bits, stored=stored).least == 0


@pytest.mark.parametrize(
    ("facts", "split", "token_bytes"),
    [
        (LLAMA_8B, Split(), 2 * 8 * 128 * 2 * 32),
        (LLAMA_8B, Split(tensor=8), 2 * 1 * 128 * 2 * 32),
        (LLAMA_8B, Split(tensor=16), 2 * 1 * 128 * 2 * 32),
        (LLAMA_8B, Split(pipeline=4), 2 * 8 * 128 * 2 * 8),
        (LLAMA_8B, Split(tensor=16, context=2), 2 * 1 * 128 * 2 * 32 / 2),
        (DEEPSEEK_R1, Split(), 576 * 2 * 61),
        (DEEPSEEK_R1, Split(tensor=8), 576 * 2 * 61),
        (DEEPSEEK_R1, Split(tensor=8, context=8), 576 * 2 * 61 / 8),
        (GLM_5, Split(tensor=8), (576 * 2 + 128 + 4) * 78),
        (GPT_OSS_120B, Split(), 2 * 8 * 64 * 2 * 18),
        (QWEN3_5, Split(), 2 * 2 * 256 * 2 * 15),
    ],
)
def test_bytes_of_a_token_follow_the_layout(facts: dict[str, Any], split: Split, token_bytes: float) -> None:
    assert expected_layout(shape(facts), split, 16).token_bytes == pytest.approx(token_bytes)


def test_layers_with_a_window_stop_growing() -> None:
    layout = expected_layout(shape(GPT_OSS_120B), Split(), 16, tokens_in_flight=1000)
    per_token = 2 * 8 * 64 * 2 * 18
    assert layout.sequence_bytes(100) == 2 * 100 * per_token
    assert layout.sequence_bytes(50_000) == (50_000 + 1128) * per_token


def test_states_are_of_one_size_per_sequence() -> None:
    layout = expected_layout(shape(QWEN3_5), Split(tensor=2), 16)
    state = 45 * (64 * 128 * 128 * 4 + 12288 * 3 * 2) / 2
    assert layout.state_bytes == state
    assert layout.sequence_bytes(1000) - layout.sequence_bytes(0) == 1000 * layout.token_bytes


@pytest.mark.parametrize(
    ("word", "bits"), [("fp8", (8, 8)), ("nvfp4", (4, 4.5)), ("auto", (16, 16)), ("nobodys", (2, 16))]
)
def test_precision_of_the_cache(word: str, bits: tuple[float, float]) -> None:
    assert kv_bits(shape(LLAMA_8B), word, None) == bits


def test_a_checkpoint_may_ask_for_a_smaller_cache() -> None:
    assert kv_bits(shape(QWEN3_235B_FP8), None, None) == (2, 16)


LOGGED_KV = {
    "Qwen3-235B-A22B-FP8, TP4, vLLM 0.9, issue 21348": (QWEN3_235B_FP8, 4, 8.11, 178_880),
    "Qwen3-235B-A22B-FP8, TP4, SGLang, same issue": (QWEN3_235B_FP8, 4, 2 * 8.23, 367_404),
    "Qwen3-1.7B, vLLM 0.14, issue 33263": (QWEN3_1_7B, 1, 18.78, 175_856),
    "tiny-dense, vLLM 0.32 on a CPU, here": (TINY_DENSE, 1, 1.0, 524_288),
}


@pytest.mark.parametrize("case", LOGGED_KV)
def test_tokens_that_engines_logged_for_their_cache(case: str) -> None:
    facts, tensor, gib, tokens = LOGGED_KV[case]
    layout = expected_layout(shape(facts), Split(tensor=tensor), 16)
    assert layout.tokens(gib * GIB, 1024) == pytest.approx(tokens, rel=0.015)


LOGGED_WEIGHTS = {
    "Meta-Llama-3-8B, vLLM pull request 10511": (LLAMA_8B, 1, 14.96, 0.01),
    "the same, TP2": (LLAMA_8B, 2, 7.48, 0.01),
    "Qwen3-30B-A3B, TP4, vLLM 0.8.5, issue 17327": (QWEN3_30B, 4, 14.2474, 0.01),
    # The kernels pad the experts' 2880 to whole tiles, which the checkpoint does not.
    "gpt-oss-120b, vLLM 0.14, issue 33155": (GPT_OSS_120B, 1, 64.38, 0.08),
}


@pytest.mark.parametrize("case", LOGGED_WEIGHTS)
def test_weights_that_engines_logged(case: str) -> None:
    facts, tensor, gib, tolerance = LOGGED_WEIGHTS[case]
    weights = weights_of(facts, Split(tensor=tensor))
    assert weights.expected == pytest.approx(gib * GIB, rel=tolerance)
    assert weights.least <= gib * GIB


def test_what_an_engine_left_for_its_cache() -> None:
    """vLLM pull request 10511: 53.29 GiB on one H100, 256 sequences, steps of 8192 tokens, no graphs."""
    left = need(
        LLAMA_8B, memory_fraction=0.9, max_num_batched_tokens=8192, max_num_seqs=256, graph_capture=False
    )
    assert left.available_bytes == pytest.approx(53.29 * GIB, rel=0.02)
    # Issue 21348: 8.11 GiB on each of four.
    left = need(QWEN3_235B_FP8, tensor_parallel=4, memory_fraction=0.9, graph_capture=False)
    assert left.available_bytes == pytest.approx(8.11 * GIB, abs=2 * GIB)


def test_concurrency_counts_replicas_and_tokens_do_not() -> None:
    one, two = need(LLAMA_8B), need(LLAMA_8B, data_parallel=2, dp_attention=False)
    assert two.kv_tokens(2000) == pytest.approx(one.kv_tokens(2000), rel=0.05)
    assert two.concurrency(2000) == pytest.approx(2 * one.concurrency(2000), rel=0.05)
    assert one.concurrency(2000) == pytest.approx(one.kv_tokens(2000) / 2000)


def test_pools_have_needs_of_their_own() -> None:
    needs = memory_needs(
        config(**{"prefill.tensor_parallel": 2, "decode.tensor_parallel": 4, "decode.workers": 3}),
        shape(LLAMA_70B),
        H100_BYTES,
    )
    assert needs.keys() == {"prefill", "decode"}
    assert needs["prefill"].weights.expected == pytest.approx(2 * needs["decode"].weights.expected, rel=0.01)
    assert (needs["prefill"].replicas, needs["decode"].replicas) == (1, 3)


def test_what_drafts_takes_its_part() -> None:
    plain = need(DEEPSEEK_R1, tensor_parallel=8)
    drafting = need(DEEPSEEK_R1, tensor_parallel=8, speculation="mtp", speculative_tokens=1)
    layer = 256 * 3 * 7168 * 2048 / 8  # a layer's experts, one byte each
    assert drafting.draft_bytes == pytest.approx(layer, rel=0.05)
    assert drafting.available_bytes == plain.available_bytes - drafting.draft_bytes
    words = config(speculation="draft_model", speculative_model="small", speculative_tokens=3)
    draft = memory_needs(words, shape(LLAMA_70B), H100_BYTES, draft=shape(LLAMA_8B))[""].draft_bytes
    assert draft == pytest.approx(2 * parameters(shape(LLAMA_8B)), rel=0.01)


def test_graphs_cost_what_eager_saves() -> None:
    saved = need(LLAMA_8B, eager=True).available_bytes - need(LLAMA_8B).available_bytes
    assert saved == pytest.approx(Constants().graph_bytes)


def test_sglang_keeps_activations_beside_its_fraction() -> None:
    words: dict[str, Any] = {"memory_fraction": 0.8, "tensor_parallel": 4}
    sglang = memory_needs(
        EngineConfig.model_validate({"engine": "sglang", **words}), shape(LLAMA_70B), H100_BYTES
    )[""]
    assert sglang.activation_bytes == 0
    assert sglang.available_bytes > need(LLAMA_70B, **words).available_bytes


@given(tokens=st.floats(1000, 3_000_000), context=st.sampled_from([2048, 40_960]))
def test_calibration_reproduces_what_was_logged(tokens: float, context: int) -> None:
    words: dict[str, Any] = {"tensor_parallel": 2, "context_length": context}
    first = need(QWEN3_30B, **words)
    constants = calibrated(Constants(), first, kv_tokens=tokens, context_length=context)
    again = memory_needs(config(**words), shape(QWEN3_30B), H100_BYTES, constants=constants)[""]
    assert again.kv_tokens(context) == pytest.approx(tokens, rel=1e-6) or again.available_bytes <= 0


def test_the_chance_of_fitting_falls_with_what_is_needed() -> None:
    chances = [need(LLAMA_8B, gib * GIB).probability_of_fitting(2048) for gib in (80, 24, 20, 16)]
    assert chances == sorted(chances, reverse=True)
    assert chances[0] > 0.999
    assert 0.01 <= chances[-1] < 0.1
    assert need(LLAMA_8B, 14 * GIB).probability_of_fitting(2048) == 0


def test_nothing_fits_into_less_than_nothing() -> None:
    layout = KvLayout(token_bytes=10)
    assert layout.sequences(-5, 10) == 0
    assert layout.tokens(1000, 10) == 100


def test_a_model_without_sizes_needs_nothing_certain() -> None:
    silent = ModelShape.from_config({})
    assert memory_needs(config(), silent, GIB)[""].least_bytes(1000) == 0
