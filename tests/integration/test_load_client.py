"""The load client against real sockets: a small server that behaves as each test scripts it."""

from __future__ import annotations

import asyncio
import math
import socket
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from scripted_server import DONE, END, HEAD, Call, Script, Server, chunk, event, serving, token, usage

from autotune.adapters.load_client import HttpLoadDriver
from autotune.domain.errors import StudyCancelledError
from autotune.domain.launch import Endpoint
from autotune.domain.measurement import LoadResult, RequestTable
from autotune.domain.workload import LoadPlan, PlannedRequest


def open_plan(
    *due_s: float, tokens: int = 3, request_timeout_s: float = 60.0, drain_timeout_s: float = 30.0
) -> LoadPlan:
    requests = tuple(PlannedRequest(due, (11, 12, 13), tokens) for due in due_s)
    return LoadPlan(
        requests=requests,
        duration_s=max(due_s, default=0.0),
        request_timeout_s=request_timeout_s,
        drain_timeout_s=drain_timeout_s,
    )


def drive(
    server: Server,
    plan: LoadPlan,
    *,
    alive: Callable[[], bool] = lambda: True,
    cancelled: Callable[[], bool] = lambda: False,
) -> LoadResult:
    return HttpLoadDriver().drive(server.endpoint, plan, alive=alive, cancelled=cancelled)


def answer_of(*events: bytes) -> Script:
    """A script that streams the events, each in an HTTP chunk and a segment of its own."""

    async def script(call: Call) -> None:
        await call.send(HEAD, *(chunk(e) for e in events), END)

    return script


three_tokens = answer_of(token(), token(), token(), usage(3, 3), DONE)


def test_a_finished_request_has_all_its_times_in_order() -> None:
    with serving(three_tokens) as server:
        before_s = time.monotonic()
        result = drive(server, open_plan(0.05))
        after_s = time.monotonic()
    (record,) = result.records
    assert (record.error, record.status) == ("", 200)
    assert (record.prompt_tokens, record.output_tokens, len(record.chunk_s)) == (3, 3, 3)
    times = (
        before_s,
        result.started_s,
        record.due_s,
        record.sent_s,
        *record.chunk_s,
        record.finished_s,
        after_s,
    )
    assert list(times) == sorted(times)
    assert record.due_s == pytest.approx(result.started_s + 0.05)
    assert not result.engine_died
    assert RequestTable.of(result.records).ok.all()


def test_the_request_asks_for_exactly_the_planned_tokens() -> None:
    with serving(three_tokens) as server:
        drive(server, open_plan(0.0, tokens=7))
    assert server.calls[0].body == {
        "model": "tiny",
        "prompt": [11, 12, 13],
        "max_tokens": 7,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
def test_events_are_found_however_the_bytes_are_cut(size: int) -> None:
    """Segments that split events, HTTP chunks and lines, and segments that hold several."""
    body = b"".join((token("a"), token("bc"), token('say "text":"" \n'), usage(3, 5), DONE))
    answer = HEAD + chunk(body[:50]) + chunk(body[50:51]) + chunk(body[51:]) + END

    async def script(call: Call) -> None:
        await call.send(*(answer[i : i + size] for i in range(0, len(answer), size)))

    with serving(script) as server:
        (record,) = drive(server, open_plan(0.0)).records
    assert (record.error, len(record.chunk_s), record.output_tokens) == ("", 3, 5)


def test_a_chunk_of_several_tokens_is_one_chunk_and_the_server_counts_the_tokens() -> None:
    with serving(answer_of(token("four tokens in one"), token(), usage(3, 5), DONE)) as server:
        (record,) = drive(server, open_plan(0.0)).records
    assert (record.error, len(record.chunk_s), record.output_tokens) == ("", 2, 5)


def test_an_empty_text_is_a_token_and_an_empty_list_of_choices_is_not() -> None:
    with serving(
        answer_of(token(""), token(""), token("", finish_reason="length"), usage(3, 3), DONE)
    ) as server:
        (record,) = drive(server, open_plan(0.0)).records
    assert (record.error, len(record.chunk_s), record.output_tokens) == ("", 3, 3)


def test_the_event_of_a_role_is_no_chunk_and_reasoning_is() -> None:
    def delta(**content: str) -> bytes:
        return event({"choices": [{"index": 0, "delta": content}]})

    events = (
        delta(role="assistant", content=""),
        delta(reasoning="hm"),
        delta(content="yes"),
        usage(3, 2),
        DONE,
    )
    with serving(answer_of(*events)) as server:
        (record,) = drive(server, open_plan(0.0)).records
    assert (record.error, len(record.chunk_s), record.output_tokens) == ("", 2, 2)


def test_other_spellings_of_the_stream_are_read() -> None:
    """Spaces in the JSON, CRLF line ends, comments, no blank after the colon, an unended last line."""
    spaced = b'data:{"choices": [{"index": 0, "text": "a"}]}\r\n\r\n: ping\r\n\r\nevent: x\r\n' * 2
    last = b'data: {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 2}}\r\n\r\ndata: [DONE]'
    with serving(answer_of(spaced, last)) as server:
        (record,) = drive(server, open_plan(0.0)).records
    assert (record.error, len(record.chunk_s)) == ("", 2)
    assert (record.prompt_tokens, record.output_tokens) == (4, 2)


def test_usage_beside_the_last_text_is_found() -> None:
    last = event({"choices": [{"text": "b"}], "usage": {"prompt_tokens": 3, "completion_tokens": 9}})
    with serving(answer_of(token(), last, DONE)) as server:
        (record,) = drive(server, open_plan(0.0)).records
    assert (record.error, len(record.chunk_s), record.output_tokens) == ("", 2, 9)


@pytest.mark.parametrize(
    ("events", "error", "tokens"),
    [
        ((token(), token(), DONE), "", 2),  # no usage: chunks are counted
        ((token(), usage(3, 1)), "", 1),  # no [DONE]: the usage was the last word
        ((token(), token()), "truncated", 2),
        ((DONE,), "no tokens", 0),
        ((b"data: {oops\n\n", DONE), "unreadable event: {oops", 0),
        (
            (token(), event({"error": {"message": "EngineCore died", "code": 500}}), DONE),
            "EngineCore died",
            1,
        ),
        ((event({"error": "plain words"}), DONE), "plain words", 0),
    ],
)
def test_how_a_stream_ended(events: tuple[bytes, ...], error: str, tokens: int) -> None:
    with serving(answer_of(*events)) as server:
        (record,) = drive(server, open_plan(0.0)).records
    assert (record.error, record.output_tokens, record.status) == (error, tokens, 200)


@pytest.mark.parametrize("status", [400, 429, 503])
def test_a_refusal_is_data_and_the_connection_is_used_again(status: int) -> None:
    async def script(call: Call) -> None:
        body = b'{"error":\n {"message": "busy"}}'
        await call.send(
            b"HTTP/1.1 %d No\r\nContent-Length: %d\r\n\r\n" % (status, len(body)), body[:9], body[9:]
        )

    with serving(script) as server:
        records = drive(server, open_plan(0.0, 0.2)).records
    assert [r.status for r in records] == [status, status]
    assert {r.error for r in records} == {f'HTTP {status}: {{"error": {{"message": "busy"}}}}'}
    assert all(r.finished_s >= r.sent_s for r in records)
    assert server.calls[0].connection == server.calls[1].connection


def test_a_connection_refused_is_data() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = Endpoint(f"http://127.0.0.1:{unused.getsockname()[1]}", "tiny")
        result = HttpLoadDriver().drive(
            endpoint, open_plan(0.0, 0.01), alive=lambda: True, cancelled=lambda: False
        )
    assert [r.error.split(":")[0] for r in result.records] == ["connection", "connection"]
    assert all(math.isnan(r.sent_s) and r.status == 0 for r in result.records)


def test_a_disconnect_in_the_middle_is_truncated() -> None:
    async def script(call: Call) -> None:
        await call.send(HEAD, chunk(token()))
        call.writer.close()

    with serving(script) as server:
        (record,) = drive(server, open_plan(0.0)).records
    assert (record.error, len(record.chunk_s), len(server.calls)) == ("truncated", 1, 1)


def test_a_reset_in_the_middle_is_a_connection_error() -> None:
    async def script(call: Call) -> None:
        await call.send(HEAD, chunk(token()), apart_s=0.02)
        call.writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0"
        )
        call.writer.transport.abort()

    with serving(script) as server:
        (record,) = drive(server, open_plan(0.0)).records
    assert record.error.startswith("connection: ")
    assert len(record.chunk_s) == 1


def test_an_answer_that_is_not_http_is_a_connection_error() -> None:
    async def script(call: Call) -> None:
        await call.send(b"SSH-2.0-OpenSSH_9.2\r\n")

    with serving(script) as server:
        (record,) = drive(server, open_plan(0.0)).records
    assert record.error.startswith("connection: unreadable answer")


def test_a_kept_connection_that_the_server_closed_is_replaced_once() -> None:
    """The race of keep-alive: the server gives a connection up just as the next request goes out on it."""

    async def script(call: Call) -> None:
        if call.number == 1:
            call.writer.close()
        else:
            await three_tokens(call)

    with serving(script) as server:
        records = drive(server, open_plan(0.0, 0.2)).records
    assert [r.error for r in records] == ["", ""]
    assert server.calls[0].connection == server.calls[1].connection != server.calls[2].connection


def test_a_request_is_sent_again_only_once() -> None:
    async def script(call: Call) -> None:
        call.writer.close()

    with serving(script) as server:
        (record,) = drive(server, open_plan(0.0)).records
    assert record.error == "connection: closed before any answer"
    assert len(server.calls) == 2


def test_a_server_that_keeps_no_connection_is_served_on_new_ones() -> None:
    async def script(call: Call) -> None:
        await call.send(HEAD.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        await call.send(*(chunk(e) for e in (token(), usage(3, 1), DONE)), END)
        call.writer.close()

    with serving(script) as server:
        records = drive(server, open_plan(*(0.005 * i for i in range(60)))).records
    assert {r.error for r in records} == {""}
    assert len({call.connection for call in server.calls}) == 60


def test_a_stalled_request_times_out_and_the_others_do_not() -> None:
    async def script(call: Call) -> None:
        if call.number == 0:
            await call.send(HEAD, chunk(token()))
            await asyncio.sleep(60)
        await three_tokens(call)

    with serving(script) as server:
        records = drive(server, open_plan(0.0, 0.1, 0.2, request_timeout_s=1.0)).records
    assert [r.error for r in records] == ["timeout", "", ""]
    assert records[0].finished_s - records[0].due_s >= 1.0
    assert len(records[0].chunk_s) == 1


def test_what_is_not_finished_when_draining_ends_is_an_error() -> None:
    async def script(call: Call) -> None:
        await asyncio.sleep(60)

    with serving(script) as server:
        (record,) = drive(server, open_plan(0.0, drain_timeout_s=0.1)).records
    assert record.error == "not finished when draining ended"
    assert math.isnan(record.finished_s)


def test_open_loop_keeps_due_times_when_the_server_is_slow_and_latency_counts_from_due() -> None:
    """Every request is answered only after the last one has come: none may wait for another."""
    count = 40
    all_here = asyncio.Event()

    async def script(call: Call) -> None:
        if call.number == count - 1:
            all_here.set()
        await all_here.wait()
        await three_tokens(call)

    with serving(script) as server:
        result = drive(server, open_plan(*(0.005 * i for i in range(count))))
        received_s = list(server.received_s)
    assert {r.error for r in result.records} == {""}
    assert all(r.sent_s >= r.due_s for r in result.records)
    last_came_s = received_s[-1]
    for index, record in enumerate(result.records):
        assert record.due_s == pytest.approx(result.started_s + 0.005 * index)
        assert record.chunk_s[0] >= last_came_s
    assert RequestTable.of(result.records).ttft_s[0] >= 0.005 * (count - 1)
    lags_s = [r.sent_s - r.due_s for r in result.records]
    assert result.health.lag_p99_s == pytest.approx(np.percentile(lags_s, 99))
    assert result.health.cpu_share > 0


def test_an_open_loop_drive_lasts_its_duration_even_with_nothing_to_send() -> None:
    """The power meter must see the whole window."""
    with serving(three_tokens) as server:
        result = drive(server, LoadPlan(requests=(), duration_s=0.2))
        assert time.monotonic() >= result.started_s + 0.2
    assert result.records == ()


def closed_plan(requests: int, concurrency: int, duration_s: float) -> LoadPlan:
    planned = tuple(PlannedRequest(0.0, (11, 12), 3) for _ in range(requests))
    return LoadPlan(requests=planned, duration_s=duration_s, concurrency=concurrency)


def test_closed_loop_keeps_its_concurrency_and_never_exceeds_it() -> None:
    async def script(call: Call) -> None:
        await asyncio.sleep(0.01)
        await three_tokens(call)

    with serving(script) as server:
        result = drive(server, closed_plan(10_000, 5, 0.4))
    assert server.most_busy == 5
    assert 5 < len(result.records) == len(server.calls) < 10_000
    assert {r.error for r in result.records} == {""}
    assert all(result.started_s <= r.due_s <= result.started_s + 0.4 for r in result.records)
    # The sixth request is due when the first slot frees, not before.
    assert result.records[5].due_s >= min(r.finished_s for r in result.records[:5])


def test_closed_loop_ends_when_the_requests_run_out() -> None:
    with serving(three_tokens) as server:
        result = drive(server, closed_plan(7, 3, 60.0))
    assert [r.error for r in result.records] == [""] * 7


def test_a_failed_request_frees_its_slot() -> None:
    async def script(call: Call) -> None:
        if call.number % 2:
            call.writer.close()
        else:
            await three_tokens(call)

    with serving(script) as server:
        result = drive(server, closed_plan(20, 2, 60.0))
    assert len(result.records) == 20
    assert any(not r.error for r in result.records)


def test_when_the_engine_dies_the_drive_ends_and_says_so() -> None:
    died = threading.Event()

    async def script(call: Call) -> None:
        if call.number < 2:
            await three_tokens(call)
        else:
            died.set()
            await asyncio.sleep(60)

    with serving(script) as server:
        result = drive(server, open_plan(0.0, 0.0, 0.1, 30.0), alive=lambda: not died.is_set())
    assert result.engine_died
    assert sorted(r.error for r in result.records) == ["", "", "engine died", "engine died"]
    assert math.isnan(result.records[3].sent_s)


@pytest.mark.parametrize("concurrency", [None, 2])
def test_cancelling_stops_everything(concurrency: int | None) -> None:
    working = threading.Event()
    left = threading.Event()

    async def script(call: Call) -> None:
        working.set()
        try:
            await call.send(HEAD)
            while not call.writer.is_closing():
                await call.send(chunk(token()), apart_s=0.01)
        finally:
            left.set()

    requests = tuple(PlannedRequest(0.0, (11,), 3) for _ in range(4))
    plan = LoadPlan(requests=requests, duration_s=30.0, concurrency=concurrency)
    with serving(script) as server:
        with pytest.raises(StudyCancelledError):
            drive(server, plan, cancelled=working.is_set)
        assert left.wait(timeout=10)


def test_a_drive_leaves_no_connection_open() -> None:
    with serving(three_tokens) as server:
        drive(server, open_plan(*(0.002 * i for i in range(50))))
        # Another drive on the same driver starts from nothing.
        before = {call.connection for call in server.calls}
        drive(server, open_plan(0.0))
        assert server.calls[-1].connection not in before
