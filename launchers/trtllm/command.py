"""Reads the command lines that run ``trtllm-serve`` in production."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from pydantic import ValidationError

from autotune.domain.configs.config import EngineConfig
from launchers.options import Option, split_command
from launchers.trtllm.keys import (
    ATTENTION_DP,
    BACKEND,
    CHUNKED_PREFILL,
    CONTEXT_PARALLEL,
    EXPERT_PARALLEL,
    FLAGS,
    OF_THE_DEPLOYMENT,
    SWITCHES,
    TABLE,
    TENSOR_PARALLEL,
    TOOL_PARSER,
    VALUED,
)

_MODULE = "tensorrt_llm.commands.serve"
_OTHERS = frozenset({"disaggregated", "disaggregated_mpi_worker", "mm_embedding_serve"})
_RANKS = frozenset(FLAGS[key] for key in (TENSOR_PARALLEL, CONTEXT_PARALLEL, EXPERT_PARALLEL))
_PLAIN = {FLAGS[key]: word for word, key in VALUED.items() if key in FLAGS} | {TOOL_PARSER: "tool_parser"}


def parse_command(command: str) -> tuple[EngineConfig, str]:
    """Read ``[NAME=value ...] trtllm-serve [serve] MODEL ...`` as (configuration, model); raises ValueError.

    Where the server listens is dropped; what has no word is kept in ``extra_args``, in order. So is
    ``--extra_llm_api_options FILE``: what that YAML says is not seen here, not even its ranks.
    """
    options, loose = TABLE.read(_arguments(command))
    if len(loose) != 1:
        found = f"these could be it: {', '.join(loose)}" if loose else "none was found"
        raise ValueError(f"a trtllm-serve command names one model; {found}")
    words: dict[str, Any] = _parallel(options)
    extra: list[str] = []
    for option in options:
        if option.flag in {*OF_THE_DEPLOYMENT, *_RANKS, SWITCHES[ATTENTION_DP]} or _is_default(option):
            continue
        if read := _words(option):
            words |= read
        else:
            extra += option.tokens
    extra += _uneven_experts(options)
    return EngineConfig.model_validate({"engine": "trtllm", **words, "extra_args": tuple(extra)}), loose[0]


def _arguments(command: str) -> list[str]:
    """Tokens after ``trtllm-serve`` and ``serve``, the subcommand that it takes without being told."""
    tokens = split_command(command, "trtllm-serve")
    for at, token in enumerate(tokens):
        before = tokens[at - 1] if at else ""
        if PurePath(token).name == "trtllm-serve" or (before == "-m" and token == _MODULE):
            rest = tokens[at + 1 :]
            if rest and rest[0] in _OTHERS:
                raise ValueError(f"`trtllm-serve {rest[0]}` starts no server of one model")
            return rest[1:] if rest and rest[0] == "serve" else rest
    raise ValueError(f"this is no trtllm-serve command: it has neither `trtllm-serve` nor `-m {_MODULE}`")


def _is_default(option: Option) -> bool:
    if option.flag == BACKEND and option.values not in {("pytorch",), ()}:
        raise ValueError(f"{BACKEND} {' '.join(option.values)} is another engine; only pytorch is known here")
    return option.flag == BACKEND


def _parallel(options: tuple[Option, ...]) -> dict[str, Any]:
    """Ranks in our words: with attention DP the tensor-parallel ones are replicas of the attention."""
    counts = {option.flag: _count(option) for option in options if option.flag in _RANKS}
    if counts.get(FLAGS[CONTEXT_PARALLEL], 1) > 1:
        raise ValueError("--cp_size says how many, and a YAML that is not seen here says how: no word for it")
    words: dict[str, Any] = {}
    ranks = counts.get(FLAGS[TENSOR_PARALLEL])
    replicated = any(option.flag == SWITCHES[ATTENTION_DP] for option in options)
    if replicated:
        words["dp_attention"] = True
    if ranks is not None:
        words["data_parallel" if replicated else "tensor_parallel"] = ranks
    experts = counts.get(FLAGS[EXPERT_PARALLEL])
    if experts in {1, ranks or 1}:
        # One rank has all experts whole, which is what the engine does anyway.
        words["expert_parallel"] = experts == (ranks or 1) and experts > 1
    return words


def _uneven_experts(options: tuple[Option, ...]) -> tuple[str, ...]:
    """Experts whole on some ranks and sliced over the others: kept as it stands."""
    counts = {option.flag: _count(option) for option in options if option.flag in _RANKS}
    ranks = counts.get(FLAGS[TENSOR_PARALLEL], 1)
    experts = counts.get(FLAGS[EXPERT_PARALLEL], 1)
    return () if experts in {1, ranks} else (FLAGS[EXPERT_PARALLEL], str(experts))


def _count(option: Option) -> int:
    text = option.values[0] if option.values else ""
    if not text.isdecimal() or not int(text):
        raise ValueError(f"{option.flag} takes a positive number, not {text!r}")
    return int(text)


def _words(option: Option) -> Mapping[str, Any]:
    """The words that an option stands for; empty if the vocabulary cannot say it."""
    if option.flag == SWITCHES[CHUNKED_PREFILL]:
        return {"chunked_prefill": True}
    word = _PLAIN.get(option.flag)
    if word is None or not option.values:
        return {}
    try:
        EngineConfig.model_validate({"engine": "trtllm", word: option.values[0]})
    except ValidationError:
        return {}
    return {word: option.values[0]}
