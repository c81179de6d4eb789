"""The flags of ``sglang serve`` that have a word in the vocabulary."""

from __future__ import annotations

from collections.abc import Mapping

from launchers.options import FlagTable

TP_SIZE = "--tp-size"
DP_SIZE = "--dp-size"
EP_SIZE = "--ep-size"
ATTENTION_DP = "--attn-dp-size"
DP_ATTENTION = "--enable-dp-attention"
"""Before 0.5.23: what ``DP_SIZE`` counts is attention alone."""

MAX_RUNNING = "--max-running-requests"
CHUNK = "--chunked-prefill-size"
PREFILL_BATCH = "--max-prefill-tokens"
PREFILL_BATCH_DEFAULT = 16384

ALGORITHM = "--speculative-algorithm"
DRAFT_MODEL = "--speculative-draft-model-path"
DRAFT_STEPS = "--speculative-num-steps"
DRAFT_TOP_K = "--speculative-eagle-topk"
DRAFT_TOKENS = "--speculative-num-draft-tokens"
ALGORITHMS = {
    "ngram": "NGRAM",
    "draft_model": "STANDALONE",
    "eagle": "EAGLE",
    "eagle3": "EAGLE3",
    "mtp": "NEXTN",
}
"""Value of ``ALGORITHM`` for each value of the word ``speculation``."""

NO_DECODE_GRAPHS = "--disable-decode-cuda-graph"
NO_PREFILL_GRAPHS = "--disable-prefill-cuda-graph"
NO_GRAPHS = "--disable-cuda-graph"
"""Both, as older versions have it."""

LORA_SHAPE = ("--max-lora-rank", "16", "--lora-target-modules", "all")
"""What SGLang must know of adapters that come later."""
LORA_FLAGS = frozenset({"--max-lora-rank", "--lora-target-modules", "--lora-paths"})

MODEL = "--model-path"
SERVED_MODEL_NAME = "--served-model-name"
METRICS = "--enable-metrics"
DEVICE = "--device"
NODES = ("--nnodes", "--node-rank", "--dist-init-addr")

OF_THE_DEPLOYMENT = frozenset(
    {
        *(SERVED_MODEL_NAME, METRICS, DEVICE, *NODES),
        *("--host", "--port", "--nccl-port", "--base-gpu-id", "--gpu-id-step", "--model-type"),
        *("--fastapi-root-path", "--api-key", "--admin-api-key"),
        *("--ssl-keyfile", "--ssl-certfile", "--ssl-ca-certs", "--ssl-keyfile-password"),
    }
)
"""Where a server runs and listens and who may ask: no part of a configuration, and in part secret."""

NAMES: Mapping[str, Mapping[str, str]] = {
    "quantization": {"int8": "w8a8_int8", "nvfp4": "modelopt_fp4"},
    "kv_cache_dtype": {"fp8": "fp8_e4m3"},
}
"""Values, by word, that SGLang calls otherwise than most engines do."""

TABLE = FlagTable(
    engine="sglang",
    valued={
        "pipeline_parallel": "--pp-size",
        "context_parallel": "--dcp-size",
        "memory_fraction": "--mem-fraction-static",
        "graph_max_batch": "--cuda-graph-max-bs-decode",
        "moe_backend": "--moe-runner-backend",
        "all2all_backend": "--moe-a2a-backend",
        "scheduling_policy": "--schedule-policy",
        "dtype": "--dtype",
        "quantization": "--quantization",
        "kv_cache_dtype": "--kv-cache-dtype",
        "attention_backend": "--attention-backend",
        "block_size": "--page-size",
        "context_length": "--context-length",
        "tool_parser": "--tool-call-parser",
    },
    switches={
        # Empty: that is what SGLang does anyway.
        "prefix_caching": {True: (), False: ("--disable-radix-cache",)},
        "graph_capture": {True: (), False: (NO_DECODE_GRAPHS,)},
        "eager": {True: (NO_DECODE_GRAPHS, NO_PREFILL_GRAPHS), False: ()},
        "compilation": {True: ("--enable-torch-compile",), False: ()},
        "lora": {True: ("--enable-lora",), False: ()},
    },
    aliases={
        "--tp": TP_SIZE,
        "--tensor-parallel-size": TP_SIZE,
        "--pp": "--pp-size",
        "--pipeline-parallel-size": "--pp-size",
        "--dp": DP_SIZE,
        "--data-parallel-size": DP_SIZE,
        "--ep": EP_SIZE,
        "--expert-parallel-size": EP_SIZE,
        "--decode-context-parallel-size": "--dcp-size",
        "--cuda-graph-max-bs": "--cuda-graph-max-bs-decode",
        "--attention-data-parallel-size": ATTENTION_DP,
        "--speculative-draft-model": DRAFT_MODEL,
        "--model": MODEL,
    },
    bare=frozenset({DP_ATTENTION, NO_GRAPHS, NO_PREFILL_GRAPHS, METRICS, "--trust-remote-code"}),
    single=frozenset(
        {
            *(TP_SIZE, DP_SIZE, ATTENTION_DP, EP_SIZE, MAX_RUNNING, CHUNK, PREFILL_BATCH),
            *(ALGORITHM, DRAFT_MODEL, DRAFT_STEPS, DRAFT_TOP_K, DRAFT_TOKENS),
            *(MODEL, *OF_THE_DEPLOYMENT - {METRICS}),
        }
    ),
)
