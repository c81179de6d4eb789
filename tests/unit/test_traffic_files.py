"""Files of traffic: each form is read for what it says, anything else is refused with a remedy."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from autotune.adapters.files.traffic_files import load_traffic, read_traffic, resolved_paths, write_traffic
from autotune.domain.basics.errors import InputError
from autotune.domain.load.traffic import Traffic
from autotune.domain.load.workload import TextFiles, Workload

Put = Callable[[str], Path]

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319600,3180,8
2023-11-16 18:17:05.4799600,110,27
"""
MOONCAKE = """timestamp_ms,input_length,output_length,n_hash_blocks_512tok,first_hash
0,1300,500,3,0
0,1400,490,3,0
3000,700,15,2,46
"""
PAIRS = "input_length,output_length\n146,1691\n17,71\n"
HASHES = [
    {"timestamp": 0, "input_length": 1300, "output_length": 500, "hash_ids": [0, 1, 2]},
    {"timestamp": 500, "input_length": 1100, "output_length": 490, "hash_ids": [0, 1, 14]},
    {"timestamp": 3000, "input_length": 400, "output_length": 3, "hash_ids": [46]},
]


@pytest.fixture(params=["plain", "gzipped"])
def put(request: pytest.FixtureRequest, tmp_path: Path) -> Put:
    def write(text: str) -> Path:
        path = tmp_path / "traffic"
        path.write_bytes(gzip.compress(text.encode()) if request.param == "gzipped" else text.encode())
        return path

    return write


def test_azures_form(put: Put) -> None:
    traffic = read_traffic(put(AZURE))
    assert traffic.arrival_s == pytest.approx(np.array([0.0, 0.052, 1.5]), abs=1e-6)
    assert traffic.input_tokens.tolist() == [4808, 3180, 110]
    assert traffic.output_tokens.tolist() == [10, 8, 27]
    assert traffic.prefix_share == 0


def test_azures_times_with_a_zone(put: Put) -> None:
    rows = "2024-05-10 00:00:00.009930+00:00,2162,5\n2024-05-10 00:00:01+00:00,2399,6\n"
    traffic = read_traffic(put("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows))
    assert traffic.arrival_s == pytest.approx(np.array([0.0, 0.99007]), abs=1e-6)


def test_mooncakes_first_blocks(put: Put) -> None:
    traffic = read_traffic(put(MOONCAKE))
    assert traffic.arrival_s == pytest.approx(np.array([0.0, 0.0, 3.0]))
    assert traffic.block.tolist() == [0, 0, 1]
    assert traffic.prefix_share == pytest.approx(512 / 3400)


def test_mooncakes_hash_lists(put: Put) -> None:
    traffic = read_traffic(put("\n".join(json.dumps(row) for row in HASHES) + "\n"))
    assert traffic.arrival_s == pytest.approx(np.array([0.0, 0.5, 3.0]))
    assert traffic.blocks.tolist() == [3, 3, 1]
    assert traffic.block_tokens == 512
    assert traffic.prefix_share == pytest.approx(1024 / 2800)


def test_lengths_alone(put: Put) -> None:
    path = put(PAIRS)
    traffic = read_traffic(path)
    assert traffic.arrival_s is None
    assert traffic.output_tokens.tolist() == [1691, 71]
    with pytest.raises(InputError, match="no arrival times") as raised:
        load_traffic(Workload(trace=str(path), longest=9999))
    assert "lengths:" in raised.value.problems[0].remedy


def test_our_own_form_gives_back_what_was_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    traffic = Traffic.of(
        rng.integers(1, 2000, 200),
        rng.integers(1, 500, 200),
        arrival_s=np.sort(rng.uniform(0, 100, 200)),
        blocks=(rng.integers(0, 50, 600), np.arange(3, 603, 3), 61.3),
        conversation=rng.integers(-1, 9, 200),
    )
    path = tmp_path / "own.parquet"
    write_traffic(path, traffic, {"source": ["gateway"]})
    again = read_traffic(path)
    for column in ("input_tokens", "output_tokens", "arrival_s", "block", "block_end", "conversation"):
        assert (getattr(again, column) == getattr(traffic, column)).all(), column
    assert again.block_tokens == 61.3
    assert [file.name for file in tmp_path.iterdir()] == ["own.parquet"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a,b\n1,2\n",
        "input_length,output_length\n",
        "input_length,output_length\nx,2\n",
        '{"x": 1}\n',
        "{\n",
    ],
)
def test_anything_else_is_refused_with_a_remedy(tmp_path: Path, text: str) -> None:
    path = tmp_path / "traffic"
    path.write_text(text)
    with pytest.raises(InputError, match="is no file of traffic") as raised:
        read_traffic(path)
    assert "input_length, output_length" in raised.value.problems[0].remedy


def test_parquet_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.parquet"
    pa.parquet.write_table(pa.table({"input_tokens": [1]}), path)
    with pytest.raises(InputError, match="Parquet of another kind"):
        read_traffic(path)


@pytest.mark.parametrize(
    "broken", [b"PAR1", b"PAR1 and no more", gzip.compress(MOONCAKE.encode(), mtime=0)[:-20], b"\xff"]
)
def test_a_damaged_file_is_refused(tmp_path: Path, broken: bytes) -> None:
    path = tmp_path / "traffic"
    path.write_bytes(broken)
    with pytest.raises(InputError):
        read_traffic(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.csv: cannot be read") as raised:
        read_traffic(tmp_path / "nowhere.csv")
    assert raised.value.problems[0].remedy


def test_a_workload_gets_its_traffic_scaled_and_cut(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(AZURE)
    traffic = load_traffic(Workload(trace=str(path), length_scale=0.1, longest=400))
    assert traffic is not None
    assert traffic.input_tokens.tolist() == [318, 11]
    assert traffic.left_out == pytest.approx(1 / 3)
    assert load_traffic(Workload(input_tokens=1, output_tokens=1)) is None
    with pytest.raises(InputError, match="the shortest has 137") as raised:
        load_traffic(Workload(trace=str(path), longest=100))
    assert "raise longest" in raised.value.problems[0].remedy


def test_a_first_turn_leaves_room_for_the_system_prompt(tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    path.write_text("input_length,output_length\n60,20\n30,20\n")
    talk = {"turns": 2, "system_tokens": 40}
    workload = Workload.model_validate({"lengths": str(path), "longest": 100, "conversations": talk})
    traffic = load_traffic(workload)
    assert traffic is not None
    assert traffic.input_tokens.tolist() == [30]


def test_paths_count_from_the_study_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside, here = tmp_path / "studies", tmp_path / "here"
    for folder in (beside, here):
        folder.mkdir()
    monkeypatch.chdir(here)
    (beside / "t.csv").write_text(AZURE)
    (here / "t.csv").write_text(PAIRS)
    (here / "books").mkdir()
    workload = Workload.model_validate({"trace": "t.csv", "longest": 9999, "prompts": {"text": "books"}})
    resolved = resolved_paths(workload, beside)
    assert resolved.trace == str(beside / "t.csv")
    assert resolved.prompts == TextFiles(text=str(here / "books"))
    assert resolved_paths(resolved, here) == resolved
    absent = resolved_paths(Workload(lengths="no.csv", longest=9), beside)
    assert absent.lengths == str(beside / "no.csv")
    assert absent.prompts == "random"


@pytest.mark.skipif("AUTOTUNE_TRACES" not in os.environ, reason="AUTOTUNE_TRACES names no folder of traces")
def test_published_traces_are_read_whole() -> None:
    files = sorted(Path(os.environ["AUTOTUNE_TRACES"]).glob("*.csv.gz"))
    assert files
    for file in files:
        with gzip.open(file) as lines:
            requests = sum(1 for _ in lines) - 1
        traffic = read_traffic(file)
        assert len(traffic) / (1 - traffic.left_out) == pytest.approx(requests)
        assert traffic.input_tokens.max() > 500
