"""A store as large as years of tuning make it: catalog rows by the thousand, one study with raw records."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import optuna

from autotune import wiring
from autotune.adapters.search.study import open_study
from autotune.adapters.store.archive import ArtifactArchive
from autotune.domain.configs.config import EngineConfig
from autotune.domain.load.level import Level
from autotune.domain.measuring.measurement import ClientHealth, Measurement, RequestRecord, RequestTable
from autotune.domain.measuring.power import DevicePower, PowerBasis, PowerTrace, Window
from autotune.domain.studies.records import LaunchRecord, Purpose, StudyRow, StudyStatus, TrialRow, TrialState
from autotune.domain.studies.study import StudySpec

WINDOW = Window(5.0, 35.0)
RATES_RPS = (2.0, 4.0, 6.0, 8.0, 10.0, 12.0)
TOKENS = 40


def spec(name: str) -> StudySpec:
    return StudySpec.model_validate(
        {
            "name": name,
            "model": "some/model",
            "engines": [{"name": "vllm"}],
            "workloads": [{"name": "chat", "input_tokens": 64, "output_tokens": TOKENS}],
            "slas": [
                {"name": "interactive", "attainment": 0.9, "slos": {"ttft": "400ms", "tpot": "25ms"}},
                {"name": "bulk", "contract": "percentile", "slos": {"e2e": {"p90": "8s"}}},
            ],
            "space": {"dimensions": {"max_num_seqs": {"low": 1, "high": 4096}}},
            "budget": {"launches": 5000},
        }
    )


def row(study: str, number: int) -> TrialRow:
    config = EngineConfig(engine="vllm", max_num_seqs=number + 1, tensor_parallel=1 + number % 4)
    return TrialRow(
        study=study,
        number=number,
        purpose=Purpose.DEFAULTS if number == 0 else Purpose.SEARCH,
        state=TrialState.MEASURED,
        config=config,
        command=f"vllm serve some/model --max-num-seqs {number + 1}",
        launch_s=30.0,
        load_s=90.0,
        total_s=125.0,
        objectives={"interactive": float(number), "bulk": float(number % 17)},
    )


def make(folder: Path, *, studies: int, trials: int, archived: int) -> str:
    """Make a store; returns its URL. The study ``dense`` has ``archived`` launches with raw records."""
    url = f"sqlite:///{folder}/studies.db"
    store = wiring.open_store(url)
    names = [f"study-{index:04}" for index in range(studies)]
    for index, name in enumerate(names):
        _put_study(store, name, f"2026-01-{1 + index % 28:02}T00:00:00+00:00")
    for number in range(trials):
        store.catalog.put(row(names[0], number))
    _copy_rows(folder / "studies.db", names)
    _put_study(store, "dense", "2026-02-01T00:00:00+00:00")
    storage = optuna.storages.get_storage(url)
    sampler = optuna.samplers.RandomSampler(seed=0)
    study = open_study("dense", storage, slas=["interactive", "bulk"], sampler=sampler)
    archive = ArtifactArchive(study, store.artifacts, storage)
    random = np.random.default_rng(0)
    for number in range(archived):
        trial = study.ask()
        trial.suggest_int("max_num_seqs", 1, 4096)
        each = row("dense", number)
        archive.save(_record(each, random), [])
        study.tell(trial, list(each.objectives.values()))
        store.catalog.put(each)
    store.catalog.close()
    return url


def _copy_rows(database: Path, names: Sequence[str]) -> None:
    """Give every study the rows of the first, in one go."""
    with closing(sqlite3.connect(database)) as connection, connection:
        columns = [column for _, column, *_ in connection.execute("PRAGMA table_info(autotune_trials)")]
        others = ", ".join(f'"{column}"' for column in columns if column != "study")
        for name in names[1:]:
            connection.execute(
                f"INSERT INTO autotune_trials (study, {others}) "
                f"SELECT ?, {others} FROM autotune_trials WHERE study = ?",
                (name, names[0]),
            )


def _put_study(store: wiring.Store, name: str, started_at: str) -> None:
    text = json.dumps(spec(name).model_dump(mode="json"))
    store.catalog.put_study(
        StudyRow(
            name=name,
            spec=text,
            status=StudyStatus.FINISHED,
            owner="",
            spent_s=1e4,
            started_at=started_at,
        )
    )


def _record(of: TrialRow, random: np.random.Generator) -> LaunchRecord:
    slowness = random.uniform(0.5, 2.0)
    return LaunchRecord(
        study=of.study,
        number=of.number,
        purpose=of.purpose,
        config=of.config,
        model="some/model",
        command=of.command,
        curve=tuple(_level(rate, slowness, random) for rate in RATES_RPS),
        versions={"vllm": "0"},
        launch_s=of.launch_s,
        load_s=of.load_s,
        device="a device",
    )


def _level(rate_rps: float, slowness: float, random: np.random.Generator) -> Measurement:
    due = np.arange(0.0, 40.0, 1 / rate_rps)
    tpot_s = 0.004 * slowness * (1 + rate_rps) * random.lognormal(0, 0.2, len(due))
    records = [
        RequestRecord(
            due_s=at,
            sent_s=at,
            finished_s=at + 0.1 + tpot * TOKENS,
            chunk_s=tuple((at + 0.1 + tpot * np.arange(TOKENS)).tolist()),
            prompt_tokens=64,
            output_tokens=TOKENS,
            status=200,
        )
        for at, tpot in zip(due.tolist(), tpot_s.tolist(), strict=True)
    ]
    time_s = np.arange(0.0, 41.0, 0.1)
    device = DevicePower(
        uid="gpu-0",
        time_s=time_s,
        power_w=300 + 10 * random.standard_normal(len(time_s)),
        counter_time_s=np.zeros(0),
        counter_j=np.zeros(0),
    )
    return Measurement(
        level=Level("chat", rate_rps=rate_rps),
        window=WINDOW,
        requests=RequestTable.of(records),
        power=PowerTrace(basis=PowerBasis.GPU, source="made", period_s=0.1, devices=(device,)),
        health=ClientHealth(lag_p99_s=0.0, cpu_share=0.1),
    )
