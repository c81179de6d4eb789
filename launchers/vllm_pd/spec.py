"""Writes the workers of both pools and the router that serves a configuration."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

from autotune.domain.basics.errors import InfeasibleConfigError
from autotune.domain.configs.config import EngineConfig, Pool
from autotune.domain.launches.launch import LaunchContext, LaunchSpec, ProcessSpec
from launchers.nodes import placed, take
from launchers.options import Tokens, refuse_words
from launchers.vllm.flags import KV_TRANSFER, TABLE
from launchers.vllm.spec import served_model, server_process
from launchers.vllm_pd.connectors import Connector, connector_of, transfer_env, transfer_tokens
from launchers.vllm_pd.traits import ENGINE, TRAITS

ROUTER = "router"
# A module of the tuner's own, run by its own interpreter; it is no import, since launchers know no adapter.
ROUTER_PROGRAM = (sys.executable, "-m", "autotune.adapters.engines.pd_router")


@dataclass(frozen=True, slots=True)
class _Worker:
    """One engine of a pool."""

    pool: str
    role: str
    config: EngineConfig


def launch_spec(config: EngineConfig, context: LaunchContext) -> LaunchSpec:
    """Write prefill and decode workers and the router; raises InfeasibleConfigError.

    Counters are those of the decode workers: prefill workers count each prompt, and a token of it, once more.
    """
    refuse_words(ENGINE, config, TRAITS.dimensions)
    connector = connector_of(config.kv_transfer)
    _refuse_unroutable(config, connector)
    _refuse_own_transfer({"extra_args": config.extra_args, "args": context.args})
    workers = _workers(config)
    processes = _processes(workers, connector, context)
    router = ProcessSpec(
        role=ROUTER,
        argv=_router_argv(workers, connector),
        env={},
        devices=(),
        depends_on=tuple(worker.role for worker in workers),
    )
    return LaunchSpec(
        processes=(*processes, router),
        serving_role=ROUTER,
        served_model=served_model(processes[-1].argv, context.model),
        counter_roles=tuple(worker.role for worker in workers if worker.pool == "decode"),
    )


def _workers(config: EngineConfig) -> tuple[_Worker, ...]:
    return tuple(
        _Worker(name, f"{name}-{index}", _own_config(config, pool))
        for name, pool in config.pools.items()
        for index in range(pool.workers or 1)
    )


def _own_config(config: EngineConfig, pool: Pool) -> EngineConfig:
    """What one worker is, in the words of vLLM by itself."""
    common = {w: value for w, value in config.words.items() if "." not in w and w != "kv_transfer"}
    own = pool.model_dump(exclude_none=True, exclude={"workers"})
    return EngineConfig.model_validate({"engine": "vllm", **common, **own})


def _processes(
    workers: tuple[_Worker, ...], connector: Connector, context: LaunchContext
) -> tuple[ProcessSpec, ...]:
    """The workers' processes, each with devices of its own, in the order in which they come."""
    processes = []
    left = placed(context.devices)
    for worker in workers:
        shares = take(left, worker.config.ranks)
        if len(shares) > 1:
            raise InfeasibleConfigError(
                f"vllm-pd: a worker of {worker.pool} would lie on {len(shares)} hosts"
            )
        ((slot, devices),) = shares
        try:
            process = server_process(
                worker.config,
                replace(context, devices=devices),
                role=worker.role,
                own_args=transfer_tokens(connector, worker.pool, worker.role),
                own_env=transfer_env(connector, worker.pool, worker.role),
            )
        except InfeasibleConfigError as refused:
            raise InfeasibleConfigError(f"{worker.pool}: {refused}") from refused
        processes.append(replace(process, host_slot=slot))
    return tuple(processes)


def _router_argv(workers: tuple[_Worker, ...], connector: Connector) -> Tokens:
    at = {worker: f"http://{{host:{worker.role}}}:{{port:{worker.role}" for worker in workers}
    return (
        *ROUTER_PROGRAM,
        *("--host", f"{{host:{ROUTER}}}", "--port", f"{{port:{ROUTER}}}", "--transfer", connector.routing),
        *(token for worker in workers for token in (f"--{worker.pool}", at[worker] + "}")),
        *(
            token
            for worker in workers
            if connector.routing == "mooncake" and worker.pool == "prefill"
            for token in ("--bootstrap", at[worker] + "/bootstrap}")
        ),
    )


def _refuse_unroutable(config: EngineConfig, connector: Connector) -> None:
    if not config.pools:
        raise InfeasibleConfigError(
            "vllm-pd: there are no pools; say prefill.workers and decode.workers, as `fixed` or in the space"
        )
    replicas = config.pools["prefill"].data_parallel or 1
    if connector.routing == "mooncake" and replicas > 1:
        # Each replica is an engine of its own name, and the router does not learn which took the prompt.
        raise InfeasibleConfigError(
            f"vllm-pd: kv_transfer: mooncake cannot be routed to prefill.data_parallel {replicas}; "
            "use prefill.workers"
        )


def _refuse_own_transfer(free: dict[str, Tokens]) -> None:
    for source, tokens in free.items():
        if any(option.flag.partition(".")[0] == KV_TRANSFER for option in TABLE.read(tokens)[0]):
            raise InfeasibleConfigError(f"{source}: {KV_TRANSFER} is written from the word kv_transfer")
