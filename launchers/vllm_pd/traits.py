"""What is true of vLLM in two pools whatever the configuration."""

from __future__ import annotations

from dataclasses import replace

from autotune.domain.configs.config import POOLS, Pool
from launchers.vllm.traits import TRAITS as VLLM

ENGINE = "vllm-pd"

COUNTERS = {
    **VLLM.counters,
    # vllm/distributed/kv_transfer/kv_connector/v1/nixl/stats.py; a transfer is one request's, by one rank.
    "kv_transfers_total": "vllm:nixl_xfer_time_seconds_count",
    "kv_transfer_seconds_total": "vllm:nixl_xfer_time_seconds_sum",
    "kv_transfer_bytes_total": "vllm:nixl_bytes_transferred_sum",
    "kv_transfer_failures_total": "vllm:nixl_num_failed_transfers_total",
    # vllm/v1/metrics/loggers.py: prompt tokens that came from a prefill worker, and those asked for.
    "kv_transfer_tokens_total": "vllm:external_prefix_cache_hits_total",
    "kv_transfer_queried_tokens_total": "vllm:external_prefix_cache_queries_total",
}

TRAITS = replace(
    VLLM,
    engine=ENGINE,
    environment=VLLM.engine,
    dimensions=VLLM.dimensions
    | {"kv_transfer"}
    | {f"{pool}.{word}" for pool in POOLS for word in Pool.model_fields},
    counters=COUNTERS,
    of_the_bench=VLLM.of_the_bench | {"UCX_PROTO_INFO"},
)
