"""What SGLang writes when it fails.

A scheduler that fails prints its traceback and signals the server, which kills its whole process tree, itself
included: exit code 137 (-9) is its own doing, and says nothing of memory.
"""

from __future__ import annotations

from autotune.domain.launches.launch import Evidence, Failure, FailureClass
from launchers.failures import FailureRules, classify

# Texts of SGLang 0.5.23; behind each, the source file under sglang/srt that writes it.
RULES = FailureRules(
    at_start={
        FailureClass.REFUSED_ARGUMENTS: (
            r"When no initial --lora-paths is provided",  # arg_groups/lora_hook.py
            r"--dcp-size \d+ must divide --tp-size",  # arg_groups/attention_hook.py
        ),
        FailureClass.PORT_TAKEN: (
            r"Port is already in use\. dist_init_port=",  # server_args.py
            r"engine_info_bootstrap_port \d+ is already in use",  # entrypoints/engine.py
        ),
        FailureClass.CONTEXT_TOO_LONG: (
            r"context_length \(\d+\) is greater than the derived context_length",  # configs/model_config.py
        ),
        FailureClass.KV_CACHE_TOO_SMALL: (
            r"Not enough memory\. Please try to increase --mem-f",  # model_executor/pool_configurator.py
        ),
        FailureClass.COMPILATION: (
            r"Capture cuda graph failed: (?!.*out of memory)",  # model_executor/runner/decode_cuda_graph_*.py
        ),
        FailureClass.UNSUPPORTED_QUANTIZATION: (
            r"Unknown quantization method: ",  # configs/model_config.py
            r"Quantization method specified in the model config",  # configs/model_config.py
            r"quantization is currently not supported in ROCm",  # configs/model_config.py
            r"The quantization method .* is not supported for the current GPU",  # model_loader/loader.py
        ),
        FailureClass.CHECKPOINT: (
            r"Cannot find any model weights with ",  # model_loader/loader.py
            r"Model architectures .* are not supported for now",  # models/registry.py
        ),
        FailureClass.UNSUPPORTED_COMBINATION: (
            r"is not divisible by weight quantization block_[nk] = ",  # layers/quantization/fp8.py
            r"^AssertionError: -?\d+ is not divisible by \d+",  # distributed/utils.py
            r"num_heads % (?:\w+\.)*(?:attn_)?tp_size",  # models/*.py: a bare assertion's statement
            r"\btp_size (?:must be divisible|% cfg\.attn_dp_size)",  # arg_groups/parallel_hook.py
            r"chunked_prefill_size must be divisible by page_size",  # arg_groups/validation_hook.py
            r"Pipeline parallelism (?:is not compatible|currently only)",  # arg_groups/validation_hook.py
            r"PP \+ speculative decoding \(MTP\) is only supported",  # arg_groups/validation_hook.py
            r"multi-node data-parallel replicas are not supported",  # arg_groups/validation_hook.py
            r"speculative decoding does not support dp attention",  # arg_groups/speculative_hook.py
            r"LoRA is only compatible with",  # arg_groups/lora_hook.py
            r"PD decode DCP requires",  # arg_groups/pd_disaggregation_hook.py
        ),
        FailureClass.STALLED: (
            r"watchdog timeout \(self\.watchdog_timeout=[\d.]+, self\.soft=False\)",  # utils/watchdog.py
        ),
    },
    stages={
        FailureClass.OUT_OF_MEMORY_PROFILING: (
            r"Load weight end\.|, in init_cuda_graphs$",  # model_executor/model_runner.py, and its frames
        ),
        FailureClass.OUT_OF_MEMORY_LOADING: (r"Load weight begin\.",),  # model_executor/model_runner.py
    },
    prefixes=(
        r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[^\]]*\] ",  # utils/common.py: time and rank
    ),
    harmless=(
        r"Ignore import error when loading ",  # models/registry.py
        r"KV cache pool is full\. Retract|Decode out of memory happened\.",  # managers/scheduler.py
        # It names signal 9 whatever the exit code; the cause was printed by the scheduler.
        r"(?:\w+: )?Rank \d+ scheduler died during initialization \(exit code: (?!-9\))",  # entrypoints
    ),
    hollow=(
        r"^RuntimeError: Initialization failed\. Please see the error messages",  # entrypoints/engine.py
    ),
    dead=(
        r"SIGQUIT received\. signum=",  # managers/tokenizer_manager.py
        r"Received sigquit from a child process",  # entrypoints/engine.py
        r"Subprocess \w+ \(pid=\d+\) crashed with exit code",  # utils/watchdog.py
    ),
)  # fmt: skip


def classify_failure(evidence: Evidence) -> Failure:
    """Name the cause of a failed launch and the line that tells it, without its logging prefixes."""
    return classify(evidence, RULES)
