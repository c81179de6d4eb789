"""The archive: raw records of launches as Parquet, in Optuna's artifact store."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import optuna
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from optuna.artifacts import ArtifactMeta, get_all_artifact_meta, upload_artifact
from optuna.artifacts._protocol import ArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound
from pydantic import TypeAdapter

from autotune.adapters.search.study import frozen_trial
from autotune.domain.basics.errors import InputError, InputProblem
from autotune.domain.configs.config import EngineConfig
from autotune.domain.hardware.node import read_node_state
from autotune.domain.judging.quality import QualityVerdict, ReferenceAnswers
from autotune.domain.launches.launch import Failure, FailureClass, Phase
from autotune.domain.launches.transport import Transport
from autotune.domain.load.level import Level
from autotune.domain.measuring.counters import CounterTrace
from autotune.domain.measuring.measurement import (
    REQUEST_COLUMNS,
    ClientHealth,
    Floats,
    LoadCurve,
    Measurement,
    RequestTable,
    WindowEnd,
)
from autotune.domain.measuring.power import (
    Conditions,
    DevicePower,
    PowerBasis,
    PowerScope,
    PowerTrace,
    Window,
)
from autotune.domain.studies.records import LaunchRecord, Purpose

LAUNCH_FILE, ANSWERS_FILE = "launch.json", "answers.json"
REQUESTS_FILE, SERIES_FILE = "requests.parquet", "series.parquet"
FORMAT = 3
"""Raised with every change of what is written; another is refused, not guessed at."""
_SERIES_SCHEMA = pa.schema(
    {
        "level": pa.int32(),
        "source": pa.string(),
        "series": pa.string(),
        "time_s": pa.float64(),
        "value": pa.float64(),
    }
)
_CONDITIONS = ("temperature_c", "clock_mhz", "power_limit_w", "slowdown")
_DEVICE_SERIES = ("power_w", "counter_j", *_CONDITIONS)
_NO_SERIES = (np.zeros(0), np.zeros(0))
_VERDICT, _ANSWERS = TypeAdapter(QualityVerdict), TypeAdapter(ReferenceAnswers)
ENGINE = "engine"
"""Source of the engine's own counters; devices are PLACE/UID, the meter that ranks at place 0."""


class ArtifactArchive:
    """Launch records under their Optuna trials: ``launch.json``, requests and series as Parquet, logs.

    The launch that became the study's reference has its answers beside them.
    """

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
            launch = _launch_of_this_format(self._read(metas[LAUNCH_FILE]))
            requests = pq.read_table(pa.BufferReader(self._read(metas[REQUESTS_FILE])))
            series = pq.read_table(pa.BufferReader(self._read(metas[SERIES_FILE])))
            answers = json.loads(self._read(metas[ANSWERS_FILE])) if ANSWERS_FILE in metas else None
        except (LookupError, ValueError, OSError, pa.ArrowException, ArtifactNotFound) as lost:
            raise InputError(
                InputProblem(
                    f"archive of {study}, trial {number}",
                    f"its raw records are not there ({lost})",
                    "restore the artifacts folder beside the database, or run the study again",
                )
            ) from lost
        return _read(launch, requests, series, answers)

    def _read(self, meta: ArtifactMeta) -> bytes:
        with self._store.open_reader(meta.artifact_id) as file:
            return file.read()


def _write(record: LaunchRecord, folder: Path) -> tuple[Path, ...]:
    launch, requests, series = folder / LAUNCH_FILE, folder / REQUESTS_FILE, folder / SERIES_FILE
    launch.write_text(json.dumps(_launch_json(record), indent=1))
    pq.write_table(_requests_table(record.curve), requests, compression="zstd")
    pq.write_table(_series_table(record.curve), series, compression="zstd")
    if record.answers is None:
        return launch, requests, series
    answers = folder / ANSWERS_FILE
    answers.write_text(json.dumps(asdict(record.answers)))
    return launch, requests, series, answers


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
        "device": record.device,
        "device_count": record.device_count,
        "copies": record.copies,
        "transport": asdict(record.transport) if record.transport else None,
        "before": asdict(record.before) if record.before else None,
        "after": asdict(record.after) if record.after else None,
        "quality": asdict(record.quality) if record.quality else None,
        "kv_tokens": record.kv_tokens,
        "levels": [_level_json(measurement) for measurement in record.curve],
    }


def _level_json(measurement: Measurement) -> dict[str, Any]:
    return {
        "level": asdict(measurement.level),
        "window": asdict(measurement.window),
        "ended": measurement.ended,
        "steady": measurement.steady,
        "prefix_share": measurement.prefix_share,
        "dispersion": measurement.dispersion,
        "health": asdict(measurement.health),
        "counters": list(measurement.counters.values),
        "meters": [
            {
                "basis": trace.basis,
                "source": trace.source,
                "scope": trace.scope,
                "period_s": trace.period_s,
                "reserved": trace.reserved,
                "devices": [{"uid": d.uid, "foreign": d.foreign} for d in trace.devices],
            }
            for trace in (measurement.power, *measurement.beside)
        ],
    }


def _requests_table(curve: LoadCurve) -> pa.Table:
    """One row per request; ``level`` is its place in the curve, ``chunk_s`` a list."""
    tables = []
    for index, measurement in enumerate(curve):
        requests = measurement.requests
        columns: dict[str, Any] = {name: getattr(requests, name) for name in REQUEST_COLUMNS}
        offsets = np.concatenate(([0], requests.chunk_end)).astype(np.int32)
        columns["chunk_s"] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(requests.chunk_s))
        columns["error"] = pa.array(requests.error, pa.string())
        columns["level"] = np.full(len(requests), index, dtype=np.int32)
        tables.append(pa.table(columns))
    return pa.concat_tables(tables) if tables else pa.table({"level": pa.array([], pa.int32())})


def _series_table(curve: LoadCurve) -> pa.Table:
    """One row per sample of each series: watts, joules, degrees of a device, an engine's counters."""
    tables = [
        pa.table(
            {
                "level": np.full(len(time_s), index, dtype=np.int32),
                "source": pa.array([source] * len(time_s), pa.string()),
                "series": pa.array([name] * len(time_s), pa.string()),
                "time_s": time_s,
                "value": np.asarray(values, dtype=np.float64),
            }
        )
        for index, measurement in enumerate(curve)
        for source, name, time_s, values in _series(measurement)
    ]
    return pa.concat_tables(tables) if tables else _SERIES_SCHEMA.empty_table()


def _series(measurement: Measurement) -> Iterator[tuple[str, str, Floats, Floats | NDArray[np.int64]]]:
    for place, trace in enumerate((measurement.power, *measurement.beside)):
        for device in trace.devices:
            source = f"{place}/{device.uid}"
            yield source, "power_w", device.time_s, device.power_w
            yield source, "counter_j", device.counter_time_s, device.counter_j
            for name in _CONDITIONS:
                yield source, name, device.conditions.time_s, getattr(device.conditions, name)
    for name, values in measurement.counters.values.items():
        yield ENGINE, name, measurement.counters.time_s, values


def _launch_of_this_format(text: bytes) -> dict[str, Any]:
    launch: dict[str, Any] = json.loads(text)
    if launch["format"] != FORMAT:
        raise ValueError(f"they are of format {launch['format']}, and this version reads {FORMAT}")
    return launch


def _read(launch: dict[str, Any], requests: pa.Table, series: pa.Table, answers: Any) -> LaunchRecord:
    failure = launch["failure"]
    return LaunchRecord(
        study=launch["study"],
        number=launch["number"],
        purpose=Purpose(launch["purpose"]),
        config=EngineConfig.model_validate(launch["config"]),
        model=launch["model"],
        command=launch["command"],
        curve=tuple(
            _read_level(level, _rows_of(requests, index), _by_series(_rows_of(series, index)))
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
        device=launch["device"],
        device_count=launch["device_count"],
        copies=launch.get("copies", 1),  # launches that were archived before had none beside them
        transport=_transport(launch["transport"]),
        before=read_node_state(launch["before"]) if launch["before"] else None,
        after=read_node_state(launch["after"]) if launch["after"] else None,
        quality=_VERDICT.validate_python(launch["quality"]) if launch["quality"] else None,
        answers=_ANSWERS.validate_python(answers) if answers else None,
        kv_tokens=launch.get("kv_tokens"),  # not told by launches that were archived before it was read
    )


def _transport(stored: dict[str, Any] | None) -> Transport | None:
    return Transport(names=tuple(stored["names"]), emulated=stored["emulated"]) if stored else None


def _rows_of(table: pa.Table, level: int) -> pa.Table:
    return table.filter(pa.compute.equal(table["level"], level)).combine_chunks()


_BySeries = dict[tuple[str, str], tuple[Floats, Floats]]
"""(times, values) by source and series."""


def _by_series(table: pa.Table) -> _BySeries:
    source = np.array(table["source"].to_pylist(), dtype=object)
    series = np.array(table["series"].to_pylist(), dtype=object)
    time_s, value = table["time_s"].to_numpy(), table["value"].to_numpy()
    found: _BySeries = {}
    for key in dict.fromkeys(zip(source, series, strict=True)):
        rows = (source == key[0]) & (series == key[1])
        found[key] = time_s[rows], value[rows]
    return found


def _read_level(level: dict[str, Any], requests: pa.Table, series: _BySeries) -> Measurement:
    power, *beside = (_read_meter(meter, place, series) for place, meter in enumerate(level["meters"]))
    counters = {name: series.get((ENGINE, name), _NO_SERIES) for name in level["counters"]}
    return Measurement(
        level=Level(**level["level"]),
        window=Window(**level["window"]),
        requests=_read_requests(requests),
        power=power,
        beside=tuple(beside),
        health=ClientHealth(**level["health"]),
        counters=CounterTrace(
            time_s=next((time_s for time_s, _ in counters.values()), _NO_SERIES[0]),
            values={name: values for name, (_, values) in counters.items()},
        ),
        ended=WindowEnd(level["ended"]),
        steady=level["steady"],
        prefix_share=level["prefix_share"],
        dispersion=level["dispersion"],
    )


def _read_requests(table: pa.Table) -> RequestTable:
    chunks = table["chunk_s"].combine_chunks()
    lengths = cast("Any", pa.compute.list_value_length(chunks)).to_numpy(zero_copy_only=False)
    columns = {name: table[name].to_numpy() for name in REQUEST_COLUMNS}
    return RequestTable(
        **columns,
        error=tuple(table["error"].to_pylist()),
        chunk_s=chunks.flatten().to_numpy(),
        chunk_end=np.cumsum(lengths, dtype=np.int64),
    )


def _read_meter(meter: dict[str, Any], place: int, series: _BySeries) -> PowerTrace:
    def read(device: dict[str, Any]) -> DevicePower:
        of = {name: series.get((f"{place}/{device['uid']}", name), _NO_SERIES) for name in _DEVICE_SERIES}
        return DevicePower(
            uid=device["uid"],
            time_s=of["power_w"][0],
            power_w=of["power_w"][1],
            counter_time_s=of["counter_j"][0],
            counter_j=of["counter_j"][1],
            conditions=Conditions(
                time_s=of["slowdown"][0],
                temperature_c=of["temperature_c"][1],
                clock_mhz=of["clock_mhz"][1],
                power_limit_w=of["power_limit_w"][1],
                slowdown=of["slowdown"][1].astype(np.int64),
            ),
            foreign=tuple(device["foreign"]),
        )

    return PowerTrace(
        basis=PowerBasis(meter["basis"]),
        source=meter["source"],
        scope=PowerScope(meter["scope"]),
        period_s=meter["period_s"],
        reserved=tuple(meter["reserved"]),
        devices=tuple(read(device) for device in meter["devices"]),
    )
