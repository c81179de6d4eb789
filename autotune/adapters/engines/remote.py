"""Engines that run already, behind a URL: watched from here, neither started nor ended."""

from __future__ import annotations

import http.client
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from autotune.adapters.engines.counters import CounterSampling, counting, read_counters
from autotune.adapters.load.openai_requests import authorization
from autotune.domain.basics.errors import InputError, InputProblem, StudyCancelledError
from autotune.domain.launches.endpoint import Endpoint
from autotune.domain.launches.launch import EngineDiedError, Evidence, LaunchSpec, Phase
from autotune.domain.load.progress import Cancelled

MODELS = "/v1/models"
HEALTH = "/health"
METRICS = "/metrics"

ANSWER_TIMEOUT_S = 5.0
PERIOD_S = 2.0
SILENCE_S = 20.0
"""An endpoint that answered nothing for so long is gone: an overloaded one may miss a look or two."""
POLL_S = 0.5
MOST_BYTES = 16 << 20

_FORBIDDEN = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
_NOT_THERE = frozenset({HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT})
"""What gateways say for an engine that is away, and engines that still load; any other answer shows life."""


class RemoteEngineHost:
    """EngineHost for launches that are an endpoint alone.

    ``counters`` maps our names to those on the endpoint's page of metrics, if it has one.
    """

    def __init__(
        self, counters: Mapping[str, str], *, period_s: float = PERIOD_S, silence_s: float = SILENCE_S
    ) -> None:
        self._counters = counters
        self._period_s = period_s
        self._silence_s = silence_s

    @contextmanager
    def serving(
        self, spec: LaunchSpec, *, workdir: Path, start_timeout_s: float, cancelled: Cancelled
    ) -> Iterator[RemoteEngine]:
        """Watch an endpoint for the length of a ``with`` block.

        Raises EngineDiedError when it does not answer, InputError when it refuses the token,
        StudyCancelledError when ``cancelled`` turned true.
        """
        if spec.endpoint is None:
            raise ValueError("a launch without an endpoint has processes: it is LocalEngineHost's")
        server = _Server(spec.endpoint)
        deadline_s = time.monotonic() + start_timeout_s
        _await_answer(server, deadline_s=deadline_s, workdir=workdir, cancelled=cancelled)
        # Some endpoints have no page of health; for some the list of models is dear.
        path = HEALTH if server.get(HEALTH).status == HTTPStatus.OK else MODELS
        counters = self._counters if server.get(METRICS).status == HTTPStatus.OK else {}
        with _Watch(server, path, period_s=self._period_s) as watch:
            yield RemoteEngine(spec.endpoint, server, watch, counters=counters, silence_s=self._silence_s)


class RemoteEngine:
    """An endpoint that answers."""

    def __init__(
        self,
        endpoint: Endpoint,
        server: _Server,
        watch: _Watch,
        *,
        counters: Mapping[str, str],
        silence_s: float,
    ) -> None:
        self.endpoint = endpoint
        self._server = server
        self._watch = watch
        self._counters = counters
        self._silence_s = silence_s

    def alive(self) -> bool:
        """Whether it gave an answer lately; a read that never blocks."""
        return self._watch.silent_s() < self._silence_s

    def counters(self) -> Mapping[str, float]:
        """The engine's own counters now, by our names; empty where it shows none."""
        if not self._counters:
            return {}
        answer = self._server.get(METRICS)
        if answer.status != HTTPStatus.OK:
            return {}
        return read_counters(answer.body.decode(errors="replace"), self._counters)

    def counting(self) -> AbstractContextManager[CounterSampling]:
        """Sample the counters about once a second for the length of a ``with`` block."""
        return counting(self.counters)

    def reset_caches(self) -> bool:
        """Never: what it keeps, it keeps for others too."""
        return False

    def evidence(self, stream_error: str = "", *, loading: bool, stalled: bool = False) -> Evidence:
        """What is to be seen from outside: no exit code, and in place of a log what it last answered."""
        return Evidence(
            phase=Phase.LOADING if loading else Phase.FIRST_REQUEST,
            exit_code=None,
            log=self._watch.last_words(),
            stream_error=stream_error,
            stalled=stalled,
        )


@dataclass(frozen=True, slots=True)
class _Answer:
    """Status 0 and ``problem`` where none came."""

    status: int
    body: bytes = b""
    problem: str = ""

    @property
    def shows_life(self) -> bool:
        return self.status != 0 and self.status not in _NOT_THERE

    @property
    def said(self) -> str:
        return f"HTTP {self.status}" if self.status else self.problem


class _Server:
    """GETs paths under an endpoint's URL, each on a connection of its own.

    Making it raises InputError where its token is not there.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        url = urlsplit(endpoint.base_url)
        self.base_url = endpoint.base_url
        self.token_variable = endpoint.token_variable
        self._host = url.hostname or ""
        self._port = url.port
        self._root = url.path.rstrip("/")
        self._tls = ssl.create_default_context() if url.scheme == "https" else None
        token = authorization(endpoint)
        self._headers = {"Authorization": token} if token else {}

    def get(self, path: str) -> _Answer:
        """Ask once, within about twice ANSWER_TIMEOUT_S."""
        connection = (
            http.client.HTTPSConnection(self._host, self._port, timeout=ANSWER_TIMEOUT_S, context=self._tls)
            if self._tls
            else http.client.HTTPConnection(self._host, self._port, timeout=ANSWER_TIMEOUT_S)
        )
        try:
            connection.request("GET", self._root + path, headers=self._headers)
            with connection.getresponse() as response:
                return _Answer(response.status, response.read(MOST_BYTES))
        except (OSError, http.client.HTTPException) as lost:
            return _Answer(0, problem=f"no answer from {self.base_url}: {lost or type(lost).__name__}")
        finally:
            connection.close()


class _Watch:
    """Asks an endpoint now and then, in a thread, so that nobody has to wait to know whether it is there."""

    def __init__(self, server: _Server, path: str, *, period_s: float) -> None:
        self._server = server
        self._path = path
        self._period_s = period_s
        self._heard_s = time.monotonic()
        self._said = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"watch on {server.base_url}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(2 * ANSWER_TIMEOUT_S)

    def silent_s(self) -> float:
        """Seconds since it last answered."""
        return time.monotonic() - self._heard_s

    def last_words(self) -> str:
        """What it said when it was asked last."""
        if not self._said:
            return ""
        return f"{self._path}: {self._said}; last sign of life {self.silent_s():.0f} s ago"

    def _run(self) -> None:
        while not self._stop.wait(self._period_s):
            answer = self._server.get(self._path)
            self._said = answer.said
            if answer.shows_life:
                self._heard_s = time.monotonic()


def _await_answer(server: _Server, *, deadline_s: float, workdir: Path, cancelled: Cancelled) -> None:
    """Return when the endpoint shows life; one that says that it is not there yet is waited for."""
    while not (answer := server.get(MODELS)).shows_life:
        if cancelled():
            raise StudyCancelledError("stopped while waiting for an endpoint")
        timed_out = time.monotonic() > deadline_s
        if answer.status == 0 or timed_out:
            text = f"{answer.said}; see whether it runs, and whether this is its URL: {server.base_url}"
            evidence = Evidence(phase=Phase.STARTING, exit_code=None, log=text, timed_out=timed_out)
            raise EngineDiedError(evidence, workdir)
        time.sleep(POLL_S)
    if answer.status in _FORBIDDEN:
        name = server.token_variable
        refused = "the token that it was sent" if name else "requests without a token"
        remedy = (
            f"put a token that is good for it into the environment variable {name}"
            if name
            else "name the environment variable that holds its token: `token_variable: NAME`"
        )
        where, what = f"engine url at {server.base_url}", f"refuses {refused}: {answer.said}"
        raise InputError(InputProblem(where, what, remedy))
