"""NVIDIA Dynamo: a frontend, and workers over vLLM, SGLang or TensorRT-LLM, in pools or alike.

Which engine is inside is said in front of the study's ``args``, as on the command line:
``-m dynamo.sglang`` (``-m dynamo.vllm`` if nothing is said). Arguments of the frontend (``--router-mode kv``)
go to the frontend, all others to every worker.

Run here: the frontend alone, with the flags and the environment that are written here; no worker. Names come
from ai-dynamo 1.6.1 (``dynamo/frontend/frontend_args.py``, ``dynamo/common/configuration/groups/*.py``,
``dynamo/{vllm,sglang,trtllm}``), from its ``recipes`` and ``examples/backends/*/launch``, and from
``lib/llm/src/http/service/health.rs``.
"""

from __future__ import annotations

from autotune.domain.studies.ports import Launcher
from launchers.assembled import AssembledLauncher
from launchers.dynamo.command import parse_command
from launchers.dynamo.failures import classify_failure
from launchers.dynamo.spec import launch_spec
from launchers.dynamo.traits import TRAITS

LAUNCHER: Launcher = AssembledLauncher(
    traits=TRAITS,
    launch_spec=launch_spec,
    parse_command=parse_command,
    classify_failure=classify_failure,
)
