"""Recipes as commands: what each engine would be started with, and who has checked that."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from autotune.adapters.engines.environments import EngineEnvironments
from autotune.adapters.files.recipe_book import read_recipes
from autotune.domain.basics.errors import InputError
from autotune.domain.basics.evidence import EvidenceLevel
from autotune.domain.configs.recipes import Recipe
from autotune.domain.hardware.hardware import Device, DeviceKind
from autotune.domain.launches.launch import EngineEnvironment, LaunchContext, LaunchSpec
from autotune.domain.studies.ports import Launcher
from autotune.wiring.engines import launcher_of


@dataclass(frozen=True, slots=True)
class WrittenRecipe:
    """A recipe's launch as its launcher writes it; ``checked`` where the engine's parser knows its flags."""

    recipe: Recipe
    launch: LaunchSpec
    evidence: EvidenceLevel


def written_recipes() -> Iterator[WrittenRecipe]:
    """Every shipped recipe; raises InfeasibleConfigError for one that its engine cannot express."""
    for recipe in read_recipes().recipes:
        launcher = launcher_of(recipe.engine)
        kind = DeviceKind.ROCM if recipe.accelerator.startswith("MI") else DeviceKind.CUDA
        environment, evidence = _environment(launcher, kind)
        config = recipe.config
        context = LaunchContext(
            model=recipe.model,
            environment=environment,
            devices=_devices(recipe, kind),
            args=recipe.args,
            env=recipe.env,
        )
        yield WrittenRecipe(recipe, launcher.launch_spec(config, context), evidence)


def _devices(recipe: Recipe, kind: DeviceKind) -> tuple[Device, ...]:
    """Devices of as many hosts as the recipe wants: an index that comes again is on the next one."""
    count = recipe.config.devices
    each = -(-count // recipe.hosts)
    return tuple(Device(kind, place % each, recipe.accelerator, f"gpu-{place}", 0) for place in range(count))


def _environment(launcher: Launcher, kind: DeviceKind) -> tuple[EngineEnvironment, EvidenceLevel]:
    """The engine as it would be called on these devices, with the flags of the one installed here, if any."""
    traits = launcher.traits
    called = EngineEnvironment(
        engine=traits.engine, executable=Path(traits.executable), version="", kind=kind, flags={}
    )
    try:
        found = EngineEnvironments().find(launcher_of(traits.environment or traits.engine), None)
    except InputError:
        return called, EvidenceLevel.RENDERED
    evidence = EvidenceLevel.CHECKED if found.flags else EvidenceLevel.RENDERED
    return replace(called, version=found.version, flags=found.flags), evidence
