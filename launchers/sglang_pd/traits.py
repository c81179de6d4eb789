"""What is true of SGLang with pools whatever the configuration."""

from __future__ import annotations

from dataclasses import replace

from autotune.domain.configs.config import POOLS, Pool
from launchers.sglang.traits import TRAITS as SGLANG

TRAITS = replace(
    SGLANG,
    engine="sglang-pd",
    environment="sglang",
    dimensions=SGLANG.dimensions
    | {"kv_transfer"}
    | {f"{pool}.{word}" for pool in POOLS for word in Pool.model_fields},
    # Posted to the router, which passes it on to every worker.
    reset_path="/flush_cache",
)
