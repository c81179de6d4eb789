"""vLLM, served by ``vllm serve``: versions 0.22 to 0.32, for CPU and CUDA."""

from __future__ import annotations

from autotune.domain.studies.ports import Launcher
from launchers.assembled import AssembledLauncher
from launchers.vllm.command import parse_command
from launchers.vllm.failures import classify_failure
from launchers.vllm.spec import launch_spec
from launchers.vllm.traits import TRAITS

LAUNCHER: Launcher = AssembledLauncher(
    traits=TRAITS,
    launch_spec=launch_spec,
    parse_command=parse_command,
    classify_failure=classify_failure,
)
