"""Whole configurations of SGLang as they are run, and the arguments that say them."""

from __future__ import annotations

DEEPSEEK_R1: dict[str, object] = {
    "kv_cache_dtype": "fp8",
    "attention_backend": "fa3",
    "memory_fraction": 0.82,
}

GOLDEN: dict[str, tuple[dict[str, object], str]] = {
    "deepseek-r1-8xh200-tp8-mtp": (
        {
            **DEEPSEEK_R1,
            "tensor_parallel": 8,
            "max_num_seqs": 128,
            "max_num_batched_tokens": 32768,
            "prefix_caching": False,
            "graph_max_batch": 128,
            "speculation": "mtp",
            "speculative_tokens": 3,
        },
        """--tp-size 8 --mem-fraction-static 0.82 --cuda-graph-max-bs-decode 128 --disable-radix-cache
        --kv-cache-dtype fp8_e4m3 --attention-backend fa3 --max-running-requests 128
        --chunked-prefill-size 32768 --max-prefill-tokens 32768 --speculative-algorithm NEXTN
        --speculative-num-steps 3 --speculative-eagle-topk 1 --speculative-num-draft-tokens 4""",
    ),
    "deepseek-r1-8xh200-dp8-ep8": (
        {
            **DEEPSEEK_R1,
            "tensor_parallel": 1,
            "data_parallel": 8,
            "dp_attention": True,
            "expert_parallel": True,
            "all2all_backend": "deepep",
            "moe_backend": "deep_gemm",
            "max_num_seqs": 128,
            "max_num_batched_tokens": 8192,
        },
        """--tp-size 8 --attn-dp-size 8 --ep-size 8 --mem-fraction-static 0.82
        --moe-runner-backend deep_gemm --moe-a2a-backend deepep --kv-cache-dtype fp8_e4m3
        --attention-backend fa3 --max-running-requests 1024 --chunked-prefill-size 65536""",
    ),
    "gpt-oss-120b-8xh200-tp8": (
        {
            "tensor_parallel": 8,
            "moe_backend": "triton_kernel",
            "attention_backend": "fa3",
            "tool_parser": "gpt-oss",
            "extra_args": ("--reasoning-parser", "gpt-oss"),
        },
        """--tp-size 8 --moe-runner-backend triton_kernel --attention-backend fa3
        --tool-call-parser gpt-oss --reasoning-parser gpt-oss""",
    ),
    "qwen3-235b-8xh200-tp8-ep8": (
        {
            "tensor_parallel": 8,
            "expert_parallel": True,
            "context_length": 32768,
            "scheduling_policy": "lpm",
            "speculation": "eagle3",
            "speculative_model": "some/qwen3-235b-eagle3",
            "speculative_tokens": 5,
        },
        """--tp-size 8 --ep-size 8 --schedule-policy lpm --context-length 32768
        --speculative-algorithm EAGLE3 --speculative-draft-model-path some/qwen3-235b-eagle3
        --speculative-num-steps 5 --speculative-eagle-topk 1 --speculative-num-draft-tokens 6""",
    ),
    "llama-3.3-70b-fp8-tp2x4": (
        {
            "tensor_parallel": 2,
            "data_parallel": 4,
            "quantization": "fp8",
            "kv_cache_dtype": "fp8",
            "max_num_seqs": 256,
            "max_num_batched_tokens": 8192,
            "block_size": 64,
        },
        """--tp-size 2 --dp-size 4 --quantization fp8 --kv-cache-dtype fp8_e4m3 --page-size 64
        --max-running-requests 256 --chunked-prefill-size 8192""",
    ),
    "llama-3.3-70b-pp2-no-chunks": (
        {
            "tensor_parallel": 4,
            "pipeline_parallel": 2,
            "dtype": "bfloat16",
            "chunked_prefill": False,
            "max_num_batched_tokens": 16384,
        },
        """--tp-size 4 --pp-size 2 --dtype bfloat16 --chunked-prefill-size -1 --max-prefill-tokens 16384""",
    ),
    "deepseek-r1-8xmi355x-mori": (
        {
            "tensor_parallel": 1,
            "data_parallel": 8,
            "dp_attention": True,
            "expert_parallel": True,
            "all2all_backend": "mori",
            "kv_cache_dtype": "fp8",
            "attention_backend": "aiter",
            "max_num_seqs": 64,
            "extra_args": ("--moe-dense-tp-size", "1", "--enable-dp-lm-head", "--deepep-mode", "normal"),
        },
        """--tp-size 8 --attn-dp-size 8 --ep-size 8 --moe-a2a-backend mori
        --kv-cache-dtype fp8_e4m3 --attention-backend aiter --max-running-requests 512
        --moe-dense-tp-size 1 --enable-dp-lm-head --deepep-mode normal""",
    ),
}
"""By name: the words, and the command line's part that they decide."""

GOLDEN_PD: dict[str, dict[str, object]] = {
    # Two nodes: one prefills, one decodes.
    "deepseek-r1-2x8xh200-mooncake": {
        "kv_transfer": "mooncake",
        "kv_cache_dtype": "fp8",
        "attention_backend": "fa3",
        "prefill.workers": 1,
        "prefill.tensor_parallel": 8,
        "prefill.max_num_batched_tokens": 32768,
        "decode.workers": 1,
        "decode.tensor_parallel": 1,
        "decode.data_parallel": 8,
        "decode.dp_attention": True,
        "decode.expert_parallel": True,
        "decode.all2all_backend": "deepep",
        "decode.max_num_seqs": 128,
    },
    # One node: four GPUs prefill, four decode.
    "deepseek-r1-8xmi355x-mori": {
        "kv_transfer": "mori",
        "kv_cache_dtype": "fp8",
        "attention_backend": "aiter",
        "memory_fraction": 0.85,
        "tensor_parallel": 1,
        "data_parallel": 4,
        "dp_attention": True,
        "expert_parallel": True,
        "all2all_backend": "mori",
        "prefill.workers": 1,
        "prefill.max_num_seqs": 24,
        "decode.workers": 1,
        "decode.max_num_seqs": 512,
    },
}
"""Configurations with pools, by name."""
