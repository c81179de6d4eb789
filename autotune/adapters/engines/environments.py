"""Finds installed engines and asks each engine's own parser and validation; the answers are cached.

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import platformdirs
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from autotune.adapters.commands import last_line, run_program
from autotune.adapters.debian_packages import CPU_ENGINE_LIBRARIES, apt_line, missing_libraries
from autotune.adapters.engines.containers import identity_command, probe_command, pull_command
from autotune.domain.basics.errors import InputError, InputProblem
from autotune.domain.hardware.hardware import DeviceKind
from autotune.domain.launches.launch import Container, EngineEnvironment
from autotune.domain.studies.ports import Launcher, LauncherTraits

COMPLETE = "autotune-complete"
"""File that an installation writes last; a directory without it is an installation that was interrupted."""

_PROBE_TIMEOUT_S = 180.0
_IMAGE_TIMEOUT_S = 30.0
_PULL_TIMEOUT_S = 3600.0
_REFUSAL_TIMEOUT_S = 10.0
"""Further time for each configuration asked about: one is read in about a second."""
_BATCH = 32
"""Configurations asked about at a time: importing an engine takes as long as reading some ten of them."""
_TAIL_LINES = 15

T = TypeVar("T")

_REFUSALS = TypeAdapter(dict[str, str | None])
_HEARD = TypeAdapter(list[str | None])


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

    def inside(self, launcher: Launcher, container: Container) -> EngineEnvironment:
        """Return the engine in an image, fetched unless it is here, and what its parser said.

        Raises InputError when the image cannot be fetched, or does not answer.
        """
        traits = launcher.traits
        version = _image_identity(traits, container)
        if not traits.parser_probe:
            return EngineEnvironment(
                engine=traits.engine,
                executable=Path(traits.executable),
                version=container.image,
                kind=min(traits.device_kinds),
                flags={},
            )
        identity = json.dumps([container.runtime, container.image, version, traits.parser_probe])
        path = self._cache / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.json"
        answer = _read(path, _ANSWER)
        if answer is None:
            command = probe_command(container, ("python3", "-c", traits.parser_probe))
            answer = _described(traits, _heard(traits, command, _PROBE_TIMEOUT_S))
            _keep(path, _ANSWER.dump_json(answer))
        return EngineEnvironment(
            engine=traits.engine,
            executable=Path(traits.executable),
            version=answer.version,
            kind=answer.device,
            flags=answer.flags,
        )

    def check(self, launcher: Launcher, at: Path | None = None) -> EngineCheck:
        """Ask the engine afresh, and look for the system libraries that it loads; raises as ``find``."""
        environment = self._environment(launcher.traits, at, fresh=True)
        missing = missing_libraries() if environment.kind is DeviceKind.CPU else ()
        packages = [CPU_ENGINE_LIBRARIES[name] for name in missing]
        remedy = apt_line(packages) if packages else ""
        return EngineCheck(environment=environment, missing_libraries=missing, remedy=remedy)

    def refusals(
        self,
        launcher: Launcher,
        environment: EngineEnvironment,
        commands: Sequence[Sequence[str]],
        *,
        env: Mapping[str, str] | None = None,
        told: Callable[[int, int], None] = lambda _answered, _of: None,
    ) -> tuple[str | None, ...]:
        """Ask the engine's own parser and validation about processes: their argv whole, ``env`` set for each.

        Returns for each why it is refused; None: it is not, or the engine has nothing to ask. ``told`` hears
        how many of how many are answered. Raises InputError when the engine does not answer.
        """
        traits = launcher.traits
        interpreter = interpreter_of(environment.executable)
        if not traits.config_probe or interpreter is None:
            return (None,) * len(commands)
        question = json.dumps([traits.config_probe, env or {}], sort_keys=True)
        path = self._cache / f"{_cache_key(environment.executable, question)}.refusals.json"
        known = _read(path, _REFUSALS) or {}
        marks = [_mark(command) for command in commands]
        unknown = {mark: command for mark, command in zip(marks, commands, strict=True) if mark not in known}
        left = iter(unknown.items())
        while batch := dict(islice(left, _BATCH)):
            known |= _refusals(interpreter, traits, batch, env or {})
            _keep(path, _REFUSALS.dump_json(known))
            told(sum(mark in known for mark in unknown), len(unknown))
        return tuple(known[mark] for mark in marks)

    def _environment(self, traits: LauncherTraits, at: Path | None, *, fresh: bool) -> EngineEnvironment:
        executable = self._locate(traits, at)
        interpreter = interpreter_of(executable)
        if interpreter is None:
            looked_for = executable.parent / "python"
            raise _no_engine(traits, f"{executable} is there, but not its interpreter {looked_for}")
        path = self._cache / f"{_cache_key(executable, traits.parser_probe)}.json"
        answer = None if fresh else _read(path, _ANSWER)
        if answer is None:
            answer = _probe(interpreter, traits)
            _keep(path, _ANSWER.dump_json(answer))
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


_ANSWER = TypeAdapter(_Answer)


def _no_engine(traits: LauncherTraits, what: str) -> InputError:
    name = traits.engine
    remedy = f"autotune engines install {name}, or name a virtual environment: --engine {name}=/path/to/venv"
    return InputError(InputProblem(f"engine {name}", what, remedy))


def interpreter_of(executable: Path) -> Path | None:
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


def _mark(command: Sequence[str]) -> str:
    """A name for a command line, and for the models' files that it is about."""
    files = [Path(word) / "config.json" for word in command if word.startswith("/")]
    stamps = [file.stat().st_mtime_ns for file in files if file.is_file()]
    return hashlib.sha256(json.dumps([*command, stamps]).encode()).hexdigest()[:32]


def _read(path: Path, adapter: TypeAdapter[T]) -> T | None:
    """The cached answer; None where there is none that can be read."""
    try:
        return adapter.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _keep(path: Path, answer: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("wb", dir=path.parent, delete=False) as file:
            file.write(answer)
        Path(file.name).replace(path)
    except OSError as error:
        remedy = "free or unlock it, or point AUTOTUNE_HOME to a directory that can be written"
        raise InputError(InputProblem(str(path.parent), f"cannot be written: {error}", remedy)) from error


def _probe(interpreter: Path, traits: LauncherTraits) -> _Answer:
    """What the engine's parser has."""
    return _described(traits, _ask(interpreter, traits, traits.parser_probe, timeout_s=_PROBE_TIMEOUT_S))


def _described(traits: LauncherTraits, last_line: str) -> _Answer:
    try:
        return _ANSWER.validate_json(last_line)
    except ValidationError as error:
        what = f"answered what is no description: {last_line[:200]!r}"
        remedy = f"mend its environment, or: autotune engines install {traits.engine}"
        raise InputError(InputProblem(f"engine {traits.engine}", what, remedy)) from error


def _image_identity(traits: LauncherTraits, container: Container) -> str:
    """What the image is now; it is fetched where it is not here."""
    if not (inspect := identity_command(container)):
        return ""
    try:
        return _heard(traits, inspect, _IMAGE_TIMEOUT_S)
    except InputError:
        _heard(traits, pull_command(container), _PULL_TIMEOUT_S)
        return _heard(traits, inspect, _IMAGE_TIMEOUT_S)


def _heard(traits: LauncherTraits, command: Sequence[str], timeout_s: float) -> str:
    """The last line that a container runtime's command prints; raises InputError."""
    what = ""
    try:
        done = run_program(command, timeout_s)
    except subprocess.TimeoutExpired:
        what = f"gave no answer in {timeout_s:.0f} s"
    except OSError as error:
        what = f"cannot be run: {error}"
    else:
        if done.returncode == 0:
            return last_line(done.stdout)
        tail = "\n".join(done.stderr.strip().splitlines()[-_TAIL_LINES:])
        what = f"ended with exit code {done.returncode}:\n{tail}"
    remedy = "see that the runtime works and may fetch the image, or name another `image` or `runtime`"
    raise InputError(InputProblem(f"engine {traits.engine}", f"{' '.join(command[:3])} {what}", remedy))


def _refusals(
    interpreter: Path, traits: LauncherTraits, commands: Mapping[str, Sequence[str]], env: Mapping[str, str]
) -> dict[str, str | None]:
    """Why each command is refused, by its mark."""
    question = json.dumps([list(command) for command in commands.values()])
    timeout_s = _PROBE_TIMEOUT_S + _REFUSAL_TIMEOUT_S * len(commands)
    last_line = _ask(interpreter, traits, traits.config_probe, question, env=env, timeout_s=timeout_s)
    try:
        return dict(zip(commands, _HEARD.validate_json(last_line), strict=True))
    except (ValidationError, ValueError) as error:
        what = f"answered what is no list of {len(commands)} refusals: {last_line[:200]!r}"
        raise _broken(traits, interpreter, what) from error


def _ask(
    interpreter: Path,
    traits: LauncherTraits,
    program: str,
    question: str = "",
    *,
    timeout_s: float,
    env: Mapping[str, str] | None = None,
) -> str:
    """Run a launcher's program in the engine's interpreter; the last line of its output answers.

    Python looks into the working directory first, and that may hold a checkout of the engine.
    """
    command, folder = [str(interpreter), "-c", program], interpreter.parent.parent
    try:
        done = run_program(command, timeout_s, folder=folder, env=env, question=question)
    except subprocess.TimeoutExpired as error:
        raise _broken(traits, interpreter, f"gave no answer in {timeout_s:.0f} s") from error
    except OSError as error:
        raise _broken(traits, interpreter, f"cannot be run: {error}") from error
    if done.returncode != 0:
        tail = "\n".join(done.stderr.strip().splitlines()[-_TAIL_LINES:])
        raise _broken(traits, interpreter, f"ended with exit code {done.returncode} when asked:\n{tail}")
    return last_line(done.stdout)


def _broken(traits: LauncherTraits, interpreter: Path, what: str) -> InputError:
    remedy = f"mend the environment {interpreter.parent.parent}, or: autotune engines install {traits.engine}"
    return InputError(InputProblem(f"engine {traits.engine}", f"{interpreter} {what}", remedy))
