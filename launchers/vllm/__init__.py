"""vLLM, served by ``vllm serve``: versions 0.22 to 0.32, for CPU and CUDA."""

from __future__ import annotations

from dataclasses import dataclass

from autotune.domain.config import EngineConfig
from autotune.domain.launch import Evidence, Failure, LaunchContext, LaunchSpec
from autotune.domain.ports import Launcher, LauncherTraits
from launchers.vllm import command as command_line
from launchers.vllm import failures, spec
from launchers.vllm.traits import TRAITS


@dataclass(frozen=True, slots=True)
class VllmLauncher:
    """Implements the port ``Launcher``."""

    traits: LauncherTraits = TRAITS

    def launch_spec(self, config: EngineConfig, context: LaunchContext) -> LaunchSpec:
        """Write the server's process; raises InfeasibleConfigError naming word, flag and version."""
        return spec.launch_spec(config, context)

    def parse_command(self, command: str) -> tuple[EngineConfig, str]:
        """Read a production command line as (configuration, model); raises ValueError."""
        return command_line.parse_command(command)

    def classify_failure(self, evidence: Evidence) -> Failure:
        """Name the cause of a failed launch and the line that tells it."""
        return failures.classify_failure(evidence)


LAUNCHER: Launcher = VllmLauncher()
