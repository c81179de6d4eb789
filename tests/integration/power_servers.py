"""Real HTTP servers that stand in for a node's controller and for a DCGM exporter, faults included."""

from __future__ import annotations

import json
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Script:
    """What the server answers, and what it saw."""

    pages: dict[str, object] = field(default_factory=dict)
    status: int = 200
    delay_s: float = 0.0
    drip_s: float = 0.0
    authorization: str = ""
    closing: bool = False
    cut: bool = False
    hang_up: bool = False
    paths: list[str] = field(default_factory=list)
    connections: set[tuple[str, int]] = field(default_factory=set)
    url: str = ""

    def body(self, path: str) -> bytes | None:
        page = self.pages.get(path)
        if page is None or isinstance(page, bytes):
            return page
        return json.dumps(page).encode()


def _handler(script: Script) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            script.paths.append(self.path)
            script.connections.add(self.client_address)
            body = script.body(self.path)
            status = script.status if body is not None else 404
            if script.authorization and self.headers.get("Authorization") != script.authorization:
                status = 401
            time.sleep(script.delay_s)
            self._answer(status, body or b"{}")

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body) + script.cut))
            self.close_connection = script.closing or script.cut or script.hang_up
            if script.closing:
                self.send_header("Connection", "close")
            self.end_headers()
            pieces = [body[i : i + 1] for i in range(len(body))] if script.drip_s else [body]
            try:
                for piece in pieces:
                    self.wfile.write(piece)
                    time.sleep(script.drip_s)
            except OSError:
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
            pass

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that gave up is part of the tests."""


@contextmanager
def serving(script: Script, certificate: Path | None = None) -> Iterator[Script]:
    """Serve for the length of a block, on a free port of this machine."""
    server = _Server(("127.0.0.1", 0), _handler(script))
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        server.socket = context.wrap_socket(server.socket, server_side=True)
    scheme = "https" if certificate else "http"
    script.url = f"{scheme}://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield script
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def self_signed(folder: Path) -> Path:
    """Make a certificate for 127.0.0.1 that no system trusts, its key beside it."""
    certificate = folder / "controller.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-out", str(certificate), "-keyout", str(certificate.with_suffix(".key"))),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    return certificate
