"""NVIDIA NIM: a container whose maker tuned it, and whose profile is the choice.

Nothing of it was run here. Names come from the documentation of NIM for LLMs, 2.1.4 and 3.0.0
(docs.nvidia.com/nim/large-language-models): Quickstart (the command), Environment Variables
(``NIM_MODEL_PROFILE``), Advanced Configuration (arguments after the image), Model Profiles and Selection
(names of profiles), Architecture (``/v1/health/ready``, ``/v1/metrics``, which vLLM answers).
"""

from __future__ import annotations

from autotune.domain.studies.ports import Launcher
from launchers.assembled import AssembledLauncher
from launchers.nim.command import parse_command
from launchers.nim.failures import classify_failure
from launchers.nim.spec import launch_spec
from launchers.nim.traits import TRAITS

LAUNCHER: Launcher = AssembledLauncher(
    traits=TRAITS,
    launch_spec=launch_spec,
    parse_command=parse_command,
    classify_failure=classify_failure,
)
