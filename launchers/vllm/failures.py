"""Reads what a failed vLLM left behind.

The last error of a log ("Failed core proc(s)", EngineDeadError) is alike for every cause, and the exit code
is 1 for nearly all of them and 0 for an engine that died serving: the cause is the first exception's message.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Mapping, Sequence

from autotune.domain.launch import Evidence, Failure, FailureClass, Phase

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_PROCESS = re.compile(r"^\([\w ]+pid=\d+\) ")
_HARMLESS = re.compile(r"^(DEBUG|INFO|WARNING)\b")
_LOGGED_ERROR = re.compile(r"^(?:ERROR|CRITICAL) \d\d-\d\d [\d:]+ \[[^\]]+\] ?")
_PYDANTIC_TAIL = re.compile(r" \[type=\w+, input_value=.*$")

_EXCEPTION = re.compile(
    r"^(?:[\w.]+\.)?\w*(?:Error|Exception)(?:: .+)?$"
    r"|^Value error, "
    r"|^[\w. -]+: error: "  # argparse
    r"|^Fatal Python error: |^!+ Segfault encountered"
)
_BARE = re.compile(r"^[\w.]+$")
# Messages that only say that something failed elsewhere, or open a longer one.
_HOLLOW = re.compile(
    r"EngineDeadError|Engine core initialization failed|WorkerProc initialization failed"
    r"|ValidationError: \d+ validation error"
)
_DEAD = re.compile(r"EngineDeadError|EngineCore encountered ")

_OUT_OF_MEMORY = re.compile(
    r"(?i:out of memory)|OutOfMemoryError|\bMemoryError|(?i:can(?:no|')t allocate memory)"
)

# Texts of vLLM 0.32.0; behind each, the source file that writes it, or the log of the tests that shows it.
_CAUSES_AT_START: Mapping[FailureClass, tuple[str, ...]] = {
    FailureClass.REFUSED_ARGUMENTS: (
        r"^[\w. -]+: error: ",  # argparse
        r"invalid tool call parser: ",  # entrypoints/launchers/launcher.py
        r"^TypeError: Error: --[\w-]+ requires --",  # entrypoints/launchers/cli_args.py
    ),
    FailureClass.PORT_TAKEN: (
        r"\[Errno 98\]",  # port_taken.log
        r"EADDRINUSE",  # torch.distributed's rendezvous
    ),
    FailureClass.CONTEXT_TOO_LONG: (
        r"User-specified max_model_len .* is greater than",  # config/model.py
    ),
    FailureClass.KV_CACHE_TOO_SMALL: (
        r"To serve at least one request with the model's max seq len",  # v1/core/kv_cache_utils.py
        r"No available memory for the cache blocks",  # v1/core/kv_cache_utils.py
    ),
    FailureClass.OUT_OF_MEMORY: (
        r"Available memory on node .* is less than requested memory",  # kv_larger_than_memory.log
        r"Free memory on device .* on startup is less than",  # v1/worker/utils.py
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
        r"(?:HFValidation|RepositoryNotFound|GatedRepo|LocalEntryNotFound)Error: ",  # huggingface_hub
        r"Model architectures .* are not supported for now",  # model_executor/models/registry.py
    ),
    FailureClass.UNSUPPORTED_COMBINATION: (
        r" must be divisible by ",  # config/model.py
        r"max_num_batched_tokens .* is smaller than max_model_len",  # batched_below_context.log
        r"No common block size for ",  # v1/worker/utils.py
        r"Not enough allowed NUMA nodes to bind",  # tp2_auto_binding.log
        r"World size .* is larger than the number of",  # config/parallel.py
        r"No valid attention backend found for",  # platforms/cuda.py
        r" does not support LoRA",  # v1/worker/lora_model_runner_mixin.py
        r"^NotImplementedError: .* not supported",  # config/model.py, engine/arg_utils.py
    ),
}

_KILLS = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT}
"""Signals that an engine does not send itself: an operator's, or the kernel's for want of host memory."""

_DEATHS = {
    Phase.FIRST_REQUEST: FailureClass.DIED_AT_FIRST_REQUEST,
    Phase.LOADING: FailureClass.DIED_UNDER_LOAD,
}


def classify_failure(evidence: Evidence) -> Failure:
    """Name the cause of a failed launch and the line that tells it, without its logging prefixes."""
    failure_class, line = _judge(evidence, tuple(_messages(evidence.log)))
    return Failure(failure_class=failure_class, phase=evidence.phase, line=line, exit_code=evidence.exit_code)


def _judge(evidence: Evidence, messages: Sequence[str]) -> tuple[FailureClass, str]:
    telling = _telling(messages) or evidence.stream_error or _first_logged_error(evidence.log)
    if evidence.timed_out:
        return FailureClass.START_TIMEOUT, telling
    if shortage := _first(_OUT_OF_MEMORY, messages):
        return FailureClass.OUT_OF_MEMORY, shortage
    if evidence.phase is Phase.STARTING:
        for failure_class, texts in _CAUSES_AT_START.items():
            if cause := _first(re.compile("|".join(texts)), messages):
                return failure_class, cause
    # Exit code 0 is left to the log: a stop from outside has it, and so has an engine that died serving.
    died = evidence.exit_code not in {None, 0} or _first(_DEAD, (*messages, evidence.stream_error))
    if died and evidence.phase in _DEATHS:
        return _DEATHS[evidence.phase], telling
    if not telling and evidence.exit_code in _KILLS:
        return FailureClass.KILLED, f"ended by signal {-evidence.exit_code} with no error in its log"
    return FailureClass.UNRECOGNISED, telling


def _messages(log: str) -> Iterator[str]:
    """What exceptions and errors say, in order, without prefixes; the frames of tracebacks are left out.

    A bare ``AssertionError`` gets the statement that raised it.
    """
    statement = ""
    for line in map(_without_process, log.splitlines()):
        if _HARMLESS.match(line):
            continue
        text = _PYDANTIC_TAIL.sub("", _LOGGED_ERROR.sub("", line)).rstrip()
        if text.startswith("  Value error, "):  # pydantic indents what its validators say
            yield text.strip()
        elif text.startswith(" "):
            statement = text.strip(" ^~") or statement
        elif text:
            yield f"{text}: {statement}" if _BARE.match(text) and _EXCEPTION.match(text) else text


def _without_process(line: str) -> str:
    return _PROCESS.sub("", _ANSI.sub("", line))


def _telling(messages: Sequence[str]) -> str:
    return next((m for m in messages if _EXCEPTION.match(m) and not _HOLLOW.search(m)), "")


def _first_logged_error(log: str) -> str:
    lines = map(_without_process, log.splitlines())
    return next((_LOGGED_ERROR.sub("", line) for line in lines if _LOGGED_ERROR.match(line)), "")


def _first(pattern: re.Pattern[str], messages: Sequence[str]) -> str:
    return next((message for message in messages if pattern.search(message)), "")
