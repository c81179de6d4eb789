"""What the mock engine puts on the wire, as bytes, and the name it gives a prompt in its log."""

from __future__ import annotations

import hashlib
import json


def event(data: str) -> bytes:
    """One server-sent event in an HTTP chunk of its own."""
    line = f"data: {data}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(line), line)


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
STREAM_END = event("[DONE]") + b"0\r\n\r\n"


def digest(prompt: str | list[int]) -> str:
    """Short name of a prompt, the same wherever it is computed."""
    return hashlib.blake2b(json.dumps(prompt).encode(), digest_size=8).hexdigest()
