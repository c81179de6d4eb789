"""The router of a disaggregated launch: each request to a prefill worker first, then to a decode worker.

    python -m autotune.adapters.engines.pd_router --port 8000 --transfer nixl \
        --prefill http://127.0.0.1:8001 --decode http://127.0.0.1:8002

A prefill worker is asked for one token and leaves the prompt's KV blocks for a decode worker to fetch; what
it answers under ``kv_transfer_params`` says where. Workers of either pool take turns. What the decode worker
says is passed on as it comes, byte for byte. A request is never sent to a decode worker that would have to
compute the prompt again: it fails, and its client is told.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import aiohttp
from aiohttp import web

CONNECT_TIMEOUT_S = 10.0
ASK_TIMEOUT_S = 5.0
SHUTDOWN_TIMEOUT_S = 1.0
MOST_REQUEST_BYTES = 64 << 20

# What belongs to one connection, and what the client library writes itself.
_NOT_PASSED_ON = frozenset(
    {
        *("connection", "keep-alive", "te", "transfer-encoding", "host"),
        *("content-length", "content-encoding", "accept-encoding"),
    }
)
_STREAMING = ("stream", "stream_options")

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Prefiller:
    """A prefill worker; ``bootstrap`` is where Mooncake's workers find it, under ``engine_id``."""

    url: str
    bootstrap: str = ""
    engine_id: str = ""


# What a decode worker is told, by who prefilled, what that one was told, and what it answered; None where it
# answered nothing that would do.
Transfer = Callable[[Prefiller, Body, Body], Body | None]


def told_to_prefill() -> Body:
    """``kv_transfer_params`` for a prefill worker: keep the blocks, under an id of their own."""
    return {"do_remote_decode": True, "do_remote_prefill": False, "transfer_id": f"xfer-{uuid.uuid4()}"}


def nixl(_prefiller: Prefiller, _told: Body, answer: Body) -> Body | None:
    """The prefill worker's answer says where the blocks are (vllm, kv_connector/v1/nixl)."""
    given = answer.get("kv_transfer_params")
    return given if isinstance(given, dict) else None


def mooncake(prefiller: Prefiller, told: Body, _answer: Body) -> Body | None:
    """Both know one id; the decode worker asks the other's bootstrap server (kv_connector/v1/mooncake)."""
    return {
        "do_remote_decode": False,
        "do_remote_prefill": True,
        "transfer_id": told["transfer_id"],
        "remote_engine_id": prefiller.engine_id,
        "remote_bootstrap_addr": prefiller.bootstrap,
    }


TRANSFERS: Mapping[str, Transfer] = {"nixl": nixl, "mooncake": mooncake}


@dataclass(slots=True)
class Counts:
    """What the router has seen, for its page of metrics."""

    requests: int = 0
    failures: int = 0
    running: int = 0
    prefill_s: float = 0.0

    def page(self) -> str:
        """In Prometheus' text format."""
        values = {
            "pd_router_requests_total": self.requests,
            "pd_router_failures_total": self.failures,
            "pd_router_prefill_seconds_total": self.prefill_s,
            "pd_router_requests_running": self.running,
        }
        return "".join(
            f"# TYPE {name} {'counter' if name.endswith('_total') else 'gauge'}\n{name} {value}\n"
            for name, value in values.items()
        )


@dataclass(slots=True)
class Router:
    """Sends requests through the two pools; made and used within one event loop."""

    prefill: Sequence[Prefiller]
    decode: Sequence[str]
    transfer: Transfer
    counts: Counts = field(default_factory=Counts)
    _session: aiohttp.ClientSession = field(init=False)
    _prefill_turn: itertools.cycle[Prefiller] = field(init=False)
    _decode_turn: itertools.cycle[str] = field(init=False)

    def __post_init__(self) -> None:
        self._prefill_turn = itertools.cycle(self.prefill)
        self._decode_turn = itertools.cycle(self.decode)

    def app(self) -> web.Application:
        """The server's routes."""
        app = web.Application(client_max_size=MOST_REQUEST_BYTES)
        app.cleanup_ctx.append(self._connected)
        app.router.add_get("/health", self.health)
        app.router.add_get("/metrics", self.metrics)
        app.router.add_get("/v1/models", self.models)
        app.router.add_post("/reset_prefix_cache", self.reset)
        app.router.add_post("/v1/completions", self.generate)
        app.router.add_post("/v1/chat/completions", self.generate)
        return app

    async def _connected(self, _app: web.Application) -> AsyncIterator[None]:
        # No limit on connections, and none on how long an answer takes: that is the client's to decide.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
            headers={"Accept-Encoding": "identity"},
        )
        async with self._session:
            yield

    async def generate(self, request: web.Request) -> web.StreamResponse:
        """Prefill here, decode there; errors of either are passed on."""
        self.counts.requests += 1
        self.counts.running += 1
        try:
            return await self._generate(request)
        except aiohttp.ClientError as error:
            self.counts.failures += 1
            return _error(HTTPStatus.BAD_GATEWAY, f"a worker failed: {type(error).__name__}: {error}")
        finally:
            self.counts.running -= 1

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        try:
            body = await request.json()
        except ValueError:
            body = None
        if not isinstance(body, dict):
            return _error(HTTPStatus.BAD_REQUEST, "the request's body is no JSON object")
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _NOT_PASSED_ON}
        prefiller, told = next(self._prefill_turn), told_to_prefill()
        started_s = time.monotonic()
        asked = self._session.post(
            prefiller.url + request.path, json=_of_one_token(body, told), headers=headers
        )
        async with asked as response:
            text = await response.read()
            if response.status != HTTPStatus.OK:
                self.counts.failures += 1
                return web.Response(status=response.status, body=text, content_type=response.content_type)
        self.counts.prefill_s += time.monotonic() - started_s
        after = self.transfer(prefiller, told, json.loads(text))
        if after is None:
            self.counts.failures += 1
            return _error(HTTPStatus.BAD_GATEWAY, f"{prefiller.url} kept no KV blocks for the decode worker")
        return await self._decode(request, {**body, "kv_transfer_params": after}, headers)

    async def _decode(
        self, request: web.Request, body: Body, headers: Mapping[str, str]
    ) -> web.StreamResponse:
        asked = self._session.post(next(self._decode_turn) + request.path, json=body, headers=headers)
        async with asked as response:
            if response.status != HTTPStatus.OK:
                self.counts.failures += 1
            kept = {k: v for k, v in response.headers.items() if k.lower() not in _NOT_PASSED_ON}
            answer = web.StreamResponse(status=response.status, headers=kept)
            await answer.prepare(request)
            try:
                async for piece in response.content.iter_any():
                    await answer.write(piece)
            except aiohttp.ClientError:
                self.counts.failures += 1
                # The client's stream breaks off as the worker's did: no ending that it never had.
                if request.transport is not None:
                    request.transport.abort()
            return answer

    async def health(self, _request: web.Request) -> web.Response:
        """200 when every worker says so."""
        ill = await self._all_but_ok("GET", "/health")
        return (
            _error(HTTPStatus.SERVICE_UNAVAILABLE, f"not healthy: {', '.join(ill)}")
            if ill
            else web.Response()
        )

    async def reset(self, _request: web.Request) -> web.Response:
        """Have every worker forget its cached prefixes."""
        unmoved = await self._all_but_ok("POST", "/reset_prefix_cache")
        return (
            _error(HTTPStatus.BAD_GATEWAY, f"not reset: {', '.join(unmoved)}") if unmoved else web.Response()
        )

    async def metrics(self, _request: web.Request) -> web.Response:
        """The router's own counters; workers have theirs."""
        return web.Response(text=self.counts.page())

    async def models(self, _request: web.Request) -> web.Response:
        """What a decode worker serves: all of them serve the same."""
        async with self._session.get(self.decode[0] + "/v1/models") as response:
            return web.Response(
                status=response.status, body=await response.read(), content_type=response.content_type
            )

    async def _all_but_ok(self, method: str, path: str) -> list[str]:
        """Ask every worker; returns those that do not answer 200."""
        timeout = aiohttp.ClientTimeout(total=ASK_TIMEOUT_S)
        wrong = []
        for url in (*(prefiller.url for prefiller in self.prefill), *self.decode):
            try:
                async with self._session.request(method, url + path, timeout=timeout) as response:
                    if response.status == HTTPStatus.OK:
                        continue
            except (aiohttp.ClientError, TimeoutError):
                pass
            wrong.append(url)
        return wrong


def _of_one_token(body: Body, transfer: Body) -> Body:
    """The request as a prefill worker gets it: the same prompt, one token, in one piece."""
    asked = {key: value for key, value in body.items() if key not in _STREAMING}
    # Bounds under any name: a minimum above one token would be refused beside a maximum of one.
    limits: Body = {key: 1 for key in ("max_completion_tokens", "min_tokens") if key in asked}
    return {**asked, "stream": False, "max_tokens": 1, **limits, "kv_transfer_params": transfer}


def _error(status: HTTPStatus, message: str) -> web.Response:
    return web.json_response(
        {"error": {"message": message, "type": status.phrase, "code": int(status)}}, status=status
    )


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Route requests through prefill and decode workers of vLLM.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--transfer", choices=tuple(TRANSFERS), default="nixl")
    parser.add_argument("--prefill", action="append", required=True, metavar="URL")
    parser.add_argument("--decode", action="append", required=True, metavar="URL")
    bootstrap = "bootstrap server of each --prefill, in their order; engine ids are prefill-0, prefill-1 ..."
    parser.add_argument("--bootstrap", action="append", default=[], metavar="URL", help=bootstrap)
    arguments = parser.parse_args(argv)
    if arguments.transfer == "mooncake" and len(arguments.bootstrap) != len(arguments.prefill):
        parser.error("--transfer mooncake needs a --bootstrap for each --prefill")
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until told to end."""
    given = parse_arguments(argv)
    bootstraps = given.bootstrap or [""] * len(given.prefill)
    prefill = [
        Prefiller(url, bootstrap, f"prefill-{index}")
        for index, (url, bootstrap) in enumerate(zip(given.prefill, bootstraps, strict=True))
    ]
    router = Router(prefill, given.decode, TRANSFERS[given.transfer])
    # A client that hangs up ends its request here, and with it the worker's.
    web.run_app(
        router.app(),
        host=given.host,
        port=given.port,
        handler_cancellation=True,
        shutdown_timeout=SHUTDOWN_TIMEOUT_S,
        access_log=None,
        print=None,
    )


if __name__ == "__main__":
    main()
