"""What is true of vLLM whatever the configuration."""

from __future__ import annotations

from autotune.domain.hardware import DeviceKind
from autotune.domain.ports import LauncherTraits
from launchers.vllm.flags import SPECULATIVE_KEYS, SWITCHES, TOOL_PARSER_WORD, VALUED

# `cmd_init` is what the `vllm` command itself calls, and has kept its place while the parser behind it moved.
PARSER_PROBE = """\
import json, os

answer = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # vLLM logs to standard output, which is kept for the answer

from vllm import __version__, platforms

device = platforms.current_platform.device_type
if platforms.current_platform.is_unspecified():  # a CUDA build on a machine without a GPU
    from vllm.platforms.cpu import CpuPlatform

    device, platforms.current_platform = "cuda", CpuPlatform()

from vllm.entrypoints.cli import serve
from vllm.utils.argparse_utils import FlexibleArgumentParser

parser = serve.cmd_init()[0].subparser_init(FlexibleArgumentParser().add_subparsers())
flags = {
    option: [str(choice) for choice in action.choices or ()]
    for action in parser._actions
    for option in action.option_strings
}
answer.write(json.dumps({"version": __version__, "device": device, "flags": flags}) + "\\n")
answer.close()
"""

COUNTERS = {
    "requests_running": "vllm:num_requests_running",
    "requests_waiting": "vllm:num_requests_waiting",
    "kv_cache_usage": "vllm:kv_cache_usage_perc",
    "preemptions_total": "vllm:num_preemptions_total",
    "prefix_cache_queries_total": "vllm:prefix_cache_queries_total",
    "prefix_cache_hits_total": "vllm:prefix_cache_hits_total",
    "prompt_tokens_total": "vllm:prompt_tokens_total",
    "generation_tokens_total": "vllm:generation_tokens_total",
    "spec_decode_accepted_tokens_total": "vllm:spec_decode_num_accepted_tokens_total",
    "spec_decode_draft_tokens_total": "vllm:spec_decode_num_draft_tokens_total",
}

TRAITS = LauncherTraits(
    engine="vllm",
    executable="vllm",
    dimensions=frozenset({*VALUED, *SWITCHES, *SPECULATIVE_KEYS, "speculation", TOOL_PARSER_WORD}),
    device_kinds=frozenset({DeviceKind.CPU, DeviceKind.CUDA}),
    parser_probe=PARSER_PROBE,
    counters=COUNTERS,
    # Answered only where VLLM_SERVER_DEV_MODE=1 is in the study's `env`.
    reset_path="/reset_prefix_cache",
)
