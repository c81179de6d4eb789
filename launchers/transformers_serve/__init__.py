"""Hugging Face transformers, served by ``transformers serve``: written for 5.23, for CPU, CUDA and ROCm."""

from __future__ import annotations

from autotune.domain.studies.ports import Launcher
from launchers.assembled import AssembledLauncher
from launchers.transformers_serve.command import parse_command
from launchers.transformers_serve.failures import classify_failure
from launchers.transformers_serve.spec import launch_spec
from launchers.transformers_serve.traits import TRAITS

LAUNCHER: Launcher = AssembledLauncher(
    traits=TRAITS,
    launch_spec=launch_spec,
    parse_command=parse_command,
    classify_failure=classify_failure,
)
