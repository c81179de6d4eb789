"""Engines from container images: what a launcher wrote, as docker, podman or apptainer runs it.

A container of docker or podman does not descend from the process that asks for it, so it has a stop command.
It shares the host's network and shared memory, as processes of one launch do without containers; it sees the
devices of its process only, and folders of the host only read-only, under their own paths. Images are fetched
by ``pull_command`` before, never by a launch, whose start would be judged by it.

Run so far against a stand-in for ``docker`` (tests), never on a real container runtime with GPUs. Facts: the
manuals of docker-run, podman-run and apptainer-exec, and NVIDIA's Container Toolkit (CDI).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autotune.domain.configs.config import EngineConfig
from autotune.domain.hardware.hardware import Device, DeviceKind
from autotune.domain.launches.launch import (
    Container,
    Evidence,
    Failure,
    LaunchContext,
    LaunchSpec,
    ProcessSpec,
)
from autotune.domain.studies.ports import Launcher, LauncherTraits

SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|CREDENTIAL|API_KEY", re.IGNORECASE)
"""Names of variables whose values stand on no command line, where every user of the machine reads them."""
INHERITED = ("HF_TOKEN", "NGC_API_KEY")
"""Variables of the tuner's own that engines in containers get, where they are set."""
VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
"""Variables that count devices; inside a container the count starts anew."""


@dataclass(frozen=True, slots=True)
class User:
    """Whom a container's processes run as: what they leave is then ours to remove."""

    uid: int
    gid: int

    @classmethod
    def current(cls) -> User:
        """Ourselves."""
        return cls(os.getuid(), os.getgid())


@dataclass(frozen=True, slots=True)
class ContainedLauncher:
    """A launcher whose processes run in a container wherever the study names an image."""

    inner: Launcher

    @property
    def traits(self) -> LauncherTraits:
        """Those of the launcher inside."""
        return self.inner.traits

    def launch_spec(self, config: EngineConfig, context: LaunchContext) -> LaunchSpec:
        """Write the processes; raises InfeasibleConfigError for a word that the engine cannot express."""
        spec = self.inner.launch_spec(config, context)
        container = context.container
        if container is None:
            return spec
        named = (context.model, *config.models_named)
        folders = tuple(dict.fromkeys(model for model in named if Path(model).is_dir()))
        processes = tuple(
            process
            if _is_outside(process, container)
            else contained(process, container, folders=folders, user=User.current())
            for process in spec.processes
        )
        return replace(spec, processes=processes)

    def parse_command(self, command: str) -> tuple[EngineConfig, str]:
        """Read a command line that runs in production as (configuration, model); raises ValueError."""
        return self.inner.parse_command(command)

    def classify_failure(self, evidence: Evidence) -> Failure:
        """Name the cause; evidence that no rule knows is UNRECOGNISED, never guessed."""
        return self.inner.classify_failure(evidence)


def contained(
    process: ProcessSpec, container: Container, *, folders: Sequence[str] = (), user: User
) -> ProcessSpec:
    """The process as one that runs it in a container; no arguments: the image's own command.

    ``folders`` are seen beside the container's mounts. Its name holds the role's port, which no two launches
    of a machine share.
    """
    mounts = (*folders, *container.mounts, *(f"{{file:{name}}}" for name in process.files))
    if container.runtime == "apptainer":
        return _by_apptainer(process, container, mounts)
    runtime = container.runtime
    name = f"autotune-{process.role}-{{port:{process.role}}}"
    env = {"HOME": "/tmp", "USER": "autotune", **process.env}  # noqa: S108 - the container's own
    env |= _visible_inside(process)
    secret = {key: value for key, value in env.items() if SECRET.search(key)}
    entrypoint = ("--entrypoint", process.argv[0]) if process.argv else ()
    argv = (
        *(runtime, "run", "--rm", "--init", "--pull", "never", "--name", name),
        *("--network", "host", "--ipc", "host", "--user", f"{user.uid}:{user.gid}"),
        *(("--userns", "keep-id") if runtime == "podman" and user.uid else ()),
        *_devices(runtime, process.devices),
        *(word for mount in mounts for word in ("--mount", _bind(mount))),
        *(word for key in sorted({*INHERITED, *secret}) for word in ("--env", key)),
        *(word for key in sorted(env.keys() - secret) for word in ("--env", f"{key}={env[key]}")),
        *entrypoint,
        container.image,
        *process.argv[1:],
    )
    return replace(process, argv=argv, env=secret, stop_argv=_removal(runtime, name))


def probe_command(container: Container, argv: Sequence[str]) -> tuple[str, ...]:
    """Command that runs ``argv`` in an image alone, without devices and network, with our standard input.

    The image is fetched first if it is not there.
    """
    if container.runtime == "apptainer":
        return ("apptainer", "exec", "--containall", _apptainer_image(container.image), *argv)
    alone = ("--rm", "--init", "--interactive", "--network", "none")
    return (container.runtime, "run", *alone, "--entrypoint", argv[0], container.image, *argv[1:])


def pull_command(container: Container) -> tuple[str, ...]:
    """Command that fetches an image, once; apptainer keeps what it fetches at the first run."""
    if container.runtime == "apptainer":
        return ("apptainer", "exec", _apptainer_image(container.image), "true")
    return (container.runtime, "pull", container.image)


def identity_command(container: Container) -> tuple[str, ...]:
    """Command that prints what an image is now, for names may come to stand for others; empty for a file."""
    if container.runtime == "apptainer":
        return ()
    return (container.runtime, "image", "inspect", "--format", "{{.Id}}", container.image)


def _is_outside(process: ProcessSpec, container: Container) -> bool:
    """Whether it is a container already, or a program of the tuner's own, which no image has."""
    return process.argv[:1] in {(container.runtime,), (sys.executable,)}


def _by_apptainer(process: ProcessSpec, container: Container, mounts: Sequence[str]) -> ProcessSpec:
    """Apptainer runs a process of our own: it descends from us, and sees our environment and network.

    Variables with its prefix win over what the image sets.
    """
    kinds = {device.kind for device in process.devices}
    gpus = {DeviceKind.CUDA: "--nv", DeviceKind.ROCM: "--rocm"}
    argv = (
        *("apptainer", "exec" if process.argv else "run", "--writable-tmpfs"),
        *(flag for kind, flag in gpus.items() if kind in kinds),
        *(word for mount in mounts for word in ("--bind", ":".join((*_ends(mount), "ro")))),
        _apptainer_image(container.image),
        *process.argv,
    )
    env = {f"APPTAINERENV_{key}": value for key, value in process.env.items()}
    return replace(process, argv=argv, env=env)


def _apptainer_image(image: str) -> str:
    """An image file or an address as it is, a name as one of a registry."""
    return image if "://" in image or image.endswith(".sif") or image.startswith("/") else f"docker://{image}"


def _removal(runtime: str, name: str) -> tuple[str, ...]:
    """Command that ends a container, if it is there: docker's has passed over others since 20.10."""
    return (runtime, "rm", "--force", *(("--ignore", "--time", "0") if runtime == "podman" else ()), name)


def _devices(runtime: str, devices: Sequence[Device]) -> tuple[str, ...]:
    """Options that show the devices of a process and no others."""
    kinds = {device.kind for device in devices}
    if kinds == {DeviceKind.CPU}:
        return ("--cpuset-cpus", ",".join(str(device.index) for device in devices))
    if kinds == {DeviceKind.CUDA}:
        if runtime == "podman":
            # Whole GPUs go by their index under every strategy of naming that CDI files are made with.
            names = [d.uid if d.uid.startswith("MIG-") else str(d.index) for d in devices]
            gpus = tuple(word for n in names for word in ("--device", f"nvidia.com/gpu={n}"))
            return (*gpus, "--security-opt", "label=disable")
        # The quotes are docker's: its value is a line of CSV.
        return ("--gpus", f'"device={",".join(d.uid for d in devices)}"', "--ulimit", "memlock=-1")
    if kinds == {DeviceKind.ROCM}:
        # The kernel has one device file for all; which GPUs are seen is ROCR_VISIBLE_DEVICES.
        nodes = ("--device", "/dev/kfd", "--device", "/dev/dri", "--group-add", "video")
        return (*nodes, "--security-opt", "seccomp=unconfined")
    return ()


def _visible_inside(process: ProcessSpec) -> Mapping[str, str]:
    """Variables that name devices, as they must read inside: by place among those that are shown."""
    shown = sorted(process.devices, key=lambda device: device.index)
    places = ",".join(str(shown.index(device)) for device in process.devices)
    if any(device.kind is DeviceKind.ROCM for device in shown):
        rocr = ",".join(str(device.index) for device in shown)
        return {"ROCR_VISIBLE_DEVICES": rocr, "HIP_VISIBLE_DEVICES": places}
    by_index = not any(device.uid.startswith("MIG-") for device in shown)
    return {key: places for key in VISIBLE if key in process.env and by_index}


def _bind(mount: str) -> str:
    source, target = _ends(mount)
    return f"type=bind,source={source},target={target},readonly"


def _ends(mount: str) -> tuple[str, str]:
    """Folder here and folder there: ``HERE:THERE``, or one for both; a placeholder's colon is its own."""
    if mount.startswith("{"):
        return mount, mount
    here, _, there = mount.partition(":")
    return here, there or here
