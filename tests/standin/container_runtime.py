"""A stand-in for docker: containers are processes of a daemon, so that whoever asked for them may die.

The daemon runs what comes after the image as a process on this machine, in a session of its own, with the
environment that the options name and no other; image, mounts and devices are ignored. It knows ``run`` and
``rm --force``. As with docker, ending the client does not end the container.

    python container_runtime.py daemon SOCKET
    CONTAINER_SOCKET=SOCKET docker run ...       (``docker`` as ``install`` writes it)
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SOCKET_VARIABLE = "CONTAINER_SOCKET"
BARE = {"--rm", "--init", "--interactive"}
"""Options without a value; every other one has one."""


def install(folder: Path) -> Path:
    """Write the command ``docker`` into a folder; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    command = folder / "docker"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} client "$@"\n')
    command.chmod(0o755)
    return folder


@contextmanager
def running_daemon(at: Path) -> Iterator[None]:
    """A daemon that listens at a path for the length of a ``with`` block."""
    with subprocess.Popen(
        [sys.executable, __file__, "daemon", str(at)], stdout=subprocess.PIPE, text=True
    ) as daemon:
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == "listening\n"
        try:
            yield
        finally:
            daemon.kill()


class Daemon:
    def __init__(self) -> None:
        self.containers: dict[str, subprocess.Popen[bytes]] = {}

    def answer(self, connection: socket.socket) -> None:
        with connection:
            asked, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 1)
            words, env = json.loads(asked)
            code = self.do(words, env, descriptors[0])
            os.close(descriptors[0])
            with suppress(BrokenPipeError):  # the client was killed; the container ran on without it
                connection.sendall(str(code).encode())

    def do(self, words: list[str], env: dict[str, str], output: int) -> int:
        if words[0] == "run":
            return self.run(words[1:], env, output)
        if words[:2] == ["rm", "--force"]:
            return self.remove(words[2])
        os.write(output, f"unknown command: {words[0]}\n".encode())
        return 125

    def run(self, words: list[str], env: dict[str, str], output: int) -> int:
        options, command = split(words)
        name = options["--name"][0]
        if name in self.containers:
            os.write(output, f"the name {name} is in use\n".encode())
            return 125
        named = [pair.partition("=") for pair in options.get("--env", [])]
        inside = {key: value if equals else env.get(key, "") for key, equals, value in named}
        self.containers[name] = subprocess.Popen(
            [*options.get("--entrypoint", []), *command],
            env={"PATH": os.defpath, **{k: v for k, v in inside.items() if v}},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        code = self.containers[name].wait()
        self.containers.pop(name, None)
        return code if code >= 0 else 128 - code

    def remove(self, name: str) -> int:
        container = self.containers.get(name)
        if container is not None:
            os.killpg(container.pid, signal.SIGKILL)
            container.wait()
        return 0


def split(words: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Options with their values, and what comes after the image."""
    options: dict[str, list[str]] = {}
    at = 0
    while words[at].startswith("--"):
        step = 1 if words[at] in BARE else 2
        options.setdefault(words[at], []).append(words[at + 1])
        at += step
    return options, words[at + 1 :]


def serve(path: str) -> None:
    daemon = Daemon()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        print("listening", flush=True)
        while True:
            connection, _ = listening.accept()
            threading.Thread(target=daemon.answer, args=(connection,), daemon=True).start()


def ask(words: list[str]) -> int:
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(os.environ[SOCKET_VARIABLE])
        except OSError as error:
            print(f"Cannot connect to the daemon: {error}", file=sys.stderr)
            return 1
        socket.send_fds(connection, [json.dumps([words, dict(os.environ)]).encode()], [1])
        return int(connection.recv(64) or b"1")


if __name__ == "__main__":
    if sys.argv[1] == "daemon":
        serve(sys.argv[2])
    else:
        sys.exit(ask(sys.argv[2:]))
