"""The archive: raw records of launches as Parquet, in Optuna's artifact store."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import optuna
import pyarrow as pa
import pyarrow.parquet as pq
from optuna.artifacts import ArtifactMeta, get_all_artifact_meta, upload_artifact
from optuna.artifacts._protocol import ArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound

from autotune.adapters.optuna_search import frozen_trial
from autotune.domain.config import EngineConfig
from autotune.domain.errors import InputError, InputProblem
from autotune.domain.launch import Failure, FailureClass, Phase
from autotune.domain.measurement import ClientHealth, LoadCurve, Measurement, RequestTable
from autotune.domain.power import DevicePower, PowerBasis, PowerTrace, Window
from autotune.domain.records import LaunchRecord, Purpose
from autotune.domain.workload import Level

LAUNCH_FILE, REQUESTS_FILE, POWER_FILE = "launch.json", "requests.parquet", "power.parquet"
FORMAT = 1
_POWER_SCHEMA = pa.schema(
    {
        "level": pa.int32(),
        "device": pa.int32(),
        "kind": pa.string(),
        "time_s": pa.float64(),
        "value": pa.float64(),
    }
)
_REQUEST_COLUMNS = ("due_s", "sent_s", "finished_s", "prompt_tokens", "output_tokens", "status")


class ArtifactArchive:
    """Launch records under their Optuna trials: ``launch.json``, two Parquet files, and the logs."""

    def __init__(
        self, study: optuna.Study, store: ArtifactStore, storage: optuna.storages.BaseStorage
    ) -> None:
        self._study, self._store, self._storage = study, store, storage

    def save(self, record: LaunchRecord, logs: Sequence[Path]) -> None:
        """Store a launch's raw records and its logs."""
        trial = frozen_trial(self._study, record.number)
        with tempfile.TemporaryDirectory(prefix="autotune-archive-") as scratch:
            files = [*_write(record, Path(scratch)), *logs]
            for path in files:
                upload_artifact(
                    artifact_store=self._store,
                    file_path=str(path),
                    study_or_trial=trial,
                    storage=self._storage,
                )

    def load(self, study: str, number: int) -> LaunchRecord:
        """Read a launch back; raises InputError where there is none."""
        try:
            trial = frozen_trial(self._study, number)
            metas = {m.filename: m for m in get_all_artifact_meta(trial, storage=self._storage)}
            launch = json.loads(self._read(metas[LAUNCH_FILE]))
            requests = pq.read_table(pa.BufferReader(self._read(metas[REQUESTS_FILE])))
            power = pq.read_table(pa.BufferReader(self._read(metas[POWER_FILE])))
        except (LookupError, ValueError, OSError, pa.ArrowException, ArtifactNotFound) as lost:
            raise InputError(
                InputProblem(
                    f"archive of {study}, trial {number}",
                    f"its raw records are not there ({lost})",
                    "restore the artifacts folder beside the database, or run the study again",
                )
            ) from lost
        return _read(launch, requests, power)

    def _read(self, meta: ArtifactMeta) -> bytes:
        with self._store.open_reader(meta.artifact_id) as file:
            return file.read()


def _write(record: LaunchRecord, folder: Path) -> tuple[Path, ...]:
    launch, requests, power = folder / LAUNCH_FILE, folder / REQUESTS_FILE, folder / POWER_FILE
    launch.write_text(json.dumps(_launch_json(record), indent=1))
    pq.write_table(_requests_table(record.curve), requests, compression="zstd")
    pq.write_table(_power_table(record.curve), power, compression="zstd")
    return launch, requests, power


def _launch_json(record: LaunchRecord) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "study": record.study,
        "number": record.number,
        "purpose": record.purpose,
        "config": record.config.model_dump(exclude_none=True),
        "model": record.model,
        "command": record.command,
        "versions": dict(record.versions),
        "launch_s": record.launch_s,
        "load_s": record.load_s,
        "failure": asdict(record.failure) if record.failure else None,
        "levels": [
            {
                "level": asdict(m.level),
                "window": asdict(m.window),
                "health": asdict(m.health),
                "counters": dict(m.counters),
                "power": {
                    "basis": m.power.basis,
                    "source": m.power.source,
                    "period_s": m.power.period_s,
                    "devices": [d.uid for d in m.power.devices],
                },
            }
            for m in record.curve
        ],
    }


def _requests_table(curve: LoadCurve) -> pa.Table:
    """One row per request; ``level`` is its place in the curve, ``chunk_s`` a list."""
    tables = []
    for index, measurement in enumerate(curve):
        requests = measurement.requests
        columns: dict[str, Any] = {name: getattr(requests, name) for name in _REQUEST_COLUMNS}
        offsets = np.concatenate(([0], requests.chunk_end)).astype(np.int32)
        columns["chunk_s"] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(requests.chunk_s))
        columns["error"] = pa.array(requests.error, pa.string())
        columns["level"] = np.full(len(requests), index, dtype=np.int32)
        tables.append(pa.table(columns))
    return pa.concat_tables(tables) if tables else pa.table({"level": pa.array([], pa.int32())})


def _power_table(curve: LoadCurve) -> pa.Table:
    """One row per sample; ``kind`` says whether ``value`` is instant watts or a counter's joules."""
    parts: list[pa.Table] = []
    for index, measurement in enumerate(curve):
        for place, device in enumerate(measurement.power.devices):
            for kind, time_s, value in (
                ("power_w", device.time_s, device.power_w),
                ("counter_j", device.counter_time_s, device.counter_j),
            ):
                parts.append(
                    pa.table(
                        {
                            "level": np.full(len(time_s), index, dtype=np.int32),
                            "device": np.full(len(time_s), place, dtype=np.int32),
                            "kind": pa.array([kind] * len(time_s), pa.string()),
                            "time_s": time_s,
                            "value": value,
                        }
                    )
                )
    return pa.concat_tables(parts) if parts else _POWER_SCHEMA.empty_table()


def _read(launch: dict[str, Any], requests: pa.Table, power: pa.Table) -> LaunchRecord:
    failure = launch["failure"]
    return LaunchRecord(
        study=launch["study"],
        number=launch["number"],
        purpose=Purpose(launch["purpose"]),
        config=EngineConfig.model_validate(launch["config"]),
        model=launch["model"],
        command=launch["command"],
        curve=tuple(
            _read_level(level, _rows_of(requests, index), _rows_of(power, index))
            for index, level in enumerate(launch["levels"])
        ),
        versions=launch["versions"],
        launch_s=launch["launch_s"],
        load_s=launch["load_s"],
        failure=Failure(
            failure_class=FailureClass(failure["failure_class"]),
            phase=Phase(failure["phase"]),
            line=failure["line"],
            exit_code=failure["exit_code"],
        )
        if failure
        else None,
    )


def _rows_of(table: pa.Table, level: int) -> pa.Table:
    return table.filter(pa.compute.equal(table["level"], level)).combine_chunks()


def _read_level(level: dict[str, Any], requests: pa.Table, power: pa.Table) -> Measurement:
    return Measurement(
        level=Level(**level["level"]),
        window=Window(**level["window"]),
        requests=_read_requests(requests),
        power=_read_power(level["power"], power),
        health=ClientHealth(**level["health"]),
        counters=level["counters"],
    )


def _read_requests(table: pa.Table) -> RequestTable:
    chunks = table["chunk_s"].combine_chunks()
    lengths = cast("Any", pa.compute.list_value_length(chunks)).to_numpy(zero_copy_only=False)
    columns = {name: table[name].to_numpy() for name in _REQUEST_COLUMNS}
    return RequestTable(
        **columns,
        error=tuple(table["error"].to_pylist()),
        chunk_s=chunks.flatten().to_numpy(),
        chunk_end=np.cumsum(lengths, dtype=np.int64),
    )


def _read_power(power: dict[str, Any], table: pa.Table) -> PowerTrace:
    device, kind = table["device"].to_numpy(), np.array(table["kind"].to_pylist(), dtype=object)
    time_s, value = table["time_s"].to_numpy(), table["value"].to_numpy()

    def trace(place: int, uid: str) -> DevicePower:
        watts = (device == place) & (kind == "power_w")
        counted = (device == place) & (kind == "counter_j")
        return DevicePower(
            uid=uid,
            time_s=time_s[watts],
            power_w=value[watts],
            counter_time_s=time_s[counted],
            counter_j=value[counted],
        )

    return PowerTrace(
        basis=PowerBasis(power["basis"]),
        source=power["source"],
        period_s=power["period_s"],
        devices=tuple(trace(place, uid) for place, uid in enumerate(power["devices"])),
    )
