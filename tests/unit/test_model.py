"""Shapes read from config.json: sizes under every name, and parameter counts against published ones."""

from __future__ import annotations

from typing import Any

import pytest
from model_facts import (
    DEEPSEEK_R1,
    FP8_BLOCKS,
    GLM_5,
    GPT_OSS_120B,
    LLAMA_8B,
    MINIMAX_M2,
    PUBLISHED_PARAMETERS,
    QWEN3_5,
    QWEN3_30B,
    shape,
)

from autotune.domain.models.checkpoint import Part, Quantization
from autotune.domain.models.model import Latent, LayerKind, ModelShape
from autotune.domain.models.weights import parameters


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_parameters_follow_from_the_shape(name: str) -> None:
    config, published = PUBLISHED_PARAMETERS[name]
    assert parameters(shape(config)) == pytest.approx(published, rel=0.01)
    assert shape(config).proven


def test_grouped_heads_are_read() -> None:
    model = shape(LLAMA_8B)
    assert (model.attention_heads, model.kv_heads, model.head_dim) == (32, 8, 128)
    assert model.kinds == (LayerKind.FULL,) * 32
    assert model.with_experts == (False,) * 32
    assert (model.dtype, model.quantization, model.tied_embeddings) == ("bfloat16", None, False)


def test_latent_attention_and_its_experts_are_read() -> None:
    model = shape(DEEPSEEK_R1)
    assert model.latent == Latent(kv_rank=512, rope_dim=64, nope_dim=128, value_dim=128, query_rank=1536)
    assert model.latent.width == 576
    assert model.with_experts == (False,) * 3 + (True,) * 58
    assert (model.expert_size, model.shared_size, model.intermediate_size) == (2048, 2048, 18432)
    assert model.draft_layers == 1
    assert model.most_positions == 163840
    indexed = shape(GLM_5).latent
    assert indexed is not None
    assert (indexed.index_heads, indexed.index_dim) == (32, 128)


def test_layers_with_windows_and_states_are_told_apart() -> None:
    assert shape(GPT_OSS_120B).kinds[:2] == (LayerKind.SLIDING, LayerKind.FULL)
    assert shape(GPT_OSS_120B).window == 128
    hybrid = shape(QWEN3_5)
    assert hybrid.kinds.count(LayerKind.STATE) == 45
    assert hybrid.multimodal
    assert hybrid.state is not None
    assert (hybrid.state.channels, hybrid.state.numbers) == (12288, 64 * 128 * 128)


@pytest.mark.parametrize(
    ("config", "kinds"),
    [
        ({"sliding_window": 4096}, "ssss"),
        ({"sliding_window": 4096, "use_sliding_window": False}, "ffff"),
        ({"sliding_window": 1024, "sliding_window_pattern": 2}, "sfsf"),
        ({"sliding_window": None}, "ffff"),
        ({"full_attention_interval": 4}, "tttf"),
        ({"layers_block_type": ["mamba", "attention", "mamba", "attention"]}, "tftf"),
        ({"layer_types": ["chunked_attention"] * 3 + ["full_attention"]}, "sssf"),
    ],
)
def test_kinds_of_layers_are_read_in_every_spelling(config: dict[str, Any], kinds: str) -> None:
    read = ModelShape.from_config({"num_hidden_layers": 4, **config}).kinds
    letters = {LayerKind.FULL: "f", LayerKind.SLIDING: "s", LayerKind.STATE: "t"}
    assert "".join(letters[kind] for kind in read) == kinds


@pytest.mark.parametrize(
    ("config", "with_experts"),
    [
        ({"first_k_dense_replace": 1}, [False, True, True, True]),
        ({"decoder_sparse_step": 2}, [False, True, False, True]),
        ({"mlp_only_layers": [0, 3]}, [False, True, True, False]),
        ({"moe_layer_freq": [0, 0, 1, 1]}, [False, False, True, True]),
        ({"moe_layer_freq": 2}, [True, False, True, False]),
    ],
)
def test_layers_with_experts_are_read_in_every_spelling(
    config: dict[str, Any], with_experts: list[bool]
) -> None:
    read = ModelShape.from_config({"num_hidden_layers": 4, "num_experts": 8, **config})
    assert list(read.with_experts) == with_experts


@pytest.mark.parametrize(
    ("scaling", "most"),
    [
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 131072),
        ({"type": "linear", "factor": 2.0}, 65536),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}, 32768),
        ({"rope_type": "default", "rope_theta": 1e6}, 32768),
        ({"full_attention": {"rope_type": "linear", "factor": 8.0}, "sliding_attention": {}}, 262144),
        (None, 32768),
    ],
)
def test_scaled_positions_count(scaling: dict[str, Any] | None, most: int) -> None:
    read = ModelShape.from_config({"max_position_embeddings": 32768, "rope_scaling": scaling})
    assert read.most_positions == most


def test_an_unknown_architecture_proves_nothing() -> None:
    assert not shape({**LLAMA_8B, "model_type": "novel"}).proven


KIMI = {
    "quant_method": "compressed-tensors",
    "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 32, "type": "int"}}},
    "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", r"re:.*mlp\.(gate|up|down)_proj.*"],
}


@pytest.mark.parametrize(
    ("given", "method", "bits", "kept"),
    [
        (FP8_BLOCKS, "fp8", 8, {Part.EMBEDDING, Part.HEAD}),
        (GPT_OSS_120B["quantization_config"], "mxfp4", 4, set(Part) - {Part.EXPERTS}),
        (KIMI, "compressed-tensors", 4, set(Part) - {Part.EXPERTS}),
        (MINIMAX_M2["quantization_config"], "fp8", 8, {Part.EMBEDDING, Part.HEAD}),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "awq", 4, {Part.EMBEDDING, Part.HEAD}),
        ({"quant_method": "gptq", "bits": 8, "group_size": 128}, "gptq", 8, {Part.EMBEDDING}),
        (
            {
                "quant_method": "modelopt",
                "quant_algo": "NVFP4",
                "ignore": ["lm_head", "model.layers.*.self_attn*"],
            },
            "nvfp4",
            4,
            {Part.EMBEDDING, Part.HEAD, Part.ATTENTION},
        ),
        ({"quant_method": "somebodys"}, "somebodys", 2, {Part.EMBEDDING}),
    ],
)
def test_quantisation_tells_bits_and_what_it_left_alone(
    given: dict[str, Any], method: str, bits: float, kept: set[Part]
) -> None:
    read = Quantization.from_config(given)
    assert (read.method, read.bits) == (method, bits)
    assert {part for part in Part if read.keeps(part)} == kept


def test_scales_count_beside_the_bits() -> None:
    assert Quantization.from_config({"quant_method": "mxfp4"}).scale_bits == 0.25
    assert Quantization.from_config({"quant_algo": "NVFP4"}).scale_bits == 0.5
    assert Quantization.from_config(KIMI).scale_bits == 0.5
    assert shape({**QWEN3_30B, "quantization_config": FP8_BLOCKS}).quantization == Quantization(
        method="fp8", bits=8, block=(128, 128)
    )
