"""Reads the command lines that run vLLM in two pools in production."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from autotune.domain.config import EngineConfig, Pool
from launchers.options import Tokens
from launchers.vllm import command as one_server
from launchers.vllm.flags import KV_TRANSFER, TABLE
from launchers.vllm_pd.connectors import FAILING, ROLES, WORD_OF_CONNECTOR
from launchers.vllm_pd.traits import ENGINE

_SEPARATORS = frozenset("&;\n")
_POOL_OF_ROLE = {role: pool for pool, role in ROLES.items()}
_OF_POOLS = frozenset(Pool.model_fields) - {"workers"}


def parse_command(command: str) -> tuple[EngineConfig, str]:
    """Read the workers' ``vllm serve`` lines, and what stands between, as (configuration, model).

    Lines are apart by ``&&``, ``&``, ``;`` or a line's end; those that start no vLLM, such as a router's, are
    left out. Raises ValueError where they are not two pools of like workers of one model.
    """
    pools: dict[str, list[tuple[Mapping[str, Any], str]]] = {pool: [] for pool in ROLES}
    connectors = set()
    for line in _commands(command):
        if not _starts_vllm(line):
            continue
        config, model = one_server.parse_command(shlex.join(line))
        connector, pool, extra = _transfer(config.extra_args)
        connectors.add(connector)
        pools[pool].append(({**config.words, "extra_args": extra}, model))
    if missing := [pool for pool, workers in pools.items() if not workers]:
        raise ValueError(f"no command line starts a {' or a '.join(missing)} worker ({KV_TRANSFER})")
    workers = [worker for each in pools.values() for worker in each]
    if len({model for _, model in workers}) != 1 or len(connectors) != 1:
        raise ValueError("the workers differ in model or connector")
    shapes = {pool: _alike(pool, [words for words, _ in each]) for pool, each in pools.items()}
    words = _together(shapes)
    for pool, each in pools.items():
        words[f"{pool}.workers"] = len(each)
    words["kv_transfer"] = connectors.pop()
    return EngineConfig.model_validate({"engine": ENGINE, **words}), workers[0][1]


def _commands(text: str) -> list[list[str]]:
    """The commands of a piece of shell, each as its tokens; raises ValueError for what is no such piece."""
    lexer = shlex.shlex(text.replace("\\\n", " "), posix=True, punctuation_chars="&;\n|<>")
    lexer.whitespace = " \t\r"
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        tokens = list(lexer)
    except ValueError as error:
        raise ValueError(f"the command lines cannot be read: {error}") from error
    commands: list[list[str]] = [[]]
    for token in tokens:
        if token and set(token) <= _SEPARATORS:
            commands.append([])
        else:
            commands[-1].append(token)
    return [command for command in commands if command]


def _starts_vllm(command: list[str]) -> bool:
    return any("vllm" in token for token in command) and ("serve" in command or "-m" in command)


def _transfer(extra_args: Tokens) -> tuple[str, str, Tokens]:
    """Word of the connector and name of the pool, and the arguments without the flag that says them."""
    options, loose = TABLE.read(extra_args)
    said = [option for option in options if option.flag == KV_TRANSFER and option.values]
    if len(said) != 1:
        raise ValueError(f"each worker of a pool has one {KV_TRANSFER}")
    given = json.loads(said[0].values[0])
    connector, role = given.pop("kv_connector", None), given.pop("kv_role", None)
    # What is written for each worker, or is so by default where GPUs are served.
    told = {"engine_id": given.get("engine_id"), "kv_buffer_device": "cuda", **FAILING}
    if strange := [key for key, value in given.items() if key not in told or told[key] != value]:
        raise ValueError(f"{KV_TRANSFER}: no word says {', '.join(strange)}")
    if connector not in WORD_OF_CONNECTOR:
        raise ValueError(f"{KV_TRANSFER}: connector {connector!r} is none of {', '.join(WORD_OF_CONNECTOR)}")
    if role not in _POOL_OF_ROLE:
        raise ValueError(f"{KV_TRANSFER}: kv_role {role!r} says not which pool; {' or '.join(_POOL_OF_ROLE)}")
    kept = (token for option in options if option is not said[0] for token in option.tokens)
    return WORD_OF_CONNECTOR[connector], _POOL_OF_ROLE[role], (*loose, *kept)


def _alike(pool: str, workers: list[Mapping[str, Any]]) -> Mapping[str, Any]:
    if any(worker != workers[0] for worker in workers):
        raise ValueError(f"the {pool} workers differ from each other")
    return workers[0]


def _together(shapes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Words of both pools as common ones, and those of one pool under its name."""
    prefill, decode = shapes["prefill"], shapes["decode"]
    words = {word: value for word, value in prefill.items() if word in decode and decode[word] == value}
    for pool, shape in shapes.items():
        own = {word: value for word, value in shape.items() if word not in words}
        if strange := [word for word in own if word not in _OF_POOLS]:
            raise ValueError(f"the pools differ in {', '.join(strange)}, which no pool has for itself")
        words |= {f"{pool}.{word}": value for word, value in own.items()}
    return words
