"""The flags of ``vllm serve`` that have a word in the vocabulary."""

from __future__ import annotations

from launchers.options import FlagTable

SPECULATIVE = "--speculative-config"
COMPILATION = "--compilation-config"
GRAPH_MAX_BATCH = "--max-cudagraph-capture-size"
KV_TRANSFER = "--kv-transfer-config"

TOOL_PARSER_WORD = "tool_parser"
AUTO_TOOLS = "--enable-auto-tool-choice"
TOOL_PARSER = "--tool-call-parser"

MODEL = "--model"
SERVED_MODEL_NAME = "--served-model-name"

OF_THE_DEPLOYMENT = frozenset(
    {
        SERVED_MODEL_NAME,
        "--host",
        "--port",
        "--uds",
        "--root-path",
        "--ssl-keyfile",
        "--ssl-certfile",
        "--ssl-ca-certs",
        "--api-key",
        "--hf-token",
    }
)
"""Where a server listens and who may ask: no part of a configuration, and in part secret."""

_SEVERAL = frozenset({SERVED_MODEL_NAME, "--api-key"})


def _on_or_off(flag: str) -> dict[bool, tuple[str, ...]]:
    return {True: (flag,), False: (flag.replace("--", "--no-", 1),)}


TABLE = FlagTable(
    engine="vllm",
    valued={
        "tensor_parallel": "--tensor-parallel-size",
        "pipeline_parallel": "--pipeline-parallel-size",
        "data_parallel": "--data-parallel-size",
        "context_parallel": "--decode-context-parallel-size",
        "max_num_seqs": "--max-num-seqs",
        "max_num_batched_tokens": "--max-num-batched-tokens",
        "scheduling_policy": "--scheduling-policy",
        "dtype": "--dtype",
        "quantization": "--quantization",
        "kv_cache_dtype": "--kv-cache-dtype",
        "attention_backend": "--attention-backend",
        "moe_backend": "--moe-backend",
        "all2all_backend": "--all2all-backend",
        "graph_max_batch": GRAPH_MAX_BATCH,
        "block_size": "--block-size",
        "memory_fraction": "--gpu-memory-utilization",
        "context_length": "--max-model-len",
    },
    switches={
        # What data parallelism does to a model with experts; nothing gives each replica experts of its own.
        "dp_attention": {True: ()},
        "expert_parallel": _on_or_off("--enable-expert-parallel"),
        "chunked_prefill": _on_or_off("--enable-chunked-prefill"),
        "prefix_caching": _on_or_off("--enable-prefix-caching"),
        "lora": _on_or_off("--enable-lora"),
        "eager": _on_or_off("--enforce-eager"),
    },
    aliases={
        "-tp": "--tensor-parallel-size",
        "-pp": "--pipeline-parallel-size",
        "-dp": "--data-parallel-size",
        "-dcp": "--decode-context-parallel-size",
        "-ep": "--enable-expert-parallel",
        "-q": "--quantization",
        "-sc": SPECULATIVE,
        "-cc": COMPILATION,
        "--device-memory-utilization": "--gpu-memory-utilization",
    },
    bare=frozenset({AUTO_TOOLS}),
    single=frozenset(
        {SPECULATIVE, COMPILATION, KV_TRANSFER, TOOL_PARSER, MODEL, *OF_THE_DEPLOYMENT} - _SEVERAL
    ),
    several=_SEVERAL,
)
