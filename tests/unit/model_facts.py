"""Facts of public models as their ``config.json`` states them: just the sizes that tests need."""

from __future__ import annotations

from typing import Any

from autotune.domain.models.model import ModelShape

FP8_BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128]}


def _gqa(**sizes: Any) -> dict[str, Any]:
    return {
        "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        **sizes,
    }


LLAMA_8B = _gqa(
    model_type="llama",
    hidden_size=4096,
    intermediate_size=14336,
    num_attention_heads=32,
    num_key_value_heads=8,
    num_hidden_layers=32,
    vocab_size=128256,
)
LLAMA_70B = {
    **LLAMA_8B,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_attention_heads": 64,
    "num_hidden_layers": 80,
}
QWEN3_32B = _gqa(
    model_type="qwen3",
    hidden_size=5120,
    intermediate_size=25600,
    num_attention_heads=64,
    num_key_value_heads=8,
    head_dim=128,
    num_hidden_layers=64,
    vocab_size=151936,
    max_position_embeddings=40960,
    sliding_window=None,
)
QWEN3_1_7B = _gqa(
    model_type="qwen3",
    hidden_size=2048,
    intermediate_size=6144,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=128,
    num_hidden_layers=28,
    vocab_size=151936,
    tie_word_embeddings=True,
    max_position_embeddings=40960,
)
QWEN3_30B = _gqa(
    model_type="qwen3_moe",
    hidden_size=2048,
    intermediate_size=6144,
    moe_intermediate_size=768,
    num_experts=128,
    num_experts_per_tok=8,
    num_attention_heads=32,
    num_key_value_heads=4,
    head_dim=128,
    num_hidden_layers=48,
    vocab_size=151936,
    max_position_embeddings=40960,
    decoder_sparse_step=1,
    mlp_only_layers=[],
)
QWEN3_235B = {
    **QWEN3_30B,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "num_attention_heads": 64,
    "num_hidden_layers": 94,
}
QWEN3_235B_FP8 = {**QWEN3_235B, "quantization_config": FP8_BLOCKS}
GPT_OSS_120B = _gqa(
    model_type="gpt_oss",
    hidden_size=2880,
    intermediate_size=2880,
    num_local_experts=128,
    num_experts_per_tok=4,
    num_attention_heads=64,
    num_key_value_heads=8,
    head_dim=64,
    num_hidden_layers=36,
    vocab_size=201088,
    attention_bias=True,
    sliding_window=128,
    layer_types=["sliding_attention", "full_attention"] * 18,
    rope_scaling={"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096},
    quantization_config={
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"],
    },
)
DEEPSEEK_R1 = _gqa(
    model_type="deepseek_v3",
    hidden_size=7168,
    intermediate_size=18432,
    moe_intermediate_size=2048,
    n_routed_experts=256,
    num_experts_per_tok=8,
    n_shared_experts=1,
    first_k_dense_replace=3,
    moe_layer_freq=1,
    num_attention_heads=128,
    num_key_value_heads=128,
    num_hidden_layers=61,
    num_nextn_predict_layers=1,
    kv_lora_rank=512,
    q_lora_rank=1536,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    vocab_size=129280,
    max_position_embeddings=163840,
    rope_scaling={"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096},
    quantization_config=FP8_BLOCKS,
)
GLM_5 = _gqa(
    model_type="glm_moe_dsa",
    hidden_size=6144,
    intermediate_size=12288,
    moe_intermediate_size=2048,
    n_routed_experts=256,
    num_experts_per_tok=8,
    n_shared_experts=1,
    first_k_dense_replace=3,
    num_attention_heads=64,
    num_hidden_layers=78,
    num_nextn_predict_layers=1,
    kv_lora_rank=512,
    q_lora_rank=2048,
    qk_nope_head_dim=192,
    qk_rope_head_dim=64,
    v_head_dim=256,
    index_n_heads=32,
    index_head_dim=128,
    vocab_size=154880,
)
MINIMAX_M2 = _gqa(
    model_type="minimax_m2",
    hidden_size=3072,
    intermediate_size=1536,
    num_local_experts=256,
    num_experts_per_tok=8,
    num_attention_heads=48,
    num_key_value_heads=8,
    head_dim=128,
    num_hidden_layers=62,
    num_mtp_modules=3,
    vocab_size=200064,
    quantization_config={**FP8_BLOCKS, "modules_to_not_convert": ["gate", "lm_head"]},
)
QWEN3_5 = {
    "vision_config": {"depth": 27},
    "tie_word_embeddings": False,
    "text_config": {
        "model_type": "qwen3_5_moe_text",
        "attn_output_gate": True,
        "dtype": "bfloat16",
        "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 15,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 64,
        "linear_value_head_dim": 128,
        "mamba_ssm_dtype": "float32",
        "head_dim": 256,
        "hidden_size": 4096,
        "max_position_embeddings": 262144,
        "moe_intermediate_size": 1024,
        "mtp_num_hidden_layers": 1,
        "num_attention_heads": 32,
        "num_experts": 512,
        "num_experts_per_tok": 10,
        "num_hidden_layers": 60,
        "num_key_value_heads": 2,
        "shared_expert_intermediate_size": 1024,
        "vocab_size": 248320,
    },
}
TINY_DENSE = _gqa(
    model_type="llama",
    hidden_size=256,
    intermediate_size=1024,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=32,
    num_hidden_layers=4,
    vocab_size=2048,
)
PUBLISHED_PARAMETERS = {
    "Llama-3.1-8B": (LLAMA_8B, 8.03e9),
    "Llama-3.1-70B": (LLAMA_70B, 70.6e9),
    "Qwen3-1.7B": (QWEN3_1_7B, 1.72e9),
    "Qwen3-32B": (QWEN3_32B, 32.8e9),
    "Qwen3-30B-A3B": (QWEN3_30B, 30.5e9),
    "Qwen3-235B-A22B": (QWEN3_235B, 235e9),
    "gpt-oss-120b": (GPT_OSS_120B, 116.8e9),
    "DeepSeek-R1": (DEEPSEEK_R1, 671e9),
    "GLM-5": (GLM_5, 744e9),
    "MiniMax-M2.5": (MINIMAX_M2, 228.7e9),
    "Qwen3.5-397B-A17B": (QWEN3_5, 396.35e9),
}
"""Counts of the language model as its maker or the model card states them, drafting layers left out."""


def shape(config: dict[str, Any]) -> ModelShape:
    return ModelShape.from_config(config)
