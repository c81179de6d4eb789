"""How KV blocks travelled between pools, by workers' logs: no library warns when it falls back to TCP."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

# Mooncake 0.3.10: transfer_engine_impl.cpp and the transports' own files; vLLM's mooncake_connector.py.
_MOONCAKE = {
    "tcp": r"TcpTransport: listen on port|MC_FORCE_TCP is set, using TCP|installTransport, type=tcp",
    "rdma": r"installTransport, type=rdma|Using RDMA transport|RDMA device: \w+, LID",
    "efa": r"installTransport, type=efa|EfaTransport: Initialized",
    "nvlink": r"Using (?:cross-node|Intra-Node) NVLink transport",
}
_MOONCAKE_PROTOCOL = re.compile(r"Mooncake Transfer Engine is using (\w+) as its protocol")

# A row of UCX's tables (UCX_PROTO_INFO=y; openucx/ucx, src/ucp/proto/proto_debug.c) has cells between bars: a
# heading such as "remote memory read by ucp_get*(multi) into cuda/GPU1 from cuda", beside or below the
# connection's name, then rows of "range of bytes | how | over which lanes".
_OPERATION = re.compile(r"\bucp_(\w+)")
_TRANSFERS = ("get", "put")
_WITHOUT_END = re.compile(r"^\d\S*\.\.inf$")
_LANE = re.compile(r"([a-z][a-z0-9_]*)/\S+")
_EMULATED = "software emulation"

_KINDS = {
    "tcp": r"tcp",
    "shared memory": r"cma|sysv|posix|xpmem|knem",
    "efa": r"efa|srd",
    "rdma": r"rdma|(?:rc|dc|ud)_\w+|rc|dc|ud",
    "xgmi": r"rocm_ipc",
    "nvlink": r"nvlink|cuda_ipc",
}
"""What names of transports stand for, the slowest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transport:
    """Names of the transports that large transfers took, as the library has them (``rc_mlx5``, ``cuda_ipc``).

    None where the log does not say. ``emulated`` where UCX does in software what the fabric does not offer.
    """

    names: tuple[str, ...] = ()
    emulated: bool = False

    @property
    def kind(self) -> str:
        """The slowest kind among them: tcp, shared memory, efa, rdma, xgmi, nvlink; empty if untold."""
        kinds = (kind for kind, texts in _KINDS.items() if any(re.fullmatch(texts, n) for n in self.names))
        return next(kinds, "")

    def with_(self, other: Transport) -> Transport:
        """Those of two workers together."""
        names = tuple(sorted({*self.names, *other.names}))
        return Transport(names=names, emulated=self.emulated or other.emulated)


def transport_of(log: str) -> Transport:
    """Read a worker's log; of each UCX table the row for the largest transfers counts.

    MoRI logs nothing of it, and has no TCP to fall back to.
    """
    names = {name for name, texts in _MOONCAKE.items() if re.search(texts, log)}
    names |= {name.lower() for name in _MOONCAKE_PROTOCOL.findall(log)}
    emulated = False
    for how, lanes in _largest(log):
        names |= set(_LANE.findall(lanes))
        emulated = emulated or _EMULATED in how
    return Transport(names=tuple(sorted(names)), emulated=emulated)


def _largest(log: str) -> Iterator[tuple[str, str]]:
    """How, and over what, each remote read or write of unlimited size goes."""
    of_transfers = False
    for line in log.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) in {1, 2} and (operations := _OPERATION.findall(cells[-1])):
            of_transfers = operations[0].startswith(_TRANSFERS)
        elif len(cells) == len(("range", "how", "lanes")) and of_transfers and _WITHOUT_END.match(cells[0]):
            yield cells[1], cells[2]
