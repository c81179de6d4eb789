"""What is true of SGLang whatever the configuration."""

from __future__ import annotations

from autotune.domain.hardware.hardware import DeviceKind
from autotune.domain.studies.ports import LauncherTraits
from launchers.options import HOST_WORDS, MODEL_WORD
from launchers.sglang.flags import TABLE
from launchers.sglang.probes import CONFIG_PROBE, PARSER_PROBE

COUNTERS = {
    "requests_running": "sglang:num_running_reqs",
    "requests_waiting": "sglang:num_queue_reqs",
    "kv_cache_usage": "sglang:token_usage",
    "preemptions_total": "sglang:num_retracted_requests_total",
    "prefix_cache_queries_total": "sglang:prompt_tokens_total",
    "prefix_cache_hits_total": "sglang:cached_tokens_total",
    "prompt_tokens_total": "sglang:prompt_tokens_total",
    "generation_tokens_total": "sglang:generation_tokens_total",
}
"""What was accepted of speculation is a gauge of the last batches, no counter: left out."""

OF_BATCHING = frozenset({"max_num_seqs", "max_num_batched_tokens", "chunked_prefill"})
OF_SPECULATION = frozenset({"speculation", "speculative_tokens", "speculative_model"})

TRAITS = LauncherTraits(
    engine="sglang",
    executable="sglang",
    dimensions=TABLE.words
    | {"tensor_parallel", "data_parallel", "dp_attention", "expert_parallel", MODEL_WORD}
    | HOST_WORDS
    | OF_BATCHING
    | OF_SPECULATION,
    device_kinds=frozenset({DeviceKind.CPU, DeviceKind.CUDA, DeviceKind.ROCM}),
    parser_probe=PARSER_PROBE,
    config_probe=CONFIG_PROBE,
    counters=COUNTERS,
    kv_tokens_line=r"max_total_num_tokens=(\d+)",
    # Answered with 400 while requests run.
    reset_path="/flush_cache",
    of_the_bench=frozenset({"SGLANG_CPU_OMP_THREADS_BIND"}),
    images={DeviceKind.CUDA: "lmsysorg/sglang:v{version}"},
)
