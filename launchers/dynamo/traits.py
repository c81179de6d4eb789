"""What is true of Dynamo whatever the configuration and the engine inside."""

from __future__ import annotations

from autotune.domain.configs.config import POOLS, Pool
from autotune.domain.hardware.hardware import DeviceKind
from autotune.domain.studies.ports import LauncherTraits
from launchers.options import HOST_WORDS
from launchers.sglang.traits import TRAITS as SGLANG
from launchers.trtllm.traits import OF_OPTIONS
from launchers.vllm.traits import TRAITS as VLLM

PARSER_PROBE = """\
import importlib.metadata, json

import dynamo.frontend

version = importlib.metadata.version("ai-dynamo")
print(json.dumps({"version": version, "device": "cuda", "flags": {}}))
"""
"""No flags: a worker's parser needs its engine and a GPU, and which engine it is the study says."""

# The frontend's, alike for every engine: lib/runtime/src/metrics/prometheus_names.rs
COUNTERS = {
    "requests_running": "dynamo_frontend_inflight_requests",
    "requests_waiting": "dynamo_frontend_queued_requests",
    "prefix_cache_queries_total": "dynamo_frontend_input_sequence_tokens_sum",
    "prefix_cache_hits_total": "dynamo_frontend_cached_tokens_sum",
    "prompt_tokens_total": "dynamo_frontend_input_sequence_tokens_sum",
    "generation_tokens_total": "dynamo_frontend_output_tokens_total",
}

TRAITS = LauncherTraits(
    engine="dynamo",
    executable="python",
    dimensions=VLLM.dimensions
    | SGLANG.dimensions
    | OF_OPTIONS
    | HOST_WORDS
    | {"tool_parser", "kv_transfer"}
    | {f"{pool}.{word}" for pool in POOLS for word in Pool.model_fields},
    device_kinds=frozenset({DeviceKind.CUDA}),
    parser_probe=PARSER_PROBE,
    counters=COUNTERS,
    of_the_bench=VLLM.of_the_bench
    | {"SGLANG_CPU_OMP_THREADS_BIND", "TRTLLM_NO_USAGE_STATS", "DYN_NAMESPACE"},
    images={DeviceKind.CUDA: "nvcr.io/nvidia/ai-dynamo/vllm-runtime:{version}"},
)
