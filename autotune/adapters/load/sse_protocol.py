"""Streamed completions and chats over HTTP/1.1: one connection, and what one request on it brings back.

States of an exchange::

    waiting ──> sent ──> streaming ──> ended: finished | failed (``error`` says why)
        ^         │
        └─────────┘  once, when a connection kept from before was closed under it
"""

from __future__ import annotations

import asyncio
import json
import math
import operator
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import httptools

from autotune.domain.load.progress import EndedRequest
from autotune.domain.measuring.measurement import RequestRecord

HTTP_OK = 200
ERROR_TEXT_LENGTH = 500

# Inside a JSON string every quote is escaped, so these bytes can only be keys. What they find is nearly every
# event of a stream, and finding costs a hundredth of decoding; all else is decoded.
_TEXT = b'"text":'
_CONTENT = re.compile(rb'"content": ?"[^"]')
_REASONING = re.compile(rb'"reasoning(?:_content)?": ?"[^"]')


@dataclass(slots=True, eq=False, kw_only=True)
class Exchange:
    """One request and what became of it; monotonic seconds as in RequestRecord.

    ``index`` is its place in the plan, ``chat`` which API it speaks.
    """

    index: int
    due_s: float
    request: bytes
    prompt_tokens: int
    chat: bool = False
    sent_s: float = float("nan")
    finished_s: float = float("nan")
    chunk_s: list[float] = field(default_factory=list)
    reasoning_chunks: int = 0
    output_tokens: int | None = None
    status: int = 0
    error: str = ""
    connection: Connection | None = None
    ended: bool = False
    _done: bool = False
    _last_event: bytes = b""
    _body: bytes = b""

    @property
    def counted_tokens(self) -> int:
        """Output tokens; where the server counts none, one for each chunk."""
        return len(self.chunk_s) if self.output_tokens is None else self.output_tokens

    def record(self) -> RequestRecord:
        """Return the record as it is by now."""
        return RequestRecord(
            due_s=self.due_s,
            sent_s=self.sent_s,
            finished_s=self.finished_s,
            chunk_s=tuple(self.chunk_s),
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.counted_tokens,
            status=self.status,
            reasoning_chunks=self.reasoning_chunks,
            planned=self.index,
            error=self.error,
        )

    def summary(self) -> EndedRequest:
        """Return the few numbers that a drive is steered by."""
        at_s, later = self.chunk_s, self.counted_tokens - 1
        first_s, last_s = (at_s[0], at_s[-1]) if at_s else (math.nan, math.nan)
        return EndedRequest(
            due_s=self.due_s,
            first_token_s=first_s,
            last_token_s=last_s,
            finished_s=self.finished_s,
            tpot_s=(last_s - first_s) / later if len(at_s) > 1 and later > 0 else math.nan,
            stall_s=max(map(operator.sub, at_s[1:], at_s), default=0.0) if at_s else math.nan,
            output_tokens=self.counted_tokens,
            ok=not self.error and bool(at_s),
        )

    def on_line(self, line: bytes, at_s: float) -> None:
        """Take one line of the event stream; those that are no data (names of events, comments) say nothing.

        A completion's event counts as a chunk even if its text is empty: engines send nothing before the
        first token, and a special token or half a character has no text of its own.
        """
        if not line.startswith(b"data:"):
            return
        if not self.chat:
            if _TEXT not in line:
                self._on_rare_event(line[5:].strip(), at_s)
                return
        elif not _CONTENT.search(line):
            if not _REASONING.search(line):
                self._on_rare_event(line[5:].strip(), at_s)
                return
            self.reasoning_chunks += 1
        self.chunk_s.append(at_s)
        self._last_event = line

    def on_error_body(self, data: bytes) -> None:
        """Take a piece of the body of an answer that is no stream."""
        if len(self._body) < ERROR_TEXT_LENGTH:
            self._body += data

    def end(self, at_s: float) -> None:
        """Judge an answer that came to its end."""
        if self.status == HTTP_OK and self.output_tokens is None and self._last_event:
            # Some engines put the usage into the last event with text, which was not decoded.
            self._on_rare_event(self._last_event[5:].strip(), None)
        if self.status != HTTP_OK:
            text = " ".join(self._body.decode(errors="replace").split())
            self.fail(f"HTTP {self.status}: {text}", at_s)
        elif not self._done and self.output_tokens is None:
            self.fail("truncated", at_s)
        elif not self.chunk_s:
            self.fail("no tokens", at_s)
        self.finished_s = at_s
        self.ended = True

    def fail(self, error: str, at_s: float = float("nan")) -> None:
        """End it, and note why it failed; the first reason stays."""
        self.error = self.error or error[:ERROR_TEXT_LENGTH]
        self.finished_s = at_s
        self.ended = True

    def lose(self, cause: Exception | None, at_s: float) -> None:
        """Judge an answer whose connection ended first."""
        if self._done or (cause is None and self.status):
            self.end(at_s)
        else:
            self.fail(f"connection: {cause or 'closed before any answer'}", at_s)

    def _on_rare_event(self, data: bytes, at_s: float | None) -> None:
        """Decode an event; ``at_s`` is None for one whose chunk was counted before."""
        if data == b"[DONE]":
            self._done = True
            return
        try:
            event = json.loads(data)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            self.error = self.error or f"unreadable event: {data[:100].decode(errors='replace')}"
            return
        # An error is a member of its own, or, in some versions of SGLang, the whole event.
        if error := event.get("error") or (event if event.get("object") == "error" else None):
            self.error = self.error or _error_text(error)[:ERROR_TEXT_LENGTH]
        if isinstance(usage := event.get("usage"), dict):
            self.prompt_tokens = usage.get("prompt_tokens") or self.prompt_tokens
            self.output_tokens = usage.get("completion_tokens")
        if at_s is not None and (borne := _borne(event)):
            self.chunk_s.append(at_s)
            self.reasoning_chunks += borne == "reasoning"


def _borne(event: Mapping[str, Any]) -> str:
    """What of an answer an event bears: ``text``, ``reasoning``, or nothing, as the event of a role alone.

    vLLM and TensorRT-LLM send tokens without text (special ones, parts of a character) as empty strings, but
    vLLM and SGLang an empty string with the role, too, before the first token.
    """
    if not event.get("choices"):
        return ""
    choice = event["choices"][0]
    delta = choice.get("delta") or {}
    reasoning = (delta.get("reasoning"), delta.get("reasoning_content"))
    if "text" in choice or delta.get("content") or delta.get("tool_calls"):
        return "text"
    if any(reasoning):
        return "reasoning"
    return "text" if "" in (delta.get("content"), *reasoning) and not delta.get("role") else ""


def _error_text(error: Any) -> str:
    if isinstance(error, dict) and error.get("message"):
        return str(error["message"])
    return error if isinstance(error, str) else json.dumps(error)


class ConnectionOwner(Protocol):
    """Told by its connections what became of them and of the exchanges on them."""

    def on_idle(self, connection: Connection) -> None:
        """Take back a connection that can carry another request."""

    def on_lost(self, connection: Connection) -> None:
        """Forget a connection."""

    def on_ended(self, exchange: Exchange) -> None:
        """Note that nothing more is to come of an exchange."""

    def on_stale(self, exchange: Exchange) -> None:
        """Send again what went out on a connection that the server had given up."""


class Connection(asyncio.Protocol):
    """One connection, carrying one request at a time; every byte is timed when it is received."""

    def __init__(self, owner: ConnectionOwner) -> None:
        self._owner = owner
        self._exchange: Exchange | None = None
        self._now_s = 0.0
        self._answered = False
        self._may_be_stale = False
        self._keep_alive = False
        self._partial_line = b""
        self._parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def start(self, exchange: Exchange, *, may_be_stale: bool) -> None:
        """Send a request; ``may_be_stale`` if the connection was not opened for it."""
        self._exchange = exchange
        self._answered = False
        self._keep_alive = False
        self._may_be_stale = may_be_stale
        self._partial_line = b""
        exchange.connection = self
        self._transport.write(exchange.request)
        if exchange.sent_s != exchange.sent_s:
            exchange.sent_s = time.monotonic()

    def abort(self) -> None:
        """Drop the connection and the exchange on it, if any."""
        self._exchange = None
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Time and parse what arrived."""
        self._now_s = time.monotonic()
        exchange = self._exchange
        if exchange is None:
            # Nobody asked: a server's last words on an idle connection.
            self.abort()
            return
        self._answered = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.abort()
            exchange.fail(f"connection: unreadable answer: {error}", self._now_s)
            self._owner.on_ended(exchange)
            return
        if self._exchange is None:
            if self._keep_alive:
                self._owner.on_idle(self)
            else:
                self._transport.close()
            self._owner.on_ended(exchange)

    def connection_lost(self, exc: Exception | None) -> None:
        """Judge the exchange that was under way."""
        self._owner.on_lost(self)
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            return
        if self._may_be_stale and not self._answered:
            self._owner.on_stale(exchange)
            return
        # A line without an end was cut off: it says nothing.
        exchange.lose(exc, time.monotonic())
        self._owner.on_ended(exchange)

    def on_headers_complete(self) -> None:
        """Note the status (called by the parser)."""
        if self._exchange is not None:
            self._exchange.status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        """Cut the body into lines (called by the parser, once for each piece)."""
        exchange = self._exchange
        if exchange is None:
            return
        if exchange.status != HTTP_OK:
            exchange.on_error_body(data)
            return
        lines = (self._partial_line + data).split(b"\n")
        self._partial_line = lines.pop()
        for line in lines:
            if line:
                exchange.on_line(line, self._now_s)

    def on_message_complete(self) -> None:
        """End the exchange (called by the parser)."""
        if self._exchange is None:
            return
        if self._partial_line:
            self._exchange.on_line(self._partial_line, self._now_s)
        self._exchange.end(self._now_s)
        self._keep_alive = self._parser.should_keep_alive()
        self._exchange = None
