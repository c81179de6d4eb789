"""Engines and the devices they are built for: which launcher, which environment, which hardware."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

from autotune.adapters.devices.inventory import LocalInventory
from autotune.adapters.engines.environments import EngineEnvironments
from autotune.domain.basics.errors import InputError, InputProblem
from autotune.domain.basics.evidence import EvidenceLevel
from autotune.domain.hardware.hardware import Device, DeviceKind, Hardware
from autotune.domain.launches.launch import EngineEnvironment, LaunchContext
from autotune.domain.studies.ports import Launcher
from autotune.domain.studies.study import EngineSpec, StudySpec


@cache
def launchers() -> Mapping[str, Launcher]:
    """Every launcher that is installed, ours like anyone's, by engine id; looked for once."""
    return {point.name: point.load() for point in entry_points(group="autotune.launchers")}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatus:
    """An engine that has a launcher, as it stands on this machine; no version where none is installed."""

    id: str
    installed: bool
    version: str | None
    device: DeviceKind | None
    evidence: EvidenceLevel
    dimensions: tuple[str, ...]
    path: Path | None


def engine_statuses(ran: Mapping[str, Collection[str]]) -> tuple[EngineStatus, ...]:
    """Every engine that a launcher knows; ``ran`` holds the versions that were measured here, by engine."""
    return tuple(_status(name, ran.get(name, ())) for name in launchers())


def _status(name: str, versions_run: Collection[str]) -> EngineStatus:
    launcher = launcher_of(name)
    try:
        found = environment_for(EngineSpec(name=name))
    except InputError:
        found = None
    evidence = EvidenceLevel.RENDERED
    if found is not None:
        ran = found.version in versions_run
        evidence = EvidenceLevel.RAN if ran else EvidenceLevel.CHECKED if found.flags else evidence
    return EngineStatus(
        id=name,
        installed=found is not None,
        version=found.version or None if found else None,
        device=found.kind if found else None,
        evidence=evidence,
        dimensions=tuple(sorted(launcher.traits.dimensions)),
        path=found.executable if found and launcher.traits.launched else None,
    )


def launcher_of(engine: str) -> Launcher:
    """One launcher; raises InputError that names those there are."""
    known = launchers()
    if engine not in known:
        raise InputError(InputProblem(f"engine {engine!r}", "no launcher", f"known: {', '.join(known)}"))
    return known[engine]


def environment_for(engine: EngineSpec) -> EngineEnvironment:
    """An engine's environment, with what its parser said; raises InputError."""
    traits = launcher_of(engine.name).traits
    if not traits.launched:
        return EngineEnvironment(
            engine=engine.name, executable=Path(), version="", kind=DeviceKind.REMOTE, flags={}
        )
    installed_as = launcher_of(traits.environment or engine.name)
    if container := engine.container:
        found = EngineEnvironments().inside(installed_as, container)
    else:
        at = Path(engine.environment) if engine.environment else None
        found = EngineEnvironments().find(installed_as, at)
    return replace(found, engine=engine.name)


def paper_context(study: StudySpec, engine: EngineSpec) -> LaunchContext:
    """What a launcher needs to write a launch, with devices by count alone: nothing is leased."""
    environment = environment_for(engine)
    devices = hardware_for(study, environment.kind).devices
    return engine.context(study.model, environment, devices)


def hardware_for(study: StudySpec, kind: DeviceKind) -> Hardware:
    """The devices that the study may use of those here; raises InputError for more than there are."""
    asked = study.hardware_asked
    if kind is DeviceKind.REMOTE:
        name = asked.accelerator or "unknown accelerator"
        return Hardware(
            kind, tuple(Device(kind, index, name, f"remote-{index}", 0) for index in range(asked.gpus or 1))
        )
    here = LocalInventory(kind=kind).devices()
    large = tuple(d for d in here.devices if d.memory_bytes >= (asked.least_memory or 0))
    count = (asked.cpus if kind is DeviceKind.CPU else asked.gpus) or len(large)
    if not large or count > len(large):
        what = f"asks for {asked.model_dump(exclude_none=True) or 'auto'}; the engine is built for {kind}, "
        remedy = "write `hardware: auto` or what there is, or name an engine built for it with --engine"
        raise InputError(InputProblem("hardware", f"{what}and there are {here.describe()}", remedy))
    return Hardware(kind, large[:count])
