"""Writes the processes of one server: one process a host."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from autotune.domain.basics.errors import InfeasibleConfigError
from autotune.domain.configs.config import EngineConfig
from autotune.domain.hardware.hardware import Device, DeviceKind
from autotune.domain.launches.launch import LaunchContext, LaunchSpec, ProcessSpec
from launchers.nodes import PlacedDevice, placed, take
from launchers.options import Tokens, refuse_words
from launchers.sglang.arguments import word_tokens
from launchers.sglang.flags import DEVICE, METRICS, MODEL, SERVED_MODEL_NAME, TABLE
from launchers.sglang.traits import TRAITS

ROLE = "server"

_VISIBLE = {DeviceKind.CUDA: "CUDA_VISIBLE_DEVICES", DeviceKind.ROCM: "HIP_VISIBLE_DEVICES"}


def launch_spec(config: EngineConfig, context: LaunchContext) -> LaunchSpec:
    """Write the server's processes; raises InfeasibleConfigError naming word, flag and version."""
    refuse_words(TRAITS.engine, config, TRAITS.dimensions)
    processes = server(ROLE, config, context, placed(context.devices))
    name = served_model(processes[0].argv, context.model)
    return LaunchSpec(processes=processes, serving_role=ROLE, served_model=name)


def server(
    role: str,
    config: EngineConfig,
    context: LaunchContext,
    devices: Iterator[PlacedDevice],
    more: Tokens = (),
) -> tuple[ProcessSpec, ...]:
    """Write one server on the next of ``devices``: the process that listens, then one for each other host.

    Raises InfeasibleConfigError naming word, flag and version.
    """
    arguments = _arguments(config, context, more)
    shares = take(devices, config.ranks) or ((0, ()),)
    if len(shares) > 1 and (config.data_parallel or 1) > 1 and not config.dp_attention:
        raise InfeasibleConfigError(
            "sglang: replicas of a server lie on one host; use dp_attention over several"
        )
    roles = (role, *(f"{role}-node{rank}" for rank in range(1, len(shares))))
    processes = []
    for rank, (own, (slot, mine)) in enumerate(zip(roles, shares, strict=True)):
        argv = (
            *(str(context.environment.executable), "serve", *arguments),
            *(_joined(role, len(shares), rank) if len(shares) > 1 else ()),
            *("--host", f"{{host:{own}}}", "--port", f"{{port:{own}}}"),
        )
        env = {**_env(context, mine), **context.env}
        processes.append(ProcessSpec(role=own, argv=argv, env=env, devices=mine, host_slot=slot))
    return tuple(processes)


def served_model(argv: Tokens, model: str) -> str:
    """The name by which requests name the model."""
    names = [o.values[0] for o in TABLE.read(argv)[0] if o.flag == SERVED_MODEL_NAME and o.values]
    return names[-1] if names else model


def _arguments(config: EngineConfig, context: LaunchContext, more: Tokens) -> Tokens:
    words = word_tokens(config, context.args, context.environment.flags)
    parts = {
        **words,
        "launch": (*_device(config, context), *more),
        "extra_args": config.extra_args,
        "args": context.args,
    }
    for source, tokens in parts.items():
        TABLE.refuse_unknown(source, tokens, context.environment)
    return (MODEL, context.model, *(token for tokens in parts.values() for token in tokens))


def _device(config: EngineConfig, context: LaunchContext) -> Tokens:
    if context.environment.kind is not DeviceKind.CPU:
        return (METRICS,)
    # The default is Intel's AMX, which not every CPU has.
    kernels = () if config.attention_backend else ("--attention-backend", "torch_native")
    return (METRICS, DEVICE, "cpu", *kernels)


def _joined(role: str, hosts: int, rank: int) -> Tokens:
    first = f"{{host:{role}}}:{{port:{role}/dist}}"
    return ("--nnodes", str(hosts), "--node-rank", str(rank), "--dist-init-addr", first)


def _env(context: LaunchContext, devices: tuple[Device, ...]) -> Mapping[str, str]:
    local = {"HF_HUB_OFFLINE": "1"} if Path(context.model).is_dir() else {}
    kind = context.environment.kind
    if kind is DeviceKind.CPU:
        # A rank's threads stay on the core that it leased.
        cores = "|".join(str(device.index) for device in devices)
        return {**local, "SGLANG_USE_CPU_ENGINE": "1", "SGLANG_CPU_OMP_THREADS_BIND": cores}
    shown = ",".join(d.uid if d.uid.startswith("MIG-") else str(d.index) for d in devices)
    # CUDA's own order is the fastest first, NVML's is by bus.
    order = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"} if kind is DeviceKind.CUDA else {}
    return {**local, **order, _VISIBLE[kind]: shown}
