"""TensorRT-LLM's PyTorch backend, served by ``trtllm-serve``: written from the source of 1.3 and later.

Nothing of it was run here. Names come from these files of NVIDIA/TensorRT-LLM at commit 44373a31 (2026, after
1.3.0rc21): ``tensorrt_llm/llmapi/llm_args.py`` (keys of the YAML), ``tensorrt_llm/commands/serve.py`` and
``tests/unittest/api_stability/references/trtllm_serve_cli.yaml`` (flags), ``tensorrt_llm/mapping.py``
(ranks), ``tensorrt_llm/metrics/collector.py`` (counters), ``tensorrt_llm/serve/openai_server.py`` (paths).
"""

from __future__ import annotations

from autotune.domain.studies.ports import Launcher
from launchers.assembled import AssembledLauncher
from launchers.trtllm.command import parse_command
from launchers.trtllm.failures import classify_failure
from launchers.trtllm.spec import launch_spec
from launchers.trtllm.traits import TRAITS

LAUNCHER: Launcher = AssembledLauncher(
    traits=TRAITS,
    launch_spec=launch_spec,
    parse_command=parse_command,
    classify_failure=classify_failure,
)
