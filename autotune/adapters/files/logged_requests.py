"""Requests as gateways and OpenTelemetry log them, one after another; a log is never in memory whole.

::

    gateway  JSON lines, a request each, as LiteLLM's standard logging payload and spend logs, or any with
             OpenAI-style bodies; ``fields`` names what is called otherwise
    otel     JSON lines of OTLP traces (the collector's file exporter) with GenAI spans
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from io import BufferedIOBase, BufferedReader
from pathlib import Path
from typing import Any

from autotune.domain.basics.errors import InputError, InputProblem


class LogFormat(StrEnum):
    """Forms of logs."""

    AUTO = "auto"
    GATEWAY = "gateway"
    OTEL = "otel"


FIELDS = ("start", "input_tokens", "output_tokens", "messages", "conversation", "status")
"""What is looked for in a gateway's log."""


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """One request; None for what its log does not say, and no messages where their text is not kept."""

    at_s: float | None
    input_tokens: int | None
    output_tokens: int | None
    conversation: str | None = None
    messages: tuple[str, ...] = ()
    failed: bool = False


@dataclass(slots=True)
class ReadingTally:
    """What was read so far: lines, those that are no JSON object, and bytes, compressed where the file is."""

    lines: int = 0
    malformed: int = 0
    bytes_read: int = 0
    formats: set[LogFormat] = field(default_factory=set)


Tell = Callable[[int], None]
"""Told the bytes read so far."""


def logged_requests(
    paths: Sequence[Path],
    tally: ReadingTally,
    *,
    log_format: LogFormat = LogFormat.AUTO,
    fields: Mapping[str, str] | None = None,
    tell: Tell = lambda _: None,
) -> Iterator[LoggedRequest]:
    """Read logs line by line, in the order given; raises InputError for a file that cannot be read.

    ``fields`` maps names of FIELDS to where a gateway's log has them, as ``request.body.messages``.
    """
    places = {name: ((fields or {}).get(name) or "").split() or _PLACES[name] for name in FIELDS}
    for row in _rows(paths, tally, tell):
        otel = "resourceSpans" in row if log_format is LogFormat.AUTO else log_format is LogFormat.OTEL
        tally.formats.add(LogFormat.OTEL if otel else LogFormat.GATEWAY)
        if otel:
            yield from _from_spans(row)
        else:
            yield _from_gateway(row, places)


def _rows(paths: Sequence[Path], tally: ReadingTally, tell: Tell) -> Iterator[dict[str, Any]]:
    for path in paths:
        before = tally.bytes_read
        try:
            with path.open("rb") as raw, _plain(raw) as lines:
                for line in lines:
                    tally.bytes_read = before + raw.tell()
                    tell(tally.bytes_read)
                    if not line.strip():
                        continue
                    tally.lines += 1
                    row = _json(line)
                    if isinstance(row, dict):
                        yield row
                    else:
                        tally.malformed += 1
        except (OSError, EOFError) as broken:
            what = f"cannot be read: {getattr(broken, 'strerror', None) or broken}"
            raise InputError(InputProblem(str(path), what, "name log files, plain or gzipped")) from broken


def _plain(raw: BufferedReader) -> BufferedIOBase:
    """The lines of a file that may be gzipped."""
    packed = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    return gzip.GzipFile(fileobj=raw) if packed else raw


def _json(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


# Gateways

_BODIES = ("", "request.", "request_body.", "request.body.", "body.", "proxy_server_request.body.")
_ANSWERS = ("", "response.", "response_body.", "response.body.")
_PLACES: Mapping[str, Sequence[str]] = {
    "start": (
        *("startTime", "start_time", "request_time", "requested_at", "request_timestamp", "timestamp"),
        *("@timestamp", "time", "ts", "created_at", "created"),
    ),
    "input_tokens": [
        f"{at}{usage}{name}"
        for at in _ANSWERS
        for usage in ("", "usage.")
        for name in ("prompt_tokens", "input_tokens")
    ],
    "output_tokens": [
        f"{at}{usage}{name}"
        for at in _ANSWERS
        for usage in ("", "usage.")
        for name in ("completion_tokens", "output_tokens")
    ],
    "messages": [f"{at}{name}" for at in _BODIES for name in ("messages", "prompt", "input")],
    "conversation": [
        f"{at}{name}"
        for at in ("", "metadata.", *(f"{body}metadata." for body in _BODIES[1:]))
        for name in ("conversation_id", "session_id")
    ],
    "status": ("status", "status_code", "response.status", "response.status_code", "response_code"),
}
_HTTP_ERROR = 400


def _from_gateway(row: Mapping[str, Any], places: Mapping[str, Sequence[str]]) -> LoggedRequest:
    conversation = _first(row, places["conversation"])
    status = _first(row, places["status"])
    code = _whole(status)
    return LoggedRequest(
        at_s=_epoch_s(_first(row, places["start"])),
        input_tokens=_whole(_first(row, places["input_tokens"])),
        output_tokens=_whole(_first(row, places["output_tokens"])),
        conversation=None if conversation is None else str(conversation),
        messages=_messages(_first(row, places["messages"])),
        failed=code >= _HTTP_ERROR if code is not None else status in {"failure", "error", "failed"},
    )


def _first(row: Mapping[str, Any], places: Sequence[str]) -> Any:
    """The first of some dotted paths that leads to something; bodies may be JSON in a string."""
    for place in places:
        node: Any = row
        for step in place.split("."):
            if isinstance(node, str) and node[:1] == "{":
                node = _json(node)
            node = node.get(step) if isinstance(node, dict) else None
            if node is None:
                break
        if node not in (None, "", [], {}):
            return node
    return None


# OpenTelemetry

_ASKED = frozenset({None, "chat", "text_completion", "generate_content"})
"""Operations that are one request to a model; an agent's span would count its requests again."""
_FAILED = 2
"""STATUS_CODE_ERROR of OTLP."""


def _from_spans(row: Mapping[str, Any]) -> Iterator[LoggedRequest]:
    for resource in _dicts(row.get("resourceSpans")):
        for scope in _dicts(resource.get("scopeSpans")):
            for span in _dicts(scope.get("spans")):
                said = _attributes(span.get("attributes"))
                for event in _dicts(span.get("events")):
                    said = _attributes(event.get("attributes")) | said
                asked = (
                    any(name.startswith("gen_ai.usage.") for name in said) or "gen_ai.request.model" in said
                )
                if asked and said.get("gen_ai.operation.name") in _ASKED:
                    yield _from_span(span, said)


def _from_span(span: Mapping[str, Any], said: Mapping[str, Any]) -> LoggedRequest:
    system = _messages(said.get("gen_ai.system_instructions"))
    given = said.get("gen_ai.input.messages") or said.get("gen_ai.prompt") or _numbered_prompts(said)
    conversation = said.get("gen_ai.conversation.id")
    status = span.get("status")
    code = status.get("code") if isinstance(status, dict) else None
    return LoggedRequest(
        at_s=_epoch_s(span.get("startTimeUnixNano")),
        input_tokens=_whole(said.get("gen_ai.usage.input_tokens", said.get("gen_ai.usage.prompt_tokens"))),
        output_tokens=_whole(
            said.get("gen_ai.usage.output_tokens", said.get("gen_ai.usage.completion_tokens"))
        ),
        conversation=None if conversation is None else str(conversation),
        messages=(*system, *_messages(given)),
        failed=code in (_FAILED, "STATUS_CODE_ERROR"),
    )


def _numbered_prompts(said: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Messages as attributes ``gen_ai.prompt.0.role`` and so on, which earlier conventions had."""
    found: list[dict[str, Any]] = []
    while f"gen_ai.prompt.{len(found)}.content" in said:
        at = f"gen_ai.prompt.{len(found)}"
        found.append({"role": said.get(f"{at}.role"), "content": said[f"{at}.content"]})
    return found


def _attributes(listed: Any) -> dict[str, Any]:
    return {str(item.get("key")): _value(item.get("value")) for item in _dicts(listed)}


def _value(value: Any) -> Any:
    """A value of OTLP's JSON encoding, in which 64-bit integers are strings."""
    if not isinstance(value, dict):
        return value
    match next(iter(value.items()), (None, None)):
        case "arrayValue", {"values": list(items)}:
            return [_value(item) for item in items]
        case "kvlistValue", {"values": list(items)}:
            return _attributes(items)
        case _, plain:
            return plain


def _dicts(value: Any) -> Iterator[dict[str, Any]]:
    return (item for item in value if isinstance(item, dict)) if isinstance(value, list) else iter(())


# What both have


def _messages(given: Any) -> tuple[str, ...]:
    """Each message in one string; none where they were redacted, for then all would look alike."""
    if isinstance(given, str) and given.lstrip()[:1] in {"[", "{"}:
        parsed = _json(given)
        given = given if parsed is None else parsed
    if isinstance(given, dict):
        given = given.get("messages", [given])
    items = given if isinstance(given, list) else [given] if given else []
    if items and all(isinstance(item, int) for item in items):
        return (" ".join(map(str, items)),)  # a prompt of token ids
    texts = tuple(_message(item) for item in items)
    return () if any("redacted" in text[:40].lower() for text in texts) else texts


def _message(item: Any) -> str:
    if not isinstance(item, dict):
        return _part(item)
    content = item.get("content", item.get("parts"))
    parts = content if isinstance(content, list) else [content]
    rest = {k: v for k, v in item.items() if k in {"tool_calls", "tool_call_id", "name"} and v}
    told = [_part(part) for part in parts if part is not None] + ([_part(rest)] if rest else [])
    return f"{item.get('role', '')}\n{''.join(told)}\n"


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and isinstance(text := part.get("text", part.get("content")), str):
        return text
    return json.dumps(part, sort_keys=True)


def _whole(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _epoch_s(value: Any) -> float | None:
    """Seconds since 1970 from a number of seconds, ms, us or ns, or from ISO 8601."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        try:
            at = datetime.fromisoformat(value)
        except (TypeError, ValueError):
            return None
        return at.replace(tzinfo=at.tzinfo or UTC).timestamp()
    # A second of our time has ten digits before the point, and each smaller unit three more.
    for unit in (1e9, 1e6, 1e3):
        if number > unit * 1e8:
            return number / unit
    return number
