"""A launcher as its package's modules make it up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from autotune.domain.configs.config import EngineConfig
from autotune.domain.launches.launch import Evidence, Failure, LaunchContext, LaunchSpec
from autotune.domain.studies.ports import LauncherTraits


@dataclass(frozen=True, slots=True, kw_only=True)
class AssembledLauncher:
    """Implements the port ``Launcher`` by functions, each of which says what it raises."""

    traits: LauncherTraits
    launch_spec: Callable[[EngineConfig, LaunchContext], LaunchSpec]
    parse_command: Callable[[str], tuple[EngineConfig, str]]
    classify_failure: Callable[[Evidence], Failure]
