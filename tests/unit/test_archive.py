"""The archive, over a real store: what is read back is what was saved, to the last bit."""

from __future__ import annotations

import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import optuna
import pytest
from fakes import curve, study_spec
from numpy.testing import assert_array_equal
from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta
from synthetic_measurements import HEALTHY, request, steady_power

from autotune.adapters.store.archive import ArtifactArchive
from autotune.domain.basics.errors import InputError
from autotune.domain.configs.config import EngineConfig
from autotune.domain.hardware.node import DeviceHealth, XidCount
from autotune.domain.judging.answers import Answer, Question, Step
from autotune.domain.judging.quality import (
    Interview,
    Measure,
    Precision,
    QualityFigure,
    QualityState,
    QualityVerdict,
    Reading,
    ReferenceAnswers,
    Setting,
)
from autotune.domain.judging.scoring import score_curve
from autotune.domain.launches.launch import Failure, FailureClass, Phase
from autotune.domain.load.level import Level
from autotune.domain.measuring.counters import CounterTrace
from autotune.domain.measuring.measurement import (
    ClientHealth,
    Measurement,
    RequestRecord,
    RequestTable,
    WindowEnd,
)
from autotune.domain.measuring.power import (
    Conditions,
    DevicePower,
    PowerBasis,
    PowerScope,
    PowerTrace,
    Slowdown,
    Window,
)
from autotune.domain.studies.records import LaunchRecord, Purpose

WINDOW = Window(100.125, 103.1)
NEVER_SENT = RequestRecord(due_s=100.5, error="not sent: the run ended")
REQUESTS = [
    request(100.2, tokens=3),
    request(100.4, error="HTTP 503"),
    NEVER_SENT,
    request(101.1, ttft_s=1 / 3, tokens=1),
    request(99.0, tokens=7),
]


def power(*, counters: bool) -> PowerTrace:
    """Two devices, one of them with an energy counter."""
    time_s = np.linspace(99.0, 104.0, 51)
    counted = (time_s[::5], 700.0 + 80.1 * time_s[::5]) if counters else (np.zeros(0), np.zeros(0))
    return PowerTrace(
        basis=PowerBasis.GPU,
        source="recorded",
        period_s=0.1,
        devices=(
            DevicePower(
                uid="gpu-0",
                time_s=time_s,
                power_w=np.full(51, 80.1),
                counter_time_s=counted[0],
                counter_j=counted[1],
            ),
            DevicePower(
                uid="gpu-1",
                time_s=time_s + 0.01,
                power_w=np.linspace(10, 20, 51),
                counter_time_s=np.zeros(0),
                counter_j=np.zeros(0),
            ),
        ),
    )


def level(chosen: Level, requests: list[RequestRecord], *, trace: PowerTrace | None = None) -> Measurement:
    return Measurement(
        level=chosen,
        window=WINDOW,
        requests=RequestTable.of(requests),
        power=trace or power(counters=True),
        health=ClientHealth(lag_p99_s=0.001, cpu_share=0.25, loop_lag_p99_s=0.002, processes=2),
        beside=(host_power(),),
        counters=CounterTrace(
            time_s=np.array([100.0, 101.0]),
            values={"preemptions": np.array([0.0, 2.0]), "hits": np.array([np.nan, 0.1])},
        ),
        ended=WindowEnd.OVERSATURATED,
        steady=False,
        prefix_share=0.25,
    )


def host_power() -> PowerTrace:
    """A package beside the GPUs, under conditions of its own and disturbed."""
    time_s = np.linspace(99.0, 104.0, 6)
    package = DevicePower(
        uid="gpu-0",  # uids of one meter say nothing of another's
        time_s=time_s,
        power_w=np.full(6, 55.0),
        counter_time_s=time_s,
        counter_j=55.0 * time_s,
        conditions=Conditions(
            time_s=time_s[:2],
            temperature_c=np.array([40.0, np.nan]),
            clock_mhz=np.array([1980.0, 1755.0]),
            power_limit_w=np.array([700.0, 700.0]),
            slowdown=np.array([Slowdown.NONE, Slowdown.THERMAL | Slowdown.POWER_CAP]),
        ),
        foreign=("python (pid 7)",),
    )
    return PowerTrace(
        basis=PowerBasis.HOST,
        source="a package",
        period_s=1.0,
        devices=(package,),
        scope=PowerScope.PACKAGE,
        reserved=("gpu-0", "gpu-9"),
    )


NODE = replace(
    fakes.NODE,
    load_1min=0.5,
    busy_share=0.1,
    devices=(DeviceHealth(uid="gpu-0", temperature_c=41.0, mig=False),),
    xids=(XidCount("0000:3b:00", 79, 1, 12.5),),
    idle_power_w=70.5,
)
PRECISION = Precision(
    checkpoint="some/model", weights="int8", activations="auto", kv_cache="fp8", build="fake 1", other=("-a",)
)
VERDICT = QualityVerdict(
    state=QualityState.FAILED,
    precision=PRECISION,
    judged_in=0,
    reference=0,
    figures=(
        QualityFigure(
            setting=Setting.LONG, measure=Measure.HIGH, value=float("inf"), own=0.1 + 0.2, threshold=0.9
        ),
    ),
    reasons=("so far",),
    known="4 of 4",
)
ANSWER = Answer(
    text="naïve \u2028 text",
    output_tokens=2,
    # An id and a text of the same digits are different tokens.
    steps=(Step(7, -0.1 - 0.2, ((7, -0.3), (8, -9999.0))), Step("7", -1 / 3, (("7", -1 / 3), ("8", -2.0)))),
    problem="HTTP 500",
)
ANSWERS = ReferenceAnswers(
    number=0,
    precision=PRECISION,
    questions=(Question((1, 2), (("user", "one"),)),),
    scored_questions=(Question((1, 2, 7), scored=1),),
    long_questions=(Question(tuple(range(100))),),
    answers=Interview(alone=(ANSWER,), scored_alone=(ANSWER, ANSWER)),
    own=(Reading(Setting.TOGETHER, Measure.KL, 1e-9),),
)
FULL = LaunchRecord(
    study="small",
    number=0,
    purpose=Purpose.FINAL,
    config=EngineConfig(engine="fake", max_num_seqs=8, extra_args=("--a b",)),
    model="some/model",
    command="serve 'some/model'",
    curve=(
        level(Level("chat", concurrency=4), REQUESTS),
        level(Level("chat", rate_rps=1.7), REQUESTS[::-1], trace=power(counters=False)),
    ),
    versions={"fake": "1", "driver": "570"},
    launch_s=1.25,
    load_s=2.5,
    failure=Failure(
        failure_class=FailureClass.DIED_UNDER_LOAD, phase=Phase.LOADING, line="the line", exit_code=-9
    ),
    device="NVIDIA H200",
    before=NODE,
    after=replace(NODE, xids=None, devices=()),
    quality=VERDICT,
    answers=ANSWERS,
)


class Shelf:
    """An archive with a trial or two open in its Optuna study."""

    def __init__(self, folder: Path) -> None:
        self.artifacts = folder / "artifacts"
        self.artifacts.mkdir()
        self.storage = optuna.storages.get_storage(f"sqlite:///{folder}/studies.db")
        self.study = optuna.create_study(storage=self.storage)
        self.study.ask()
        self.study.ask()
        self.archive = ArtifactArchive(self.study, FileSystemArtifactStore(str(self.artifacts)), self.storage)

    def round_trip(self, record: LaunchRecord) -> LaunchRecord:
        self.archive.save(record, [])
        return self.archive.load(record.study, record.number)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def assert_same(loaded: Any, saved: Any) -> None:
    """Field by field, arrays with their NaN and types."""
    if isinstance(saved, np.ndarray):
        assert loaded.dtype == saved.dtype
        assert_array_equal(loaded, saved)
    elif isinstance(saved, dict):
        assert list(loaded) == list(saved)
        assert_same(tuple(loaded.values()), tuple(saved.values()))
    elif isinstance(saved, tuple):
        assert len(loaded) == len(saved)
        for one, other in zip(loaded, saved, strict=True):
            assert_same(one, other)
    elif hasattr(saved, "__dataclass_fields__"):
        assert type(loaded) is type(saved)
        for f in fields(saved):
            assert_same(getattr(loaded, f.name), getattr(saved, f.name))
    else:
        assert loaded == saved


def test_a_record_is_read_as_it_was_saved(shelf: Shelf) -> None:
    assert_same(shelf.round_trip(FULL), FULL)


@pytest.mark.parametrize(
    "record",
    [
        replace(FULL, curve=()),
        replace(FULL, curve=(), failure=None, before=None, after=None),
        replace(FULL, quality=None, answers=None),
        replace(FULL, failure=replace(FULL.failure, exit_code=None)) if FULL.failure else FULL,
        replace(FULL, curve=(level(Level("chat", rate_rps=1.0), []),)),
        replace(FULL, curve=(level(Level("chat", rate_rps=1.0), [NEVER_SENT]),)),
        replace(FULL, curve=(level(Level("chat", rate_rps=1.0), []), FULL.curve[0])),
        replace(FULL, curve=(replace(FULL.curve[0], power=replace(power(counters=True), devices=())),)),
    ],
    ids=[
        "no levels",
        "no levels and no failure",
        "nothing of quality",
        "no exit code",
        "no requests",
        "no chunks",
        "an empty level before a full one",
        "no devices",
    ],
)
def test_records_with_parts_missing_are_read_as_they_were_saved(shelf: Shelf, record: LaunchRecord) -> None:
    assert_same(shelf.round_trip(record), record)


def test_a_loaded_record_scores_as_the_original(shelf: Shelf) -> None:
    measured = replace(FULL, curve=curve((3.0, 4.0, 5.0, 6.0)), failure=None)
    loaded = shelf.round_trip(measured)
    for sla in study_spec().slas:
        score = score_curve(measured.curve, sla, "chat")
        assert score.objective > 0
        assert score_curve(loaded.curve, sla, "chat") == score


def test_records_of_several_trials_do_not_mix(shelf: Shelf) -> None:
    other = replace(FULL, number=1, curve=FULL.curve[:1], failure=None)
    shelf.archive.save(FULL, [])
    shelf.archive.save(other, [])
    assert_same(shelf.archive.load("small", 0), FULL)
    assert_same(shelf.archive.load("small", 1), other)


def test_logs_are_kept_beside_the_record(shelf: Shelf, tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    log.write_text("out of memory")
    shelf.archive.save(FULL, [log])
    metas = {
        meta.filename: meta
        for meta in get_all_artifact_meta(shelf.study.get_trials()[0], storage=shelf.storage)
    }
    assert (shelf.artifacts / metas["engine.log"].artifact_id).read_text() == "out of memory"


def lost(shelf: Shelf, number: int) -> str:
    with pytest.raises(InputError) as caught:
        shelf.archive.load("small", number)
    (problem,) = caught.value.problems
    assert problem.remedy
    return problem.where


def test_a_trial_that_was_never_saved_is_named(shelf: Shelf) -> None:
    assert lost(shelf, 1) == "archive of small, trial 1"


def test_a_trial_that_never_was_is_named(shelf: Shelf) -> None:
    assert lost(shelf, 99) == "archive of small, trial 99"


def test_files_that_are_gone_are_the_users_to_restore(shelf: Shelf) -> None:
    shelf.archive.save(FULL, [])
    shutil.rmtree(shelf.artifacts)
    assert lost(shelf, 0) == "archive of small, trial 0"


def test_a_truncated_file_is_told_as_lost(shelf: Shelf) -> None:
    shelf.archive.save(FULL, [])
    for file in shelf.artifacts.iterdir():
        file.write_bytes(file.read_bytes()[:20])
    assert lost(shelf, 0) == "archive of small, trial 0"


def test_nothing_is_left_in_the_scratch_folder(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr("tempfile.tempdir", None)
    shelf.archive.save(replace(FULL, curve=(replace(FULL.curve[0], health=HEALTHY),)), [])
    assert list(scratch.iterdir()) == []


def test_a_long_trace_is_read_whole(shelf: Shelf) -> None:
    long = replace(FULL.curve[0], power=steady_power(Window(0.0, 3600.0), devices=8))
    assert_same(shelf.round_trip(replace(FULL, curve=(long,))), replace(FULL, curve=(long,)))
