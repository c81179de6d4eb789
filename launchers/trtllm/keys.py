"""The keys of TensorRT-LLM's options, and which of them are flags of ``trtllm-serve``.

Keys are those of ``TorchLlmArgs`` (tensorrt_llm/llmapi/llm_args.py), nested ones with dots. A flag wins over
the YAML (commands/serve.py), so that nothing is ever said in both.
"""

from __future__ import annotations

from collections.abc import Mapping

from launchers.options import FlagTable

TENSOR_PARALLEL = "tensor_parallel_size"
CONTEXT_PARALLEL = "context_parallel_size"
CONTEXT_CONFIG = "cp_config"
EXPERT_PARALLEL = "moe_expert_parallel_size"
ATTENTION_DP = "enable_attention_dp"
CHUNKED_PREFILL = "enable_chunked_prefill"
TOKENS_PER_BLOCK = "kv_cache_config.tokens_per_block"
TOKENS_PER_BLOCK_DEFAULT = 32
GRAPHS = "cuda_graph_config"
COMPILE = "torch_compile_config"
SPECULATIVE = "speculative_config"
SCHEDULER = "scheduler_config"
LORA = "lora_config"
ENABLE_LORA = "enable_lora"
TRANSCEIVER = "cache_transceiver_config.backend"
NO_OVERLAP = "disable_overlap_scheduler"

VALUED: Mapping[str, str] = {
    "pipeline_parallel": "pipeline_parallel_size",
    "max_num_seqs": "max_batch_size",
    "max_num_batched_tokens": "max_num_tokens",
    "context_length": "max_seq_len",
    # Of what is free once the weights are loaded, not of the whole device.
    "memory_fraction": "kv_cache_config.free_gpu_memory_fraction",
    "kv_cache_dtype": "kv_cache_config.dtype",
    "prefix_caching": "kv_cache_config.enable_block_reuse",
    "block_size": TOKENS_PER_BLOCK,
    "chunked_prefill": CHUNKED_PREFILL,
    "attention_backend": "attn_backend",
    "moe_backend": "moe_config.backend",
    "dtype": "dtype",
}
"""The key that takes a word's value as it is."""

CHOICES: Mapping[str, tuple[str, ...]] = {
    "attn_backend": ("TRTLLM", "FLASHINFER", "VANILLA"),  # _torch/attention/backends/utils.py
    "moe_config.backend": (  # llm_args.py, _MoeBackend
        *("AUTO", "CUTLASS", "CUTEDSL", "CUTEDSL_FC12", "TRTLLM", "DEEPGEMM", "DENSEGEMM", "VANILLA"),
        *("TRITON", "MARLIN", "MEGAMOE_DEEPGEMM", "MEGAMOE_CUTEDSL"),
    ),
    "kv_cache_config.dtype": ("auto", "fp8", "fp8_ds_mla", "nvfp4", "float16", "bfloat16", "float32"),
    "dtype": ("auto", "float16", "bfloat16", "float32"),
}

POLICIES: Mapping[str, tuple[str, str]] = {
    "fcfs": ("waiting_queue_policy", "fcfs"),
    "priority": ("waiting_queue_policy", "priority"),
    "guaranteed_no_evict": ("capacity_scheduler_policy", "GUARANTEED_NO_EVICT"),
    "max_utilization": ("capacity_scheduler_policy", "MAX_UTILIZATION"),
    "static_batch": ("capacity_scheduler_policy", "STATIC_BATCH"),
}
"""Key under ``SCHEDULER`` and value, by the word's value: who is taken next, and who is let in at all."""

DECODING_TYPES = {"ngram": "NGram", "draft_model": "Draft_Target", "eagle3": "Eagle3", "mtp": "MTP"}
DRAFT_TOKENS = "max_draft_len"
DRAFT_MODEL = "speculative_model"
LOOKUP_MAX = "max_matching_ngram_size"

LORA_SHAPE: Mapping[str, object] = {
    "lora_target_modules": ["attn_q", "attn_k", "attn_v"],
    "max_lora_rank": 16,
}
"""What must be known of adapters that come later; without modules room is made for all (llm_args.py)."""

COUNTING: Mapping[str, object] = {
    "return_perf_metrics": True,  # mounts the Prometheus page (serve/openai_server.py)
    "enable_iter_perf_stats": True,  # what runs, waits and fills the KV cache
}

ALL2ALL_VARIABLE = "TRTLLM_FORCE_COMM_METHOD"
ALL2ALL = ("NVLINK_ONE_SIDED", "NVLINK_TWO_SIDED", "DEEPEP", "DEEPEPLOWLATENCY", "ALLGATHER")
"""Values of ``ALL2ALL_VARIABLE``, which CommunicationFactory reads (_torch/moe/communication)."""

OPTIONS_FILE = "--extra_llm_api_options"
BACKEND = "--backend"
SERVED_MODEL_NAME = "--served_model_name"
TOOL_PARSER = "--tool_parser"

FLAGS: Mapping[str, str] = {
    TENSOR_PARALLEL: "--tp_size",
    "pipeline_parallel_size": "--pp_size",
    CONTEXT_PARALLEL: "--cp_size",
    EXPERT_PARALLEL: "--ep_size",
    "max_batch_size": "--max_batch_size",
    "max_num_tokens": "--max_num_tokens",
    "max_seq_len": "--max_seq_len",
    "kv_cache_config.free_gpu_memory_fraction": "--kv_cache_free_gpu_memory_fraction",
    "kv_cache_config.dtype": "--kv_cache_dtype",
}
"""The flag that says a key; all other keys are said in the YAML."""

FLAG_CHOICES: Mapping[str, tuple[str, ...]] = {"kv_cache_config.dtype": ("auto", "fp8", "nvfp4")}
"""The values that a key's flag takes, where the YAML takes more."""

SWITCHES: Mapping[str, str] = {
    ATTENTION_DP: "--enable_attention_dp",
    CHUNKED_PREFILL: "--enable_chunked_prefill",
}
"""The flag that turns a key on; nothing but the YAML turns one off."""

OF_THE_DEPLOYMENT = frozenset({SERVED_MODEL_NAME, "--host", "--port", "--report_addr", "--log_level"})
"""Where a server listens and what it is called: no part of a configuration."""

TABLE = FlagTable(
    engine="trtllm",
    valued={"tool_parser": TOOL_PARSER},
    switches={},
    aliases={
        "--tensor_parallel_size": "--tp_size",
        "--tp": "--tp_size",
        "--pipeline_parallel_size": "--pp_size",
        "--pp": "--pp_size",
        "--context_parallel_size": "--cp_size",
        "--moe_expert_parallel_size": "--ep_size",
        "--ep": "--ep_size",
        "--free_gpu_memory_fraction": "--kv_cache_free_gpu_memory_fraction",
        "--config": OPTIONS_FILE,
    },
    bare=frozenset(
        {
            *SWITCHES.values(),
            *("--trust_remote_code", "--telemetry", "--no-telemetry", "--allow_request_chat_template"),
            *("--enable_visual_gen", "--fail_fast_on_attention_window_too_large", "--grpc"),
        }
    ),
    single=frozenset(
        {
            *(*FLAGS.values(), OPTIONS_FILE, BACKEND, *OF_THE_DEPLOYMENT),
            # serve.py gives every other option one value; these are the ones that production lines have.
            *("--tokenizer", "--custom_tokenizer", "--reasoning_parser", "--chat_template", "--set"),
            *("--num_postprocess_workers", "--num_serve_frontends", "--max_beam_width", "--gpus_per_node"),
            *("--generation-config", "--hf_revision", "--revision", "--moe_cluster_parallel_size"),
            *("--cluster_size", "--custom_module_dirs", "--middleware", "--otlp_traces_endpoint"),
            *("--metadata_server_config_file", "--server_role", "--disagg_cluster_uri"),
        }
    ),
    exact=True,
)

WORD_OF_KEY: Mapping[str, str] = {
    **{key: word for word, key in VALUED.items()},
    TENSOR_PARALLEL: "tensor_parallel",
    CONTEXT_PARALLEL: "context_parallel",
    EXPERT_PARALLEL: "expert_parallel",
    ATTENTION_DP: "dp_attention",
}
"""The word that a key which is a flag, too, comes from."""
