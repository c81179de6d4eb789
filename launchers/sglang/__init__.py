"""SGLang, served by ``sglang serve``: written for 0.5.23, for CUDA, ROCm, and CPU builds of it."""

from __future__ import annotations

from autotune.domain.studies.ports import Launcher
from launchers.assembled import AssembledLauncher
from launchers.sglang.command import parse_command
from launchers.sglang.failures import classify_failure
from launchers.sglang.spec import launch_spec
from launchers.sglang.traits import TRAITS

LAUNCHER: Launcher = AssembledLauncher(
    traits=TRAITS,
    launch_spec=launch_spec,
    parse_command=parse_command,
    classify_failure=classify_failure,
)
