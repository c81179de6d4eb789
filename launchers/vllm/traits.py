"""What is true of vLLM whatever the configuration."""

from __future__ import annotations

from autotune.domain.hardware.hardware import DeviceKind
from autotune.domain.studies.ports import LauncherTraits
from launchers.options import HOST_WORDS, MODEL_WORD
from launchers.vllm.compilation import COMPILATION_WORDS
from launchers.vllm.flags import TABLE, TOOL_PARSER_WORD
from launchers.vllm.probes import CONFIG_PROBE, PARSER_PROBE
from launchers.vllm.speculation import SPECULATIVE_KEYS

COUNTERS = {
    "requests_running": "vllm:num_requests_running",
    "requests_waiting": "vllm:num_requests_waiting",
    "kv_cache_usage": "vllm:kv_cache_usage_perc",
    "preemptions_total": "vllm:num_preemptions_total",
    "prefix_cache_queries_total": "vllm:prefix_cache_queries_total",
    "prefix_cache_hits_total": "vllm:prefix_cache_hits_total",
    "prompt_tokens_total": "vllm:prompt_tokens_total",
    "generation_tokens_total": "vllm:generation_tokens_total",
    "spec_decode_accepted_tokens_total": "vllm:spec_decode_num_accepted_tokens_total",
    "spec_decode_draft_tokens_total": "vllm:spec_decode_num_draft_tokens_total",
}

OF_THE_BENCH = frozenset(
    {"VLLM_NO_USAGE_STATS", "VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "VLLM_SERVER_DEV_MODE"}
)

TRAITS = LauncherTraits(
    engine="vllm",
    executable="vllm",
    dimensions=TABLE.words
    | COMPILATION_WORDS
    | HOST_WORDS
    | {*SPECULATIVE_KEYS, "speculation", TOOL_PARSER_WORD, MODEL_WORD},
    device_kinds=frozenset({DeviceKind.CPU, DeviceKind.CUDA}),
    parser_probe=PARSER_PROBE,
    config_probe=CONFIG_PROBE,
    counters=COUNTERS,
    kv_tokens_line=r"GPU KV cache size: ([\d,]+) tokens",
    # Answered only where VLLM_SERVER_DEV_MODE=1 is in the study's `env`.
    reset_path="/reset_prefix_cache",
    of_the_bench=OF_THE_BENCH,
    images={
        DeviceKind.CUDA: "vllm/vllm-openai:v{version}",
        DeviceKind.CPU: "public.ecr.aws/q9t5s3a7/vllm-cpu-release-repo:v{version}",
    },
)
