"""Reads the command lines that run vLLM in two pools in production."""

from __future__ import annotations

import json
import shlex

from autotune.domain.configs.config import EngineConfig
from launchers.options import Tokens
from launchers.pool_commands import Words, commands, joined
from launchers.vllm import command as one_server
from launchers.vllm.flags import KV_TRANSFER, TABLE
from launchers.vllm_pd.connectors import FAILING, ROLES, WORD_OF_CONNECTOR
from launchers.vllm_pd.traits import ENGINE

_POOL_OF_ROLE = {role: pool for pool, role in ROLES.items()}


def parse_command(command: str) -> tuple[EngineConfig, str]:
    """Read the workers' ``vllm serve`` lines, and what stands between, as (configuration, model).

    Lines are apart by ``&&``, ``&``, ``;`` or a line's end; those that start no vLLM, such as a router's, are
    left out. Raises ValueError where they are not two pools of like workers of one model.
    """
    pools: dict[str, list[Words]] = {pool: [] for pool in ROLES}
    connectors, models = set(), set()
    for line in commands(command):
        if not _starts_vllm(line):
            continue
        config, model = one_server.parse_command(shlex.join(line))
        connector, pool, extra = _transfer(config.extra_args)
        connectors.add(connector)
        models.add(model)
        pools[pool].append({**config.words, "extra_args": extra})
    words = joined(pools)
    if len(models) != 1 or len(connectors) != 1:
        raise ValueError("the workers differ in model or connector")
    words["kv_transfer"] = connectors.pop()
    return EngineConfig.model_validate({"engine": ENGINE, **words}), models.pop()


def _starts_vllm(command: Tokens) -> bool:
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
