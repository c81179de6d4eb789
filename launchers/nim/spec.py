"""Writes the container that serves a configuration."""

from __future__ import annotations

import re

from autotune.domain.basics.errors import InfeasibleConfigError
from autotune.domain.configs.config import EngineConfig
from autotune.domain.hardware.hardware import Device
from autotune.domain.launches.launch import Container, LaunchContext, LaunchSpec, ProcessSpec
from launchers.nim.flags import NAME_VARIABLE, PORT, PROFILE_VARIABLE, SECRETS, TABLE
from launchers.nim.traits import TRAITS
from launchers.options import Tokens, refuse_words

ROLE = "server"
NAME = f"autotune-nim-{{port:{ROLE}}}"
"""Unique for as long as the launch has the port."""

_RANKS = re.compile(r"-tp(\d+)(?:-pp(\d+))?\b")


def launch_spec(config: EngineConfig, context: LaunchContext) -> LaunchSpec:
    """Write the container's process; raises InfeasibleConfigError naming the word."""
    refuse_words(TRAITS.engine, config, TRAITS.dimensions)
    container = context.container
    if container is None:
        raise InfeasibleConfigError("nim: is a container: give the engine's `image`")
    _refuse_other_ranks(config)
    argv = (
        *(container.runtime, "run", "--rm", "--init", "--name", NAME),
        *_gpus(container, context.devices),
        "--shm-size=16GB",  # needed where GPUs are not joined by NVLink
        *_environment(config, context),
        *(
            token
            for mount in container.mounts
            for token in ("-v", mount if ":" in mount else f"{mount}:{mount}")
        ),
        *("-p", f"{{host:{ROLE}}}:{{port:{ROLE}}}:{PORT}"),
        container.image,
        *(token for tokens in TABLE.tokens(config).values() for token in tokens),
        *config.extra_args,
        *context.args,
    )
    server = ProcessSpec(
        role=ROLE,
        argv=argv,
        env=dict(context.env),
        devices=context.devices,
        ready_path="/v1/health/ready",
        stop_argv=(container.runtime, "rm", "-f", NAME),
    )
    served = context.env.get(NAME_VARIABLE, context.model).partition(",")[0]
    return LaunchSpec(processes=(server,), serving_role=ROLE, served_model=served)


def _gpus(container: Container, devices: tuple[Device, ...]) -> Tokens:
    shown = [d.uid if d.uid.startswith("MIG-") else str(d.index) for d in devices]
    if container.runtime == "docker":
        # The quotes are docker's: it reads a list of settings apart by commas.
        return ("--gpus", f'"device={",".join(shown)}"')
    if container.runtime == "podman":
        return tuple(token for each in shown for token in ("--device", f"nvidia.com/gpu={each}"))
    raise InfeasibleConfigError(f"nim: runs under docker or podman, not {container.runtime}")


def _environment(config: EngineConfig, context: LaunchContext) -> Tokens:
    """Variables by name, their values in the process's environment: none is seen in a list of processes."""
    profile = (f"{PROFILE_VARIABLE}={config.profile}",) if config.profile else ()
    names = dict.fromkeys((*SECRETS, *context.env))
    return tuple(token for each in (*names, *profile) for token in ("-e", each))


def _refuse_other_ranks(config: EngineConfig) -> None:
    """Raise where a profile's name tells of other ranks than the words by which devices were reserved."""
    if config.profile is None or not (told := _RANKS.search(config.profile)):
        return
    ranks = {"tensor_parallel": int(told[1]), "pipeline_parallel": int(told[2] or 1)}
    for word, count in ranks.items():
        if (getattr(config, word) or 1) != count:
            raise InfeasibleConfigError(f"nim: profile {config.profile} needs {word}: {count}")
