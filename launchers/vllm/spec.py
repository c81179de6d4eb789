"""Writes the process that serves a configuration."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from autotune.domain.basics.errors import InfeasibleConfigError
from autotune.domain.configs.config import EngineConfig
from autotune.domain.hardware.hardware import Device, DeviceKind
from autotune.domain.launches.launch import EngineEnvironment, LaunchContext, LaunchSpec, ProcessSpec
from launchers.options import Tokens, refuse_words
from launchers.vllm.compilation import compilation_keys, merged, refuse_graphs
from launchers.vllm.flags import (
    AUTO_TOOLS,
    COMPILATION,
    SERVED_MODEL_NAME,
    TABLE,
    TOOL_PARSER,
    TOOL_PARSER_WORD,
)
from launchers.vllm.speculation import speculation_tokens
from launchers.vllm.traits import TRAITS

ROLE = "server"
TOOL_PARSER_PLUGIN = "--tool-parser-plugin"


def launch_spec(config: EngineConfig, context: LaunchContext) -> LaunchSpec:
    """Write the server's process; raises InfeasibleConfigError naming word, flag and version."""
    server = server_process(config, context, role=ROLE)
    return LaunchSpec(
        processes=(server,), serving_role=ROLE, served_model=served_model(server.argv, context.model)
    )


def server_process(
    config: EngineConfig,
    context: LaunchContext,
    *,
    role: str,
    own_args: Tokens = (),
    own_env: Mapping[str, str] | None = None,
) -> ProcessSpec:
    """Write one ``vllm serve``; ``own_args`` and ``own_env`` are what its part in a launch adds.

    Raises InfeasibleConfigError naming word, flag and version.
    """
    refuse_words(TRAITS.engine, config, TRAITS.dimensions)
    _refuse_unschedulable(config)
    refuse_graphs(config, context.environment.kind)
    words, free = _tokens(config, context.args)
    environment = _with_plugins(context.environment, (*config.extra_args, *context.args))
    for source, tokens in {**words, **free}.items():
        TABLE.refuse_unknown(source, tokens, environment)
    on_cpu = context.environment.kind is DeviceKind.CPU
    one_process = on_cpu and config.ranks == 1
    argv = (
        str(context.environment.executable),
        "serve",
        context.model,
        *(token for tokens in words.values() for token in tokens),
        *(("--distributed-executor-backend", "uni") if one_process else ()),
        *own_args,
        *(token for tokens in free.values() for token in tokens),
        *("--host", f"{{host:{role}}}", "--port", f"{{port:{role}}}"),
    )
    env = {
        "VLLM_NO_USAGE_STATS": "1",
        **_cache_root(context.environment),
        **({"HF_HUB_OFFLINE": "1"} if Path(context.model).is_dir() else {}),
        **(_cpu_env(one_process=one_process) if on_cpu else _cuda_env(context.devices)),
        **(own_env or {}),
        **context.env,
    }
    return ProcessSpec(role=role, argv=argv, env=env, devices=context.devices)


def _with_plugins(environment: EngineEnvironment, arguments: Tokens) -> EngineEnvironment:
    """The environment without the choices that a plugin among the arguments adds to."""
    if TOOL_PARSER not in environment.flags or not any(TOOL_PARSER_PLUGIN in each for each in arguments):
        return environment
    return replace(environment, flags={**environment.flags, TOOL_PARSER: ()})


def served_model(argv: Tokens, model: str) -> str:
    """The name that requests give the model: the first of those it is served under."""
    names = [o.values[0] for o in TABLE.read(argv)[0] if o.flag == SERVED_MODEL_NAME and o.values]
    return names[-1] if names else model


def _tokens(config: EngineConfig, args: Tokens) -> tuple[dict[str, Tokens], dict[str, Tokens]]:
    """Tokens by the word that asks for them, and those that are no word's by where they come from."""
    words = TABLE.tokens(config)
    if config.quantization == "none":
        del words["quantization"]
    if config.tool_parser is not None:
        words[TOOL_PARSER_WORD] = (AUTO_TOOLS, TOOL_PARSER, config.tool_parser)
    words["speculation"] = speculation_tokens(config)
    free = {"extra_args": config.extra_args, "args": args}
    if given := compilation_keys(config):
        keys, free = merged(given, free)
        words["compilation"] = (COMPILATION, json.dumps(keys))
    return words, free


def _refuse_unschedulable(config: EngineConfig) -> None:
    """Raise for what vLLM's own configuration refuses, or would take for something else, in every version."""
    step, context, seqs = config.max_num_batched_tokens, config.context_length, config.max_num_seqs
    # vllm/config/scheduler.py
    if config.chunked_prefill is False and step and context and step < context:
        raise InfeasibleConfigError(
            f"vllm: without chunked_prefill max_num_batched_tokens {step} must hold context_length {context}"
        )
    if step and seqs and step < seqs:
        raise InfeasibleConfigError(f"vllm: max_num_batched_tokens {step} is below max_num_seqs {seqs}")
    # vllm/config/parallel.py
    tensor, split = config.tensor_parallel or 1, config.context_parallel or 1
    if tensor % split:
        raise InfeasibleConfigError(
            f"vllm: context_parallel {split} does not divide tensor_parallel {tensor}"
        )
    if config.dp_attention and (config.data_parallel or 1) == 1:
        raise InfeasibleConfigError("vllm: dp_attention needs data_parallel above 1")


def _cache_root(environment: EngineEnvironment) -> Mapping[str, str]:
    """Caches of this installation's own, vLLM's and those of torch; none where it is not known which it is.

    One left by another installation of the same version holds code compiled against other libraries, and ends
    a start that compiles. Torch's would else lie in the launch's own temporary folder, and each launch would
    compile again what its first log-probabilities need: 10 s and more.
    """
    if not environment.executable.is_absolute():
        return {}
    which = hashlib.sha256(str(environment.executable).encode()).hexdigest()[:12]
    root = f"~/.cache/autotune/vllm-{environment.version}-{which}"
    return {"VLLM_CACHE_ROOT": root, "TORCHINDUCTOR_CACHE_DIR": f"{root}/inductor"}


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
