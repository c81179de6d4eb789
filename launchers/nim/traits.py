"""What is true of a NIM whatever the configuration."""

from __future__ import annotations

from autotune.domain.hardware.hardware import DeviceKind
from autotune.domain.studies.ports import LauncherTraits
from launchers.nim.flags import TABLE
from launchers.options import HOST_WORDS
from launchers.vllm.traits import COUNTERS

TRAITS = LauncherTraits(
    engine="nim",
    executable="docker",
    dimensions=TABLE.words | HOST_WORDS | {"profile"},
    device_kinds=frozenset({DeviceKind.CUDA}),
    parser_probe="",
    # Its proxy passes them on from vLLM; images with another engine inside count under other names.
    counters=COUNTERS,
    counters_path="/v1/metrics",
)
