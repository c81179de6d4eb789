"""Faults in the middle of a measurement, through the whole path: what becomes of the level and the launch."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from fake_environment import MOCK_ENGINE
from mock_launch import MockLaunch, Sink, at_rate, engine_pids
from standin.nvml import build_standin, run_on_standin

from autotune.adapters.devices import preflight
from autotune.adapters.engines import running as running_engine
from autotune.adapters.load.clients import LoadClients
from autotune.adapters.power.rapl import RaplPowerMeter
from autotune.domain.basics.errors import BenchError
from autotune.domain.judging.scoring import LevelScore, SlaVerdict, score_level
from autotune.domain.launches.launch import FailureClass, Phase, Reaction
from autotune.domain.load.level import Level
from autotune.domain.measuring import measurement
from autotune.domain.measuring.measurement import Measurement
from autotune.domain.measuring.power import EnergyVerdict, energy_in
from autotune.domain.studies.events import LevelMeasured, LevelStarted, Notice
from autotune.runs import measure
from autotune.wiring import studies

pytestmark = pytest.mark.alone

HERE = Path(__file__).parent
FAULTY_ENGINE = HERE / "faulty_engine.py"
FINDS_MOCK = {"PYTHONPATH": str(MOCK_ENGINE.parent)}
STARVED_S = 0.5
HOUR_S = 3600
STREAM_ERROR = "the KV cache of this request was lost"
PACKAGE = "intel-rapl:0"


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter waits; what a busy machine does to the client is less than half of STARVED_S."""
    monkeypatch.setattr(measure, "PAUSES_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr(measure, "EMPTY_TIMEOUT_S", 1.5)
    monkeypatch.setattr(preflight, "CPU_SAMPLE_S", 0.1)
    monkeypatch.setattr(measurement, "CLIENT_LAG_LIMIT_S", STARVED_S / 2)


@pytest.fixture(autouse=True)
def no_engine_left() -> Iterator[None]:
    yield
    assert engine_pids() == []


@pytest.fixture
def launch(tmp_path: Path, clients: LoadClients) -> MockLaunch:
    return MockLaunch(folder=tmp_path, driver=clients)


def signal_engine(number: int) -> None:
    (pid,) = engine_pids()
    os.kill(pid, number)


def score(launch: MockLaunch, measured: Measurement) -> LevelScore:
    return score_level(measured, launch.study.slas[0])


def test_an_engine_that_dies_in_a_window_bounds_capacity_and_the_levels_before_stand(
    launch: MockLaunch,
) -> None:
    sink = Sink(lambda window: signal_engine(signal.SIGABRT) if window == 2 else None)
    record = launch.run(at_rate(30.0), at_rate(40.0), at_rate(50.0), sink=sink)
    assert record.failure is not None
    assert record.failure.failure_class is FailureClass.DIED_UNDER_LOAD
    assert (record.failure.phase, record.failure.exit_code) == (Phase.LOADING, -signal.SIGABRT)
    # Of the level that it died in there are no figures, and so no joules.
    (before,) = record.curve
    assert [event.level for event in sink.of(LevelMeasured)] == [before.level] == [at_rate(30.0)]
    assert [event.level for event in sink.of(LevelStarted)] == [at_rate(30.0), at_rate(40.0)]
    assert score(launch, before).goodput_tok_per_s > 0
    assert energy_in(before.power, before.window).verdict is EnergyVerdict.UNCHECKED


def test_a_server_that_stalls_through_a_window_misses_it_and_serves_the_next(launch: MockLaunch) -> None:
    """Each request in the window ends by its own deadline, as data; then the engine goes on."""
    stalled_s: list[float] = []

    def stall(window: int) -> None:
        if window == 1:
            signal_engine(signal.SIGSTOP)
            stalled_s.append(time.monotonic())

    sink = Sink(stall, as_it_empties=lambda: signal_engine(signal.SIGCONT))
    launch = replace(launch, measurement={"longest_window": "1500ms", "window": "1500ms"})
    record = launch.run(Level("chat", concurrency=6), at_rate(30.0), sink=sink)
    assert record.failure is None
    stalled, after = record.curve
    requests, due = stalled.requests, stalled.due_in_window
    hit = due & (requests.finished_s > stalled_s[0])
    assert hit.sum() >= 6
    assert {requests.error[row] for row in np.flatnonzero(hit)} == {"timeout"}
    assert (requests.finished_s - requests.due_s >= launch.study.measurement.request_timeout)[hit].all()
    missed = score(launch, stalled)
    assert missed.verdict is SlaVerdict.MISSED
    assert missed.attainment == (requests.ok & due).sum() / due.sum()
    assert score(launch, after).attainment > 0.9


@pytest.mark.parametrize("stall", ["tokens stop", "stopped by itself", "stopped in the window"])
def test_an_engine_that_lives_and_answers_nothing_has_stalled(
    launch: MockLaunch, monkeypatch: pytest.MonkeyPatch, stall: str
) -> None:
    """Whether its server still tells counters or nothing answers at all; the levels before it stand."""
    monkeypatch.setattr(running_engine, "COUNTERS_TIMEOUT_S", 0.3)
    sink = Sink()
    if stall == "tokens stop":
        launch = replace(launch, args=("--mock-fail=stall:40",))
    elif stall == "stopped by itself":
        launch = replace(launch, program=FAULTY_ENGINE, env={**FINDS_MOCK, "FAULTY_STOP": "40"})
    else:
        sink.in_window = lambda window: signal_engine(signal.SIGSTOP) if window == 2 else None
    record = launch.run(at_rate(10.0), at_rate(40.0), sink=sink)
    assert record.failure is not None
    assert record.failure.failure_class is FailureClass.STALLED
    assert record.failure.reaction is Reaction.INFEASIBLE
    assert (record.failure.phase, record.failure.exit_code) == (Phase.LOADING, None)
    assert len(sink.of(LevelStarted)) == len(record.curve) + 1


def test_an_engine_that_answers_and_is_never_empty_breaks_the_bench(launch: MockLaunch) -> None:
    """One request of which it does not notice that its client left."""
    launch = replace(launch, program=FAULTY_ENGINE, env={**FINDS_MOCK, "FAULTY_HANG": "14"})
    sink = Sink()
    with pytest.raises(BenchError, match=r"the engine still works 1\.5 s after the last request of 20 req/s"):
        launch.run(at_rate(20.0), at_rate(10.0), sink=sink)
    assert sink.of(LevelMeasured) == []
    assert len(sink.of(LevelStarted)) == 1


def test_an_engine_that_does_not_answer_its_first_request_has_stalled(launch: MockLaunch) -> None:
    launch = replace(launch, program=FAULTY_ENGINE, env={**FINDS_MOCK, "FAULTY_STOP": "1"})
    record = launch.run(at_rate(20.0), sink=Sink())
    assert record.failure is not None
    assert record.failure.failure_class is FailureClass.STALLED
    assert record.failure.phase is Phase.FIRST_REQUEST


def test_an_engine_that_was_killed_from_outside_is_the_benchs_fault(launch: MockLaunch) -> None:
    """It logged nothing, and nobody but an operator or the kernel sends that signal."""
    sink = Sink(lambda _: signal_engine(signal.SIGKILL))
    with pytest.raises(BenchError, match="killed from outside while loading"):
        launch.run(at_rate(20.0), sink=sink)


def starve(clients: LoadClients) -> None:
    """Take the processor from the client for a while."""
    (pid,) = clients.pids
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(STARVED_S, os.kill, (pid, signal.SIGCONT)).start()


def test_a_client_that_is_starved_each_time_is_never_a_result(
    launch: MockLaunch, clients: LoadClients
) -> None:
    sink = Sink(lambda _: starve(clients))
    with pytest.raises(BenchError, match="40 req/s: the load client was the limit"):
        launch.run(at_rate(40.0), sink=sink)
    assert len(sink.of(LevelStarted)) == len(measure.PAUSES_S)
    assert sink.of(LevelMeasured) == []


def test_a_client_that_was_starved_once_measures_the_level_again(
    launch: MockLaunch, clients: LoadClients
) -> None:
    sink = Sink(lambda window: starve(clients) if window == 1 else None)
    (measured,) = launch.run(at_rate(40.0), sink=sink).curve
    assert len(sink.of(LevelStarted)) > 1
    assert len(sink.of(LevelMeasured)) == 1
    assert not measured.health.was_limit
    assert measured.requests.ttft_s[measured.due_in_window].max() < STARVED_S


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The counter of one processor, in a tree like the kernel's."""
    zone = tmp_path / "powercap" / PACKAGE
    zone.mkdir(parents=True)
    for name, text in {"name": "package-0", "energy_uj": "0", "max_energy_range_uj": "262143328850"}.items():
        (zone / name).write_text(text)
    return zone / "energy_uj"


def rapl(package: Path) -> RaplPowerMeter:
    return RaplPowerMeter(root=package.parents[1])


def test_a_meter_that_vanishes_breaks_the_bench_and_not_the_configuration(
    launch: MockLaunch, package: Path
) -> None:
    sink = Sink(lambda window: package.unlink() if window == 2 else None)
    launch = replace(launch, meter=rapl(package))
    with pytest.raises(BenchError, match="power meter lost"):
        launch.run(at_rate(30.0), at_rate(40.0), sink=sink)
    assert [event.level for event in sink.of(LevelMeasured)] == [at_rate(30.0)]


def test_a_meter_beside_that_vanishes_loses_its_own_trace_alone(launch: MockLaunch, package: Path) -> None:
    """In the window of the second level; at the third it is not there from the start."""
    sink = Sink(lambda window: package.unlink() if window == 2 else None)
    launch = replace(launch, beside=(rapl(package),))
    record = launch.run(at_rate(20.0), at_rate(30.0), at_rate(40.0), sink=sink)
    assert record.failure is None
    assert [len(measured.beside) for measured in record.curve] == [1, 0, 0]
    assert {energy_in(m.power, m.window).verdict for m in record.curve} == {EnergyVerdict.UNCHECKED}
    told = [notice.text for notice in sink.of(Notice) if "beside" in notice.text]
    assert [text.partition(" has no watts of a meter beside: power meter lost")[0] for text in told] == [
        "trial 7: 30 req/s",
        "trial 7: 40 req/s",
    ]


MEGAWATTS = 4
"""Under so many a counter of 32 bits of millijoules wraps every 1.1 s: whenever a window of 1.5 s begins."""
MEASURE_ON_NVML = """
import json, sys
from pathlib import Path
folder, lag_limit_s, *sys.path[:0] = {arguments!r}
from mock_launch import MockLaunch, Sink, at_rate
from autotune.adapters.load.clients import LoadClients
from autotune.adapters.power.nvml import WRAP_J, NvmlPowerMeter
from autotune.domain.measuring import measurement
from autotune.domain.hardware.hardware import DeviceKind
from autotune.domain.judging.scoring import score_level

measurement.CLIENT_LAG_LIMIT_S = lag_limit_s
window = dict.fromkeys(("window", "longest_window"), "1500ms")
with LoadClients(processes=1) as clients:
    launch = MockLaunch(
        folder=Path(folder), driver=clients, meter=NvmlPowerMeter(), kind=DeviceKind.CUDA, measurement=window
    )
    (measured,) = launch.run(at_rate(30.0), sink=Sink()).curve
(gpu,) = measured.power.devices
score = score_level(measured, launch.study.slas[0])
inside = (gpu.counter_time_s >= measured.window.start_s) & (gpu.counter_time_s < measured.window.end_s)
print(json.dumps({{
    "wraps": int(gpu.counter_j[inside][-1] // WRAP_J - gpu.counter_j[inside][0] // WRAP_J),
    "verdict": score.energy_verdict, "reasons": score.energy_reasons, "mean_power_w": score.mean_power_w,
    "goodput_tok_per_s": score.goodput_tok_per_s, "tokens_per_joule": score.tokens_per_joule,
}}))
"""


def test_a_counter_that_wraps_in_a_window_still_counts_its_joules(tmp_path: Path) -> None:
    """NVML's, by a stand-in for the driver's library, which a process of its own loads."""
    scenario = tmp_path / "scenario.txt"
    scenario.write_text(f"0 0 power_w={MEGAWATTS}e6 counter_mj=0 counter_modulo_mj={2**32}\n")
    arguments = (str(tmp_path), STARVED_S / 2, str(HERE), str(HERE.parent))
    code = MEASURE_ON_NVML.format(arguments=arguments)
    told = json.loads(run_on_standin(build_standin(tmp_path), scenario, code, timeout_s=120))
    assert told["wraps"] >= 1
    assert (told["verdict"], told["reasons"]) == (EnergyVerdict.CONSISTENT, [])
    assert told["mean_power_w"] == pytest.approx(MEGAWATTS * 1e6)
    assert told["goodput_tok_per_s"] > 0
    assert told["tokens_per_joule"] == pytest.approx(told["goodput_tok_per_s"] / (MEGAWATTS * 1e6))


def test_a_wall_clock_that_steps_back_changes_nothing(
    launch: MockLaunch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour, as a window opens; that nothing asks the wall clock is checked by the linter too (TID251)."""
    stepped: list[int] = []
    wall_ns = time.time_ns  # noqa: TID251 - it is what steps

    def step_back(window: int) -> None:
        stepped.append(window)
        monkeypatch.setattr(time, "time", lambda: wall_ns() / 1e9 - HOUR_S)
        monkeypatch.setattr(time, "time_ns", lambda: wall_ns() - HOUR_S * 10**9)

    began_s = time.monotonic()
    record = launch.run(at_rate(40.0), at_rate(30.0), sink=Sink(step_back))
    took_s = time.monotonic() - began_s
    assert stepped[0] == 1
    assert 0 < record.launch_s + record.load_s < took_s
    spec = launch.study.measurement
    for measured in record.curve:
        requests, power_s = measured.requests, measured.power.devices[0].time_s
        assert spec.window <= measured.window.length_s < took_s
        for at_s in (
            requests.due_s,
            requests.finished_s,
            requests.chunk_s,
            power_s,
            measured.counters.time_s,
        ):
            # What was cut off when the window was over has no end.
            known_s = at_s[np.isfinite(at_s)]
            assert len(known_s) > 0
            assert ((known_s > began_s) & (known_s < began_s + took_s)).all()
        assert (requests.ttft_s[requests.ok] > 0).all()
        judged = score(launch, measured)
        assert judged.verdict is not SlaVerdict.MISSED
        assert judged.energy_verdict is EnergyVerdict.UNCHECKED


def test_a_wall_clock_that_steps_back_leaves_a_study_to_the_process_that_runs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells when it started by the wall clock, so that a step moves when processes did."""
    owner = studies._this_process()
    told = Path("/proc/stat").read_text()
    (tmp_path / "stat").write_text(
        re.sub(r"(?<=btime )\d+", lambda boot_s: str(int(boot_s[0]) - HOUR_S), told)
    )
    (tmp_path / str(os.getpid())).symlink_to(f"/proc/{os.getpid()}")
    before_s = psutil.Process().create_time()
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    assert psutil.Process().create_time() == pytest.approx(before_s - HOUR_S)
    assert studies._is_alive(owner)
    assert not studies._is_alive(f"{owner}0")


def test_refusals_and_errors_in_streams_are_data_and_the_level_goes_on(launch: MockLaunch) -> None:
    """503 to all of a burst, then every fifth breaks off."""
    launch = replace(
        launch,
        program=FAULTY_ENGINE,
        env={**FINDS_MOCK, "FAULTY_BURST": "15-40", "FAULTY_STREAM": "5"},
        measurement={"window": "1s", "longest_window": "1s"},
    )
    record = launch.run(at_rate(50.0), at_rate(20.0), sink=Sink())
    assert record.failure is None
    first, second = record.curve
    refused = np.array([error.startswith("HTTP 503: ") for error in first.requests.error])
    assert refused.sum() == 26
    assert set(first.requests.status[refused]) == {503}
    assert not first.requests.chunks[refused].any()
    for measured in (first, second):
        due, ok = measured.due_in_window, measured.requests.ok
        broken = np.array([error == STREAM_ERROR for error in measured.requests.error])
        assert (broken & due).any()
        assert (measured.requests.chunks[broken] == 1).all()
        judged = score(launch, measured)
        assert judged.attainment == (ok & due).sum() / due.sum()
        assert judged.verdict is SlaVerdict.MISSED
    assert first.requests.ok[-20:].any()
