"""A launcher for ``toyserve serve MODEL``: an engine of one process, with three flags that are tuned."""

from __future__ import annotations

from autotune.domain.configs.config import EngineConfig
from autotune.domain.hardware.hardware import DeviceKind
from autotune.domain.launches.launch import (
    Evidence,
    Failure,
    FailureClass,
    LaunchContext,
    LaunchSpec,
    ProcessSpec,
)
from autotune.domain.studies.ports import Launcher, LauncherTraits
from launchers.assembled import AssembledLauncher
from launchers.failures import FailureRules, classify
from launchers.options import HOST_WORDS, FlagTable, refuse_words, split_command

# --8<-- [start:flags]
TABLE = FlagTable(
    engine="toy",
    valued={
        "max_num_seqs": "--max-num-seqs",
        "block_size": "--block-size",
        "context_length": "--max-model-len",
    },
    switches={},  # words that are on or off, and the flags for each state
    single=frozenset({"--host", "--port"}),
)
OF_THE_DEPLOYMENT = frozenset({"--host", "--port"})
# --8<-- [end:flags]

# --8<-- [start:traits]
PARSER_PROBE = r"""
import json, re, subprocess, sys
from pathlib import Path
asked = [Path(sys.executable).with_name("toyserve"), "--help"]
told = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
flags = {flag: [] for flag in re.findall(r"--[a-z][a-z-]+", told)}
print(json.dumps({"version": "1.0", "device": "cpu", "flags": flags}))
"""

TRAITS = LauncherTraits(
    engine="toy",
    executable="toyserve",
    dimensions=TABLE.words | HOST_WORDS,
    device_kinds=frozenset({DeviceKind.CPU}),
    parser_probe=PARSER_PROBE,
    counters={  # of its Prometheus page: ours -> its own
        "requests_running": "vllm:num_requests_running",
        "requests_waiting": "vllm:num_requests_waiting",
        "prompt_tokens_total": "vllm:prompt_tokens_total",
        "generation_tokens_total": "vllm:generation_tokens_total",
    },
)
# --8<-- [end:traits]


# --8<-- [start:launch]
def launch_spec(config: EngineConfig, context: LaunchContext) -> LaunchSpec:
    """Write the server's process; raises InfeasibleConfigError for what this engine cannot express."""
    refuse_words("toy", config, TRAITS.dimensions)
    tokens = {**TABLE.tokens(config), "extra_args": config.extra_args, "args": context.args}
    for source, written in tokens.items():
        TABLE.refuse_unknown(source, written, context.environment)
    argv = (
        *(str(context.environment.executable), "serve", context.model),
        *(token for written in tokens.values() for token in written),
        *("--host", "{host:server}", "--port", "{port:server}"),
    )
    server = ProcessSpec(role="server", argv=argv, env=context.env, devices=context.devices)
    return LaunchSpec(processes=(server,), serving_role="server", served_model=context.model)


# --8<-- [end:launch]


# --8<-- [start:command]
def parse_command(command: str) -> tuple[EngineConfig, str]:
    """Read ``toyserve serve MODEL ...`` as (configuration, model); raises ValueError."""
    _, found, arguments = " ".join(split_command(command, "toy")).partition("toyserve serve ")
    options, models = TABLE.read(arguments.split())
    if not found or len(models) != 1:
        raise ValueError("write the command as `toyserve serve MODEL [flags]`")
    words: dict[str, object] = {}
    extra: list[str] = []
    for option in options:
        if word := TABLE.word_of(option.flag):
            words[word] = option.values[0]
        elif option.flag not in OF_THE_DEPLOYMENT:
            extra += option.tokens
    return EngineConfig.model_validate({"engine": "toy", **words, "extra_args": tuple(extra)}), models[0]


# --8<-- [end:command]


# --8<-- [start:failures]
RULES = FailureRules(
    at_start={FailureClass.UNSUPPORTED_COMBINATION: (r"No common block size for ",)},
)


def classify_failure(evidence: Evidence) -> Failure:
    """Name the cause of a failed launch and the line that tells it."""
    return classify(evidence, RULES)


LAUNCHER: Launcher = AssembledLauncher(
    traits=TRAITS,
    launch_spec=launch_spec,
    parse_command=parse_command,
    classify_failure=classify_failure,
)
# --8<-- [end:failures]
