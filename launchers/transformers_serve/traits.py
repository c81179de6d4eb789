"""What is true of transformers serve whatever the configuration."""

from __future__ import annotations

from autotune.domain.hardware.hardware import DeviceKind
from autotune.domain.studies.ports import LauncherTraits
from launchers.options import HOST_WORDS, MODEL_WORD
from launchers.transformers_serve.flags import TABLE
from launchers.transformers_serve.probes import CONFIG_PROBE, PARSER_PROBE

TRAITS = LauncherTraits(
    engine="transformers",
    executable="transformers",
    dimensions=TABLE.words | HOST_WORDS | {MODEL_WORD},
    device_kinds=frozenset({DeviceKind.CPU, DeviceKind.CUDA, DeviceKind.ROCM}),
    parser_probe=PARSER_PROBE,
    config_probe=CONFIG_PROBE,
    # It has no page of counters, and no way to forget shared prefixes.
    counters={},
    chat_only=True,
)
