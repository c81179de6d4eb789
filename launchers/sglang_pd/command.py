"""Reads the commands that run SGLang with pools in production: one a worker."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from autotune.domain.configs.config import POOLS, EngineConfig
from launchers.options import split_command
from launchers.pool_commands import Words, commands, joined
from launchers.sglang import command as one_server
from launchers.sglang.flags import TABLE
from launchers.sglang_pd.spec import BOOTSTRAP_PORT, MODE, TRANSFER

_ROUTERS = ("sglang_router", "sglang-router", "smg ")


def parse_command(text: str) -> tuple[EngineConfig, str]:
    """Read workers' commands as (configuration, model); raises ValueError.

    The router's command, and those of a worker's further hosts, are left out. Workers of a pool are alike,
    and the pools differ in nothing but the words that they may have each their own of.
    """
    workers: dict[str, list[Words]] = {pool: [] for pool in POOLS}
    models = set()
    for tokens in commands(text):
        command = shlex.join(tokens)
        if any(router in command for router in _ROUTERS):
            continue
        if _options(command).get("--node-rank", ("0",)) != ("0",):
            continue
        config, model = one_server.parse_command(command)
        pool, words = _of_pool(config)
        workers[pool].append(words)
        models.add(model)
    if len(models) != 1:
        raise ValueError(f"workers of one model are needed; found: {', '.join(sorted(models)) or 'none'}")
    return EngineConfig.model_validate({"engine": "sglang-pd", **joined(workers)}), models.pop()


def _options(command: str) -> Mapping[str, tuple[str, ...]]:
    return {option.flag: option.values for option in TABLE.read(split_command(command, "sglang"))[0]}


def _of_pool(config: EngineConfig) -> tuple[str, Words]:
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
