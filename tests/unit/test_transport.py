"""What workers' logs tell of how KV blocks travelled."""

from __future__ import annotations

import pytest

from autotune.domain.launches.transport import Transport, transport_of

REAL = """
[1795245091.092860] [vm:9963 :0]   | 63051436-71df-4281-b6b3-cd73b43 intra-node cfg#1                 |
[1795245091.092860] [vm:9963 :0]   | remote memory read by ucp_get*(multi) into host memory from host |
[1795245091.092860] [vm:9963 :0]   +--------+-------------+-------------------------------------------+
[1795245091.092860] [vm:9963 :0]   | Range  | Description |                  Config                   |
[1795245091.092860] [vm:9963 :0]   +--------+-------------+-------------------------------------------+
[1795245091.092860] [vm:9963 :0]   | 0..inf | zero-copy   | cma/memory                                |
[1795245091.092860] [vm:9963 :0]   +--------+-------------+-------------------------------------------+
[1795245091.112027] [vm:9963 :0]   | active message by ucp_am_send* with reply flag(multi) from host memory |
[1795245091.112027] [vm:9963 :0]   | 627..inf | multi-frag copy-in | tcp/lo                                 |
"""
"""From the log of a decode worker, vLLM 0.32.0 on CPU with NIXL 1.5.1."""


def ucx(*rows: tuple[str, ...]) -> str:
    return "\n".join(f"[1763.1] [host:7 :0]  | {' | '.join(row)} |" for row in rows)


READ = ("ucp_context_0 intra-node cfg#2", "remote memory read by ucp_get*(multi) into cuda/GPU1 from cuda")
WRITE = ("remote memory write by ucp_put*(multi) from cuda/GPU1 to cuda",)
SEND = ("ucp_context_0 intra-node cfg#2", "active message by ucp_am_send*(egr) from host memory")


@pytest.mark.parametrize(
    ("log", "names", "emulated"),
    [
        ("INFO nothing of it", (), False),
        (REAL, ("cma",), False),
        # What github.com/vllm-project/vllm/issues/52607 and ROCm/legacy-rocm-build/issues/6566 found.
        (ucx(READ, ("0..inf", "software emulation", "tcp/bond0")), ("tcp",), True),
        (
            ucx(
                READ, ("0..8191", "software emulation", "tcp/eth0"), ("8K..inf", "zero-copy", "cuda_ipc/cuda")
            ),
            ("cuda_ipc",),
            False,
        ),
        (
            ucx(READ, ("0..inf", "zero-copy", "50% on rc_mlx5/mlx5_0:1 and 50% on rc_mlx5/mlx5_1:1")),
            ("rc_mlx5",),
            False,
        ),
        (ucx(WRITE, ("0..inf", "zero-copy", "cuda_ipc/cuda")), ("cuda_ipc",), False),
        # Control messages may well go over TCP.
        (ucx(SEND, ("0..inf", "multi-frag", "tcp/eth0")), (), False),
        ("INFO The Mooncake Transfer Engine is using tcp as its protocol.", ("tcp",), False),
        ("INFO The Mooncake Transfer Engine is using rdma as its protocol.", ("rdma",), False),
    ],
)
def test_the_names_are_those_of_large_transfers(log: str, names: tuple[str, ...], emulated: bool) -> None:
    assert transport_of(log) == Transport(names=names, emulated=emulated)


MOONCAKE = "transfer_engine_impl.cpp:252] Topology discovery complete. Found {} HCAs.\n"
MOONCAKE_TCP = MOONCAKE.format(0) + "I0714 tcp_transport.cpp:553] TcpTransport: listen on port 16245\n"
MOONCAKE_RDMA = MOONCAKE.format(8) + "transfer_engine_impl.cpp:336] installTransport, type=rdma\n"
UCX = """\
[1767930429.284905] [n:1:0]   +-------------------------+----------------------------------------------------+
[1767930429.284906] [n:1:0]   | ucp_context_0 intra-node cfg#1 | active message by ucp_am_send* |
[1767930429.284906] [n:1:0]   +-------------------------+-----------+----------------------------------------+
[1767930429.284906] [n:1:0]   |                  0..inf | zero-copy | tcp/eth0                               |
[1767930429.284905] [n:1:0]   +-------------------------+----------------------------------------------------+
[1767930429.284906] [n:1:0]   | ucp_context_0 inter-node cfg#2 | remote memory write by ucp_put*(multi) from \
cuda/GPU4 to cuda/dev[4] |
[1767930429.284906] [n:1:0]   +-------------------------+-----------+----------------------------------------+
[1767930429.284906] [n:1:0]   |                      0  | short     | tcp/eth0                               |
[1767930429.284907] [n:1:0]   |                  1..inf | zero-copy | {lanes}  |
[1767930429.284908] [n:1:0]   +-------------------------+-----------+----------------------------------------+
"""


@pytest.mark.parametrize(
    ("log", "kind"),
    [
        ("", ""),
        (MOONCAKE.format(8), ""),
        (MOONCAKE_TCP, "tcp"),  # kvcache-ai/Mooncake, tcp_transport.cpp
        (MOONCAKE_RDMA, "rdma"),  # kvcache-ai/Mooncake, transfer_engine_impl.cpp
        (MOONCAKE_RDMA + MOONCAKE_TCP, "tcp"),
        ("transfer_engine_impl.cpp:300] Using cross-node NVLink transport", "nvlink"),
        # ai-dynamo/nixl issue 1195, openucx/ucx PR 7950
        (UCX.format(lanes="rc_mlx5/mlx5_11:1 50% on path0 and 50% on path1"), "rdma"),
        (UCX.format(lanes="72% on rc_mlx5/mlx5_2:1 and 28% on dc_mlx5/mlx5_3:1"), "rdma"),
        (UCX.format(lanes="cuda_ipc/cuda"), "nvlink"),
        (UCX.format(lanes="cma/memory"), "shared memory"),
        (UCX.format(lanes="tcp/eth0"), "tcp"),
    ],
)
def test_a_fall_back_to_tcp_is_noticed(log: str, kind: str) -> None:
    assert transport_of(log).kind == kind
