"""The router of disaggregated launches: a real process between real HTTP clients and workers."""

from __future__ import annotations

import asyncio
import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

pytestmark = pytest.mark.alone

HOST = "127.0.0.1"
EVENTS = [b'data: {"n":%d}\n\n' % n for n in range(5)] + [b"data: [DONE]\n\n"]


@dataclass
class Worker:
    """A worker of which the answers are known; what it is asked is kept."""

    name: str
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    resets: int = 0
    healthy: bool = True
    url: str = ""
    hung_up: threading.Event = field(default_factory=threading.Event)

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/v1/completions", self.complete)
        app.router.add_get("/health", self.health)
        app.router.add_post("/reset_prefix_cache", self.reset)
        app.router.add_get("/v1/models", self.models)
        return app

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(body)
        self.headers.append(request.headers.copy())
        prompt = body["prompt"]
        if prompt == f"refused by {self.name}":
            return web.json_response({"error": {"message": "no such adapter"}}, status=404)
        if not body.get("stream"):
            return web.json_response(self.answer(body))
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Mine": "kept"})
        await answer.prepare(request)
        try:
            for event in EVENTS:
                await answer.write(event)
                await asyncio.sleep(30 if prompt == "slow" else 0.005)
                if prompt == "breaks off" and request.transport is not None:
                    request.transport.abort()
        except (asyncio.CancelledError, ConnectionError):
            self.hung_up.set()
            raise
        return answer

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        if "keeps nothing" in body["prompt"]:
            return {"choices": []}
        return {"choices": [], "kv_transfer_params": {"do_remote_prefill": True, "from": self.name}}

    async def health(self, _request: web.Request) -> web.Response:
        return web.Response(status=200 if self.healthy else 503)

    async def reset(self, _request: web.Request) -> web.Response:
        self.resets += 1
        return web.Response()

    async def models(self, _request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m"}]})


@contextmanager
def serving(workers: list[Worker]) -> Iterator[None]:
    loop = asyncio.new_event_loop()
    runners = [
        web.AppRunner(worker.app(), handler_cancellation=True, shutdown_timeout=0.1) for worker in workers
    ]

    async def start() -> None:
        for worker, runner in zip(workers, runners, strict=True):
            await runner.setup()
            site = web.TCPSite(runner, HOST, 0)
            await site.start()
            worker.url = f"http://{HOST}:{runner.addresses[0][1]}"

    async def stop() -> None:
        for runner in runners:
            await runner.cleanup()

    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(start(), loop).result(10)
        yield
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def free_port() -> int:
    with socket.socket() as free:
        free.bind((HOST, 0))
        return int(free.getsockname()[1])


@dataclass
class Bench:
    """A router that runs, and the workers behind it."""

    prefill: list[Worker]
    decode: list[Worker]
    port: int
    process: subprocess.Popen[bytes]

    def ask(
        self, method: str, path: str, body: object = None, **headers: str
    ) -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=20)
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            response = connection.getresponse()
            return response.status, response.read(), dict(response.getheaders())
        finally:
            connection.close()

    def complete(self, **body: object) -> tuple[int, bytes, dict[str, str]]:
        return self.ask("POST", "/v1/completions", {"model": "m", "prompt": "hello", **body})

    def metric(self, name: str) -> float:
        page = self.ask("GET", "/metrics")[1].decode()
        return next(float(line.split()[1]) for line in page.splitlines() if line.startswith(name))


@contextmanager
def routing(*arguments: str, pools: tuple[int, int] = (2, 2)) -> Iterator[Bench]:
    prefill = [Worker(f"prefill-{index}") for index in range(pools[0])]
    decode = [Worker(f"decode-{index}") for index in range(pools[1])]
    with serving([*prefill, *decode]):
        port = free_port()
        pairs = [("--prefill", w.url) for w in prefill] + [("--decode", w.url) for w in decode]
        command = [sys.executable, "-m", "autotune.adapters.engines.pd_router", "--port", str(port)]
        with subprocess.Popen(
            [*command, *(token for pair in pairs for token in pair), *arguments]
        ) as process:
            bench = Bench(prefill, decode, port, process)
            try:
                _await_answer(bench)
                yield bench
            finally:
                process.terminate()
                process.wait(10)


def _await_answer(bench: Bench) -> None:
    deadline_s = time.monotonic() + 20
    while True:
        try:
            bench.ask("GET", "/metrics")
        except ConnectionError:
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        else:
            return


@pytest.fixture
def bench() -> Iterator[Bench]:
    with routing() as running:
        yield running


def test_a_stream_passes_byte_for_byte_after_a_prefill_of_one_token(bench: Bench) -> None:
    limits = {"max_tokens": 7, "min_tokens": 7, "max_completion_tokens": 7, "ignore_eos": True}
    status, stream, headers = bench.complete(stream=True, stream_options={"include_usage": True}, **limits)
    assert (status, stream) == (200, b"".join(EVENTS))
    assert headers["Content-Type"] == "text/event-stream"
    assert headers["X-Mine"] == "kept"
    told = bench.prefill[0].asked[0].pop("kv_transfer_params")
    assert bench.prefill[0].asked == [
        {
            "model": "m",
            "prompt": "hello",
            "stream": False,
            "max_tokens": 1,
            "min_tokens": 1,
            "max_completion_tokens": 1,
            "ignore_eos": True,
        }
    ]
    assert told["do_remote_decode"] is True
    (decoded,) = bench.decode[0].asked
    assert decoded["kv_transfer_params"] == {"do_remote_prefill": True, "from": "prefill-0"}
    assert {word: decoded[word] for word in limits} == limits
    assert decoded["stream_options"] == {"include_usage": True}


def test_workers_of_both_pools_take_turns(bench: Bench) -> None:
    for _ in range(4):
        assert bench.complete()[0] == 200
    assert [len(worker.asked) for worker in (*bench.prefill, *bench.decode)] == [2, 2, 2, 2]


def test_who_asks_and_under_which_id_reaches_both_workers(bench: Bench) -> None:
    bench.ask(
        "POST",
        "/v1/completions",
        {"model": "m", "prompt": "hello"},
        **{"X-Request-Id": "7", "Authorization": "Bearer x"},
    )
    for worker in (bench.prefill[0], bench.decode[0]):
        (headers,) = worker.headers
        assert (headers["X-Request-Id"], headers["Authorization"]) == ("7", "Bearer x")
        assert headers["Host"] in worker.url


def test_a_prefill_workers_error_is_the_answer_and_nobody_decodes(bench: Bench) -> None:
    status, body, _ = bench.complete(prompt="refused by prefill-0", stream=True)
    assert status == 404
    assert b"no such adapter" in body
    assert not bench.decode[0].asked
    assert bench.metric("pd_router_failures_total") == 1


def test_a_decode_workers_error_is_the_answer(bench: Bench) -> None:
    status, body, _ = bench.complete(prompt="refused by decode-0", stream=True)
    assert status == 404
    assert b"no such adapter" in body


def test_no_decode_worker_computes_a_prompt_again(bench: Bench) -> None:
    status, body, _ = bench.complete(prompt="keeps nothing")
    assert status == 502
    assert b"kept no KV blocks" in body
    assert not bench.decode[0].asked


def test_a_stream_that_breaks_off_breaks_off(bench: Bench) -> None:
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        bench.complete(prompt="breaks off", stream=True)
    assert bench.metric("pd_router_failures_total") == 1
    assert bench.complete()[0] == 200


def test_a_client_that_hangs_up_ends_the_decoding(bench: Bench) -> None:
    connection = http.client.HTTPConnection(HOST, bench.port, timeout=20)
    body = json.dumps({"model": "m", "prompt": "slow", "stream": True})
    connection.request("POST", "/v1/completions", body)
    response = connection.getresponse()
    response.read(4)
    assert bench.metric("pd_router_requests_running") == 1
    response.close()
    connection.close()
    assert bench.decode[0].hung_up.wait(20)


def test_a_worker_that_is_gone_is_a_bad_gateway() -> None:
    with routing("--decode", f"http://{HOST}:9", pools=(1, 1)) as bench:
        assert bench.complete()[0] == 200
        status, body, _ = bench.complete()
        assert status == 502
        assert b"a worker failed" in body
        assert bench.ask("GET", "/health")[0] == 503


def test_what_is_no_json_object_is_refused(bench: Bench) -> None:
    connection = http.client.HTTPConnection(HOST, bench.port, timeout=20)
    connection.request("POST", "/v1/completions", "no JSON")
    assert connection.getresponse().status == 400
    connection.close()


def test_it_is_healthy_when_all_are(bench: Bench) -> None:
    assert bench.ask("GET", "/health")[0] == 200
    bench.decode[1].healthy = False
    status, body, _ = bench.ask("GET", "/health")
    assert status == 503
    assert bench.decode[1].url.encode() in body


def test_every_worker_forgets_its_prefixes(bench: Bench) -> None:
    assert bench.ask("POST", "/reset_prefix_cache")[0] == 200
    assert [worker.resets for worker in (*bench.prefill, *bench.decode)] == [1, 1, 1, 1]


def test_it_serves_what_its_workers_serve(bench: Bench) -> None:
    assert json.loads(bench.ask("GET", "/v1/models")[1])["data"] == [{"id": "m"}]


def test_requests_and_their_prefill_are_counted(bench: Bench) -> None:
    bench.complete()
    assert bench.metric("pd_router_requests_total") == 1
    assert bench.metric("pd_router_prefill_seconds_total") > 0
    assert bench.metric("pd_router_requests_running") == 0


def test_mooncake_workers_are_told_one_id_and_where_to_look() -> None:
    with routing("--transfer", "mooncake", "--bootstrap", "http://b:1", pools=(1, 1)) as bench:
        assert bench.complete()[0] == 200
    before = bench.prefill[0].asked[0]["kv_transfer_params"]
    after = bench.decode[0].asked[0]["kv_transfer_params"]
    assert before == {
        "do_remote_decode": True,
        "do_remote_prefill": False,
        "transfer_id": after["transfer_id"],
    }
    assert after["do_remote_prefill"] is True
    assert after["remote_engine_id"] == "prefill-0"
    assert after["remote_bootstrap_addr"] == "http://b:1"


def test_a_stop_ends_it_at_once(bench: Bench) -> None:
    bench.process.send_signal(signal.SIGTERM)
    assert bench.process.wait(10) in {0, -signal.SIGTERM}
