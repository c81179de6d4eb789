"""The flags of ``transformers serve`` that have a word in the vocabulary."""

from __future__ import annotations

from launchers.options import FlagTable

CONTINUOUS_BATCHING = "--continuous-batching"
ONE_BY_ONE = "--no-continuous-batching"
DEVICE = "--device"
NUM_BLOCKS = "--cb-num-blocks"
MEMORY_FRACTION = "--cb-max-memory-percent"

OF_THE_DEPLOYMENT = frozenset({"--host", "--port", "--enable-cors", "--no-enable-cors", "--log-level"})
"""Where a server listens and what it tells: no part of a configuration."""

TABLE = FlagTable(
    engine="transformers",
    valued={
        "max_num_batched_tokens": "--cb-max-batch-tokens",
        "block_size": "--cb-block-size",
        # A share of what the loaded model leaves free.
        "memory_fraction": MEMORY_FRACTION,
        "attention_backend": "--attn-implementation",
        "dtype": "--dtype",
        "quantization": "--quantization",
    },
    # Not compilation: --compile chooses another cache for requests that are served one by one, and no more.
    switches={"graph_capture": {True: ("--cb-use-cuda-graph",), False: ("--no-cb-use-cuda-graph",)}},
    bare=frozenset(
        {
            *(CONTINUOUS_BATCHING, ONE_BY_ONE, "--compile", "--no-compile"),
            *("--trust-remote-code", "--no-trust-remote-code", "--enable-cors", "--no-enable-cors"),
        }
    ),
    single=frozenset(
        {
            *(
                DEVICE,
                NUM_BLOCKS,
                "--reasoning",
                "--chat-template-kwargs",
                "--decision-config",
                "--model-timeout",
            ),
            *("--default-seed", "--host", "--port", "--log-level"),
        }
    ),
)
