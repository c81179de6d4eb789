"""Writes the process that serves a configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from autotune.domain.config import EngineConfig
from autotune.domain.errors import InfeasibleConfigError
from autotune.domain.hardware import Device, DeviceKind
from autotune.domain.launch import EngineEnvironment, LaunchContext, LaunchSpec, ProcessSpec
from launchers.vllm.flags import (
    AUTO_TOOLS,
    SERVED_MODEL_NAME,
    SPECULATIVE,
    SPECULATIVE_KEYS,
    SWITCHES,
    TOOL_PARSER,
    TOOL_PARSER_WORD,
    VALUED,
    read_options,
    switch,
)

ROLE = "server"


def launch_spec(config: EngineConfig, context: LaunchContext) -> LaunchSpec:
    """Write the server's process; raises InfeasibleConfigError naming word, flag and version."""
    _refuse_unschedulable(config)
    words = _word_tokens(config)
    free = {"extra_args": config.extra_args, "args": context.args}
    for source, tokens in {**words, **free}.items():
        _refuse_unknown(source, tokens, context.environment)
    on_cpu = context.environment.kind is DeviceKind.CPU
    one_process = on_cpu and config.ranks == 1
    argv = (
        str(context.environment.executable),
        "serve",
        context.model,
        *(token for tokens in words.values() for token in tokens),
        *(("--distributed-executor-backend", "uni") if one_process else ()),
        *config.extra_args,
        *context.args,
        *("--host", f"{{host:{ROLE}}}", "--port", f"{{port:{ROLE}}}"),
    )
    env = {
        "VLLM_NO_USAGE_STATS": "1",
        **({"HF_HUB_OFFLINE": "1"} if Path(context.model).is_dir() else {}),
        **(_cpu_env(one_process=one_process) if on_cpu else _cuda_env(context.devices)),
        **context.env,
    }
    server = ProcessSpec(role=ROLE, argv=argv, env=env, devices=context.devices)
    return LaunchSpec(processes=(server,), serving_role=ROLE, served_model=_served_model(argv, context.model))


def _word_tokens(config: EngineConfig) -> dict[str, tuple[str, ...]]:
    """Tokens by the word that asks for them, in the order of the vocabulary."""
    tokens: dict[str, tuple[str, ...]] = {}
    for word, value in config.words.items():
        if word in VALUED and (word, value) != ("quantization", "none"):
            tokens[word] = (VALUED[word], str(value))
        elif word in SWITCHES:
            tokens[word] = (switch(word, on=value),)
        elif word == TOOL_PARSER_WORD:
            tokens[word] = (AUTO_TOOLS, TOOL_PARSER, value)
        elif word == "speculation":
            tokens[word] = _speculation(config)
    stray = [word for word in SPECULATIVE_KEYS if word in config.words and config.speculation != "ngram"]
    if stray:
        raise InfeasibleConfigError(f"vllm: {', '.join(stray)} needs speculation: ngram")
    return tokens


def _refuse_unschedulable(config: EngineConfig) -> None:
    """Raise for what SchedulerConfig refuses in every version (vllm/config/scheduler.py)."""
    step, context, seqs = config.max_num_batched_tokens, config.context_length, config.max_num_seqs
    if config.chunked_prefill is False and step and context and step < context:
        raise InfeasibleConfigError(
            f"vllm: without chunked_prefill max_num_batched_tokens {step} must hold context_length {context}"
        )
    if step and seqs and step < seqs:
        raise InfeasibleConfigError(f"vllm: max_num_batched_tokens {step} is below max_num_seqs {seqs}")


def _speculation(config: EngineConfig) -> tuple[str, ...]:
    if config.speculation == "none":
        return ()
    if config.speculative_tokens is None:
        raise InfeasibleConfigError("vllm: speculation: ngram needs speculative_tokens")
    keys = {key: config.words[word] for word, key in SPECULATIVE_KEYS.items() if word in config.words}
    return (SPECULATIVE, json.dumps({"method": config.speculation, **keys}))


def _refuse_unknown(source: str, tokens: tuple[str, ...], environment: EngineEnvironment) -> None:
    """Raise InfeasibleConfigError for a flag, or a value, that the installed parser does not have."""
    if not environment.flags:
        return
    engine = f"vllm {environment.version}"
    for option in read_options(tokens)[0]:
        flag = option.flag.partition(".")[0]
        if flag not in environment.flags:
            raise InfeasibleConfigError(f"{source}: {engine} has no flag {flag}")
        choices = environment.flags[flag]
        if wrong := [value for value in option.values if choices and value not in choices]:
            raise InfeasibleConfigError(
                f"{source}: {flag} of {engine} cannot be {wrong[0]!r}; choices: {', '.join(choices)}"
            )


def _cpu_env(*, one_process: bool) -> Mapping[str, str]:
    env = {
        # Automatic binding refuses more ranks than there are NUMA nodes.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }
    return {**env, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"} if one_process else env


def _cuda_env(devices: tuple[Device, ...]) -> Mapping[str, str]:
    """Show the leased devices only.

    By index, since vLLM reads a UUID as a number in the older of the versions served here; slices of a
    GPU (MIG) have nothing but a UUID.
    """
    return {
        # NVML counts in this order; CUDA's own default is the fastest first.
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": ",".join(
            d.uid if d.uid.startswith("MIG-") else str(d.index) for d in devices
        ),
    }


def _served_model(argv: tuple[str, ...], model: str) -> str:
    names = [o.values[0] for o in read_options(argv)[0] if o.flag == SERVED_MODEL_NAME and o.values]
    return names[-1] if names else model
