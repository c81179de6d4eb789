"""Cores under the roofline: a rank computes on one of them, and all share the machine."""

from __future__ import annotations

from autotune.domain.hardware.accelerators import Performance
from autotune.domain.search.roofline import Efficiency

ON_CORES = Efficiency(
    memory=0.8,
    compute=0.6,
    attention=0.5,
    layer_s=0.5e-3,
    experts_s=0.5e-3,
    collective_s=0.2e-3,
    step_s=6e-3,
)
"""Set by hand, to one digit, on vLLM's runs in ``bench/data/vllm_cpu_table.jsonl``."""

DRIVING = 1.0
"""Cores that clients of the engine, and what watches it, keep busy."""
_LEAST = 0.5
"""Of a machine that has no more than those."""


def core_among(core: Performance, cores: int, ranks: int) -> Performance:
    """A rank's core where so many ranks share a machine of so many cores with what drives them."""
    pace = min(1.0, max(cores - DRIVING, _LEAST) / ranks)
    return core.model_copy(update={"pace": core.pace * pace, "memory_gb": core.memory_gb / ranks})
