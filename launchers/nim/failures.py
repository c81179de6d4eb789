"""Reads what a failed NIM left behind: docker's words, the NIM's own, and those of the engine inside."""

from __future__ import annotations

from autotune.domain.launches.launch import Evidence, Failure, FailureClass
from launchers.combined_failures import combined
from launchers.failures import FailureRules, classify
from launchers.sglang.failures import RULES as SGLANG
from launchers.trtllm.failures import RULES as TRTLLM
from launchers.vllm.failures import RULES as VLLM

OWN = FailureRules(
    at_start={
        FailureClass.LICENSE: (
            r"Error response from daemon: .*(?:unauthorized|denied)",  # moby, no login
            r"pull access denied for ",  # moby
        ),
        FailureClass.DRIVER: (
            r"could not select device driver .* with capabilities: \[\[gpu\]\]",  # moby, no container toolkit
            r"unknown or invalid runtime name: nvidia",  # the same
            r"nvidia-container-cli: (?:initialization|ldcache|mount) error",  # NVIDIA/libnvidia-container
        ),
        FailureClass.PORT_TAKEN: (
            r"port is already allocated",  # moby
        ),
        FailureClass.CHECKPOINT: (
            r"Error response from daemon: .*manifest (?:for \S+ not found|unknown)",  # moby, no such image
        ),
        FailureClass.REFUSED_ARGUMENTS: (
            r"Not all of the provided profiles are supported",  # NVIDIA/k8s-nim-operator, issue 407
            r"^unknown (?:shorthand )?flag: ",  # docker's command line
        ),
        FailureClass.UNSUPPORTED_COMBINATION: (
            r"Could not match a profile in manifest",  # nemotron-voice-agent, pull request 89
        ),
    },
    prefixes=(
        r"^(?:INFO|WARNING|ERROR|CRITICAL) \d{4}-\d\d-\d\d [\d:.]+ \S+:\d+\] ",  # NIM 3.0.0, its logs
    ),
    harmless=(
        r"^(?:INFO|WARNING|DEBUG) \d{4}-\d\d-\d\d ",  # the same
    ),
)
RULES = combined(OWN, VLLM, SGLANG, TRTLLM)


def classify_failure(evidence: Evidence) -> Failure:
    """Name the cause of a failed launch and the line that tells it, without its logging prefixes."""
    return classify(evidence, RULES)
