"""Reads the command lines that run Dynamo in production: the frontend's and each worker's."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from autotune.domain.configs.config import POOLS, EngineConfig
from launchers.dynamo.flags import (
    EVENTS,
    FRONTEND,
    FRONTEND_TABLE,
    MODE,
    OF_THE_ADDRESS,
    TOOL_PARSER,
)
from launchers.dynamo.workers import AGGREGATED, BACKENDS, DEFAULT
from launchers.options import FlagTable, Option, Tokens
from launchers.pool_commands import Words, alike, commands, joined
from launchers.sglang.command import parse_command as parse_sglang
from launchers.sglang.flags import TABLE as SGLANG
from launchers.vllm.command import parse_command as parse_vllm
from launchers.vllm.flags import KV_TRANSFER
from launchers.vllm.flags import TABLE as VLLM

_OLD_MODES = {"--is-prefill-worker": "prefill", "--is-decode-worker": "decode"}
"""What 1.0 and before said instead of ``MODE``."""
_TRANSFER = "--disaggregation-transfer-backend"
_OF_THE_LAUNCH = frozenset({EVENTS, "--disaggregation-bootstrap-port", "--discovery-backend", "--store-kv"})

_READERS: Mapping[str, tuple[FlagTable, str, Callable[[str], tuple[EngineConfig, str]]]] = {
    "dynamo.vllm": (VLLM, "vllm serve", parse_vllm),
    "dynamo.sglang": (SGLANG, "sglang serve", parse_sglang),
}


def parse_command(command: str) -> tuple[EngineConfig, str]:
    """Read the frontend's and the workers' command lines as (configuration, model); raises ValueError.

    Lines are apart by a line's end, ``&``, ``&&`` or ``;``; those that start no part of Dynamo are left out.
    The workers of a pool are alike. What has no word is kept in ``extra_args``, behind the engine's module. A
    TensorRT-LLM worker is what its YAML says, which is not seen here: it is refused.
    """
    frontend: Tokens = ()
    workers: dict[str, list[Words]] = {}
    modules, models = set(), set()
    for module, tokens in _started(command):
        if module == FRONTEND:
            kept = [
                o for o in FRONTEND_TABLE.read(tokens)[0] if o.flag not in {*OF_THE_ADDRESS, *_OF_THE_LAUNCH}
            ]
            frontend = tuple(token for option in kept for token in option.tokens)
            continue
        pool, words, model = _worker(module, tokens)
        workers.setdefault(pool, []).append(words)
        modules.add(module)
        models.add(model)
    if len(modules) != 1 or len(models) != 1:
        found = ", ".join(sorted((*modules, *models))) or "none"
        raise ValueError(f"workers of one model and one engine are needed, one a line; found: {found}")
    words = _joined(workers)
    (module,) = modules
    named = () if module == DEFAULT else ("-m", module)
    extra = (*named, *frontend, *words.pop("extra_args", ()))
    return EngineConfig.model_validate({"engine": "dynamo", **words, "extra_args": extra}), models.pop()


def _started(command: str) -> Iterator[tuple[str, Tokens]]:
    """The modules of Dynamo that a piece of shell starts, each with its arguments."""
    for line in commands(command):
        at = next(
            (i for i, word in enumerate(line) if word.startswith("dynamo.") and line[i - 1] == "-m"), None
        )
        if at is not None:
            yield line[at].removesuffix(".unified_main"), line[at + 1 :]


def _worker(module: str, tokens: Tokens) -> tuple[str, Words, str]:
    """Pool, words and model of a worker."""
    if module not in _READERS:
        known = ", ".join((*_READERS, FRONTEND))
        raise ValueError(f"-m {module} is not read, only {known}; write its words instead")
    table, head, parse = _READERS[module]
    pool, transfer, parser = AGGREGATED, {}, {}
    kept: list[str] = []
    for option in table.read(tokens)[0]:
        if option.flag == MODE and option.values:
            pool = "" if option.values[0] == "agg" else option.values[0]
        elif option.flag in _OLD_MODES:
            pool = _OLD_MODES[option.flag]
        elif option.flag in {KV_TRANSFER, _TRANSFER}:
            transfer = {"kv_transfer": _transfer(module, option)}
        elif option.flag == TOOL_PARSER and option.values:
            parser = {"tool_parser": option.values[0]}
        elif option.flag not in _OF_THE_LAUNCH:
            kept += option.tokens
    if pool and pool not in POOLS:
        raise ValueError(f"{MODE} {pool} is none of {', '.join(POOLS)}")
    config, model = parse(f"{head} {shlex.join(kept)}")
    return pool, {**config.words, **transfer, **parser}, model


def _transfer(module: str, option: Option) -> str:
    """The word for how blocks travel; raises ValueError for a connector that has none."""
    said = " ".join(option.values)
    for word, name in BACKENDS[module].transfers.items():
        if said == name or f'"{name}"' in said:
            return word
    raise ValueError(f"{option.flag} {said} has no word; there are {', '.join(BACKENDS[module].transfers)}")


def _joined(workers: Mapping[str, list[Words]]) -> dict[str, Any]:
    """Words of all workers together: a pool's own where the two differ."""
    if set(workers) == {AGGREGATED} and len(workers[AGGREGATED]) == 1:
        return dict(workers[AGGREGATED][0])
    if set(workers) != set(POOLS):
        for pool, each in workers.items():
            alike(pool or "aggregated", each)
        raise ValueError("there is either one worker that does both phases, or a pool for each of the two")
    return joined(workers)
