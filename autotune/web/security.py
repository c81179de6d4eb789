"""What every request must pass: sizes, the host it was meant for, the token; and the headers of answers."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from autotune.domain.basics.errors import InputError, InputProblem

MOST_BODY_BYTES = 64 * 1024
MOST_QUERY_BYTES = 4 * 1024
SESSION_COOKIE = "autotune_session"
OPEN_PATHS = frozenset({"/healthz", "/login"})
"""Paths that ask for no token; assets of the login page are open as well."""
ASSETS = "/assets/"
LEAST_TOKEN_CHARACTERS = 16
API = "/api/v1"
DASHBOARD = ("/dashboard", "/static/", "/img/", "/favicon.ico", "/api/", "/artifacts/")
"""Addresses that the bundle of Optuna's dashboard asks for; they cannot be moved under a prefix."""

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""Scripts are ours alone; plots write their style into the page, hence inline styles."""
DASHBOARD_POLICY = (
    "default-src 'self'; script-src 'self'; worker-src 'self' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; frame-ancestors 'none'"
)
"""Optuna's dashboard brings its own bundle and nothing from elsewhere."""
_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """How to serve; ``token`` empty asks for none, ``allow_write`` lets Optuna's dashboard change studies."""

    host: str = "127.0.0.1"
    port: int = 8080
    token: str = ""
    allow_write: bool = False

    def checked(self) -> ServeOptions:
        """Return them as they are; raises InputError for what would leave studies open to a network."""
        if self.token and len(self.token) < LEAST_TOKEN_CHARACTERS:
            what = f"has {len(self.token)} characters, {LEAST_TOKEN_CHARACTERS} are the least"
            raise InputError(InputProblem("token", what, "make one: openssl rand -hex 24"))
        if not is_loopback(self.host) and not self.token:
            remedy = "give --token-file FILE or set AUTOTUNE_TOKEN, or leave out --host"
            what = "is reachable from other machines, and no token is asked for"
            raise InputError(InputProblem(f"--host {self.host}", what, remedy))
        return self


def is_loopback(host: str) -> bool:
    """Whether a host to bind to is this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def session_of(token: str) -> str:
    """What a browser keeps in place of the token."""
    return hmac.new(token.encode(), b"autotune session", hashlib.sha256).hexdigest()


def same(one: str, other: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(one.encode(), other.encode())


def is_dashboard(path: str) -> bool:
    """Whether an address is of Optuna's dashboard."""
    return path.startswith(DASHBOARD) and path != API and not path.startswith(f"{API}/")


class Guard:
    """Stands before everything that is served: our application, and Optuna's dashboard beside it."""

    def __init__(self, app: ASGIApp, *, dashboard: ASGIApp, options: ServeOptions) -> None:
        self._app, self._dashboard, self._options = app, dashboard, options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or hand on; raises nothing of its own."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        in_dashboard = is_dashboard(scope["path"])

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers["content-security-policy"] = DASHBOARD_POLICY if in_dashboard else PAGE_POLICY
                headers.setdefault("cache-control", "no-cache")
            await send(message)

        refusal = self._refusal(scope, in_dashboard=in_dashboard)
        if refusal is not None:
            await refusal(scope, receive, with_headers)
            return
        body = await _whole_body(receive)
        if body is None:
            refusal = _refuse(413, f"the request is too large: {MOST_BODY_BYTES} bytes are the most")
            await refusal(scope, receive, with_headers)
            return
        if in_dashboard and b"accept-encoding" not in dict(scope["headers"]):
            # The dashboard breaks where the header is missing.
            scope = {**scope, "headers": [*scope["headers"], (b"accept-encoding", b"identity")]}
        inner = self._dashboard if in_dashboard else self._app
        await inner(scope, _replay(body, receive), with_headers)

    def _refusal(self, scope: Scope, *, in_dashboard: bool) -> Response | None:
        headers = Headers(scope=scope)
        if len(scope.get("query_string", b"")) + len(scope.get("raw_path") or b"") > MOST_QUERY_BYTES:
            return _refuse(414, f"the address is too long: {MOST_QUERY_BYTES} bytes are the most")
        if is_loopback(self._options.host) and not _names_this_machine(headers.get("host", "")):
            # A page elsewhere whose name was pointed at this machine (DNS rebinding) would get here.
            return _refuse(421, "this server answers to localhost and 127.0.0.1 alone")
        if in_dashboard and scope["method"] not in {"GET", "HEAD"} and not self._options.allow_write:
            return _refuse(403, "read-only; `autotune serve --allow-write` lets Optuna's dashboard write")
        if self._options.token and not self._may_enter(scope, headers):
            return _ask_for_token(Request(scope))
        return None

    def _may_enter(self, scope: Scope, headers: Headers) -> bool:
        path, token = scope["path"], self._options.token
        if path in OPEN_PATHS or path.startswith(ASSETS):
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        by_token = same(given.strip(), token) and scheme.lower() == "bearer"
        return by_token or same(_cookie(headers.get("cookie", "")), session_of(token))


def _names_this_machine(host: str) -> bool:
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    return is_loopback(name)


def _cookie(header: str) -> str:
    try:
        found = SimpleCookie(header).get(SESSION_COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""


def _ask_for_token(request: Request) -> Response:
    if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
        return RedirectResponse("/login", status_code=303)
    return PlainTextResponse(
        "a bearer token is needed: Authorization: Bearer TOKEN\n",
        status_code=401,
        headers={"www-authenticate": "Bearer"},
    )


def _refuse(status: int, why: str) -> Response:
    return PlainTextResponse(why + "\n", status_code=status)


async def _whole_body(receive: Receive) -> bytes | None:
    """The body; None where it is larger than MOST_BODY_BYTES."""
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return body
        body += bytes(message.get("body", b""))
        if len(body) > MOST_BODY_BYTES:
            return None
        if not message.get("more_body", False):
            return body


def _replay(body: bytes, receive: Receive) -> Receive:
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
