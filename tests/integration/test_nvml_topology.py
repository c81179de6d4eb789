"""What NVML tells of links, nodes and instances of GPUs: nvidia-ml-py over the stand-in for the driver."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from standin.nvml import build_standin, run_on_standin

LIST = """
import json
from autotune.adapters.devices.inventory import LocalInventory
from autotune.domain.basics.errors import BenchError
from autotune.domain.hardware.hardware import DeviceKind
from autotune.adapters.devices.gpu_memory import used_memory

try:
    found = LocalInventory(kind=DeviceKind.CUDA).devices().devices
except BenchError as error:
    print(json.dumps({"error": str(error)}))
else:
    gpus = [
        [d.index, d.name, d.uid, d.memory_bytes >> 20, d.compute_capability, d.island, d.numa_node]
        for d in found
    ]
    print(json.dumps({"gpus": gpus, "used": [used >> 20 for used in used_memory(found).values()]}))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_standin(tmp_path_factory.mktemp("standin"))


def listed(library: Path, tmp_path: Path, scenario: str) -> Any:
    path = tmp_path / "scenario.txt"
    path.write_text(scenario)
    return json.loads(run_on_standin(library, path, LIST))


def islands(answer: Any) -> list[int]:
    return [gpu[5] for gpu in answer["gpus"]]


def test_islands_are_what_nvlink_joins(library: Path, tmp_path: Path) -> None:
    answer = listed(
        library,
        tmp_path,
        "0 - gpus=5\n0 0 island=7 compute_capability=10.0\n0 3 island=7\n0 1 island=2\n0 2 island=2 numa=1\n"
        "0 4 numa=-1 memory_used_mib=500",
    )
    assert islands(answer) == [0, 1, 1, 0, 4]
    assert [gpu[4] for gpu in answer["gpus"]] == [[10, 0], [9, 0], [9, 0], [9, 0], [9, 0]]
    assert [gpu[6] for gpu in answer["gpus"]] == [0, 0, 1, 0, -1]
    assert answer["used"] == [0, 0, 0, 0, 500]


def test_links_are_followed_to_their_far_ends_where_the_driver_tells_of_no_pairs(
    library: Path, tmp_path: Path
) -> None:
    answer = listed(
        library,
        tmp_path,
        "0 - gpus=4\n0 * error.nvmlDeviceGetP2PStatus=3 nvlinks=2\n"
        "0 0 nvlink.1.remote=2\n0 2 nvlink.0.remote=0\n"
        "0 1 nvlink.0.remote=3 nvlink.0.state=0",
    )
    assert islands(answer) == [0, 1, 0, 3]


def test_an_instance_alone_on_its_gpu_is_a_device(library: Path, tmp_path: Path) -> None:
    answer = listed(
        library,
        tmp_path,
        "0 - gpus=2\n0 1 mig=1 mig_instances=1 mig.0.uuid=MIG-aa mig.0.name=NVIDIA_H200_MIG_3g.71gb "
        "mig.0.memory_mib=71552 island=1",
    )
    assert answer["gpus"][1][:4] == [1, "NVIDIA H200 MIG 3g.71gb", "MIG-aa", 71552]
    assert answer["gpus"][1][5] == -1


@pytest.mark.parametrize("count", [0, 2])
def test_instances_that_share_a_gpu_are_refused(library: Path, tmp_path: Path, count: int) -> None:
    split = f"mig=1 mig_instances={count} mig.0.uuid=MIG-aa mig.1.uuid=MIG-bb"
    answer = listed(library, tmp_path, f"0 - gpus=2\n0 0 {split}")
    assert [gpu[0] for gpu in answer["gpus"]] == [1]
    alone = listed(library, tmp_path, f"0 0 {split}")
    assert f"split into {count} MIG instances" in alone["error"]
    assert "nvidia-smi -i 0 -mig 0" in alone["error"]


def test_a_gpu_that_is_lost_is_a_bench_error(library: Path, tmp_path: Path) -> None:
    answer = listed(
        library,
        tmp_path,
        "0 - gpus=2\n0 1 error.nvmlDeviceGetP2PStatus=15 error.nvmlDeviceGetMemoryAffinity=15",
    )
    assert "cannot list the GPUs" in answer["error"]
