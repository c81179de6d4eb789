"""How KV blocks travel between the pools: vLLM's connectors, and what each wants to be told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from autotune.domain.basics.errors import InfeasibleConfigError
from launchers.options import Tokens
from launchers.vllm.flags import KV_TRANSFER

ROLES = {"prefill": "kv_producer", "decode": "kv_consumer"}


@dataclass(frozen=True, slots=True)
class Connector:
    """A connector's name in vLLM, and the way in which its requests are routed (``--transfer``)."""

    name: str
    routing: str


CONNECTORS: Mapping[str, Connector] = {
    # Decode workers read: on one node without RDMA, UCX reads the memory of another GPU through TCP.
    "nixl": Connector("NixlConnector", "nixl"),
    # Prefill workers write, through NVLink too.
    "nixl-push": Connector("NixlPushConnector", "nixl"),
    "mooncake": Connector("MooncakeConnector", "mooncake"),
}
DEFAULT = "nixl"
FAILING = {"kv_load_failure_policy": "fail"}
"""Computing a prompt again would hide a transfer that failed."""
WORD_OF_CONNECTOR = {connector.name: word for word, connector in CONNECTORS.items()}


def connector_of(word: str | None) -> Connector:
    """The connector that a configuration's ``kv_transfer`` names; raises InfeasibleConfigError."""
    if (word or DEFAULT) not in CONNECTORS:
        raise InfeasibleConfigError(f"vllm-pd: kv_transfer: {word} is none of {', '.join(CONNECTORS)}")
    return CONNECTORS[word or DEFAULT]


def transfer_tokens(connector: Connector, pool: str, role: str) -> Tokens:
    """The flag that makes a worker of ``pool`` take part, under its role's name."""
    given = {"kv_connector": connector.name, "kv_role": ROLES[pool], "engine_id": role, **FAILING}
    return (KV_TRANSFER, json.dumps(given))


def transfer_env(connector: Connector, pool: str, role: str) -> Mapping[str, str]:
    """Where a worker listens for those of the other pool."""
    if connector.routing == "mooncake":
        return {"VLLM_MOONCAKE_BOOTSTRAP_PORT": f"{{port:{role}/bootstrap}}"} if pool == "prefill" else {}
    return {
        "VLLM_NIXL_SIDE_CHANNEL_HOST": f"{{host:{role}}}",
        "VLLM_NIXL_SIDE_CHANNEL_PORT": f"{{port:{role}/nixl}}",
        # UCX then logs which transport it chose: it falls back to TCP without a word.
        "UCX_PROTO_INFO": "y",
    }
