"""Writes the process that serves a configuration, and the YAML that it reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from autotune.domain.basics.errors import InfeasibleConfigError
from autotune.domain.configs.config import EngineConfig
from autotune.domain.hardware.hardware import Device
from autotune.domain.launches.launch import LaunchContext, LaunchSpec, ProcessSpec
from launchers.options import Tokens, refuse_words
from launchers.trtllm.keys import (
    BACKEND,
    COUNTING,
    FLAG_CHOICES,
    FLAGS,
    OPTIONS_FILE,
    SERVED_MODEL_NAME,
    SWITCHES,
    TABLE,
    WORD_OF_KEY,
)
from launchers.trtllm.llm_options import Options, llm_environment, llm_options, yaml_text
from launchers.trtllm.traits import TRAITS

ROLE = "server"
FILE = "options.yaml"


def launch_spec(config: EngineConfig, context: LaunchContext) -> LaunchSpec:
    """Write the server's process and its YAML; raises InfeasibleConfigError naming word, flag and version."""
    refuse_quantisation(TRAITS.engine, config)
    refuse_words(TRAITS.engine, config, TRAITS.dimensions)
    flags, options = _said(llm_options(config))
    words = {**flags, **TABLE.tokens(config)}
    free = {"extra_args": config.extra_args, "args": context.args}
    for source, tokens in {**words, **free}.items():
        TABLE.refuse_unknown(source, tokens, context.environment)
    files = _files(options, free)
    argv = (
        *(str(context.environment.executable), "serve", context.model, BACKEND, "pytorch"),
        *(token for tokens in words.values() for token in tokens),
        *(token for name in files for token in (OPTIONS_FILE, f"{{file:{name}}}")),
        *(token for tokens in free.values() for token in tokens),
        *("--host", f"{{host:{ROLE}}}", "--port", f"{{port:{ROLE}}}"),
    )
    env = {**environment(context.model, context.devices), **llm_environment(config), **context.env}
    server = ProcessSpec(role=ROLE, argv=argv, env=env, devices=context.devices, files=files)
    return LaunchSpec(processes=(server,), serving_role=ROLE, served_model=_served_model(argv, context.model))


def refuse_quantisation(engine: str, config: EngineConfig) -> None:
    """Raise InfeasibleConfigError: how weights are quantised is read from the checkpoint, and left so.

    ``TorchLlmArgs`` has no key for it; its PTQ was the TensorRT backend's, which is gone.
    """
    if config.quantization is not None:
        raise InfeasibleConfigError(
            f"{engine}: cannot express quantization: {config.quantization}; weights are served as the "
            "checkpoint has them: name one that is quantised as the model"
        )


def environment(model: str, devices: tuple[Device, ...]) -> Mapping[str, str]:
    """What a server is told of its devices, in the order in which NVML counts them, and of the network."""
    shown = ",".join(d.uid if d.uid.startswith("MIG-") else str(d.index) for d in devices)
    return {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": shown,
        "TRTLLM_NO_USAGE_STATS": "1",  # tensorrt_llm/usage
        **({"HF_HUB_OFFLINE": "1"} if Path(model).is_dir() else {}),
    }


def _said(options: Options) -> tuple[dict[str, Tokens], Options]:
    """What flags say, by word, and what is left for the YAML."""
    flags: dict[str, Tokens] = {}
    left: Options = {}
    for key, value in options.items():
        if key in FLAGS and value in FLAG_CHOICES.get(key, (value,)):
            flags[WORD_OF_KEY[key]] = (FLAGS[key], str(value))
        elif key in SWITCHES and value:
            flags[WORD_OF_KEY[key]] = (SWITCHES[key],)
        else:
            left[key] = value
    return flags, left


def _files(options: Options, free: Mapping[str, Tokens]) -> Mapping[str, str]:
    """The YAML; none if the study has one of its own, since only the last is read."""
    given = [source for source, tokens in free.items() if _names_options(tokens)]
    if not given:
        return {FILE: yaml_text({**options, **COUNTING})}
    if options:
        raise InfeasibleConfigError(
            f"trtllm: {', '.join(options)} must stand in a YAML, and {' and '.join(given)} name one already; "
            "say it there"
        )
    return {}


def _names_options(tokens: Tokens) -> bool:
    return any(option.flag == OPTIONS_FILE for option in TABLE.read(tokens)[0])


def _served_model(argv: Tokens, model: str) -> str:
    """A folder is served under its last name (serve/openai_server.py)."""
    names = [o.values[0] for o in TABLE.read(argv)[0] if o.flag == SERVED_MODEL_NAME and o.values]
    return names[-1] if names else Path(model).name if Path(model).is_dir() else model
