"""A deployment as a Compose file: a service for each process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autotune.domain.basics.errors import InputError, InputProblem
from autotune.domain.hardware.hardware import DeviceKind
from autotune.domain.launches.deployment import Deployment, Process, filled
from autotune.domain.recommending.exports.images import FIRST_PORT, FOLDER, Images

SECRETS_FILE = ".env"


def compose_file(deployment: Deployment, images: Images) -> dict[str, Any]:
    """The file's data; secrets come from ``.env`` beside it. Raises InputError for several hosts.

    Several processes share the host's network, as they did when they were measured.
    """
    if deployment.hosts > 1:
        what = f"Compose runs on one host, and this spreads over {deployment.hosts}"
        raise InputError(InputProblem("export", what, "use --form lws"))
    services, taken = {}, 0
    for process in deployment.processes:
        services[process.role] = _service(deployment, process, images, taken)
        taken += process.devices
    configs = {
        _config(process, name): {"content": _text(text, process, deployment)}
        for process in deployment.processes
        for name, text in process.files.items()
    }
    return {"services": services, **({"configs": configs} if configs else {})}


def _service(deployment: Deployment, process: Process, images: Images, taken: int) -> dict[str, Any]:
    service: dict[str, Any] = {"image": images.of(process)}
    if process.program:
        service["entrypoint"] = [_escaped(word) for word in process.program]
    service["command"] = [_text(word, process, deployment) for word in process.arguments]
    if process.environment:
        service["environment"] = {k: _text(v, process, deployment) for k, v in process.environment.items()}
    if deployment.secrets:
        required = any(secret.required for secret in deployment.secrets)
        service["env_file"] = [{"path": SECRETS_FILE, "required": required}]
    if _alone(deployment):
        service["ports"] = [f"${{PORT:-{FIRST_PORT}}}:{FIRST_PORT}"]
    else:
        service["network_mode"] = "host"
    service["ipc"] = "host"
    if deployment.folders:
        service["volumes"] = [_bind(folder) for folder in deployment.folders]
    if process.files:
        service["configs"] = [
            {"source": _config(process, name), "target": f"{FOLDER}/{name}"} for name in process.files
        ]
    if process.depends_on:
        service["depends_on"] = list(process.depends_on)
    service |= _devices(deployment, process, taken)
    service["restart"] = "unless-stopped"
    return service


def _alone(deployment: Deployment) -> bool:
    return len(deployment.processes) == 1


def _devices(deployment: Deployment, process: Process, taken: int) -> Mapping[str, Any]:
    """What a service may use: GPUs by their index where several services share them out."""
    if not process.devices:
        return {}
    match deployment.device_kind:
        case DeviceKind.CUDA:
            which: dict[str, Any] = {"count": process.devices}
            if sum(bool(each.devices) for each in deployment.processes) > 1:
                which = {"device_ids": [str(taken + place) for place in range(process.devices)]}
            asked = [{"driver": "nvidia", **which, "capabilities": ["gpu"]}]
            return {"deploy": {"resources": {"reservations": {"devices": asked}}}}
        case DeviceKind.ROCM:
            return {"devices": ["/dev/kfd", "/dev/dri"], "group_add": ["video"]}
        case _:
            return {"cpus": process.devices}


def _text(text: str, process: Process, deployment: Deployment) -> str:
    ports = {name: FIRST_PORT + place for place, name in enumerate(deployment.ports)}
    is_open = process.role == deployment.serving_role

    def value(what: str, name: str) -> str:
        match what:
            case "host":
                return "0.0.0.0" if is_open and name == process.role else "127.0.0.1"  # noqa: S104
            case "port":
                return str(ports[name])
            case "file":
                return f"{FOLDER}/{name}"
            case _:
                return f"${{{name}}}"

    return filled(text, value, _escaped)


def _escaped(text: str) -> str:
    """What Compose would take for a variable, as it is meant."""
    return text.replace("$", "$$")


def _bind(folder: str) -> dict[str, Any]:
    here, _, there = folder.partition(":")
    return {"type": "bind", "source": here, "target": there or here, "read_only": True}


def _config(process: Process, name: str) -> str:
    return f"{process.role}-{name}".replace(".", "-")
