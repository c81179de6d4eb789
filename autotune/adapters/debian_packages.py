"""What the machine must have before anything is installed, and the one command that brings it.

Only the standard library is used and nothing of this package is imported: the Makefile runs this very file
with whatever Python there is, before a virtual environment exists.
"""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

LEAST_PYTHON = (3, 11)
CPU_ENGINE_LIBRARIES = {"libnuma.so.1": "libnuma1"}
"""Shared libraries that no wheel brings, with the Debian package of each."""

CPU_ENGINE_COMMANDS = {"lscpu": "util-linux", "g++": "g++"}
"""Commands that the engine runs, with the Debian package of each; g++ where it is not eager."""

TEST_COMMANDS = {"chromium": "chromium"}
"""Commands that tests alone need: without a browser those of the pages are skipped."""


def missing_libraries(libraries: Sequence[str] = tuple(CPU_ENGINE_LIBRARIES)) -> tuple[str, ...]:
    """Return the shared libraries that the dynamic loader does not find."""
    return tuple(name for name in libraries if not _loads(name))


def missing_packages() -> tuple[str, ...]:
    """Debian packages that an installation of the CPU build of an engine needs and this machine lacks."""
    missing = [CPU_ENGINE_LIBRARIES[name] for name in missing_libraries()]
    missing += [package for name, package in CPU_ENGINE_COMMANDS.items() if not shutil.which(name)]
    # What g++ compiles for the engine includes Python's headers: without them only eager mode runs.
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        missing.append("python3-dev")
    # Debian splits both off its python3: venv without ensurepip makes environments that have no pip.
    if not all(importlib.util.find_spec(module) for module in ("venv", "ensurepip")):
        missing.insert(0, "python3-venv")
    return tuple(missing)


def missing_for_tests() -> tuple[str, ...]:
    """Debian packages that the whole of the tests needs and this machine lacks."""
    wanted = (package for name, package in TEST_COMMANDS.items() if not shutil.which(name))
    return (*missing_packages(), *wanted)


def apt_line(packages: Sequence[str]) -> str:
    """Return the command that installs ``packages`` on Debian and Ubuntu."""
    return f"sudo apt-get install -y {' '.join(packages)}"


def complaint() -> str:
    """Return what is missing and how to get it, or nothing when all is there."""
    if sys.version_info < LEAST_PYTHON:
        wanted, found = (".".join(map(str, v[:2])) for v in (LEAST_PYTHON, sys.version_info))
        return f"Python {wanted} or later is needed, {sys.executable} is {found}: make PYTHON=python3.x ..."
    packages = missing_packages()
    return f"packages are missing; run: {apt_line(packages)}" if packages else ""


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    if "--for-tests" in sys.argv:
        sys.exit(print(*missing_for_tests()))  # noqa: T201 - read by .ci/run
    sys.exit(complaint() or 0)
