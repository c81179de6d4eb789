"""vLLM in two pools, prefill and decode: ``vllm serve`` with a KV connector, and a router in front."""

from __future__ import annotations

from autotune.domain.studies.ports import Launcher
from launchers.assembled import AssembledLauncher
from launchers.vllm.failures import classify_failure
from launchers.vllm_pd.command import parse_command
from launchers.vllm_pd.spec import launch_spec
from launchers.vllm_pd.traits import TRAITS

LAUNCHER: Launcher = AssembledLauncher(
    traits=TRAITS,
    launch_spec=launch_spec,
    parse_command=parse_command,
    classify_failure=classify_failure,
)
