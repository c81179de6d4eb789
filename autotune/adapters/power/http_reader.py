"""Reads JSON and text over HTTP from one server, on a connection that is kept: a meter asks again and again.

The standard library does all that is needed, verifies against the system's certificates, and asks no proxy
of the environment on its way to a management network; a TLS handshake with a small controller takes most of
a second, so the connection is worth keeping.
"""

from __future__ import annotations

import http.client
import ipaddress
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from autotune.domain.basics.errors import BenchError, InputError, InputProblem

TIMEOUT_S = 4.0
"""Under the 5 s after which sampling gives a meter up, so that the error names the server."""
MOST_BYTES = 16 << 20
PIECE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered, and when: ``at_s`` is midway between request and answer, on our own clock.

    No clock of the server enters; half of ``round_trip_s`` is how far off the moment can be.
    """

    status: int
    body: bytes
    at_s: float
    round_trip_s: float


class HttpReader:
    """GETs paths of one server; not for several threads at once."""

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        ca_file: Path | None = None,
        verify: bool = True,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username is not None:
            raise InputError(
                InputProblem(
                    f"meter at {parts.hostname or url}",
                    "its URL is not http(s)://host[:port]/path without a name and password in it",
                    "name credentials by environment variables",
                )
            )
        self.url = url
        self.host = parts.hostname
        self.path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self.encrypted = parts.scheme == "https"
        self._port = parts.port
        self._headers = {"Accept": "*/*", **(headers or {})}
        self._timeout_s = timeout_s
        self._tls = _tls(ca_file, verify=verify) if self.encrypted else None
        self._connection: http.client.HTTPConnection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._close()

    @property
    def on_this_machine(self) -> bool:
        """Whether nothing that is sent leaves this machine."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def get(self, path: str) -> Answer:
        """Read one path, within about twice the time-out; raises BenchError unless a server answers whole."""
        kept = self._connection is not None
        try:
            try:
                return self._get(path)
            except ConnectionError:
                # A server may end a connection that it kept; whether it is still there shows on a fresh one.
                if not kept:
                    raise
                self._close()
                return self._get(path)
        except (OSError, http.client.HTTPException) as error:
            self._close()
            raise BenchError(
                f"power meter lost: no answer from {self._place(path)}: {error or type(error).__name__}; "
                f"see whether it is up, reachable from here and answers within {self._timeout_s:g} s"
            ) from error

    def _get(self, path: str) -> Answer:
        connection = self._connection = self._connection or self._connect()
        sent_s = time.monotonic()
        connection.request("GET", path, headers=self._headers)
        with connection.getresponse() as response:
            body = self._body(response, until_s=sent_s + self._timeout_s)
        received_s = time.monotonic()
        if response.will_close:
            self._close()
        return Answer(response.status, body, (sent_s + received_s) / 2, received_s - sent_s)

    @staticmethod
    def _body(response: http.client.HTTPResponse, until_s: float) -> bytes:
        """Read to the end; a socket's time-out is for each piece, and a server that drips is lost too."""
        body = bytearray()
        while piece := response.read1(PIECE_BYTES):
            body += piece
            if time.monotonic() > until_s or len(body) > MOST_BYTES:
                raise TimeoutError(f"the answer did not end ({len(body)} bytes so far)")
        if response.length:
            raise http.client.IncompleteRead(bytes(body), response.length)
        return bytes(body)

    def _connect(self) -> http.client.HTTPConnection:
        """Connect before a request's clock starts: a handshake says nothing of when a sensor was read."""
        connection = (
            http.client.HTTPSConnection(self.host, self._port, timeout=self._timeout_s, context=self._tls)
            if self._tls
            else http.client.HTTPConnection(self.host, self._port, timeout=self._timeout_s)
        )
        connection.connect()
        return connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _place(self, path: str) -> str:
        return f"{self.host}{f':{self._port}' if self._port else ''}{path}"


def _tls(ca_file: Path | None, *, verify: bool) -> ssl.SSLContext:
    """Verify by the system's certificates and those of ``ca_file``, unless told not to."""
    try:
        context = ssl.create_default_context()
        if ca_file is not None:
            context.load_verify_locations(ca_file)
    except OSError as error:
        problem = InputProblem(str(ca_file), f"no certificates could be read from it: {error}")
        raise InputError(problem) from error
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
