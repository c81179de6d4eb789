"""The journal of a study: what its process is doing, a line of JSON each, for pages to follow it by."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autotune.domain.load.level import Level
from autotune.domain.studies.events import Event
from autotune.domain.studies.ports import EventSink

JOURNAL_FILE = "journal.jsonl"
_TAIL_BYTES = 64 * 1024


@contextmanager
def journal(folder: Path, sink: EventSink) -> Iterator[EventSink]:
    """Write every event down on its way to ``sink``, in the study's own folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / JOURNAL_FILE).open("a", buffering=1, encoding="utf-8") as file:

        def write(event: Event) -> None:
            file.write(json.dumps(_line(event)) + "\n")
            sink(event)

        yield write


def read_journal(folder: Path, *, most: int) -> tuple[dict[str, Any], ...]:
    """The latest lines, oldest first; none where no journal is kept. A line cut short is left out."""
    try:
        with (folder / JOURNAL_FILE).open("rb") as file:
            file.seek(max(file.seek(0, 2) - _TAIL_BYTES, 0))
            lines = file.read().decode(errors="replace").splitlines()[-most:]
    except FileNotFoundError:
        return ()
    return tuple(read for line in lines if (read := _read(line)) is not None)


def _read(line: str) -> dict[str, Any] | None:
    try:
        read = json.loads(line)
    except ValueError:
        return None
    return read if isinstance(read, dict) else None


def _line(event: Event) -> dict[str, Any]:
    """When, which trial, and what, in a few words."""
    at = datetime.now(UTC).isoformat(timespec="seconds")  # noqa: TID251 - for people to read
    return {"at": at, "trial": getattr(event, "number", None), "what": _words(event)}


def _words(event: Event) -> str:
    """What an event tells, without what the catalog holds of it."""
    level: Level | None = getattr(event, "level", None)
    parts = (
        getattr(event, "purpose", None) and f"launching ({getattr(event, 'purpose', '')})",
        getattr(event, "phase", None),
        level.label if level else None,
        getattr(event, "stage", None),
        getattr(event, "ended", None) and f"measured, window ended: {getattr(event, 'ended', '')}",
        getattr(event, "state", None),
        getattr(event, "sla", None) and f"leads for {getattr(event, 'sla', '')}",
        getattr(event, "why", None),
        getattr(event, "text", None),
    )
    words = " · ".join(str(part) for part in parts if part)
    return words or type(event).__name__
