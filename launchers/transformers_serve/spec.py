"""Writes the process that serves a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from autotune.domain.basics.errors import InfeasibleConfigError
from autotune.domain.configs.config import EngineConfig
from autotune.domain.hardware.hardware import DeviceKind
from autotune.domain.launches.launch import LaunchContext, LaunchSpec, ProcessSpec
from launchers.options import Tokens, refuse_words
from launchers.transformers_serve.flags import (
    CONTINUOUS_BATCHING,
    DEVICE,
    MEMORY_FRACTION,
    NUM_BLOCKS,
    TABLE,
)
from launchers.transformers_serve.traits import TRAITS

ROLE = "server"
CPU_MEMORY_FRACTION = "0.1"
"""Of a machine's memory it would take nine tenths for the KV cache and its masks, unless told otherwise."""


def launch_spec(config: EngineConfig, context: LaunchContext) -> LaunchSpec:
    """Write the server's process; raises InfeasibleConfigError naming word, flag and version."""
    refuse_words(TRAITS.engine, config, TRAITS.dimensions)
    on_cpu = context.environment.kind is DeviceKind.CPU
    if config.graph_capture and on_cpu:
        raise InfeasibleConfigError("transformers: graph_capture: there are no graphs on CPUs")
    tokens = _tokens(config, context)
    for source, written in tokens.items():
        TABLE.refuse_unknown(source, written, context.environment)
    argv = (
        *(str(context.environment.executable), "serve", context.model, CONTINUOUS_BATCHING),
        *(DEVICE, "cpu" if on_cpu else "cuda:0"),
        *(token for written in tokens.values() for token in written),
        *("--host", f"{{host:{ROLE}}}", "--port", f"{{port:{ROLE}}}"),
    )
    server = ProcessSpec(role=ROLE, argv=argv, env=_env(context), devices=context.devices)
    # A request must name the forced model as the command line does, and may not say ignore_eos (HTTP 422).
    return LaunchSpec(processes=(server,), serving_role=ROLE, served_model=context.model, ignore_eos=False)


def _tokens(config: EngineConfig, context: LaunchContext) -> dict[str, Tokens]:
    """Tokens by what asks for them, free ones last: of a flag that is given twice the last counts."""
    tokens = TABLE.tokens(config)
    if config.quantization == "none":
        del tokens["quantization"]
    given = {*tokens, *(o.flag for o in TABLE.read((*context.args, *config.extra_args))[0])}
    if context.environment.kind is DeviceKind.CPU and not given & {
        "memory_fraction",
        MEMORY_FRACTION,
        NUM_BLOCKS,
    }:
        tokens["memory_fraction"] = (MEMORY_FRACTION, CPU_MEMORY_FRACTION)
    return {**tokens, "extra_args": config.extra_args, "args": context.args}


def _env(context: LaunchContext) -> Mapping[str, str]:
    devices = context.devices
    if context.environment.kind is DeviceKind.CPU:
        own = {"OMP_NUM_THREADS": str(len(devices))}
    elif context.environment.kind is DeviceKind.ROCM:
        own = {"HIP_VISIBLE_DEVICES": ",".join(str(device.index) for device in devices)}
    else:
        # NVML counts in this order; CUDA's own default is the fastest first.
        own = {
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": ",".join(
                device.uid if device.uid.startswith("MIG-") else str(device.index) for device in devices
            ),
        }
    return {
        # What is measured must not wait for a package index.
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        # Frames drawn around errors would cut their lines.
        "TYPER_STANDARD_TRACEBACK": "1",
        "TYPER_USE_RICH": "0",
        **({"HF_HUB_OFFLINE": "1"} if Path(context.model).is_dir() else {}),
        **own,
        **context.env,
    }
