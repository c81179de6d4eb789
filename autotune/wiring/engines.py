"""Engines and the devices they are built for: which launcher, which environment, which hardware."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path

from autotune.adapters.devices import LocalInventory
from autotune.adapters.engine_env import EngineEnvironments
from autotune.domain.errors import InputError, InputProblem
from autotune.domain.hardware import DeviceKind, Hardware
from autotune.domain.launch import EngineEnvironment, LaunchContext
from autotune.domain.ports import Launcher
from autotune.domain.study import HardwareSpec, StudySpec


def launchers() -> Mapping[str, Launcher]:
    """Every launcher that is installed, ours like anyone's, by engine id."""
    return {point.name: point.load() for point in entry_points(group="autotune.launchers")}


def launcher_of(engine: str) -> Launcher:
    """One launcher; raises InputError that names those there are."""
    known = launchers()
    if engine not in known:
        raise InputError(InputProblem(f"engine {engine!r}", "no launcher", f"known: {', '.join(known)}"))
    return known[engine]


def environment_for(study: StudySpec, launcher: Launcher) -> EngineEnvironment:
    """The engine's environment, with what its parser said; raises InputError."""
    at = study.engine.environment
    return EngineEnvironments().find(launcher, Path(at) if at else None)


def paper_context(study: StudySpec, launcher: Launcher) -> LaunchContext:
    """What a launcher needs to write a launch, with devices by count alone: nothing is leased."""
    environment = environment_for(study, launcher)
    return LaunchContext(
        model=study.model,
        environment=environment,
        devices=hardware_for(study, environment.kind).devices,
        args=study.engine.args,
        env=study.engine.env,
    )


def hardware_for(study: StudySpec, kind: DeviceKind) -> Hardware:
    """The devices that the study may use of those here; raises InputError for more than there are."""
    here = LocalInventory(kind=kind).devices()
    asked = HardwareSpec() if study.hardware == "auto" else study.hardware
    large = tuple(d for d in here.devices if d.memory_bytes >= (asked.least_memory or 0))
    count = (asked.cpus if kind is DeviceKind.CPU else asked.gpus) or len(large)
    if not large or count > len(large):
        what = f"asks for {asked.model_dump(exclude_none=True) or 'auto'}; the engine is built for {kind}, "
        remedy = "write `hardware: auto` or what there is, or name an engine built for it with --engine"
        raise InputError(InputProblem("hardware", f"{what}and there are {here.describe()}", remedy))
    return Hardware(kind, large[:count])
