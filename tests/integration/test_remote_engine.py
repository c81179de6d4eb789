"""Endpoints that run already: watched, counted and driven over real HTTP and TLS, token or not."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from load_harness import open_plan, records
from power_servers import self_signed

from autotune.adapters.engines.remote import RemoteEngine, RemoteEngineHost
from autotune.adapters.load.clients import LoadClients
from autotune.adapters.load.openai_requests import RequestWriter
from autotune.domain.basics.errors import InputError, StudyCancelledError
from autotune.domain.launches.endpoint import Endpoint
from autotune.domain.launches.launch import EngineDiedError, LaunchSpec, Phase
from autotune.domain.load.load_plan import LoadPlan
from autotune.domain.measuring.measurement import LoadResult

pytestmark = pytest.mark.alone

TOKEN = "sk-very-secret"
VARIABLE = "ENDPOINT_TOKEN"

STREAM = b"".join(
    b"data: " + event + b"\n\n"
    for event in (
        b'{"choices":[{"index":0,"text":" one"}]}',
        b'{"choices":[{"index":0,"text":" two","finish_reason":"stop"}]}',
        b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}',
        b"[DONE]",
    )
)


@dataclass
class Server:
    """An engine's API server; ``pages`` are GET answers by path, 404 for others."""

    pages: dict[str, bytes] = field(default_factory=lambda: {"/v1/models": b"{}"})
    statuses: dict[str, int] = field(default_factory=dict)
    token: str = ""
    asked: list[str] = field(default_factory=list)
    url: str = ""

    @property
    def spec(self) -> LaunchSpec:
        return self.spec_with()

    def spec_with(self, token_variable: str = "") -> LaunchSpec:
        endpoint = Endpoint(self.url, "m", ignore_eos=False, token_variable=token_variable)
        return LaunchSpec(processes=(), serving_role="", served_model="m", endpoint=endpoint)


def _handler(script: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            script.asked.append(self.path)
            known = self.path in script.pages
            self._answer(script.statuses.get(self.path, 200 if known else 404), script.pages.get(self.path))

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(200, STREAM)

        def _answer(self, status: int, body: bytes | None) -> None:
            if script.token and self.headers.get("Authorization") != f"Bearer {script.token}":
                status, body = 401, b"no"
            self.send_response(status)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
            pass

    return Handler


class _Listener(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is part of the tests."""


@contextmanager
def serving(script: Server, certificate: Path | None = None) -> Iterator[Server]:
    listener = _Listener(("127.0.0.1", 0), _handler(script))
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        listener.socket = context.wrap_socket(listener.socket, server_side=True)
    script.url = f"{'https' if certificate else 'http'}://127.0.0.1:{listener.server_port}"
    thread = threading.Thread(target=listener.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield script
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()


@contextmanager
def watched(
    spec: LaunchSpec,
    tmp_path: Path,
    *,
    counters: dict[str, str] | None = None,
    start_timeout_s: float = 60.0,
    silence_s: float = 60.0,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[RemoteEngine]:
    host = RemoteEngineHost(counters or {}, period_s=0.01, silence_s=silence_s)
    with host.serving(spec, workdir=tmp_path, start_timeout_s=start_timeout_s, cancelled=cancelled) as engine:
        yield engine


def wait_until(happened: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


@pytest.fixture
def _workers_find_the_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def drive(clients: LoadClients, endpoint: Endpoint, plan: LoadPlan) -> LoadResult:
    return clients.drive(endpoint, plan, alive=lambda: True, cancelled=lambda: False)


def test_an_endpoint_that_answers_is_alive_and_forgets_nothing(tmp_path: Path) -> None:
    with serving(Server()) as server, watched(server.spec, tmp_path) as engine:
        assert engine.endpoint.base_url == server.url
        assert engine.alive()
        assert engine.counters() == {}
        assert not engine.reset_caches()


@pytest.mark.parametrize(
    ("pages", "path"),
    [
        ({"/v1/models": b"{}"}, "/v1/models"),
        ({"/v1/models": b"{}", "/health": b""}, "/health"),
        ({"/health": b""}, "/health"),
    ],
)
def test_its_health_is_asked_where_it_has_a_page_for_it(
    pages: dict[str, bytes], path: str, tmp_path: Path
) -> None:
    with serving(Server(pages)) as server, watched(server.spec, tmp_path):
        server.asked.clear()
        wait_until(lambda: len(server.asked) > 2)
        assert set(server.asked[1:]) == {path}


def test_its_counters_are_read_where_it_has_a_page_of_them(tmp_path: Path) -> None:
    page = b'vllm:num_requests_running{model="m"} 3.0\n'
    with (
        serving(Server({"/v1/models": b"{}", "/metrics": page})) as server,
        watched(server.spec, tmp_path, counters={"requests_running": "vllm:num_requests_running"}) as engine,
    ):
        assert engine.counters() == {"requests_running": 3.0}
        with engine.counting() as recording:
            pass
        assert recording.trace().values["requests_running"][0] == 3.0


def test_one_that_stops_answering_is_gone_and_says_its_last_words(tmp_path: Path) -> None:
    server = Server({"/v1/models": b"{}", "/health": b""})
    with serving(server), watched(server.spec, tmp_path, silence_s=0.3) as engine:
        wait_until(lambda: len(server.asked) > 5)
        assert engine.alive()
        server.statuses["/health"] = 503
        wait_until(lambda: not engine.alive())
        seen = engine.evidence("stream ended", loading=True)
        assert (seen.phase, seen.exit_code, seen.stream_error) == (Phase.LOADING, None, "stream ended")
        assert "/health: HTTP 503" in seen.log
        del server.statuses["/health"]
        wait_until(engine.alive)


def test_nobody_there_is_told_at_once(tmp_path: Path) -> None:
    with serving(Server()) as server:
        spec = server.spec
    with pytest.raises(EngineDiedError) as raised, watched(spec, tmp_path):
        pass
    assert raised.value.evidence.phase is Phase.STARTING
    assert not raised.value.evidence.timed_out
    assert "refused" in raised.value.evidence.log
    assert server.url in raised.value.evidence.log


def test_one_that_still_loads_is_waited_for(tmp_path: Path) -> None:
    server = Server(statuses={"/v1/models": 503})

    def loaded() -> bool:
        server.statuses.clear()
        return False

    with serving(server), watched(server.spec, tmp_path, cancelled=loaded) as engine:
        assert engine.alive()
    assert server.asked.count("/v1/models") >= 2


def test_one_that_loads_for_ever_is_censored(tmp_path: Path) -> None:
    with (
        serving(Server(statuses={"/v1/models": 503})) as server,
        pytest.raises(EngineDiedError) as raised,
        watched(server.spec, tmp_path, start_timeout_s=0.0),
    ):
        pass
    assert raised.value.evidence.timed_out


def test_the_wait_ends_when_the_user_stops_it(tmp_path: Path) -> None:
    with (
        serving(Server(statuses={"/v1/models": 503})) as server,
        pytest.raises(StudyCancelledError),
        watched(server.spec, tmp_path, cancelled=lambda: True),
    ):
        pass


@pytest.mark.usefixtures("_workers_find_the_harness")
def test_a_token_opens_the_endpoint_to_watch_and_to_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, TOKEN)
    with (
        serving(Server(token=TOKEN)) as server,
        watched(server.spec_with(VARIABLE), tmp_path) as engine,
        LoadClients(processes=1) as clients,
    ):
        (record,) = records(drive(clients, engine.endpoint, open_plan(0.0, tokens=9)))
        assert TOKEN not in repr(engine.endpoint)
    assert (record.error, record.status) == ("", 200)
    # It ended before the nine that were asked for: what counts is what came.
    assert record.output_tokens == 2


@pytest.mark.parametrize(
    ("variable", "remedy"), [("", "token_variable: NAME"), (VARIABLE, f"environment variable {VARIABLE}")]
)
def test_a_refused_token_is_the_users_to_mend(
    variable: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "sk-of-yesterday")
    with (
        serving(Server(token=TOKEN)) as server,
        pytest.raises(InputError) as raised,
        watched(server.spec_with(variable), tmp_path),
    ):
        pass
    assert remedy in str(raised.value)
    assert "yesterday" not in str(raised.value)


@pytest.mark.parametrize(
    ("token", "what"), [(None, "not set"), ("", "not set"), ("sk-a\r\nHost: b", "no bearer token")]
)
def test_a_token_that_cannot_be_sent_is_told_without_showing_it(
    token: str | None, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    if token is not None:
        monkeypatch.setenv(VARIABLE, token)
    with pytest.raises(InputError, match=f"{VARIABLE}.*{what}") as raised:
        RequestWriter(Endpoint("http://h", "m", token_variable=VARIABLE), open_plan(0.0))
    assert "sk-a" not in str(raised.value)


@pytest.mark.usefixtures("_workers_find_the_harness")
def test_load_is_driven_over_tls_that_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = self_signed(tmp_path)
    with serving(Server(), certificate) as server:
        with LoadClients(processes=1) as strangers:
            (refused,) = records(drive(strangers, Endpoint(server.url, "m"), open_plan(0.0)))
        assert "certificate verify failed" in refused.error
        with pytest.raises(EngineDiedError) as raised, watched(server.spec, tmp_path):
            pass
        assert "certificate verify failed" in raised.value.evidence.log

        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with watched(server.spec, tmp_path) as engine, LoadClients(processes=1) as clients:
            result = drive(clients, engine.endpoint, open_plan(0.0, 0.0, 0.05))
        assert [(r.error, r.output_tokens) for r in records(result)] == [("", 2)] * 3
