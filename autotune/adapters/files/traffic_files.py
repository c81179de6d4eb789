"""Files of traffic: public traces, length pairs, and our own form, which holds no text.

::

    TIMESTAMP,ContextTokens,GeneratedTokens       CSV, Azure's public LLM traces
    timestamp_ms,input_length,output_length,…     CSV; with first_hash, n_hash_blocks_512tok: first blocks
    {"timestamp": ms, "input_length": …, "output_length": …, "hash_ids": […]}   JSON lines, Mooncake's
    input_length,output_length                    CSV, lengths alone
    Parquet                                       what ``write_traffic`` writes

CSV and JSON lines may be gzipped.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from io import BufferedIOBase
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from autotune.domain.basics.errors import InputError, InputProblem
from autotune.domain.load.traffic import Traffic
from autotune.domain.load.workload import TextFiles, Workload

BLOCK_TOKENS = 512
"""Block size of Mooncake's traces."""

_FACTS = b"autotune.traffic"
_FORMAT = 1
_REMEDY = (
    "give CSV with the columns input_length, output_length and perhaps timestamp_ms, an Azure or Mooncake "
    "trace, or what `autotune workload from-logs` writes"
)


def load_traffic(workload: Workload) -> Traffic | None:
    """Read what a workload's file holds, scaled and cut as it says; None where it has no file.

    Raises InputError.
    """
    if workload.traffic_file is None or workload.longest is None:
        return None
    path = Path(workload.traffic_file)
    traffic = read_traffic(path)
    if workload.trace is not None and traffic.arrival_s is None:
        remedy = "name it under lengths:, which needs no arrivals"
        raise InputError(InputProblem(str(path), "holds lengths alone, no arrival times", remedy))
    system_tokens = workload.conversations.system_tokens if workload.conversations else 0
    try:
        return traffic.fitting(scale=workload.length_scale, longest=workload.longest - system_tokens)
    except ValueError as too_long:
        remedy = f"raise longest of workload {workload.name!r}, or give a length_scale below 1"
        raise InputError(InputProblem(str(path), str(too_long), remedy)) from too_long


def resolved_paths(workload: Workload, folder: Path) -> Workload:
    """The same workload with absolute paths; relative ones count from ``folder``, else from here."""
    update: dict[str, Any] = {
        name: _resolved(value, folder)
        for name in ("trace", "lengths")
        if (value := getattr(workload, name)) is not None
    }
    if isinstance(workload.prompts, TextFiles):
        update["prompts"] = TextFiles(text=_resolved(workload.prompts.text, folder))
    return workload.model_copy(update=update)


def read_traffic(path: Path) -> Traffic:
    """Read a file of any of the forms above; raises InputError."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
        if magic == b"PAR1":
            return _from_parquet(path)
        with gzip.open(path) if magic[:2] == b"\x1f\x8b" else path.open("rb") as lines:
            start = lines.read(64).lstrip()[:1]
            lines.seek(0)
            return _from_json_lines(lines) if start == b"{" else _from_csv(lines)
    except OSError as missing:
        what = f"cannot be read: {missing.strerror or missing}"
        raise InputError(
            InputProblem(str(path), what, "mend the path; it counts from the study file")
        ) from missing
    except (pa.ArrowException, ValueError, KeyError, TypeError, EOFError) as strange:
        raise InputError(InputProblem(str(path), f"is no file of traffic: {strange}", _REMEDY)) from strange


def write_traffic(path: Path, traffic: Traffic, facts: Mapping[str, object]) -> None:
    """Write Parquet, whole or not at all; ``facts`` say where it came from."""
    offsets = np.concatenate(([0], traffic.block_end)).astype(np.int32)
    table = pa.table(
        {
            "arrival_s": pa.array(traffic.arrival_s, pa.float64()),
            "input_tokens": pa.array(traffic.input_tokens, pa.int64()),
            "output_tokens": pa.array(traffic.output_tokens, pa.int64()),
            "blocks": pa.ListArray.from_arrays(offsets, pa.array(traffic.block, pa.int64())),
            "conversation": pa.array(traffic.conversation, pa.int64()),
        }
    )
    about = {**facts, "format": _FORMAT, "block_tokens": traffic.block_tokens}
    partial = path.with_name(f".{path.name}.partial")
    pa.parquet.write_table(
        table.replace_schema_metadata({_FACTS: json.dumps(about)}), partial, compression="zstd"
    )
    partial.replace(path)


def _from_parquet(path: Path) -> Traffic:
    table = pa.parquet.read_table(path)
    about = json.loads((table.schema.metadata or {}).get(_FACTS, "{}"))
    if about.get("format") != _FORMAT:
        raise ValueError("Parquet of another kind")
    blocks = table["blocks"].combine_chunks()
    return Traffic.of(
        table["input_tokens"].to_numpy(),
        table["output_tokens"].to_numpy(),
        arrival_s=table["arrival_s"].to_numpy(),
        blocks=(blocks.flatten().to_numpy(), np.cumsum(blocks.value_lengths()), about["block_tokens"]),
        conversation=table["conversation"].to_numpy(),
    )


def _from_csv(file: BufferedIOBase) -> Traffic:
    times = {"TIMESTAMP": pa.string()}
    table = pa.csv.read_csv(file, convert_options=pa.csv.ConvertOptions(column_types=times))
    names = set(table.column_names)
    if {"TIMESTAMP", "ContextTokens", "GeneratedTokens"} <= names:
        at_s = [_epoch_s(text) for text in table["TIMESTAMP"].to_pylist()]
        return Traffic.of(
            _whole(table, "ContextTokens"), _whole(table, "GeneratedTokens"), arrival_s=np.array(at_s)
        )
    if not {"input_length", "output_length"} <= names:
        raise ValueError(f"its columns are {', '.join(table.column_names)}")
    inputs, outputs = _whole(table, "input_length"), _whole(table, "output_length")
    arrival_s = table["timestamp_ms"].to_numpy() / 1e3 if "timestamp_ms" in names else None
    blocks = None
    if "first_hash" in names:
        blocks = (_whole(table, "first_hash"), np.arange(1, len(inputs) + 1), float(BLOCK_TOKENS))
    return Traffic.of(inputs, outputs, arrival_s=arrival_s, blocks=blocks)


def _from_json_lines(file: BufferedIOBase) -> Traffic:
    rows = [json.loads(line) for line in file if line.strip()]
    hashes = [row.get("hash_ids", []) for row in rows]
    timed = all("timestamp" in row for row in rows)
    return Traffic.of(
        np.array([row["input_length"] for row in rows], dtype=np.int64),
        np.array([row["output_length"] for row in rows], dtype=np.int64),
        arrival_s=np.array([row["timestamp"] / 1e3 for row in rows]) if timed else None,
        blocks=(
            np.fromiter(chain.from_iterable(hashes), dtype=np.int64),
            np.cumsum([len(keys) for keys in hashes], dtype=np.int64),
            float(BLOCK_TOKENS),
        ),
    )


def _whole(table: pa.Table, name: str) -> Any:
    return table[name].cast(pa.int64()).to_numpy()


def _epoch_s(text: str) -> float:
    at = datetime.fromisoformat(text)
    return at.replace(tzinfo=at.tzinfo or UTC).timestamp()


def _resolved(path: str, folder: Path) -> str:
    given = Path(path).expanduser()
    beside = folder / given
    return str((given if given.exists() and not beside.exists() else beside).resolve())
