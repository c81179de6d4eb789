"""Finds installed engines and asks each engine's own parser what it accepts; the answer is cached.

An environment is a directory with ``bin/<executable>`` and ``bin/python``: a virtual environment named by the
user, one that ``autotune engines install`` made, or what the PATH leads to, in this order.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from pydantic import BaseModel, ConfigDict, ValidationError

from autotune.adapters.debian_packages import CPU_ENGINE_LIBRARIES, apt_line, missing_libraries
from autotune.domain.errors import InputError, InputProblem
from autotune.domain.hardware import DeviceKind
from autotune.domain.launch import EngineEnvironment
from autotune.domain.ports import Launcher, LauncherTraits

COMPLETE = "autotune-complete"
"""File that an installation writes last; a directory without it is an installation that was interrupted."""

_PROBE_TIMEOUT_S = 180.0
_TAIL_LINES = 15


def engines_home() -> Path:
    """Directory of the engines installed by us: ``$AUTOTUNE_HOME/engines``, else in the user's data."""
    return (
        Path(os.environ.get("AUTOTUNE_HOME") or platformdirs.user_data_dir("autotune")).resolve() / "engines"
    )


def probe_cache() -> Path:
    """Directory of cached probes: ``$AUTOTUNE_HOME/probes``, else in the user's cache."""
    return (
        Path(os.environ.get("AUTOTUNE_HOME") or platformdirs.user_cache_dir("autotune")).resolve() / "probes"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledEngine:
    """An engine that was installed here, whole."""

    engine: str
    version: str
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCheck:
    """What a fresh look at an environment found; ``remedy`` is empty when nothing is missing."""

    environment: EngineEnvironment
    missing_libraries: tuple[str, ...]
    remedy: str


class EngineEnvironments:
    """Engines in directories of this machine."""

    def __init__(self, home: Path | None = None, cache: Path | None = None) -> None:
        self._home = home or engines_home()
        self._cache = cache or probe_cache()

    def installed(self) -> tuple[InstalledEngine, ...]:
        """Engines that ``autotune engines install`` made, by name, the latest made first."""
        markers = sorted(self._home.glob(f"*/{COMPLETE}"), key=lambda m: m.stat().st_mtime_ns, reverse=True)
        named = ((marker.parent, *marker.parent.name.rpartition("-")) for marker in markers)
        engines = [InstalledEngine(engine=n, version=v, path=path) for path, n, _, v in named]
        return tuple(sorted(engines, key=lambda engine: engine.engine))

    def find(self, launcher: Launcher, at: Path | None) -> EngineEnvironment:
        """Return the engine at ``at``, else our own, else the one on the PATH, and what its parser said.

        Raises InputError with the remedy when there is none, or when it does not answer in three minutes.
        """
        return self._environment(launcher.traits, at, fresh=False)

    def check(self, launcher: Launcher, at: Path | None = None) -> EngineCheck:
        """Ask the engine afresh, and look for the system libraries that it loads; raises as ``find``."""
        environment = self._environment(launcher.traits, at, fresh=True)
        missing = missing_libraries() if environment.kind is DeviceKind.CPU else ()
        packages = [CPU_ENGINE_LIBRARIES[name] for name in missing]
        remedy = apt_line(packages) if packages else ""
        return EngineCheck(environment=environment, missing_libraries=missing, remedy=remedy)

    def _environment(self, traits: LauncherTraits, at: Path | None, *, fresh: bool) -> EngineEnvironment:
        executable = self._locate(traits, at)
        interpreter = _interpreter(executable)
        if interpreter is None:
            looked_for = executable.parent / "python"
            raise _no_engine(traits, f"{executable} is there, but not its interpreter {looked_for}")
        path = self._cache / f"{_cache_key(executable, traits.parser_probe)}.json"
        answer = None if fresh else _read(path)
        if answer is None:
            answer = _probe(interpreter, traits)
            _keep(path, answer)
        return EngineEnvironment(
            engine=traits.engine,
            executable=executable,
            version=answer.version,
            kind=answer.device,
            flags=answer.flags,
        )

    def _locate(self, traits: LauncherTraits, at: Path | None) -> Path:
        if at is None:
            at = next((own.path for own in self.installed() if own.engine == traits.engine), None)
        if at is not None:
            # Not resolved: a virtual environment is known by its own path, links and all.
            executable = at.expanduser().absolute() / "bin" / traits.executable
            if not executable.is_file():
                raise _no_engine(traits, f"there is no {executable}")
            return executable
        if found := shutil.which(traits.executable):
            return Path(found).resolve()
        raise _no_engine(traits, f"not in {self._home}, and no {traits.executable!r} on the PATH")


class _Answer(BaseModel):
    """What a parser probe prints."""

    model_config = ConfigDict(frozen=True, coerce_numbers_to_str=True)

    version: str
    device: DeviceKind
    flags: Mapping[str, tuple[str, ...]]


def _no_engine(traits: LauncherTraits, what: str) -> InputError:
    name = traits.engine
    remedy = f"autotune engines install {name}, or name a virtual environment: --engine {name}=/path/to/venv"
    return InputError(InputProblem(f"engine {name}", what, remedy))


def _interpreter(executable: Path) -> Path | None:
    """The Python beside a command, or the one its first line names where both are not in one ``bin``."""
    beside = executable.parent / "python"
    if beside.is_file():
        return beside
    with executable.open("rb") as file:
        first = file.readline(4096).decode(errors="replace").strip()
    named = Path(first.removeprefix("#!").strip())
    return named if first.startswith("#!/") and "python" in named.name and named.is_file() else None


def _cache_key(executable: Path, probe: str) -> str:
    """A name that changes with the machine, the environment, the packages in it, and the question."""
    folders = sorted(executable.parent.parent.glob("lib*/python3*/*-packages"))
    packages = [
        (entry.path, entry.stat().st_mtime_ns)
        for folder in folders
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name)
        if entry.name.endswith(".dist-info")
    ]
    identity = json.dumps([platform.node(), str(executable), packages, probe])
    return hashlib.sha256(identity.encode()).hexdigest()[:32]


def _read(path: Path) -> _Answer | None:
    """The cached answer; None where there is none that can be read."""
    try:
        return _Answer.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _keep(path: Path, answer: _Answer) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
            file.write(answer.model_dump_json())
        Path(file.name).replace(path)
    except OSError as error:
        remedy = "free or unlock it, or point AUTOTUNE_HOME to a directory that can be written"
        raise InputError(InputProblem(str(path.parent), f"cannot be written: {error}", remedy)) from error


def _probe(interpreter: Path, traits: LauncherTraits) -> _Answer:
    """Run the launcher's question in the engine's interpreter; the last line of its output answers."""
    try:
        done = subprocess.run(
            [interpreter, "-c", traits.parser_probe],
            # Python looks into the working directory first, and that may hold a checkout of the engine.
            cwd=interpreter.parent.parent,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PROBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _broken(traits, interpreter, f"gave no answer in {_PROBE_TIMEOUT_S:.0f} s") from error
    except OSError as error:
        raise _broken(traits, interpreter, f"cannot be run: {error}") from error
    if done.returncode != 0:
        tail = "\n".join(done.stderr.strip().splitlines()[-_TAIL_LINES:])
        raise _broken(traits, interpreter, f"ended with exit code {done.returncode} when asked:\n{tail}")
    last_line = (done.stdout.strip().splitlines() or [""])[-1]
    try:
        return _Answer.model_validate_json(last_line)
    except ValidationError as error:
        raise _broken(traits, interpreter, f"answered what is no description: {last_line[:200]!r}") from error


def _broken(traits: LauncherTraits, interpreter: Path, what: str) -> InputError:
    remedy = f"mend the environment {interpreter.parent.parent}, or: autotune engines install {traits.engine}"
    return InputError(InputProblem(f"engine {traits.engine}", f"{interpreter} {what}", remedy))
