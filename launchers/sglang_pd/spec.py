"""Writes the workers of both pools and the router in front of them.

The router sends a request to one prefill and one decode worker; the decode worker asks the prefill worker's
bootstrap server where the KV blocks are, and is sent them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from autotune.domain.basics.errors import InfeasibleConfigError
from autotune.domain.configs.config import EngineConfig, Pool
from autotune.domain.launches.launch import LaunchContext, LaunchSpec, ProcessSpec
from launchers.nodes import PlacedDevice, placed
from launchers.options import Tokens, refuse_words
from launchers.sglang.spec import served_model, server
from launchers.sglang_pd.traits import TRAITS

ROUTER = "router"
MODE = "--disaggregation-mode"
TRANSFER = "--disaggregation-transfer-backend"
BOOTSTRAP_PORT = "--disaggregation-bootstrap-port"


def launch_spec(config: EngineConfig, context: LaunchContext) -> LaunchSpec:
    """Write workers and router; raises InfeasibleConfigError naming word, flag and version.

    The first devices are the prefill workers', one worker after the other, the rest the decode workers'.
    """
    refuse_words(TRAITS.engine, config, TRAITS.dimensions)
    _refuse_impossible(config)
    devices = placed(context.devices)
    pools = {name: _workers(name, pool, config, context, devices) for name, pool in config.pools.items()}
    workers = [worker for pool in pools.values() for worker in pool]
    router = _router(context, {name: [worker[0].role for worker in pool] for name, pool in pools.items()})
    return LaunchSpec(
        processes=(*(process for worker in workers for process in worker), router),
        serving_role=ROUTER,
        served_model=served_model(workers[0][0].argv, context.model),
        counter_roles=tuple(worker[0].role for worker in pools["decode"]),
    )


def _refuse_impossible(config: EngineConfig) -> None:
    if not config.pools:
        raise InfeasibleConfigError("sglang-pd: prefill.workers and decode.workers are needed")
    # arg_groups/pd_disaggregation_hook.py
    split = config.pools["decode"].context_parallel or 1
    if split > 1 and config.kv_transfer not in {None, "mooncake", "nixl"}:
        raise InfeasibleConfigError(f"sglang-pd: no kv_transfer {config.kv_transfer} with context_parallel")


def _workers(
    name: str, pool: Pool, config: EngineConfig, context: LaunchContext, devices: Iterator[PlacedDevice]
) -> list[tuple[ProcessSpec, ...]]:
    words = {word: value for word, value in config.words.items() if "." not in word and word != "kv_transfer"}
    own = pool.model_dump(exclude_none=True, exclude={"workers"})
    worker = EngineConfig.model_validate({"engine": "sglang", **words, **own})
    context = replace(context, env={**_transfer_env(config), **context.env})
    return [
        server(role, worker, context, devices, _mode(name, role, config))
        for role in (f"{name}-{index}" for index in range(pool.workers or 1))
    ]


def _mode(pool: str, role: str, config: EngineConfig) -> Tokens:
    transfer = (TRANSFER, config.kv_transfer) if config.kv_transfer else ()
    bootstrap = (BOOTSTRAP_PORT, f"{{port:{role}/bootstrap}}") if pool == "prefill" else ()
    return (MODE, pool, *transfer, *bootstrap)


def _transfer_env(config: EngineConfig) -> dict[str, str]:
    # NIXL tells nowhere else which transport UCX chose for it.
    return {"UCX_PROTO_INFO": "y"} if config.kv_transfer == "nixl" else {}


def _router(context: LaunchContext, roles: dict[str, list[str]]) -> ProcessSpec:
    prefill = [("--prefill", _url(role), f"{{port:{role}/bootstrap}}") for role in roles["prefill"]]
    decode = [("--decode", _url(role)) for role in roles["decode"]]
    argv = (
        # The interpreter beside the `sglang` command.
        *(str(context.environment.executable.with_name("python")), "-m", "sglang_router.launch_router"),
        "--pd-disaggregation",
        *(token for worker in (*prefill, *decode) for token in worker),
        # It starts with the workers, and looks for them twice a minute unless told otherwise.
        *("--worker-startup-check-interval", "1"),
        # A port of its own for what it counts, which is a fixed one unless given.
        *("--prometheus-host", f"{{host:{ROUTER}}}", "--prometheus-port", f"{{port:{ROUTER}/metrics}}"),
        *("--host", f"{{host:{ROUTER}}}", "--port", f"{{port:{ROUTER}}}"),
    )
    return ProcessSpec(
        role=ROUTER,
        argv=argv,
        env=dict(context.env),
        devices=(),
        ready_path="/readiness",
        depends_on=(*roles["prefill"], *roles["decode"]),
    )


def _url(role: str) -> str:
    return f"http://{{host:{role}}}:{{port:{role}}}"
