"""Writes the processes of one worker, by the engine inside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby, islice
from typing import Any

from autotune.domain.basics.errors import InfeasibleConfigError
from autotune.domain.configs.config import EngineConfig
from autotune.domain.hardware.hardware import Device
from autotune.domain.launches.launch import LaunchContext, ProcessSpec
from launchers.dynamo.flags import (
    ENGINE_ARGS,
    EVENTS,
    HEADLESS,
    MODE,
    MODEL,
    PUBLISH_EVENTS,
    SYSTEM_PORT,
    TOOL_PARSER,
    TRTLLM_BLOCK,
    TRTLLM_MODEL,
)
from launchers.nodes import PlacedDevice
from launchers.options import Tokens, refuse_words
from launchers.sglang.spec import server as sglang_server
from launchers.sglang.traits import TRAITS as SGLANG
from launchers.trtllm.keys import NO_OVERLAP, TRANSCEIVER
from launchers.trtllm.llm_options import llm_environment, llm_options, yaml_text
from launchers.trtllm.spec import environment as trtllm_environment
from launchers.trtllm.traits import OF_OPTIONS as TRTLLM_WORDS
from launchers.vllm.flags import KV_TRANSFER
from launchers.vllm.spec import server_process
from launchers.vllm.traits import TRAITS as VLLM

Share = tuple[int, tuple[Device, ...]]
"""Slot of a host, and a worker's devices on it."""

AGGREGATED = ""
_KV_ROLES = {"prefill": "kv_producer", "decode": "kv_consumer"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """One engine: its role in the launch, its pool (``AGGREGATED``: it does both phases), its words.

    ``kv_transfer`` is how its blocks travel, None for the engine's own default; ``events``: it tells the
    router what it has cached. ``config`` has neither ``kv_transfer`` nor ``tool_parser``.
    """

    role: str
    config: EngineConfig
    pool: str = AGGREGATED
    kv_transfer: str | None = None
    tool_parser: str | None = None
    events: bool = False


Write = Callable[[Worker, LaunchContext, Iterator[PlacedDevice]], tuple[ProcessSpec, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """An engine that Dynamo runs: its module, what it can be told, and how a worker of it is written."""

    module: str
    words: frozenset[str]
    transfers: Mapping[str, str]
    write: Write = field(repr=False)

    def processes(
        self, worker: Worker, context: LaunchContext, devices: Iterator[PlacedDevice]
    ) -> tuple[ProcessSpec, ...]:
        """Write a worker on the next of ``devices``, the process that leads it first.

        Raises InfeasibleConfigError naming word and engine.
        """
        refuse_words(f"dynamo over {self.module}", worker.config, self.words)
        if worker.kv_transfer is not None and worker.kv_transfer not in self.transfers:
            choices = ", ".join(self.transfers)
            raise InfeasibleConfigError(
                f"dynamo over {self.module}: kv_transfer cannot be {worker.kv_transfer!r}; choices: {choices}"
            )
        written = self.write(worker, context, devices)
        return tuple(
            replace(process, env={SYSTEM_PORT: f"{{port:{process.role}}}", **process.env})
            for process in written
        )


def program(context: LaunchContext, module: str) -> Tokens:
    """How a module of Dynamo is run."""
    return (str(context.environment.executable), "-m", module)


def _mode(worker: Worker) -> Tokens:
    return (MODE, worker.pool) if worker.pool else ()


def _parser(worker: Worker) -> Tokens:
    return (TOOL_PARSER, worker.tool_parser) if worker.tool_parser else ()


def _publishes(worker: Worker) -> bool:
    """Workers that only decode have nothing cached that a prompt could be routed to."""
    return worker.events and worker.pool != "decode"


def _events(worker: Worker, role: str, **more: Any) -> Tokens:
    if not _publishes(worker):
        return ()
    given = {"publisher": "zmq", "topic": "kv-events", "endpoint": f"tcp://*:{{port:{role}/events}}", **more}
    return (EVENTS, json.dumps(given))


def _shares(worker: Worker, devices: Iterator[PlacedDevice]) -> tuple[Share, ...]:
    mine = islice(devices, worker.config.ranks)
    shares = groupby(mine, key=lambda each: each[0])
    divided = tuple((slot, tuple(device for _, device in share)) for slot, share in shares)
    if len({len(share) for _, share in divided}) > 1:
        sizes = " and ".join(str(len(share)) for _, share in divided)
        raise InfeasibleConfigError(f"dynamo: {worker.role}'s devices lie unevenly on its hosts: {sizes}")
    return divided or ((0, ()),)


def _vllm(worker: Worker, context: LaunchContext, devices: Iterator[PlacedDevice]) -> tuple[ProcessSpec, ...]:
    shares = _shares(worker, devices)
    processes = []
    for rank, (slot, mine) in enumerate(shares):
        role = worker.role if rank == 0 else f"{worker.role}-node{rank}"
        process = server_process(
            worker.config,
            replace(context, devices=mine),
            role=role,
            own_args=(
                *_mode(worker),
                *_vllm_transfer(worker),
                *_events(worker, role, enable_kv_cache_events=True),
                *_parser(worker),
                *(_vllm_joined(worker, len(shares), rank) if len(shares) > 1 else ()),
            ),
            own_env=_vllm_env(worker, role),
        )
        # Without `vllm serve MODEL`, and without the address: a worker listens for the frontend alone.
        argv = (*program(context, "dynamo.vllm"), MODEL, context.model, *process.argv[3:-4])
        silent = HEADLESS in argv
        processes.append(
            replace(process, argv=argv, host_slot=slot, ready_path="" if silent else process.ready_path)
        )
    return tuple(processes)


def _vllm_transfer(worker: Worker) -> Tokens:
    if not worker.pool:
        return ()
    connector = BACKENDS["dynamo.vllm"].transfers[worker.kv_transfer or "nixl"]
    return (KV_TRANSFER, json.dumps({"kv_connector": connector, "kv_role": _KV_ROLES[worker.pool]}))


def _vllm_env(worker: Worker, role: str) -> Mapping[str, str]:
    """Where a worker listens for those of the other pool."""
    if not worker.pool:
        return {}
    if worker.kv_transfer == "mooncake":
        return (
            {"VLLM_MOONCAKE_BOOTSTRAP_PORT": f"{{port:{role}/bootstrap}}"} if worker.pool == "prefill" else {}
        )
    return {
        "VLLM_NIXL_SIDE_CHANNEL_HOST": f"{{host:{role}}}",
        "VLLM_NIXL_SIDE_CHANNEL_PORT": f"{{port:{role}/nixl}}",
    }


def _vllm_joined(worker: Worker, hosts: int, rank: int) -> Tokens:
    """What makes a process one of several: each with replicas of its own, or ranks of one replica."""
    first = worker.role
    replicas = worker.config.data_parallel or 1
    if replicas > 1:
        if replicas % hosts:
            raise InfeasibleConfigError(
                f"dynamo: data_parallel {replicas} does not divide over {hosts} hosts"
            )
        here = replicas // hosts
        return (
            *("--data-parallel-hybrid-lb", "--data-parallel-size-local", str(here)),
            *("--data-parallel-start-rank", str(rank * here)),
            *("--data-parallel-address", f"{{host:{first}}}"),
            *("--data-parallel-rpc-port", f"{{port:{first}/replicas}}"),
        )
    return (
        *("--nnodes", str(hosts), "--node-rank", str(rank)),
        *("--master-addr", f"{{host:{first}}}", "--master-port", f"{{port:{first}/ranks}}"),
        *((HEADLESS,) if rank else ()),
    )


def _sglang(
    worker: Worker, context: LaunchContext, devices: Iterator[PlacedDevice]
) -> tuple[ProcessSpec, ...]:
    transfers = BACKENDS["dynamo.sglang"].transfers
    transfer = (
        ("--disaggregation-transfer-backend", transfers[worker.kv_transfer]) if worker.kv_transfer else ()
    )
    bootstrap = ("--disaggregation-bootstrap-port", f"{{port:{worker.role}/bootstrap}}")
    more = (
        *_mode(worker),
        *(transfer if worker.pool else ()),
        *(bootstrap if worker.pool == "prefill" else ()),
        *_events(worker, worker.role),
        *_parser(worker),
    )
    written = sglang_server(worker.role, worker.config, context, devices, more)
    own = program(context, "dynamo.sglang")
    return tuple(
        replace(process, argv=(*own, *process.argv[2:]), ready_path=process.ready_path if rank == 0 else "")
        for rank, process in enumerate(written)
    )


def _trtllm(
    worker: Worker, context: LaunchContext, devices: Iterator[PlacedDevice]
) -> tuple[ProcessSpec, ...]:
    config = worker.config
    shares = _shares(worker, devices)
    if len(shares) > 1:
        raise InfeasibleConfigError(
            f"dynamo over dynamo.trtllm: {worker.role} would lie on {len(shares)} hosts, whose ranks only "
            "MPI starts; give each worker devices of one host, or run dynamo.vllm or dynamo.sglang"
        )
    ((slot, mine),) = shares
    options = llm_options(config, engine="dynamo over dynamo.trtllm")
    if worker.pool:
        options[TRANSCEIVER] = BACKENDS["dynamo.trtllm"].transfers.get(worker.kv_transfer or "", "DEFAULT")
    if worker.pool == "prefill":
        # Workers that only prefill do not have it (examples/backends/trtllm/engine_configs).
        options[NO_OVERLAP] = True
    argv = (
        *(*program(context, "dynamo.trtllm"), TRTLLM_MODEL, context.model),
        *(ENGINE_ARGS, "{file:engine.yaml}"),
        *((TRTLLM_BLOCK, str(config.block_size)) if config.block_size else ()),
        *_mode(worker),
        *((PUBLISH_EVENTS,) if _publishes(worker) else ()),
        *_parser(worker),
        *config.extra_args,
        *context.args,
    )
    env = {**trtllm_environment(context.model, mine), **llm_environment(config), **context.env}
    files = {"engine.yaml": yaml_text(options)}
    return (ProcessSpec(role=worker.role, argv=argv, env=env, devices=mine, host_slot=slot, files=files),)


BACKENDS: Mapping[str, Backend] = {
    "dynamo.vllm": Backend(
        module="dynamo.vllm",
        words=VLLM.dimensions,
        transfers={"nixl": "NixlConnector", "mooncake": "MooncakeConnector"},
        write=_vllm,
    ),
    "dynamo.sglang": Backend(
        module="dynamo.sglang",
        words=SGLANG.dimensions,
        transfers={name: name for name in ("nixl", "mooncake", "mori")},
        write=_sglang,
    ),
    "dynamo.trtllm": Backend(
        module="dynamo.trtllm",
        words=TRTLLM_WORDS,
        transfers={"nixl": "NIXL", "ucx": "UCX", "mooncake": "MOONCAKE", "mpi": "MPI"},
        write=_trtllm,
    ),
}
DEFAULT = "dynamo.vllm"
