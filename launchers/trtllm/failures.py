"""Reads what a failed TensorRT-LLM left behind.

The ranks are processes of their own: the server's last word is that one of them returned an error, the cause
stands in what that rank logged.
"""

from __future__ import annotations

from autotune.domain.launches.launch import Evidence, Failure, FailureClass
from launchers.failures import FailureRules, classify

# Behind each text, the file below tensorrt_llm/ (main of 2026) that writes it, or the issue that shows it.
RULES = FailureRules(
    at_start={
        FailureClass.REFUSED_ARGUMENTS: (
            r"^Error: (?:No such option|Invalid value|Missing (?:argument|option)|Got unexpected)",  # click
            r"Failed to parse the arguments for the LLM constructor",  # llmapi/llm.py, issue 7752
            r"LlmArgs\.__init__\(\) got an unexpected keyword argument",  # issue 2846
            r"Extra inputs are not permitted",  # pydantic, of a key that llmapi/llm_args.py does not have
            r"Configuration file root must be a mapping",  # commands/serve.py
        ),
        FailureClass.KV_CACHE_TOO_SMALL: (
            r"Attention window too large to fit even a single sequence",  # cpp, kvCacheManager.cpp
        ),
        FailureClass.OUT_OF_MEMORY: (
            r"Executor creation failed due to insufficient GPU memory",  # py_executor_creator.py
        ),
        FailureClass.UNSUPPORTED_QUANTIZATION: (
            r"fp8 blockscale gemm only support Hopper",  # cpp/.../fp8_blockscale_gemm.cu, issue 5064
            r"Unsupported SM version for FP8 block scaling GEMM",  # issue 5581
        ),
        FailureClass.CHECKPOINT: (
            r"Unknown architecture for AutoModelForCausalLM",  # modeling_auto.py, issue 7706
            r"huggingface model architecture \S+ is not supported in TRT-LLM",  # issue 2845
        ),
        FailureClass.UNSUPPORTED_COMBINATION: (
            r"DeepGEMM only supports Hopper",  # pull request 13327
            r"Speculation type \S+ does not support backend",  # llmapi/llm_args.py
            r"When HELIX parallelism is active, ",  # llmapi/llm_args.py
            r"tp_size must equal to moe_tp_size",  # mapping.py
            r"world_size must equal to tp_size",  # mapping.py
        ),
    },
    stages={
        FailureClass.OUT_OF_MEMORY_LOADING: (
            r"^Loading weights\b",  # _torch/models/modeling_utils.py
            r"Error executing load_single_module",  # the same, issue 7818
        ),
        FailureClass.OUT_OF_MEMORY_PROFILING: (
            r"^Model init total -- ",  # _torch/pyexecutor/model_loader.py
            r"Memory used after loading model weights",  # _torch/pyexecutor/_util.py
        ),
    },
    prefixes=(
        r"^\[[\d/]+-[\d:]+\] \[TRT-LLM\] (?:\[RANK \d+\] )?\[E\] ",  # logger.py
        r"^\[TensorRT-LLM\]\[ERROR\] ",  # cpp/tensorrt_llm/common/logger.h
        r"^Failed to initialize executor on rank \d+: ",  # executor/worker.py
        r"^\[TensorRT-LLM\]\[ERROR\] ",  # where a rank reports it
    ),
    harmless=(
        r"^\[[\d/]+-[\d:]+\] \[TRT-LLM\] (?:\[RANK \d+\] )?\[[IWVD]\] ",  # logger.py
        r"^\[TensorRT-LLM\](?:\[(?:INFO|WARNING|DEBUG|TRACE)\]| TensorRT-LLM version)",  # logger.py
    ),
    hollow=(
        r"^(?:RuntimeError: )?Executor worker (?:returned error|died)",  # executor/proxy.py
        r"^Error executing load_single_module .*: (?!.*out of memory)",  # wraps another
    ),
    dead=(
        r"Encountered an error in forward function",  # _torch/pyexecutor/py_executor.py, issue 5390
    ),
)


def classify_failure(evidence: Evidence) -> Failure:
    """Name the cause of a failed launch and the line that tells it, without its logging prefixes."""
    return classify(evidence, RULES)
