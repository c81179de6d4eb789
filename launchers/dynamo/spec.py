"""Writes the workers and the frontend that serve a configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from autotune.domain.basics.errors import InfeasibleConfigError
from autotune.domain.configs.config import EngineConfig, Pool
from autotune.domain.launches.launch import LaunchContext, LaunchSpec, ProcessSpec
from launchers.dynamo.arguments import Arguments, divided
from launchers.dynamo.flags import DISCOVERY, FRONTEND
from launchers.dynamo.traits import TRAITS
from launchers.dynamo.workers import AGGREGATED, BACKENDS, DEFAULT, Backend, Worker, program
from launchers.nodes import placed
from launchers.options import refuse_words

ROLE = "frontend"
_ETCD = "ETCD_ENDPOINTS"


def launch_spec(config: EngineConfig, context: LaunchContext) -> LaunchSpec:
    """Write workers and frontend; raises InfeasibleConfigError naming pool, word and engine.

    The first devices are the prefill workers', one worker after the other, the rest the decode workers'.
    """
    refuse_words(TRAITS.engine, config, TRAITS.dimensions)
    given = divided(config.extra_args, context.args)
    backend = _backend(given)
    if not config.pools and config.kv_transfer:
        raise InfeasibleConfigError("dynamo: kv_transfer needs pools: say prefill.workers and decode.workers")
    inner = replace(context, args=given.workers)
    devices = placed(context.devices)
    written = [backend.processes(worker, inner, devices) for worker in _workers(config, given)]
    processes = [process for worker in written for process in worker]
    frontend = _frontend(given, context, tuple(worker[0].role for worker in written))
    shared = _shared_env(processes, context)
    return LaunchSpec(
        processes=tuple(
            replace(process, env={**shared, **process.env}) for process in (*processes, frontend)
        ),
        serving_role=ROLE,
        served_model=given.served_model(context.model),
    )


def _backend(given: Arguments) -> Backend:
    module = given.module or DEFAULT
    if module not in BACKENDS:
        raise InfeasibleConfigError(f"dynamo: -m {module} is none of {', '.join(BACKENDS)}")
    return BACKENDS[module]


def _workers(config: EngineConfig, given: Arguments) -> Iterator[Worker]:
    pools: Mapping[str, Pool] = config.pools or {AGGREGATED: Pool.model_validate({})}
    common = {word: value for word, value in config.words.items() if "." not in word}
    common = {w: v for w, v in common.items() if w not in {"kv_transfer", "tool_parser", "extra_args"}}
    for name, pool in pools.items():
        own = pool.model_dump(exclude_none=True, exclude={"workers"})
        inner = EngineConfig.model_validate({"engine": TRAITS.engine, **common, **own})
        for index in range(pool.workers or 1):
            yield Worker(
                role=f"{name}-{index}" if name else "worker",
                config=inner,
                pool=name,
                kv_transfer=config.kv_transfer,
                tool_parser=config.tool_parser,
                events=given.routes_by_cache,
            )


def _frontend(given: Arguments, context: LaunchContext, workers: tuple[str, ...]) -> ProcessSpec:
    """The frontend, started last; its /health is 200 when it has looked for workers once."""
    argv = (
        *program(context, FRONTEND),
        *given.frontend,
        *("--http-host", f"{{host:{ROLE}}}", "--http-port", f"{{port:{ROLE}}}"),
    )
    return ProcessSpec(role=ROLE, argv=argv, env=dict(context.env), devices=(), depends_on=workers)


def _shared_env(processes: list[ProcessSpec], context: LaunchContext) -> Mapping[str, str]:
    """How the processes find each other: by files on one host, by an etcd of the study's over several."""
    several = len({process.host_slot for process in processes}) > 1
    if several and _ETCD not in context.env:
        raise InfeasibleConfigError(
            f"dynamo: workers on several hosts find each other through etcd: give {_ETCD} in `env`"
        )
    return {
        DISCOVERY: "etcd" if _ETCD in context.env else "file",
        # No NATS is needed for either.
        "DYN_REQUEST_PLANE": "tcp",
        "DYN_EVENT_PLANE": "zmq",
        # Apart from what another launch, or one that was killed, left to be found.
        "DYN_NAMESPACE": f"autotune-{{port:{ROLE}}}",
    }
