"""Reads what a failed Dynamo left behind: a worker's log has the words of the engine inside."""

from __future__ import annotations

from autotune.domain.launches.launch import Evidence, Failure, FailureClass
from launchers.combined_failures import combined
from launchers.failures import FailureRules, classify
from launchers.sglang.failures import RULES as SGLANG
from launchers.trtllm.failures import RULES as TRTLLM
from launchers.vllm.failures import RULES as VLLM

# Texts of ai-dynamo 1.6.1; behind each, the file that writes it.
OWN = FailureRules(
    at_start={
        FailureClass.REFUSED_ARGUMENTS: (
            r"--connector is (?:deprecated|no longer supported)",  # dynamo/vllm/args.py
            r"Unsupported kv_connector=",  # dynamo/vllm/kv_connector_protocols.py
            r"Failed to parse override_engine_args as JSON",  # dynamo/trtllm/workers/llm_worker.py
        ),
        FailureClass.PORT_TAKEN: (
            r"Failed to start HTTP server: port \d+ already in use",  # run here: the frontend
        ),
    },
    prefixes=(
        r"^\d{4}-\d\d-\d\dT[\d:.]+Z +ERROR +\S+: ",  # lib/runtime/src/logging.rs
    ),
    harmless=(
        r"^\d{4}-\d\d-\d\dT[\d:.]+Z +(?:TRACE|DEBUG|INFO|WARN) ",  # the same
    ),
)
RULES = combined(OWN, VLLM, SGLANG, TRTLLM)


def classify_failure(evidence: Evidence) -> Failure:
    """Name the cause of a failed launch and the line that tells it, without its logging prefixes."""
    return classify(evidence, RULES)
