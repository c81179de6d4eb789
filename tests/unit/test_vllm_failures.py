"""How vLLM's failures are understood, from logs of real ones (``tests/data/vllm_logs``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.domain.launches.launch import Evidence, Failure, FailureClass, Phase
from launchers.vllm import LAUNCHER

LOGS = Path(__file__).parents[1] / "data/vllm_logs"
INDEX = {entry["log"].removesuffix(".log"): entry for entry in json.loads((LOGS / "index.json").read_text())}

EXPECTED = {
    "unknown_flag": (FailureClass.REFUSED_ARGUMENTS, "vllm: error: unrecognized arguments: --no-such-flag 3"),
    "bad_choice": (FailureClass.REFUSED_ARGUMENTS, "vllm serve: error: argument --kv-cache-dtype: "),
    "tp3": (
        FailureClass.UNSUPPORTED_COMBINATION,
        "Value error, Total number of attention heads (8) must be divisible by tensor parallel size (3).",
    ),
    "tp2_auto_binding": (
        FailureClass.UNSUPPORTED_COMBINATION,
        "AssertionError: Not enough allowed NUMA nodes to bind threads of 2 local CPUWorkers.",
    ),
    "batched_below_context": (
        FailureClass.UNSUPPORTED_COMBINATION,
        "Value error, max_num_batched_tokens (512) is smaller than max_model_len (2048).",
    ),
    "block_size_16": (
        FailureClass.UNSUPPORTED_COMBINATION,
        "ValueError: No common block size for 16 (CPU_ATTN: [MultipleOf(32)]).",
    ),
    "context_too_long": (
        FailureClass.CONTEXT_TOO_LONG,
        "Value error, User-specified max_model_len (100000) is greater than the derived max_model_len",
    ),
    "kv_too_small": (
        FailureClass.KV_CACHE_TOO_SMALL,
        "ValueError: To serve at least one request with the model's max seq len (4096),",
    ),
    "kv_larger_than_memory": (
        FailureClass.OUT_OF_MEMORY_PROFILING,
        "ValueError: Available memory on node 0",
    ),
    "awq": (FailureClass.UNSUPPORTED_QUANTIZATION, "Value error, Cannot find the config file for awq"),
    "fp8": (FailureClass.UNSUPPORTED_QUANTIZATION, "RuntimeError: _C::static_scaled_fp8_quant() "),
    "fp8_kv_without_avx512": (
        FailureClass.UNSUPPORTED_COMBINATION,
        "NotImplementedError: FP8 KV cache on CPU requires x86 with AVX-512 or AMX.",
    ),
    "unknown_quantization": (
        FailureClass.UNSUPPORTED_QUANTIZATION,
        "Value error, Unknown quantization method: nosuch.",
    ),
    "no_model": (FailureClass.CHECKPOINT, "huggingface_hub.errors.HFValidationError: Repo id must be "),
    "no_weights": (
        FailureClass.CHECKPOINT,
        "RuntimeError: Cannot find any model weights with `/models/no-weights`",
    ),
    "port_taken": (FailureClass.PORT_TAKEN, "OSError: [Errno 98] Address already in use"),
    "pp2_first_request": (
        FailureClass.DIED_AT_FIRST_REQUEST,
        "AssertionError: assert self.intermediate_tensors is not None",
    ),
    "moe_tp2_ep_first_request": (FailureClass.DIED_AT_FIRST_REQUEST, "!!!!!!! Segfault encountered !!!!!!!"),
    "host_memory": (FailureClass.HOST_MEMORY, "[28032.871205] oom-kill:constraint=CONSTRAINT_MEMCG"),
    "no_network_interface": (
        FailureClass.COMMUNICATION,
        "RuntimeError: [enforce fail at /__w/pytorch/pytorch/third_party/gloo/gloo/transport/",
    ),
    "no_compiler": (
        FailureClass.COMPILATION,
        "torch._inductor.exc.InductorError: InvalidCxxCompiler: No working C++ compiler found",
    ),
    "disk_full": (
        FailureClass.DISK_FULL,
        "torch._inductor.exc.InductorError: OSError: [Errno 28] No space left on device",
    ),
    "core_killed": (FailureClass.DIED_UNDER_LOAD, "AsyncLLM output_handler failed."),
    "core_stopped": (FailureClass.STALLED, ""),
    "healthy": (FailureClass.UNRECOGNISED, ""),
}  # fmt: skip


def log(name: str) -> str:
    return (LOGS / f"{name}.log").read_text()


def classify(text: str, *, phase: Phase = Phase.STARTING, exit_code: int | None = 1, **more: Any) -> Failure:
    evidence = Evidence(phase=phase, exit_code=exit_code, log=text, **more)
    return LAUNCHER.classify_failure(evidence)


def recorded(name: str, text: str) -> Failure:
    entry = INDEX[name]
    return classify(
        text,
        phase=Phase(entry["phase"]),
        exit_code=entry["exit_code"],
        stream_error=entry["stream_error"],
        stalled=entry.get("stalled", False),
        kernel_log=(LOGS / entry["kernel_log"]).read_text() if "kernel_log" in entry else "",
    )


def test_every_recorded_log_has_an_expectation() -> None:
    assert EXPECTED.keys() == INDEX.keys() == {path.stem for path in LOGS.glob("*.log")}


@pytest.mark.parametrize("name", EXPECTED)
def test_real_failures_are_understood(name: str) -> None:
    failure = recorded(name, log(name))
    failure_class, line = EXPECTED[name]
    assert failure.failure_class is failure_class
    assert failure.line.startswith(line)
    assert bool(failure.line) == bool(line)
    assert (failure.phase, failure.exit_code) == (INDEX[name]["phase"], INDEX[name]["exit_code"])


@pytest.mark.parametrize("name", EXPECTED)
def test_colours_change_nothing(name: str) -> None:
    coloured = "\n".join(f"\x1b[31m{line}\x1b[0m" for line in log(name).splitlines())
    assert recorded(name, coloured) == recorded(name, log(name))


@given(st.sampled_from(sorted(EXPECTED)), st.data())
def test_what_is_logged_below_an_error_is_never_the_cause(name: str, data: st.DataObject) -> None:
    lines = log(name).splitlines()
    at = data.draw(st.integers(0, len(lines)))
    noise = "(APIServer pid=1) WARNING 11-21 00:00:00 [x.py:1] like `OSError: [Errno 98] out of memory`"
    assert recorded(name, "\n".join([*lines[:at], noise, *lines[at:]])) == recorded(name, log(name))


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("exit_code", [None, 0])
def test_a_healthy_log_is_no_known_failure(phase: Phase, exit_code: int | None) -> None:
    assert (
        classify(log("healthy"), phase=phase, exit_code=exit_code).failure_class is FailureClass.UNRECOGNISED
    )


@pytest.mark.parametrize("name", ["pp2_first_request", "moe_tp2_ep_first_request"])
@pytest.mark.parametrize("exit_code", [None, 0, -9])
def test_death_under_load_is_told_from_death_at_the_first_request(name: str, exit_code: int | None) -> None:
    failure = classify(log(name), phase=Phase.LOADING, exit_code=exit_code)
    assert failure.failure_class is FailureClass.DIED_UNDER_LOAD


def test_a_dead_engine_is_known_by_its_stream_before_its_log_is_written() -> None:
    error = '{"error": {"message": "EngineCore encountered an issue. See stack trace (above) ..."}}'
    failure = classify(log("healthy"), phase=Phase.FIRST_REQUEST, exit_code=None, stream_error=error)
    assert (failure.failure_class, failure.line) == (FailureClass.DIED_AT_FIRST_REQUEST, error)


def test_a_request_that_a_living_engine_refused_is_no_death() -> None:
    error = '{"error": {"message": "max_tokens is too large", "code": 400}}'
    failure = classify(log("healthy"), phase=Phase.FIRST_REQUEST, exit_code=None, stream_error=error)
    assert (failure.failure_class, failure.line) == (FailureClass.UNRECOGNISED, error)


@pytest.mark.parametrize(
    ("exit_code", "expected"), [(137, FailureClass.UNRECOGNISED), (-9, FailureClass.KILLED)]
)
def test_a_kill_is_not_taken_for_want_of_memory(exit_code: int, expected: FailureClass) -> None:
    assert classify(log("healthy"), exit_code=exit_code).failure_class is expected


def test_a_start_that_took_too_long_is_censored_and_still_tells_its_line() -> None:
    failure = classify(log("block_size_16"), exit_code=None, timed_out=True)
    assert failure.failure_class is FailureClass.START_TIMEOUT
    assert failure.line.startswith("ValueError: No common block size")


CORE = "(EngineCore pid=7) ERROR 05-01 14:39:06 [core.py:1131] "
ENDING = (
    f"{CORE}EngineCore failed to start.\n"
    f"{CORE}Traceback (most recent call last):\n"
    f'{CORE}  File "core.py", line 1, in run\n'
    "%s\n"
    "(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above. "
    "Failed core proc(s): {'EngineCore': 1}\n"
)


@pytest.mark.parametrize(
    ("message", "failure_class"),
    [
        # PyTorch, as logged by vLLM.
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 50.00 MiB. GPU 0 has a total",
            FailureClass.OUT_OF_MEMORY,
        ),
        # v1/worker/gpu_model_runner.py
        (
            "RuntimeError: CUDA out of memory occurred when warming up sampler with 1024 dummy",
            FailureClass.OUT_OF_MEMORY_PROFILING,
        ),
        # v1/worker/utils.py
        (
            "ValueError: Free memory on device cuda:0 (3.1/79.1 GiB) on startup is less than desired",
            FailureClass.OUT_OF_MEMORY_LOADING,
        ),
        # v1/core/kv_cache_utils.py
        (
            "ValueError: No available memory for the cache blocks. Try increasing",
            FailureClass.KV_CACHE_TOO_SMALL,
        ),
        # config/vllm.py
        (
            "ValueError: The quantization method modelopt_fp4 is not supported for the current GPU.",
            FailureClass.UNSUPPORTED_QUANTIZATION,
        ),
        # config/model.py
        (
            "NotImplementedError: Pipeline parallelism is not supported for this model.",
            FailureClass.UNSUPPORTED_COMBINATION,
        ),
        # config/parallel.py
        (
            "ValueError: World size (4) is larger than the number of available GPUs (2) in this node.",
            FailureClass.UNSUPPORTED_COMBINATION,
        ),
        # platforms/cuda.py
        (
            "ValueError: No valid attention backend found for cuda with x",
            FailureClass.UNSUPPORTED_COMBINATION,
        ),
        # distributed/device_communicators/pynccl_wrapper.py
        ("RuntimeError: NCCL error: unhandled system error", FailureClass.COMMUNICATION),
        ("ImportError: libcuda.so.1: cannot open shared object file", FailureClass.DRIVER),
        ("KeyError: 'layers.0.ffn.experts.w13_input_scale'", FailureClass.UNRECOGNISED),
    ],
)
def test_failures_known_from_source_are_understood(message: str, failure_class: FailureClass) -> None:
    failure = classify(ENDING % f"{CORE}{message}")
    assert (failure.failure_class, failure.line) == (failure_class, message)


def test_nccl_that_ran_out_of_memory_is_out_of_memory() -> None:
    failure = classify(
        ENDING % f"{CORE}torch.distributed.DistBackendError: NCCL error in: NCCLUtils.cpp:133, unhandled cuda"
        f" error\n{CORE}Last error:\n{CORE}Cuda failure 'out of memory'"
    )
    assert (failure.failure_class, failure.line) == (
        FailureClass.OUT_OF_MEMORY,
        "Cuda failure 'out of memory'",
    )


@pytest.mark.parametrize(
    "hollow",
    [
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig",
        "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.",
        "Exception: WorkerProc initialization failed due to an exception in a background process.",
    ],
)
def test_the_line_shown_says_something(hollow: str) -> None:
    failure = classify(
        f"{hollow}\n  Value error, something new [type=value_error, input_value=1, input_type=int]\n"
    )
    assert (failure.failure_class, failure.line) == (FailureClass.UNRECOGNISED, "Value error, something new")


def test_causes_of_a_failed_start_are_not_looked_for_later() -> None:
    failure = classify(ENDING % f"{CORE}AssertionError: 3 must be divisible by 2", phase=Phase.LOADING)
    assert failure.failure_class is FailureClass.DIED_UNDER_LOAD
    assert failure.line == "AssertionError: 3 must be divisible by 2"


@pytest.mark.parametrize("phase", [Phase.FIRST_REQUEST, Phase.LOADING])
def test_want_of_memory_is_told_whenever_it_shows(phase: Phase) -> None:
    text = ENDING % f"{CORE}torch.OutOfMemoryError: CUDA out of memory."
    assert classify(text, phase=phase).failure_class is FailureClass.OUT_OF_MEMORY_SERVING


def test_without_an_exception_the_first_logged_error_is_shown() -> None:
    failure = classify(f"INFO: all is well\n{CORE}something odd\n{CORE}more of it\n")
    assert (failure.failure_class, failure.line) == (FailureClass.UNRECOGNISED, "something odd")
