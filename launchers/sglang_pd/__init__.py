"""SGLang with prefill and decode in pools of their own, and its router in front: written for 0.5.23."""

from __future__ import annotations

from autotune.domain.studies.ports import Launcher
from launchers.assembled import AssembledLauncher
from launchers.sglang.failures import classify_failure
from launchers.sglang_pd.command import parse_command
from launchers.sglang_pd.spec import launch_spec
from launchers.sglang_pd.traits import TRAITS

LAUNCHER: Launcher = AssembledLauncher(
    traits=TRAITS,
    launch_spec=launch_spec,
    parse_command=parse_command,
    classify_failure=classify_failure,
)
