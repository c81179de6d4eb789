"""The machine that a bundle is for: its Python, its platform, and what is installed there already."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name
from pydantic import BaseModel, ValidationError

from autotune.adapters.bundles.closure import Package
from autotune.domain.basics.errors import InputError, InputProblem

_GLIBC = 35
"""Minor version of the C library that is assumed: Ubuntu 22.04, Debian 12, RHEL 10 and later."""
_OLDEST_GLIBC = 5


@dataclass(frozen=True, slots=True)
class Platform:
    """CPython ``python`` on Linux, with glibc 2.``glibc`` at least."""

    python: str
    machine: str
    glibc: int = _GLIBC

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Read ``py3.12-linux-x86_64`` or ``py3.12-manylinux_2_28_x86_64``; raises InputError."""
        named = re.fullmatch(r"py(3\.\d+)-(?:linux-|manylinux_2_(\d+)_)(x86_64|aarch64)", text)
        if named is None:
            remedy = "write it as py3.12-linux-x86_64, or py3.12-manylinux_2_28_x86_64 for an older C library"
            raise InputError(InputProblem("--for", f"{text!r} is no platform, and no file here", remedy))
        return cls(named[1], named[3], int(named[2] or _GLIBC))

    def __str__(self) -> str:
        return f"py{self.python}-manylinux_2_{self.glibc}_{self.machine}"

    @property
    def markers(self) -> dict[str, str]:
        """Values of the markers of PEP 508 there, as far as the platform decides them."""
        own = {"python_version": self.python, "python_full_version": f"{self.python}.0"}
        linux = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"}
        here = {name: str(value) for name, value in default_environment().items()}
        return {**here, **linux, **own, "platform_machine": self.machine}

    @property
    def uv_options(self) -> list[str]:
        """How uv is told of it."""
        triple = f"{self.machine}-manylinux_2_{self.glibc}"
        return ["--python-version", self.python, "--python-platform", triple]

    @property
    def pip_options(self) -> list[str]:
        """How pip is told of it, which takes each tag for itself: wheels for older libraries do too."""
        tags = [f"manylinux_2_{minor}" for minor in range(self.glibc, _OLDEST_GLIBC - 1, -1)]
        named = [f"{tag}_{self.machine}" for tag in (*tags, "manylinux2014", "manylinux2010", "manylinux1")]
        platforms = [word for tag in named for word in ("--platform", tag)]
        return ["--python-version", self.python, "--implementation", "cp", *platforms]


class _Metadata(BaseModel):
    name: str
    version: str
    requires_dist: tuple[str, ...] = ()


class _Installed(BaseModel):
    metadata: _Metadata


class Destination(BaseModel):
    """What ``python3 -m pip inspect`` prints there."""

    environment: dict[str, str]
    installed: tuple[_Installed, ...]

    @classmethod
    def read(cls, path: Path) -> Destination:
        """Read a file of it; raises InputError."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            what, remedy = (
                f"is not what pip inspect prints: {error}",
                "run at the destination: python3 -m pip inspect > there.json",
            )
            raise InputError(InputProblem(str(path), what, remedy)) from error

    @property
    def platform(self) -> Platform:
        """Its Python and machine."""
        return Platform(self.environment["python_version"], self.environment["platform_machine"])

    @property
    def packages(self) -> dict[NormalizedName, Package]:
        """What is installed there."""
        found = (
            Package(canonicalize_name(own.name), own.version, tuple(map(Requirement, own.requires_dist)))
            for own in (each.metadata for each in self.installed)
        )
        return {package.name: package for package in found}
