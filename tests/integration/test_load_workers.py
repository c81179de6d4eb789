"""The load client's processes: several, lost ones, starved ones, those of a tuner that was killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from load_harness import PROMPTS, closed_plan, drive, one_request, open_plan, planned, records, three_tokens
from scripted_server import HEAD, Call, chunk, serving, token

from autotune.adapters.engines import warden
from autotune.adapters.load.clients import LoadClients
from autotune.adapters.load.messages import Done, Report
from autotune.adapters.load.process import LoadProcess
from autotune.domain.basics.errors import BenchError
from autotune.domain.load.load_plan import LoadPlan
from autotune.domain.load.progress import Progress, Steer

pytestmark = pytest.mark.alone


def test_workers_stay_between_drives_and_are_gone_after_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    clients = LoadClients(processes=2)
    assert clients.pids == ()
    with serving(three_tokens) as server:
        clients.start()
        pids = clients.pids
        for _ in range(2):
            result = drive(clients, server, open_plan(0.0, 0.01, 0.02))
            assert result.requests.error == ("", "", "")
            assert result.health.processes == 2
        assert clients.pids == pids
    clients.close()
    assert [warden.find(pid) for pid in pids] == [None, None]
    assert clients.pids == ()


def test_conversations_and_slots_are_shared_out_and_results_merged() -> None:
    """What the workers see together is what one would have seen."""
    seen: list[Progress] = []

    def look(progress: Progress) -> Steer:
        seen.append(progress)
        return Steer.GO_ON

    async def script(call: Call) -> None:
        await asyncio.sleep(0.02)
        await three_tokens(call)

    requests = []
    for key in range(30):
        requests.append(planned(0.04 * key, key=key))
        requests.append(planned(0.04 * key, key=100 + key, after=2 * key, think_s=0.01))
    plan = LoadPlan(requests=tuple(requests), prompts=PROMPTS, duration_s=1.3)
    with LoadClients(processes=3) as clients, serving(script) as server:
        result = drive(clients, server, plan, steer=look)
        assert len({call.connection for call in server.calls}) >= 3
        assert set(result.requests.error) == {""}
        due_s = result.requests.due_s
        assert (due_s[1:] >= due_s[:-1]).all()
        assert len(result.requests) == len(server.calls) == 60
        assert {p.started_s for p in seen} == {result.started_s}
        for progress in seen:
            assert list(progress.due_s) == pytest.approx([d for d in due_s if d <= progress.at_s])
            finished_s = result.requests.finished_s
            assert len(progress.ended.due_s) == sum(finished_s <= progress.at_s)
            assert list(progress.ended.finished_s) == sorted(progress.ended.finished_s)
        assert len(seen) >= 2

        most_busy_before, server.most_busy = server.most_busy, 0
        assert most_busy_before
        closed = drive(clients, server, closed_plan(10_000, 5, 0.4))
        assert server.most_busy == 5
        assert len(closed.requests) == len(server.calls) - 60
        # Two slots are no work for three workers.
        assert drive(clients, server, closed_plan(4, 2, 60.0)).health.processes == 2


def test_a_lost_worker_is_a_bench_error_and_is_replaced() -> None:
    with LoadClients(processes=2) as clients, serving(three_tokens) as server:
        drive(clients, server, closed_plan(2, 2, 60.0))
        lost, _ = clients.pids

        def alive() -> bool:
            if server.calls[2:]:
                os.kill(lost, signal.SIGKILL)
            return True

        plan = LoadPlan(requests=tuple(planned(0.1 * i) for i in range(50)), prompts=PROMPTS, duration_s=60.0)
        with pytest.raises(BenchError, match=r"a load client was lost \(exit code -9\)"):
            drive(clients, server, plan, alive=alive)
        assert drive(clients, server, closed_plan(2, 2, 60.0)).requests.error == ("", "")
        assert lost not in clients.pids


def test_a_worker_that_ends_once_it_is_done_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one's answer is held back until the drive went on for a while without it."""
    ended, rounds = threading.Event(), 0
    receive = LoadProcess.receive

    def receive_and_end(worker: LoadProcess) -> list[Report]:
        reports = receive(worker)
        if not ended.is_set() and any(isinstance(report, Done) for report in reports):
            os.kill(worker.pid, signal.SIGKILL)
            os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
            ended.set()
        return reports

    def alive() -> bool:
        nonlocal rounds
        rounds += ended.is_set()
        return True

    async def script(call: Call) -> None:
        while len(server.calls) > 1 and call is server.calls[1] and rounds <= 3:
            await asyncio.sleep(0.01)
        await three_tokens(call)

    monkeypatch.setattr(LoadProcess, "receive", receive_and_end)
    with LoadClients(processes=2) as clients, serving(script) as server:
        assert drive(clients, server, closed_plan(2, 2, 60.0), alive=alive).requests.error == ("", "")
    assert rounds > 3


def test_a_worker_that_died_idle_is_replaced() -> None:
    with LoadClients(processes=1) as clients, serving(three_tokens) as server:
        (pid,) = clients.pids
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert drive(clients, server, closed_plan(1, 1, 60.0)).requests.error == ("",)


def test_a_client_that_got_no_processor_was_the_limit(clients: LoadClients) -> None:
    """Stopped for 0.3 s of 1 s, it sent late and read late, and says so."""
    stopped = threading.Event()
    with serving(three_tokens) as server:

        def alive() -> bool:
            if len(server.calls) > 10 and not stopped.is_set():
                stopped.set()
                os.kill(clients.pids[0], signal.SIGSTOP)
                time.sleep(0.3)
                os.kill(clients.pids[0], signal.SIGCONT)
            return True

        result = drive(clients, server, open_plan(*(0.02 * i for i in range(50))), alive=alive)
    assert stopped.is_set()
    assert result.health.lag_p99_s > 0.2
    assert result.health.loop_lag_p99_s > 0.2
    assert result.health.was_limit


TUNER = """
import os, sys, time
from autotune.adapters.load.clients import LoadClients
from autotune.domain.launches.endpoint import Endpoint
from autotune.domain.load.load_plan import LoadPlan, PlannedRequest
from autotune.domain.load.prompts import RandomTokens, Segment

clients = LoadClients(processes=2)
clients.start()
fork = os.fork() if sys.argv[2] == "held" else 0
if sys.argv[2] == "held" and not fork:
    time.sleep(60)
    os._exit(0)
print(*clients.pids, fork, flush=True)
plan = LoadPlan(
    requests=tuple(PlannedRequest(0.0, (Segment(i, 3),), 3) for i in range(2)),
    prompts=RandomTokens(5000, 1),
    duration_s=60.0,
)
clients.drive(Endpoint(sys.argv[1], "tiny"), plan, alive=lambda: True, cancelled=lambda: False)
"""


@pytest.mark.parametrize("socket", ["closed", "held"])
def test_workers_end_with_a_tuner_that_was_killed(socket: str) -> None:
    """In the middle of a drive, and even if a child that the tuner forked still holds their sockets."""
    all_here = threading.Event()

    async def script(call: Call) -> None:
        if call.number == 1:
            all_here.set()
        await call.send(HEAD, chunk(token()))
        await asyncio.sleep(60)

    with serving(script) as server:
        argv = [sys.executable, "-c", TUNER, server.endpoint.base_url, socket]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as tuner:
            assert tuner.stdout is not None
            *workers, fork = map(int, tuner.stdout.readline().split())
            try:
                assert all_here.wait(timeout=60)
                assert all(warden.find(pid) for pid in workers)
                tuner.kill()
                tuner.wait(timeout=10)
                deadline_s = time.monotonic() + 20
                while any(warden.find(pid) for pid in workers) and time.monotonic() < deadline_s:
                    time.sleep(0.05)
                assert not any(warden.find(pid) for pid in workers)
            finally:
                tuner.kill()
                if fork:
                    os.kill(fork, signal.SIGKILL)


def test_a_steering_that_fails_leaves_usable_clients(clients: LoadClients) -> None:
    def fail(_: Progress) -> Steer:
        raise ZeroDivisionError

    with serving(three_tokens) as server:
        with pytest.raises(ZeroDivisionError):
            drive(clients, server, open_plan(0.0, 60.0), steer=fail)
        assert one_request(clients, server).error == ""


def test_reports_of_a_long_answer_are_whole(clients: LoadClients) -> None:
    """A result of megabytes comes through the socket in many pieces."""
    events = b"".join(token() for _ in range(300))

    async def script(call: Call) -> None:
        await call.send(HEAD, *[chunk(events)] * 500)
        call.writer.close()

    with serving(script) as server:
        (record,) = records(drive(clients, server, open_plan(0.0)))
    assert (record.error, len(record.chunk_s)) == ("truncated", 150_000)
