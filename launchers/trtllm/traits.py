"""What is true of TensorRT-LLM whatever the configuration."""

from __future__ import annotations

from autotune.domain.hardware.hardware import DeviceKind
from autotune.domain.studies.ports import LauncherTraits
from launchers.options import HOST_WORDS, MODEL_WORD
from launchers.trtllm.keys import TABLE, VALUED

# click's own parameters; a flag of two states has a second spelling.
PARSER_PROBE = """\
import json, os

answer = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # whatever imports print is kept out of the answer

import tensorrt_llm
from tensorrt_llm.commands.serve import serve

flags = {
    option: [str(choice) for choice in getattr(parameter.type, "choices", None) or ()]
    for parameter in serve.params
    for option in (*parameter.opts, *parameter.secondary_opts)
    if option.startswith("-")
}
version = tensorrt_llm.__version__
answer.write(json.dumps({"version": version, "device": "cuda", "flags": flags}) + "\\n")
answer.close()
"""

# tensorrt_llm/metrics/collector.py
COUNTERS = {
    "requests_running": "trtllm_num_requests_running",
    "requests_waiting": "trtllm_num_requests_waiting",
    "kv_cache_usage": "trtllm_kv_cache_utilization",
    "prefix_cache_queries_total": "trtllm_prompt_tokens_total",
    "prefix_cache_hits_total": "trtllm_prompt_cached_tokens_total",
    "prompt_tokens_total": "trtllm_prompt_tokens_total",
    "generation_tokens_total": "trtllm_generation_tokens_total",
    "spec_decode_accepted_tokens_total": "trtllm_spec_decode_num_accepted_tokens_total",
    "spec_decode_draft_tokens_total": "trtllm_spec_decode_num_draft_tokens_total",
}
"""No counter tells of preemptions: a request that is paused is a gauge."""

OF_PARALLELISM = frozenset(
    {"tensor_parallel", "data_parallel", "dp_attention", "expert_parallel", "context_parallel"}
)
OF_SPECULATION = frozenset({"speculation", "speculative_tokens", "speculative_model", "prompt_lookup_max"})
OF_GRAPHS = frozenset({"eager", "graph_capture", "graph_max_batch", "compilation"})
OF_OPTIONS = (
    frozenset({*VALUED, "scheduling_policy", "all2all_backend", "lora", MODEL_WORD})
    | OF_PARALLELISM
    | OF_SPECULATION
    | OF_GRAPHS
)

TRAITS = LauncherTraits(
    engine="trtllm",
    executable="trtllm-serve",
    dimensions=OF_OPTIONS | TABLE.words | HOST_WORDS,
    device_kinds=frozenset({DeviceKind.CUDA}),
    parser_probe=PARSER_PROBE,
    counters=COUNTERS,
    # /metrics is JSON (serve/openai_server.py).
    counters_path="/prometheus/metrics",
    of_the_bench=frozenset({"TRTLLM_NO_USAGE_STATS"}),
    images={DeviceKind.CUDA: "nvcr.io/nvidia/tensorrt-llm/release:{version}"},
)
