"""Reads the commands that run SGLang with pools in production: one line a worker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autotune.domain.config import POOLS, EngineConfig, Pool
from launchers.options import split_command
from launchers.sglang import command as one_server
from launchers.sglang.flags import TABLE
from launchers.sglang_pd.spec import BOOTSTRAP_PORT, MODE, TRANSFER

_ROUTERS = ("sglang_router", "sglang-router", "smg ")


def parse_command(commands: str) -> tuple[EngineConfig, str]:
    """Read workers' commands, one a line, as (configuration, model); raises ValueError.

    The router's command, and those of a worker's further hosts, are left out. Workers of a pool are alike,
    and the pools differ in nothing but the words that they may have each their own of.
    """
    workers: dict[str, list[Mapping[str, Any]]] = {pool: [] for pool in POOLS}
    models = set()
    for line in commands.replace("\\\n", " ").splitlines():
        command = line.strip().removesuffix("&").strip()
        if not command or command.startswith("#") or any(router in command for router in _ROUTERS):
            continue
        if _options(command).get("--node-rank", ("0",)) != ("0",):
            continue
        config, model = one_server.parse_command(command)
        pool, words = _of_pool(config)
        workers[pool].append(words)
        models.add(model)
    if len(models) != 1:
        raise ValueError(f"workers of one model are needed, one a line; found: {', '.join(sorted(models))}")
    return EngineConfig.model_validate({"engine": "sglang-pd", **_joined(workers)}), models.pop()


def _options(command: str) -> Mapping[str, tuple[str, ...]]:
    return {option.flag: option.values for option in TABLE.read(split_command(command, "sglang"))[0]}


def _of_pool(config: EngineConfig) -> tuple[str, Mapping[str, Any]]:
    """The pool of a worker, and its words without what makes it a worker."""
    words = dict(config.words)
    extra: list[str] = []
    found: dict[str, str] = {}
    for option in TABLE.read(words.pop("extra_args", ()))[0]:
        if option.flag in {MODE, TRANSFER, BOOTSTRAP_PORT} and len(option.values) == 1:
            found[option.flag] = option.values[0]
        else:
            extra += option.tokens
    if found.get(MODE) not in POOLS:
        raise ValueError(f"a worker's command says {MODE} prefill or {MODE} decode; give the workers of both")
    if extra:
        words["extra_args"] = tuple(extra)
    if TRANSFER in found:
        words["kv_transfer"] = found[TRANSFER]
    return found[MODE], words


def _joined(workers: Mapping[str, list[Mapping[str, Any]]]) -> dict[str, Any]:
    """Words of both pools together: a pool's own where the two differ."""
    for pool, each in workers.items():
        if not each:
            raise ValueError(f"no command of a {pool} worker was found")
        if any(words != each[0] for words in each):
            raise ValueError(f"the {pool} workers are not alike")
    prefill, decode = (workers[pool][0] for pool in POOLS)
    joined: dict[str, Any] = {f"{pool}.workers": len(each) for pool, each in workers.items()}
    for word in dict.fromkeys((*prefill, *decode)):
        if prefill.get(word) == decode.get(word):
            joined[word] = prefill[word]
        elif word not in Pool.model_fields:
            raise ValueError(f"prefill and decode differ in {word}, which they can only have in common")
        else:
            for pool, words in zip(POOLS, (prefill, decode), strict=True):
                joined |= {f"{pool}.{word}": words[word]} if word in words else {}
    return joined
