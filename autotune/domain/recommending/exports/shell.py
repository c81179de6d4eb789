"""A deployment as a shell script, which serves when it is run as it stands."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping

from autotune.domain.basics.errors import InputError, InputProblem
from autotune.domain.hardware.hardware import DeviceKind
from autotune.domain.launches.deployment import Deployment, Process, filled

_VISIBLE = {DeviceKind.CUDA: "CUDA_VISIBLE_DEVICES", DeviceKind.ROCM: "HIP_VISIBLE_DEVICES"}


def shell_script(deployment: Deployment, notes: tuple[str, ...] = ()) -> str:
    """The script; PORT (8000) is where it serves, HOST (all interfaces) on which address.

    Several processes are started in order and ended together. Raises InputError for several hosts.
    """
    _refuse(deployment)
    lines = ["#!/bin/sh", *(f"# {line}" for note in notes for line in note.splitlines()), "set -eu"]
    lines += [': "${HOST:=0.0.0.0}" "${PORT:=8000}"']
    for secret in deployment.secrets:
        if secret.required:
            lines.append(f': "${{{secret.name}:?set {secret.name} in the environment}}"')
    ports = _ports(deployment)
    if len(deployment.processes) == 1:
        (process,) = deployment.processes
        folder = ["folder=$(mktemp -d)"] if process.files else []
        return "\n".join([*lines, *folder, *_files(process, ports), f"exec {_command(process, ports)}", ""])
    lines += ["folder=$(mktemp -d)", "trap 'trap - EXIT INT TERM; kill 0' EXIT INT TERM"]
    taken = 0
    for process in deployment.processes:
        shown = _VISIBLE.get(deployment.device_kind)
        own = {shown: ",".join(map(str, range(taken, taken + process.devices)))} if shown else {}
        taken += process.devices
        lines += ["", f"# {process.role}", *_files(process, ports)]
        lines.append(f"{_command(process, ports, own if process.devices else {})} &")
    return "\n".join([*lines, "", "wait", ""])


def command_lines(deployment: Deployment) -> str:
    """A line that starts each process, in order, for people to read; without where it listens by itself."""
    ports = {name: str(8000 + place) for place, name in enumerate(deployment.ports)}
    lines = []
    for process in deployment.processes:
        files = [
            f"cat > {shlex.quote(name)} <<'END'\n{_plain(text, ports).rstrip()}\nEND"
            for name, text in process.files.items()
        ]
        env = [f"{name}={shlex.quote(_plain(value, ports))}" for name, value in process.environment.items()]
        words = [shlex.quote(_plain(word, ports)) for word in (*process.program, *_arguments(process))]
        lines += [*files, " ".join([*env, *words])]
    return "\n".join(lines)


def _arguments(process: Process) -> Iterator[str]:
    """Arguments without the pairs that say where this process itself listens."""
    tokens = process.arguments
    own = {f"{{host:{process.role}}}", f"{{port:{process.role}}}"}
    for at, token in enumerate(tokens):
        follows = at + 1 < len(tokens) and tokens[at + 1] in own and token.startswith("-")
        if token not in own and not follows:
            yield token


def _plain(text: str, ports: Mapping[str, str]) -> str:
    def value(what: str, name: str) -> str:
        return {"host": "127.0.0.1", "port": ports.get(name, ""), "file": name}.get(what, f"${name}")

    return filled(text, value)


def _refuse(deployment: Deployment) -> None:
    if deployment.hosts > 1:
        what = f"a shell script starts processes on one host, and this spreads over {deployment.hosts}"
        raise InputError(InputProblem("export", what, "use --form lws"))
    if any(not process.program for process in deployment.processes):
        what = f"{deployment.engine} is a container and has no command of its own"
        raise InputError(InputProblem("export", what, "use --form compose or kubernetes"))


def _ports(deployment: Deployment) -> dict[str, str]:
    names = enumerate(deployment.ports)
    return {name: f"$((PORT + {place}))" if place else '"$PORT"' for place, name in names}


def _command(process: Process, ports: Mapping[str, str], more: Mapping[str, str] | None = None) -> str:
    environment = {**process.environment, **(more or {})}
    env = [f"{name}={_word(value, process, ports)}" for name, value in environment.items()]
    words = [_word(word, process, ports) for word in (*process.program, *process.arguments)]
    return " ".join([*(["env", *env] if env else []), *words])


def _word(text: str, process: Process, ports: Mapping[str, str]) -> str:
    """One word of the script: quoted, but for what the shell fills in."""
    serving = ports[process.role] == '"$PORT"'

    def value(what: str, name: str) -> str:
        match what:
            case "host":
                return '"$HOST"' if name == process.role and serving else "127.0.0.1"
            case "port":
                return ports[name]
            case "file":
                return f'"$folder"/{shlex.quote(_file(process, name))}'
            case _:
                return f'"${name}"'

    return filled(text, value, shlex.quote)


def _files(process: Process, ports: Mapping[str, str]) -> list[str]:
    """Lines that write the files of a process."""
    return [
        f"printf '%s' {_word(text, process, ports)} > \"$folder\"/{shlex.quote(_file(process, name))}"
        for name, text in process.files.items()
    ]


def _file(process: Process, name: str) -> str:
    return f"{process.role}-{name}"
