"""Faults under load: each is data in its request's record, or ends the drive in the way that is wanted."""

from __future__ import annotations

import asyncio
import math
import socket
import threading

import pytest
from load_harness import PROMPTS, drive, one_request, open_plan, planned, records, three_tokens
from scripted_server import DONE, END, HEAD, Call, chunk, serving, token, usage

from autotune.adapters.load.clients import LoadClients
from autotune.domain.basics.errors import BenchError, StudyCancelledError
from autotune.domain.launches.endpoint import Endpoint
from autotune.domain.load.load_plan import LoadPlan

pytestmark = pytest.mark.alone


@pytest.mark.parametrize("status", [400, 429, 503])
def test_a_refusal_is_data_and_the_connection_is_used_again(clients: LoadClients, status: int) -> None:
    async def script(call: Call) -> None:
        body = b'{"error":\n {"message": "busy"}}'
        head = b"HTTP/1.1 %d No\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
        await call.send(head, body[:9], body[9:])

    with serving(script) as server:
        first, second = records(drive(clients, server, open_plan(0.0, 0.2)))
    assert (first.status, second.status) == (status, status)
    assert first.error == second.error == f'HTTP {status}: {{"error": {{"message": "busy"}}}}'
    assert first.finished_s >= first.sent_s
    assert server.calls[0].connection == server.calls[1].connection


def test_a_connection_refused_is_data(clients: LoadClients) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = Endpoint(f"http://127.0.0.1:{unused.getsockname()[1]}", "tiny")
        result = clients.drive(endpoint, open_plan(0.0, 0.01), alive=lambda: True, cancelled=lambda: False)
    assert [error.split(":")[0] for error in result.requests.error] == ["connection", "connection"]
    assert all(math.isnan(r.sent_s) and r.status == 0 for r in records(result))


def test_an_endpoint_that_is_not_http_is_refused(clients: LoadClients) -> None:
    with pytest.raises(ValueError, match="ftp://engine"):
        clients.drive(
            Endpoint("ftp://engine", "tiny"), open_plan(0.0), alive=lambda: True, cancelled=lambda: False
        )


def test_a_disconnect_in_the_middle_is_truncated(clients: LoadClients) -> None:
    """The line that it cut off is no chunk, and no error of its own."""

    async def script(call: Call) -> None:
        await call.send(HEAD, chunk(token()), chunk(token()[:-2]))
        call.writer.close()

    with serving(script) as server:
        record = one_request(clients, server)
    assert (record.error, len(record.chunk_s), len(server.calls)) == ("truncated", 1, 1)


def test_a_reset_in_the_middle_is_a_connection_error(clients: LoadClients) -> None:
    async def script(call: Call) -> None:
        await call.send(HEAD, chunk(token()), apart_s=0.02)
        call.writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0"
        )
        call.writer.transport.abort()

    with serving(script) as server:
        record = one_request(clients, server)
    assert record.error.startswith("connection: ")
    assert len(record.chunk_s) == 1


def test_an_answer_that_is_not_http_is_a_connection_error(clients: LoadClients) -> None:
    async def script(call: Call) -> None:
        await call.send(b"SSH-2.0-OpenSSH_9.2\r\n")

    with serving(script) as server:
        record = one_request(clients, server)
    assert record.error.startswith("connection: unreadable answer")


def test_a_kept_connection_that_the_server_closed_is_replaced_once(clients: LoadClients) -> None:
    """The race of keep-alive: the server gives a connection up just as the next request goes out on it."""

    async def script(call: Call) -> None:
        if call.number == 1:
            call.writer.close()
        else:
            await three_tokens(call)

    with serving(script) as server:
        result = drive(clients, server, open_plan(0.0, 0.2))
    assert result.requests.error == ("", "")
    assert server.calls[0].connection == server.calls[1].connection != server.calls[2].connection


def test_a_request_is_sent_again_only_once(clients: LoadClients) -> None:
    async def script(call: Call) -> None:
        call.writer.close()

    with serving(script) as server:
        record = one_request(clients, server)
    assert record.error == "connection: closed before any answer"
    assert len(server.calls) == 2


def test_a_server_that_keeps_no_connection_is_served_on_new_ones(clients: LoadClients) -> None:
    async def script(call: Call) -> None:
        await call.send(HEAD.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        await call.send(*(chunk(e) for e in (token(), usage(3, 1), DONE)), END)
        call.writer.close()

    with serving(script) as server:
        result = drive(clients, server, open_plan(*(0.005 * i for i in range(60))))
    assert set(result.requests.error) == {""}
    assert len({call.connection for call in server.calls}) == 60


@pytest.mark.parametrize("tokens", [0, 1])
def test_a_request_without_an_end_times_out_and_the_others_do_not(clients: LoadClients, tokens: int) -> None:
    """A server that never answers, and one that stalls in the middle."""

    async def script(call: Call) -> None:
        if call.number == 0:
            await call.send(*[HEAD, chunk(token())][: 2 * tokens])
            await asyncio.sleep(60)
        await three_tokens(call)

    with serving(script) as server:
        plan = open_plan(0.0, 0.1, 0.2, request_timeout_s=1.0)
        first, *others = records(drive(clients, server, plan))
    assert [first.error, *(r.error for r in others)] == ["timeout", "", ""]
    assert first.finished_s - first.due_s >= 1.0
    assert len(first.chunk_s) == tokens


def test_what_is_not_finished_when_draining_ends_is_an_error(clients: LoadClients) -> None:
    async def script(call: Call) -> None:
        await asyncio.sleep(60)

    with serving(script) as server:
        (record,) = records(drive(clients, server, open_plan(0.0, drain_timeout_s=0.1)))
    assert record.error == "not finished when draining ended"
    assert math.isnan(record.finished_s)


def test_when_the_engine_dies_the_drive_ends_and_says_so(clients: LoadClients) -> None:
    died = threading.Event()

    async def script(call: Call) -> None:
        if call.number < 2:
            await three_tokens(call)
        else:
            died.set()
            await asyncio.sleep(60)

    with serving(script) as server:
        plan = open_plan(0.0, 0.0, 0.1, 30.0)
        result = drive(clients, server, plan, alive=lambda: not died.is_set())
    assert result.engine_died
    # The fourth was never due.
    assert sorted(result.requests.error) == ["", "", "engine died"]


@pytest.mark.parametrize("concurrency", [None, 2])
def test_cancelling_stops_everything(clients: LoadClients, concurrency: int | None) -> None:
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

    requests = tuple(planned(key=key) for key in range(4))
    plan = LoadPlan(requests=requests, prompts=PROMPTS, duration_s=30.0, concurrency=concurrency)
    with serving(script) as server:
        with pytest.raises(StudyCancelledError):
            drive(clients, server, plan, cancelled=working.is_set)
        assert left.wait(timeout=10)
    with serving(three_tokens) as server:
        assert one_request(clients, server).error == ""


def test_a_drive_leaves_no_connection_open(clients: LoadClients) -> None:
    with serving(three_tokens) as server:
        drive(clients, server, open_plan(*(0.002 * i for i in range(50))))
        before = {call.connection for call in server.calls}
        drive(clients, server, open_plan(0.0))
        assert server.calls[-1].connection not in before


def test_prompts_that_cannot_be_written_end_the_drive_and_say_why(clients: LoadClients) -> None:
    """Ids without a tokenizer are no chat."""
    plan = LoadPlan(requests=(planned(),), prompts=PROMPTS, duration_s=0.0, api="chat")
    with serving(three_tokens) as server, pytest.raises(BenchError, match="a tokenizer is needed"):
        drive(clients, server, plan)
