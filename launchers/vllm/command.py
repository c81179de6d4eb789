"""Reads the command lines that run vLLM in production."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import PurePath
from typing import Any

from pydantic import ValidationError

from autotune.domain.configs.config import EngineConfig
from launchers.options import Option, split_command
from launchers.vllm.compilation import compilation_words
from launchers.vllm.flags import (
    AUTO_TOOLS,
    COMPILATION,
    MODEL,
    OF_THE_DEPLOYMENT,
    SPECULATIVE,
    TABLE,
    TOOL_PARSER,
    TOOL_PARSER_WORD,
)
from launchers.vllm.speculation import speculation_words

_MODULE = re.compile(r"vllm\.entrypoints\.(\w+\.)*api_server")
_SHORT_NUMBER = re.compile(r"(\d+(?:\.\d+)?)([kmgtKMGT])")


def parse_command(command: str) -> tuple[EngineConfig, str]:
    """Read ``[NAME=value ...] vllm serve MODEL ...`` as (configuration, model); raises ValueError.

    Where the server listens and who may ask is dropped, keys among it; what has no word is kept in
    ``extra_args``, in order.
    """
    options, loose = TABLE.read(_arguments(command))
    models = [*loose, *(value for option in options if option.flag == MODEL for value in option.values)]
    if len(models) != 1:
        found = f"these could be it: {', '.join(models)}" if models else "none was found"
        raise ValueError(f"a vllm command names one model, right after `serve` or with --model; {found}")
    # Either of the two flags alone says something else than the word does.
    tools_on = {option.flag for option in options} >= {AUTO_TOOLS, TOOL_PARSER}
    words: dict[str, Any] = {}
    extra: list[str] = []
    for option in options:
        if option.flag in {MODEL, *OF_THE_DEPLOYMENT} or (option.flag == AUTO_TOOLS and tools_on):
            continue
        if option.flag == COMPILATION:
            said, left = _compilation(option)
            words |= said
            extra += left
        elif read := {} if option.flag == TOOL_PARSER and not tools_on else _words(option):
            words |= read
        else:
            extra += option.tokens
    return EngineConfig.model_validate({"engine": "vllm", **words, "extra_args": tuple(extra)}), models[0]


def _arguments(command: str) -> list[str]:
    """Tokens after ``vllm serve``; whatever stands in front (environment, numactl, env) is left out."""
    tokens = split_command(command, "vllm")
    for at, (first, second) in enumerate(pairwise(tokens)):
        if PurePath(first).name == "vllm" and second == "serve":
            return tokens[at + 2 :]
        if first == "-m" and _MODULE.fullmatch(second):
            return tokens[at + 2 :]
    raise ValueError(
        "this is no vllm command: it has neither `vllm serve` nor `-m vllm.entrypoints.openai.api_server`"
    )


def _words(option: Option) -> Mapping[str, Any]:
    """The words that an option stands for; empty if the vocabulary cannot say it."""
    state = TABLE.state_of(option.flag)
    if state is not None and not option.values:
        return dict([state])
    if option.flag == SPECULATIVE and option.values:
        return speculation_words(option.values[0])
    word = TOOL_PARSER_WORD if option.flag == TOOL_PARSER else TABLE.word_of(option.flag)
    if word is None or not option.values:
        return {}
    value = _number(option.values[0])
    try:
        EngineConfig.model_validate({"engine": "vllm", word: value})
    except ValidationError:
        return {}
    return {word: value}


def _compilation(option: Option) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """The words that the JSON of an option says, and the tokens of what no word says."""
    try:
        given = json.loads(option.values[0]) if option.values else None
    except ValueError:
        given = None
    words, rest = compilation_words(given) if isinstance(given, dict) else ({}, {})
    if not words:
        return {}, option.tokens
    return words, (COMPILATION, json.dumps(rest)) if rest else ()


def _number(text: str) -> str:
    """Write out vLLM's short numbers: 8k is 8000, 8K is 8192."""
    if not (short := _SHORT_NUMBER.fullmatch(text)):
        return text
    number, suffix = short.groups()
    base = 1024 if suffix.isupper() else 1000
    return str(int(float(number) * base ** ("kmgt".index(suffix.lower()) + 1)))
