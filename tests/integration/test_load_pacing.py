"""When requests go out: open and closed loops, conversations, and steering."""

from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest
from load_harness import (
    PROMPTS,
    Words,
    closed_plan,
    drive,
    open_plan,
    planned,
    records,
    three_tokens,
)
from scripted_server import DONE, END, HEAD, Call, chunk, serving, token, usage

from autotune.adapters.load.clients import LoadClients
from autotune.domain.load.load_plan import LoadPlan
from autotune.domain.load.progress import Progress, Steer

pytestmark = pytest.mark.alone


def test_open_loop_keeps_due_times_when_the_server_is_slow_and_latency_counts_from_due(
    clients: LoadClients,
) -> None:
    """Every request is answered only after the last one has come: none may wait for another."""
    count = 40
    all_here = asyncio.Event()

    async def script(call: Call) -> None:
        if call.number == count - 1:
            all_here.set()
        await all_here.wait()
        await three_tokens(call)

    with serving(script) as server:
        result = drive(clients, server, open_plan(*(0.005 * i for i in range(count))))
        last_came_s = server.received_s[-1]
    requests = result.requests
    assert set(requests.error) == {""}
    assert (requests.sent_s >= requests.due_s).all()
    assert requests.due_s == pytest.approx(result.started_s + 0.005 * np.arange(count))
    assert (requests.first_token_s >= last_came_s).all()
    assert requests.ttft_s[0] >= 0.005 * (count - 1)
    lags_s = requests.sent_s - requests.due_s
    assert result.health.lag_p99_s == pytest.approx(np.percentile(lags_s, 99))
    assert result.health.cpu_share > 0
    assert result.health.processes == 1


def test_an_open_loop_drive_lasts_its_duration_even_with_nothing_to_send(clients: LoadClients) -> None:
    """The power meter must see the whole window."""
    with serving(three_tokens) as server:
        result = drive(clients, server, open_plan(duration_s=0.2))
        assert time.monotonic() >= result.started_s + 0.2
    assert len(result.requests) == 0


def test_a_plan_of_an_hour_begins_at_once_and_is_written_as_it_goes(clients: LoadClients) -> None:
    """Writing all of its prompts would take minutes."""
    requests = tuple(planned(0.01 * key, key=key) for key in range(20))
    later = tuple(planned(3600.0 + key, key=key) for key in range(20_000))
    plan = LoadPlan(requests=requests + later, prompts=PROMPTS, duration_s=1e5)
    with serving(three_tokens) as server:
        result = drive(clients, server, plan, steer=lambda _: Steer.DRAIN)
    assert len(result.requests) == 20
    assert sorted(call.body["prompt"] for call in server.calls) == sorted(
        PROMPTS.token_ids(request.prompt) for request in requests
    )


def test_closed_loop_keeps_its_concurrency_and_never_exceeds_it(clients: LoadClients) -> None:
    async def script(call: Call) -> None:
        await asyncio.sleep(0.01)
        await three_tokens(call)

    with serving(script) as server:
        result = drive(clients, server, closed_plan(10_000, 5, 0.4))
    requests = result.requests
    assert server.most_busy == 5
    assert 5 < len(requests) == len(server.calls) < 10_000
    assert set(requests.error) == {""}
    assert (requests.due_s >= result.started_s).all()
    assert (requests.due_s <= result.started_s + 0.4).all()
    # The sixth request is due when the first slot frees, not before.
    assert requests.due_s[5] >= min(requests.finished_s[:5])


def test_closed_loop_ends_when_the_requests_run_out(clients: LoadClients) -> None:
    with serving(three_tokens) as server:
        result = drive(clients, server, closed_plan(7, 3, 60.0))
    assert result.requests.error == ("",) * 7


def test_a_failed_request_frees_its_slot(clients: LoadClients) -> None:
    async def script(call: Call) -> None:
        if call.number % 2:
            call.writer.close()
        else:
            await three_tokens(call)

    with serving(script) as server:
        result = drive(clients, server, closed_plan(20, 2, 60.0))
    assert len(result.requests) == 20
    assert result.requests.ok.any()


@pytest.mark.parametrize("concurrency", [None, 1])
def test_a_later_turn_is_due_when_its_user_has_thought(clients: LoadClients, concurrency: int | None) -> None:
    turns = (planned(key=0), planned(key=1, after=0, think_s=0.1), planned(key=2, after=1, think_s=0.1))
    plan = LoadPlan(requests=turns, prompts=Words(), duration_s=0.5, concurrency=concurrency)
    with serving(three_tokens) as server:
        first, second, third = records(drive(clients, server, plan))
    assert [call.body["prompt"][0] for call in server.calls] == [0, 1, 2]
    assert second.due_s == pytest.approx(first.finished_s + 0.1)
    assert third.due_s == pytest.approx(second.finished_s + 0.1)


def test_a_conversation_that_broke_off_is_not_continued(clients: LoadClients) -> None:
    async def script(call: Call) -> None:
        if call.body["prompt"][0] == 0:
            await call.send(HEAD, chunk(token()))
            call.writer.close()
        await three_tokens(call)

    turns = (planned(key=0), planned(key=1, after=0), planned(key=2), planned(key=3, after=2))
    plan = LoadPlan(requests=turns, prompts=Words(), duration_s=0.3)
    with serving(script) as server:
        result = drive(clients, server, plan)
    assert sorted(call.body["prompt"][0] for call in server.calls) == [0, 2, 3]
    assert sorted(result.requests.error) == ["", "", "truncated"]


@pytest.mark.parametrize(("steer", "error"), [(Steer.DRAIN, ""), (Steer.CUT, "cut off")])
def test_steering_ends_a_drive(clients: LoadClients, steer: Steer, error: str) -> None:
    """DRAIN waits for the answer under way, CUT drops it; what was not due by then is no part of it."""
    seen: list[Progress] = []
    steered = threading.Event()

    async def script(call: Call) -> None:
        if call.number == 2:
            await call.send(HEAD, chunk(token()))
            while not steered.is_set():
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.3)
            await call.send(*map(chunk, (token(), usage(3, 3), DONE)), END)
        else:
            await three_tokens(call)

    def look(progress: Progress) -> Steer:
        seen.append(progress)
        if len(progress.ended.due_s) < 2 or len(progress.due_s) < 3:
            return Steer.GO_ON
        steered.set()
        return steer

    with serving(script) as server:
        result = drive(clients, server, open_plan(0.0, 0.05, 0.1, 60.0), steer=look)
    assert result.requests.error == ("", "", error)
    assert not result.engine_died
    last = seen[-1]
    assert last.started_s == result.started_s
    assert last.due_s == pytest.approx(result.requests.due_s)
    rows = np.argsort(result.requests.finished_s[:2])
    for name in (
        "due_s",
        "first_token_s",
        "last_token_s",
        "finished_s",
        "tpot_s",
        "stall_s",
        "output_tokens",
        "ok",
    ):
        assert getattr(last.ended, name) == pytest.approx(getattr(result.requests, name)[:2][rows]), name
    assert last.due_s.max() <= last.at_s
