"""Reads the command lines that run SGLang in production."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import PurePath
from typing import Any

from pydantic import ValidationError

from autotune.domain.configs.config import EngineConfig
from launchers.options import Option, split_command
from launchers.sglang.flags import (
    ALGORITHM,
    ALGORITHMS,
    ATTENTION_DP,
    CHUNK,
    DP_ATTENTION,
    DP_SIZE,
    DRAFT_MODEL,
    DRAFT_STEPS,
    DRAFT_TOKENS,
    DRAFT_TOP_K,
    EP_SIZE,
    LORA_SHAPE,
    MAX_RUNNING,
    MODEL,
    NAMES,
    NO_DECODE_GRAPHS,
    NO_GRAPHS,
    NO_PREFILL_GRAPHS,
    OF_THE_DEPLOYMENT,
    PREFILL_BATCH,
    PREFILL_BATCH_DEFAULT,
    TABLE,
    TP_SIZE,
)

_MODULE = "sglang.launch_server"
_SHORT_NUMBER = re.compile(r"(\d+(?:\.\d+)?)(k|M|G|Ki|Mi|Gi)")
_SUFFIXES = {"k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
_OURS = {word: {theirs: ours for ours, theirs in names.items()} for word, names in NAMES.items()}
_SPECULATION = {algorithm: word for word, algorithm in ALGORITHMS.items()}

Given = Mapping[str, tuple[str, ...]]
"""Values by flag; the last of a flag counts."""
Read = tuple[Mapping[str, Any], frozenset[str]]
"""Words, and the flags that they say whole."""

_NOTHING: Read = ({}, frozenset())


def parse_command(command: str) -> tuple[EngineConfig, str]:
    """Read ``[NAME=value ...] sglang serve MODEL ...`` as (configuration, model); raises ValueError.

    Where the server listens and who may ask is dropped, keys among it; what has no word is kept in
    ``extra_args``, in order.
    """
    options, loose = TABLE.read(_arguments(command))
    models = [*loose, *(value for option in options if option.flag == MODEL for value in option.values)]
    if len(models) != 1:
        found = f"these could be it: {', '.join(models)}" if models else "none was found"
        raise ValueError(f"an sglang command names one model, with --model-path; {found}")
    given = {option.flag: option.values for option in options}
    words: dict[str, Any] = {}
    said = {MODEL, *OF_THE_DEPLOYMENT}
    for read in (_parallel(given), _batching(given), _speculation(given), _graphs(given), _lora(given)):
        words |= read[0]
        said |= read[1]
    extra: list[str] = []
    for option in options:
        if option.flag in said:
            continue
        if read_alone := _word(option):
            words |= read_alone
        else:
            extra += option.tokens
    return EngineConfig.model_validate({"engine": "sglang", **words, "extra_args": tuple(extra)}), models[0]


def _arguments(command: str) -> Sequence[str]:
    """Tokens after ``sglang serve``; whatever stands in front (environment, numactl, env) is left out."""
    tokens = split_command(command, "sglang")
    for at, (first, second) in enumerate(pairwise(tokens)):
        if PurePath(first).name == "sglang" and second == "serve":
            return tokens[at + 2 :]
        if first == "-m" and second == _MODULE:
            return tokens[at + 2 :]
    raise ValueError(f"this is no sglang command: it has neither `sglang serve` nor `-m {_MODULE}`")


def _parallel(given: Given) -> Read:
    tp, dp, ep = (_count(given, flag) for flag in (TP_SIZE, DP_SIZE, EP_SIZE))
    words: dict[str, Any] = {}
    said: set[str] = set()
    if (sharing := _sharing(given)) > 1:
        words = {"tensor_parallel": (tp or 1) // sharing, "data_parallel": sharing, "dp_attention": True}
        said = {TP_SIZE, DP_SIZE, DP_ATTENTION, ATTENTION_DP}
    elif not {DP_ATTENTION, ATTENTION_DP} & given.keys():
        sizes = {"tensor_parallel": (TP_SIZE, tp), "data_parallel": (DP_SIZE, dp)}
        words = {word: size for word, (_, size) in sizes.items() if size}
        said = {flag for flag, size in sizes.values() if size}
    if ep is not None and ep == (tp or 1):
        words["expert_parallel"] = True
        said.add(EP_SIZE)
    return words, frozenset(said)


def _sharing(given: Given) -> int:
    """Replicas of data-parallel attention; 1 where there are none, or their number cannot be."""
    tp = _count(given, TP_SIZE) or 1
    older = _count(given, DP_SIZE) if DP_ATTENTION in given else None
    replicas = _count(given, ATTENTION_DP) or older or 1
    return replicas if tp % replicas == 0 else 1


def _batching(given: Given) -> Read:
    sharing = _sharing(given)
    running, chunk, batch = (_count(given, flag) for flag in (MAX_RUNNING, CHUNK, PREFILL_BATCH))
    words: dict[str, Any] = {}
    said: set[str] = set()
    if running and running % sharing == 0:
        words["max_num_seqs"] = running // sharing
        said.add(MAX_RUNNING)
    if given.get(CHUNK) == ("-1",):
        words["chunked_prefill"] = False
        said.add(CHUNK)
        if batch:
            words["max_num_batched_tokens"] = batch
            said.add(PREFILL_BATCH)
    elif chunk and chunk % sharing == 0:
        step = chunk // sharing
        wide = step > PREFILL_BATCH_DEFAULT
        if not wide or batch == step:
            words["max_num_batched_tokens"] = step
            said |= {CHUNK, PREFILL_BATCH} if wide else {CHUNK}
    return words, frozenset(said)


def _speculation(given: Given) -> Read:
    """A chain of proposals; what draws a tree of them has no words."""
    method = _SPECULATION.get(_text(given, ALGORITHM).upper())
    if method is None:
        return _NOTHING
    model = _text(given, DRAFT_MODEL)
    if method == "eagle" and not model:
        method = "mtp"  # SGLang's two names for the model's own heads
    words: dict[str, Any] = {"speculation": method}
    if model:
        words["speculative_model"] = model
    steps, top_k, draft = (_count(given, flag) for flag in (DRAFT_STEPS, DRAFT_TOP_K, DRAFT_TOKENS))
    proposed = (draft or 0) - 1
    if proposed > 0 and (steps, top_k) == ((None, None) if method == "ngram" else (proposed, 1)):
        words["speculative_tokens"] = proposed
    elif any(flag in given for flag in (DRAFT_STEPS, DRAFT_TOP_K, DRAFT_TOKENS)):
        return _NOTHING
    return words, frozenset({ALGORITHM, DRAFT_MODEL, DRAFT_STEPS, DRAFT_TOP_K, DRAFT_TOKENS})


def _graphs(given: Given) -> Read:
    if NO_GRAPHS in given or {NO_DECODE_GRAPHS, NO_PREFILL_GRAPHS} <= given.keys():
        return {"eager": True}, frozenset({NO_GRAPHS, NO_DECODE_GRAPHS, NO_PREFILL_GRAPHS})
    return _NOTHING


def _lora(given: Given) -> Read:
    """What was written because adapters come later is no wish of anyone's."""
    written = dict(zip(LORA_SHAPE[::2], LORA_SHAPE[1::2], strict=True))
    if "--enable-lora" in given and all(given.get(flag) == (value,) for flag, value in written.items()):
        return {"lora": True}, frozenset({"--enable-lora", *written})
    return _NOTHING


def _word(option: Option) -> Mapping[str, Any]:
    """The word that an option by itself stands for; empty if the vocabulary cannot say it."""
    state = TABLE.state_of(option.flag)
    if state is not None and not option.values:
        return dict([state])
    word = TABLE.word_of(option.flag)
    if word is None or len(option.values) != 1:
        return {}
    value = _OURS.get(word, {}).get(option.values[0], _number(option.values[0]))
    try:
        EngineConfig.model_validate({"engine": "sglang", word: value})
    except ValidationError:
        return {}
    return {word: value}


def _text(given: Given, flag: str) -> str:
    return next(iter(given.get(flag, ())), "")


def _count(given: Given, flag: str) -> int | None:
    """A flag's positive number; None where it is not given, or is none."""
    text = _number(_text(given, flag))
    return int(text) if text.isdecimal() and int(text) else None


def _number(text: str) -> str:
    """Write out SGLang's short numbers: 8k is 8000, 8Ki is 8192."""
    if not (short := _SHORT_NUMBER.fullmatch(text)):
        return text
    return str(int(float(short[1]) * _SUFFIXES[short[2]]))
