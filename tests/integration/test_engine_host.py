"""The engine host, with real processes: what starts, what is seen of failures, and that nothing is left."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from host_harness import (
    DEADLINE_S,
    child_pid,
    complete,
    host,
    launch,
    never,
    nothing_left,  # noqa: F401 - a fixture
    other_tuner,
    script,
    serve,
    spec,
    wait_for,
)

from autotune.adapters.engines import warden
from autotune.adapters.engines.process import reap_orphans
from autotune.domain.basics.errors import BenchError, StudyCancelledError
from autotune.domain.hardware.hardware import Device, DeviceKind
from autotune.domain.launches.launch import EngineDiedError, Phase

pytestmark = pytest.mark.alone


def test_serves_and_leaves_nothing(tmp_path: Path) -> None:
    with host(tmp_path).serving(
        spec(), workdir=tmp_path / "new" / "dir", start_timeout_s=DEADLINE_S, cancelled=never
    ) as engine:
        assert engine.alive()
        assert engine.endpoint.model == "tiny"
        assert "[DONE]" in complete(engine.endpoint.base_url)
        assert engine.counters() == {"generated_tokens": 4.0}
        assert engine.log_path == tmp_path / "new" / "dir" / "serve.log"
    assert not engine.alive()
    assert engine.counters() == {}
    assert "listens on 127.0.0.1" in engine.log_path.read_text()
    assert list((tmp_path / "engines").iterdir()) == []


def test_an_exception_in_the_block_ends_the_engine_too(tmp_path: Path) -> None:
    class OwnError(Exception):
        pass

    with (
        pytest.raises(OwnError),
        host(tmp_path).serving(spec(), workdir=tmp_path, start_timeout_s=DEADLINE_S, cancelled=never),
    ):
        raise OwnError


def test_a_stubborn_grandchild_in_its_own_session_is_ended(tmp_path: Path) -> None:
    with host(tmp_path, stop_grace_s=0.3).serving(
        spec("--mock-fail=spawn-child"), workdir=tmp_path, start_timeout_s=DEADLINE_S, cancelled=never
    ) as engine:
        child = child_pid(engine.log_path)
        assert warden.find(child)
    assert warden.find(child) is None


def test_a_killed_tuner_leaves_nothing(tmp_path: Path) -> None:
    with other_tuner(tmp_path, spec("--mock-fail=spawn-child")) as tuner:
        started = warden.descendants(tuner.pid)
        assert child_pid(tmp_path / "serve.log") in {process.pid for process in started}
        tuner.send_signal(signal.SIGKILL)
    # Making a host waits for the warden, which is still ending the grandchild.
    host(tmp_path)
    assert [process for process in started if warden.find(process.pid) == process] == []
    assert list((tmp_path / "engines").iterdir()) == []


def test_a_killed_warden_takes_its_engine_along(tmp_path: Path) -> None:
    with host(tmp_path).serving(
        spec(), workdir=tmp_path, start_timeout_s=DEADLINE_S, cancelled=never
    ) as engine:
        watching, serving = warden.descendants(os.getpid())
        os.kill(watching.pid, signal.SIGKILL)
        wait_for(lambda: warden.find(serving.pid) is None)
        assert not engine.alive()
        assert engine.evidence(loading=True).exit_code == -signal.SIGKILL


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        ("print('first'); print('cannot go on'); raise SystemExit(3)", 3),
        ("print('cannot go on', flush=True); import os; os.kill(os.getpid(), 9)", -9),
        ("print('cannot go on'); raise SystemExit(137)", 137),
        ("print('cannot go on'); raise SystemExit(0)", 0),
    ],
)
def test_an_early_end_is_evidence(tmp_path: Path, code: str, exit_code: int) -> None:
    with pytest.raises(EngineDiedError) as died:
        serve(tmp_path, launch(script(code)))
    evidence = died.value.evidence
    assert (evidence.exit_code, evidence.phase, evidence.timed_out) == (exit_code, Phase.STARTING, False)
    assert "cannot go on" in evidence.log
    assert died.value.log_path == tmp_path / "serve.log"


def test_a_command_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineDiedError) as died:
        serve(tmp_path, launch(replace(script(""), argv=("/no/such/engine",))))
    assert died.value.evidence.exit_code == 127
    assert "cannot start /no/such/engine" in died.value.evidence.log


def test_never_ready_times_out(tmp_path: Path) -> None:
    with pytest.raises(EngineDiedError) as died:
        serve(tmp_path, spec("--mock-fail=never-ready"), start_timeout_s=0.5)
    assert died.value.evidence.timed_out
    assert died.value.evidence.exit_code is None


def test_cancelling_ends_the_start(tmp_path: Path) -> None:
    asked = iter([False, False])
    with (
        pytest.raises(StudyCancelledError),
        host(tmp_path).serving(
            spec("--mock-fail=never-ready"),
            workdir=tmp_path,
            start_timeout_s=DEADLINE_S,
            cancelled=lambda: next(asked, True),
        ),
    ):
        pass


def test_death_at_the_first_request_is_seen_with_its_exit_code(tmp_path: Path) -> None:
    with host(tmp_path).serving(
        spec("--pipeline-parallel-size", "2"), workdir=tmp_path, start_timeout_s=DEADLINE_S, cancelled=never
    ) as engine:
        stream = complete(engine.endpoint.base_url)
        evidence = engine.evidence(stream, loading=False)
    assert evidence.phase is Phase.FIRST_REQUEST
    assert evidence.exit_code == 0
    assert "EngineDeadError" in evidence.log
    assert '"code": 500' in evidence.stream_error


def test_evidence_of_an_engine_that_lives_has_no_exit_code(tmp_path: Path) -> None:
    with host(tmp_path).serving(
        spec(), workdir=tmp_path, start_timeout_s=DEADLINE_S, cancelled=never
    ) as engine:
        evidence = engine.evidence(loading=True)
    assert (evidence.exit_code, evidence.phase) == (None, Phase.LOADING)


def test_fills_in_hosts_and_ports_and_leaves_other_braces(tmp_path: Path) -> None:
    show = "import os, sys; print(sys.argv[1], os.environ['PEER'], flush=True); sys.exit(1)"
    router = script("import time; time.sleep(600)", role="router", ready_path="")
    process = script(show, env={"PEER": "{host:router}:{port:router}"})
    process = replace(process, argv=(*process.argv, '{"method": "ngram", "port": {port:serve}}'))
    with pytest.raises(EngineDiedError) as died:
        serve(tmp_path, launch(router, process))
    found = re.fullmatch(
        r'\{"method": "ngram", "port": (\d+)\} 127\.0\.0\.1:(\d+)\n', died.value.evidence.log
    )
    assert found
    assert found[1] != found[2]


def test_an_unknown_role_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names no process"):
        serve(tmp_path, launch(replace(script(""), argv=("engine", "{port:nobody}"))))


def test_starts_after_what_it_depends_on(tmp_path: Path) -> None:
    ask = (
        "import urllib.request as u, time; print(u.urlopen('http://{host:serve}:{port:serve}/health').status,"
    )
    late = script(f"{ask} flush=True); time.sleep(600)", role="late", ready_path="", depends_on=("serve",))
    what = launch(late, spec(MOCK_START_S="0.5").processes[0])
    with host(tmp_path).serving(what, workdir=tmp_path, start_timeout_s=DEADLINE_S, cancelled=never):
        wait_for((tmp_path / "late.log").read_text)
    assert (tmp_path / "late.log").read_text() == "200\n"


def test_the_death_of_any_process_of_a_launch_ends_its_start(tmp_path: Path) -> None:
    helper = script("raise SystemExit(5)", role="helper", ready_path="")
    with pytest.raises(EngineDiedError) as died:
        serve(tmp_path, launch(helper, spec("--mock-fail=never-ready").processes[0]))
    assert died.value.log_path == tmp_path / "helper.log"
    assert died.value.evidence.exit_code == 5


def test_another_machine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="several machines"):
        serve(tmp_path, launch(script("", host_slot=1)))


def test_processes_see_their_cores_only(tmp_path: Path) -> None:
    core = max(os.sched_getaffinity(0))
    device = Device(DeviceKind.CPU, core, "core", f"cpu-{core}", 1)
    show = "import os; print(os.sched_getaffinity(0)); raise SystemExit(1)"
    with pytest.raises(EngineDiedError) as died:
        serve(tmp_path, launch(script(show, devices=(device,))))
    assert died.value.evidence.log == f"{{{core}}}\n"


@pytest.fixture
def orphan() -> Iterator[warden.Process]:
    """A process in a group of its own, as an engine is."""
    with subprocess.Popen(["sleep", "600"], process_group=0) as process:
        found = warden.find(process.pid)
        assert found
        yield found
        process.kill()


def record(runtime_dir: Path, orphan: warden.Process, **more: tuple[int, int]) -> Path:
    """Write what a warden that was killed leaves; the session's number stands for that warden's."""
    gone = (orphan.session, 1)
    (runtime_dir / "engines").mkdir(parents=True)
    path = runtime_dir / "engines" / "some.json"
    path.write_text(json.dumps(warden.Record(gone, gone, orphan.identity)._replace(**more)))
    return path


def test_reaps_the_orphan_of_a_dead_tuner(tmp_path: Path, orphan: warden.Process) -> None:
    path = record(tmp_path, orphan)
    assert reap_orphans(tmp_path) == (orphan.pid,)
    assert warden.find(orphan.pid) is None
    assert not path.exists()


def test_a_process_that_only_has_the_number_is_left_alone(tmp_path: Path, orphan: warden.Process) -> None:
    path = record(tmp_path, orphan, engine=(orphan.pid, orphan.started - 1))
    assert reap_orphans(tmp_path) == ()
    assert warden.find(orphan.pid) == orphan
    assert not path.exists()


def test_the_engine_of_a_living_tuner_is_left_alone(tmp_path: Path, orphan: warden.Process) -> None:
    me = warden.find(os.getpid())
    assert me
    path = record(tmp_path, orphan, tuner=me.identity)
    assert reap_orphans(tmp_path) == ()
    assert warden.find(orphan.pid) == orphan
    assert path.exists()
