"""The flags of ``vllm serve`` that have a word in the vocabulary, and how its command lines are read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

VALUED = {
    "tensor_parallel": "--tensor-parallel-size",
    "pipeline_parallel": "--pipeline-parallel-size",
    "data_parallel": "--data-parallel-size",
    "max_num_seqs": "--max-num-seqs",
    "max_num_batched_tokens": "--max-num-batched-tokens",
    "dtype": "--dtype",
    "quantization": "--quantization",
    "kv_cache_dtype": "--kv-cache-dtype",
    "block_size": "--block-size",
    "memory_fraction": "--gpu-memory-utilization",
    "context_length": "--max-model-len",
}
"""Words whose flag takes the word's value."""

SWITCHES = {
    "expert_parallel": "--enable-expert-parallel",
    "chunked_prefill": "--enable-chunked-prefill",
    "prefix_caching": "--enable-prefix-caching",
    "lora": "--enable-lora",
    "eager": "--enforce-eager",
}
"""Words whose flag takes no value; ``--no-`` in front turns it off."""

SPECULATIVE = "--speculative-config"
SPECULATIVE_KEYS = {
    "speculative_tokens": "num_speculative_tokens",
    "prompt_lookup_max": "prompt_lookup_max",
}
"""Words that are keys of the JSON value of ``SPECULATIVE``."""

TOOL_PARSER_WORD = "tool_parser"
AUTO_TOOLS = "--enable-auto-tool-choice"
TOOL_PARSER = "--tool-call-parser"

MODEL = "--model"
SERVED_MODEL_NAME = "--served-model-name"

OF_THE_DEPLOYMENT = frozenset(
    {
        SERVED_MODEL_NAME,
        "--host",
        "--port",
        "--uds",
        "--root-path",
        "--ssl-keyfile",
        "--ssl-certfile",
        "--ssl-ca-certs",
        "--api-key",
        "--hf-token",
    }
)
"""Where a server listens and who may ask: no part of a configuration, and in part secret."""

_ALIASES = {
    "-tp": "--tensor-parallel-size",
    "-pp": "--pipeline-parallel-size",
    "-dp": "--data-parallel-size",
    "-ep": "--enable-expert-parallel",
    "-q": "--quantization",
    "-sc": SPECULATIVE,
    "--device-memory-utilization": "--gpu-memory-utilization",
}
_SWITCHED = {flag: (word, True) for word, flag in SWITCHES.items()} | {
    flag.replace("--", "--no-", 1): (word, False) for word, flag in SWITCHES.items()
}
_WITHOUT_VALUE = frozenset({*_SWITCHED, AUTO_TOOLS})
_WITH_ONE_VALUE = frozenset(
    {*VALUED.values(), SPECULATIVE, TOOL_PARSER, MODEL, *OF_THE_DEPLOYMENT} - {SERVED_MODEL_NAME, "--api-key"}
)
_KNOWN = frozenset({*_WITHOUT_VALUE, *_WITH_ONE_VALUE, *OF_THE_DEPLOYMENT})
_FLAG = re.compile(r"--?[A-Za-z]")


@dataclass(frozen=True, slots=True)
class Option:
    """A flag in its long form with its values, and the tokens that wrote it."""

    flag: str
    values: tuple[str, ...]
    tokens: tuple[str, ...]


def switch(word: str, *, on: bool) -> str:
    """The flag that turns a word of ``SWITCHES`` on or off."""
    return next(flag for flag, state in _SWITCHED.items() if state == (word, on))


def switched(flag: str) -> tuple[str, bool] | None:
    """The word and state that a flag without a value stands for; None if it stands for none."""
    return _SWITCHED.get(flag)


def read_options(tokens: Sequence[str]) -> tuple[tuple[Option, ...], tuple[str, ...]]:
    """Split a command line's tokens into options and what belongs to none.

    A flag that is not known here takes every token up to the next flag.
    """
    options: list[Option] = []
    loose: list[str] = []
    at = 0
    while at < len(tokens):
        if not _FLAG.match(tokens[at]):
            loose.append(tokens[at])
            at += 1
            continue
        name, equals, value = tokens[at].partition("=")
        flag = _long_form(name)
        end = at + 1
        most = 0 if equals else _most_values(flag, len(tokens))
        while end < len(tokens) and end - at <= most and not _FLAG.match(tokens[end]):
            end += 1
        values = (value,) if equals else tuple(tokens[at + 1 : end])
        options.append(Option(flag, values, tuple(tokens[at:end])))
        at = end
    return tuple(options), tuple(loose)


def _most_values(flag: str, unlimited: int) -> int:
    if flag in _WITHOUT_VALUE:
        return 0
    return 1 if flag in _WITH_ONE_VALUE else unlimited


def _long_form(name: str) -> str:
    """Resolve what vLLM's parser resolves: short names, underscores, and beginnings that are unambiguous."""
    if not name.startswith("--"):
        return _ALIASES.get(name, name)
    head, dot, key = name.partition(".")  # --json-flag.key: only the flag is spelt loosely
    flag = head.replace("_", "-") + dot + key
    flag = _ALIASES.get(flag, flag)
    begun = [known for known in _KNOWN if known.startswith(flag)]
    return begun[0] if flag not in _KNOWN and len(begun) == 1 else flag
