"""Where the processes of a launch listen and where their files lie; fills in what a launcher left open."""

from __future__ import annotations

import random
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from autotune.domain.launches.launch import LaunchSpec, ProcessSpec

HOST = "127.0.0.1"
_PORTS = range(20_000, 32_768)
"""Below those that Linux gives to outgoing connections; Dynamo reads its own in 16 bits with a sign."""

_PLACEHOLDER = re.compile(r"\{(host|port|file):([^{}]+)\}")


@dataclass(frozen=True, slots=True)
class Places:
    """Ports by ``ROLE``, and by ``ROLE/NAME`` for further ones; ``folder`` is where files are written."""

    ports: Mapping[str, int]
    folder: Path

    def filled(self, process: ProcessSpec) -> ProcessSpec:
        """Fill in arguments, environment, files and stop command; files are written out by now.

        Raises ValueError for a placeholder of a role that is not launched, or of a file that is not there.
        """
        files = {name: self._fill(text, process) for name, text in process.files.items()}
        for name, text in files.items():
            self._path(name, process).write_text(text)
        return replace(
            process,
            argv=tuple(self._fill(word, process) for word in process.argv),
            env={name: _at_home(self._fill(v, process)) for name, v in process.env.items()},
            stop_argv=tuple(self._fill(word, process) for word in process.stop_argv),
            files=files,
        )

    def _fill(self, text: str, process: ProcessSpec) -> str:
        def value(found: re.Match[str]) -> str:
            what, name = found.groups()
            if what == "file":
                return str(self._path(name, process))
            return HOST if what == "host" else str(self.ports[name])

        return _PLACEHOLDER.sub(value, text)

    def _path(self, name: str, process: ProcessSpec) -> Path:
        """Two roles may each have a file of the same name."""
        return self.folder / f"{process.role}-{name}"


def _at_home(value: str) -> str:
    return str(Path(value).expanduser()) if value.startswith("~/") else value


def places_for(spec: LaunchSpec, folder: Path) -> Places:
    """Choose ports that are free now; raises ValueError for placeholders that name nothing of the launch."""
    roles = [process.role for process in spec.processes]
    wanted = dict.fromkeys(roles)
    for process in spec.processes:
        for what, name in _placeholders(process):
            _check(what, name, process, roles)
            if what == "port":
                wanted[name] = None
    return Places(_free_ports(wanted), folder)


def _placeholders(process: ProcessSpec) -> Iterator[tuple[str, str]]:
    texts = (*process.argv, *process.env.values(), *process.files.values(), *process.stop_argv)
    for text in texts:
        for found in _PLACEHOLDER.finditer(text):
            yield found[1], found[2]


def _check(what: str, name: str, process: ProcessSpec, roles: list[str]) -> None:
    if what == "file":
        if name not in process.files or "/" in name:
            known = ", ".join(process.files) or "none"
            raise ValueError(f"{{file:{name}}} names no file of {process.role}; there are {known}")
        return
    role, slash, _ = name.partition("/")
    if role not in roles or (slash and what == "host"):
        raise ValueError(f"{{{what}:{name}}} names no process of this launch; there are {', '.join(roles)}")


def _free_ports(names: Iterable[str]) -> dict[str, int]:
    """Choose a free port for each name; all are held until the last is chosen, so that they differ."""
    ports: dict[str, int] = {}
    untried = iter(random.sample(_PORTS, len(_PORTS)))
    with ExitStack() as held:
        for name in names:
            each = held.enter_context(socket.socket())
            ports[name] = next(port for port in untried if _bound(each, port))
    return ports


def _bound(each: socket.socket, port: int) -> bool:
    try:
        each.bind((HOST, port))
    except OSError:
        return False
    return True
