"""Engine logs by the page: a slice of a file that may be large, whole lines, never read as a whole."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

PAGE_BYTES = 128 * 1024
MOST_LINE = 4000
SEARCHED_BYTES = 64 * 1024 * 1024
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")
_TELLING = re.compile(
    r"\b(error|exception|traceback|fatal|fail(?:ed|ure)?|out of memory|killed)\b", re.IGNORECASE
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPage:
    """Some lines, each with whether it tells of trouble; offsets are bytes, None where there is no more."""

    lines: tuple[tuple[str, bool], ...]
    start: int
    size: int
    before: int | None
    after: int | None
    missed: bool = False


def log_page(path: Path, *, offset: int = 0, find: str = "") -> LogPage:
    """Lines from a byte on, or from the next place where ``find`` stands; ``missed`` if it does not."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start, missed = min(offset, max(size - 1, 0)), False
        if find:
            found = _next(file, find.encode(), start)
            start, missed = (start, True) if found is None else (found, False)
        file.seek(start)
        data = file.read(PAGE_BYTES)
    cut = data.rfind(b"\n") + 1
    if cut and start + len(data) < size:
        data = data[:cut]
    end = start + len(data)
    text = data.decode(errors="replace").splitlines()
    return LogPage(
        lines=tuple((_plain(line), bool(_TELLING.search(line[:MOST_LINE]))) for line in text),
        start=start,
        size=size,
        before=max(0, start - PAGE_BYTES) if start else None,
        after=end if end < size else None,
        missed=missed,
    )


def _next(file: BinaryIO, what: bytes, start: int) -> int | None:
    """Where the line begins that has ``what`` after a byte, looked for in SEARCHED_BYTES at most."""
    file.seek(start)
    data = file.read(SEARCHED_BYTES)
    at = data.lower().find(what.lower(), 1 if start else 0)
    return None if at < 0 else start + data.rfind(b"\n", 0, at) + 1


def _plain(line: str) -> str:
    return _CONTROL.sub("", line)[:MOST_LINE]
