"""Reads the command lines that run transformers serve in production."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import PurePath
from typing import Any

from pydantic import ValidationError

from autotune.domain.configs.config import EngineConfig
from launchers.options import Option, split_command
from launchers.transformers_serve.flags import (
    CONTINUOUS_BATCHING,
    DEVICE,
    OF_THE_DEPLOYMENT,
    ONE_BY_ONE,
    TABLE,
)


def parse_command(command: str) -> tuple[EngineConfig, str]:
    """Read ``[NAME=value ...] transformers serve MODEL ...`` as (configuration, model); raises ValueError.

    Where the server listens and what it tells is dropped; what has no word is kept in ``extra_args``.
    """
    options, loose = TABLE.read(_arguments(command))
    if len(loose) != 1:
        found = f"these could be it: {', '.join(loose)}" if loose else "none was found"
        raise ValueError(f"a transformers command names one model, right after `serve`; {found}")
    words: dict[str, Any] = {}
    extra: list[str] = []
    for option in options:
        if option.flag in {CONTINUOUS_BATCHING, ONE_BY_ONE, DEVICE, *OF_THE_DEPLOYMENT}:
            continue
        if read := _words(option):
            words |= read
        else:
            extra += option.tokens
    if not _batches(options):
        extra.append(ONE_BY_ONE)  # what we launch batches unless it is told not to
    words["extra_args"] = tuple(extra)
    return EngineConfig.model_validate({"engine": "transformers", **words}), loose[0]


def _batches(options: tuple[Option, ...]) -> bool:
    said = [option.flag for option in options if option.flag in {CONTINUOUS_BATCHING, ONE_BY_ONE}]
    return said[-1:] == [CONTINUOUS_BATCHING]


def _arguments(command: str) -> list[str]:
    """Tokens after ``transformers serve``; whatever stands in front (environment, numactl) is left out."""
    tokens = split_command(command, "transformers")
    for at, (first, second) in enumerate(pairwise(tokens)):
        if PurePath(first).name == "transformers" and second == "serve":
            return tokens[at + 2 :]
    raise ValueError("this is no transformers command: it has no `transformers serve`")


def _words(option: Option) -> Mapping[str, Any]:
    """The word that an option stands for; empty if the vocabulary cannot say it."""
    state = TABLE.state_of(option.flag)
    if state is not None and not option.values:
        return dict([state])
    word = TABLE.word_of(option.flag)
    if word is None or not option.values:
        return {}
    try:
        EngineConfig.model_validate({"engine": "transformers", word: option.values[0]})
    except ValidationError:
        return {}
    return {word: option.values[0]}
