"""Reads what a failed vLLM left behind.

The last error of a log ("Failed core proc(s)", EngineDeadError) is alike for every cause, and the exit code
is 1 for nearly all of them and 0 for an engine that died serving: the cause is the first exception's message.
"""

from __future__ import annotations

from autotune.domain.launches.launch import Evidence, Failure, FailureClass
from launchers.failures import FailureRules, classify

# Texts of vLLM 0.32.0; behind each, the source file that writes it, or the log of the tests that shows it.
RULES = FailureRules(
    at_start={
        FailureClass.REFUSED_ARGUMENTS: (
            r"invalid tool call parser: ",  # entrypoints/launchers/launcher.py
            r"^TypeError: Error: --[\w-]+ requires --",  # entrypoints/launchers/cli_args.py
        ),
        FailureClass.CONTEXT_TOO_LONG: (
            r"User-specified max_model_len .* is greater than",  # config/model.py
        ),
        FailureClass.KV_CACHE_TOO_SMALL: (
            r"To serve at least one request with the model's max seq len",  # v1/core/kv_cache_utils.py
            r"No available memory for the cache blocks",  # v1/core/kv_cache_utils.py
        ),
        FailureClass.OUT_OF_MEMORY_LOADING: (
            r"Failed to create unquantized linear weights: .*out of memory",  # layers/linear.py
            r"Free memory on device .* on startup is less than",  # v1/worker/utils.py
            r"Available memory on node .* on startup is less than",  # v1/worker/cpu_worker.py
        ),
        FailureClass.OUT_OF_MEMORY_PROFILING: (
            r"out of memory occurred when warming up sampler",  # v1/worker/gpu_model_runner.py
            r"Available memory on node .* on kv cache allocation is less than",  # v1/worker/cpu_worker.py
        ),
        FailureClass.UNSUPPORTED_QUANTIZATION: (
            r"Unknown quantization method",  # config/model.py
            r"Quantization method specified in the model config",  # config/model.py
            r"The quantization method .* is not supported",  # config/vllm.py
            r"is not supported for quantization method",  # config/vllm.py
            r"Cannot find the config file for ",  # awq.log
            r"_C::\w*quant\(\) expected at most",  # fp8.log
        ),
        FailureClass.CHECKPOINT: (
            r"Cannot find any model weights with",  # model_executor/model_loader/default_loader.py
            r"Invalid repository ID or local directory",  # transformers_utils/config.py
            r"Model architectures .* are not supported for now",  # model_executor/models/registry.py
        ),
        FailureClass.UNSUPPORTED_COMBINATION: (
            r" must be divisible by ",  # config/model.py
            r"max_num_batched_tokens .* is smaller than max_model_len",  # batched_below_context.log
            r"No common block size for ",  # v1/worker/utils.py
            r"Not enough allowed NUMA nodes to bind",  # tp2_auto_binding.log
            r"World size .* is larger than the number of",  # config/parallel.py
            r"No valid attention backend found for",  # platforms/cuda.py
            r" MoE backend .*support.* the deployment configuration",  # layers/fused_moe/oracle/
            r" does not support LoRA",  # v1/worker/lora_model_runner_mixin.py
            r"FP8 KV cache on CPU requires ",  # fp8_kv_without_avx512.log
            r"^NotImplementedError: .* not supported",  # config/model.py, engine/arg_utils.py
        ),
        FailureClass.STALLED: (
            r"RPC call to \w+ timed out",  # v1/executor/multiproc_executor.py
        ),
        FailureClass.DRIVER: (
            r"Failed to infer device type",  # config/device.py
        ),
    },
    stages={
        FailureClass.OUT_OF_MEMORY_LOADING: (
            r"Starting to load model ",  # v1/worker/gpu_model_runner.py
            r", in (?:load_model|load_weights|create_weights|initialize_model)$",  # frames of the same
        ),
        FailureClass.OUT_OF_MEMORY_PROFILING: (
            r"Model loading took ",  # v1/worker/gpu_model_runner.py
            r", in (?:determine_available_memory|profile_run)$",  # v1/worker/worker_base.py
            r", in (?:compile_or_warm_up_model|capture_model)$",  # v1/worker/worker_base.py
            r", in (?:initialize_from_config|_?initialize_kv_caches?)$",  # v1/worker, v1/engine/core.py
        ),
    },
    prefixes=(
        r"(?:\([\w .:,=-]*\bpid=\d+[^)]*\) )+",  # a worker's within its engine's, too; Ray
        r"(?:ERROR|CRITICAL) \d\d-\d\d [\d:]+ \[?[\w./-]+:\d+\] ?",  # logging_utils/formatter.py
    ),
    hollow=(
        r"EngineDeadError|Engine core initialization failed|WorkerProc initialization failed",
        r"ValidationError: \d+ validation error",  # opens a longer one
    ),
    dead=(r"EngineDeadError|EngineCore encountered ",),
)


def classify_failure(evidence: Evidence) -> Failure:
    """Name the cause of a failed launch and the line that tells it, without its logging prefixes."""
    return classify(evidence, RULES)
