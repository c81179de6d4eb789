"""A launch as the shell lines that start it, for people and for records."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from autotune.domain.launches.deployment import SECRET_NAME, without_secrets
from autotune.domain.launches.deployment import filled as fill
from autotune.domain.launches.launch import LaunchSpec, ProcessSpec

FIRST_PORT = 8000
_INTERPRETER = re.compile(r"^python[\d.]*$")
_PLACEHOLDER = re.compile(r"\{(host|port|file):([^{}]+)\}")


def shell_commands(spec: LaunchSpec) -> dict[str, str]:
    """The lines that start each process, by role, in starting order; the serving role listens on FIRST_PORT.

    Files that a process reads are written first, into the working directory. Hosts are this machine, or
    ``node-0``, ``node-1`` where the launch spreads over several. Secrets stand as names of variables.
    """
    names = dict.fromkeys((spec.serving_role, *(process.role for process in spec.processes)))
    names |= dict.fromkeys(found for process in spec.processes for found in _ports_of(process))
    ports = {name: str(FIRST_PORT + place) for place, name in enumerate(names)}
    spread = any(process.host_slot for process in spec.processes)
    hosts = {p.role: f"node-{p.host_slot}" if spread else "127.0.0.1" for p in spec.processes}
    return {process.role: _lines(process, ports, hosts) for process in spec.processes}


def _lines(process: ProcessSpec, ports: Mapping[str, str], hosts: Mapping[str, str]) -> str:
    def filled(text: str) -> str:
        return _PLACEHOLDER.sub(
            lambda found: {"port": ports, "host": hosts}.get(found[1], {}).get(found[2], found[2]), text
        )

    files = [f"cat > {name} <<'END'\n{filled(text).rstrip()}\nEND" for name, text in process.files.items()]
    program, *arguments = process.argv
    env = [
        f'{name}="${name}"' if SECRET_NAME.search(name) else f"{name}={_quoted(filled(value))}"
        for name, value in sorted(process.env.items())
    ]
    words = [_INTERPRETER.sub("python3", Path(program).name), *map(filled, without_secrets(arguments)[0])]
    return "\n".join([*files, " ".join([*env, *map(_word, words)])])


def _word(text: str) -> str:
    """A word as the shell is to read it, with a secret as the variable that it is given in."""
    return fill(text, lambda _, name: f'"${name}"', shlex.quote)


def _quoted(value: str) -> str:
    """A value as the shell is to read it; a home directory is left to it."""
    return f"~/{shlex.quote(value[2:])}" if value.startswith("~/") else shlex.quote(value)


def _ports_of(process: ProcessSpec) -> list[str]:
    texts = (*process.argv, *process.env.values(), *process.files.values())
    return [name for text in texts for what, name in _PLACEHOLDER.findall(text) if what == "port"]
