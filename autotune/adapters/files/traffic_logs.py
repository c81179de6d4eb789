"""Traffic from logs: arrivals, lengths, shared beginnings and turns, and not a word of what was said."""

from __future__ import annotations

import secrets
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from autotune.adapters.files.logged_requests import LoggedRequest
from autotune.adapters.files.tokenizer_files import read_tokenizer
from autotune.domain.basics.errors import InputError, InputProblem
from autotune.domain.load.traffic import Traffic

BLOCK_TOKENS = 64
"""Prompts are compared in blocks of this many tokens."""
BYTES_PER_TOKEN = 4
"""About what a token of text has: the size of blocks where there is no tokenizer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedTraffic:
    """What logs held: ``traffic``, and how many requests are not in it, by why."""

    traffic: Traffic
    with_text: int
    unanswered: int
    incomplete: int


def traffic_from(
    requests: Iterable[LoggedRequest], *, tokenizer: Path | None = None, block_tokens: int = BLOCK_TOKENS
) -> LoggedTraffic:
    """Collect the requests of logs; raises InputError where none has a time and both lengths.

    Blocks of prompts are hashed, each with all before it, under a salt that nobody knows and that is
    forgotten on return; what remains are numbers that say which blocks were equal. ``tokenizer`` makes the
    blocks tokens; without one they are bytes, of which the mean token has as many as the logs say.
    """
    collector = _Collector(read_tokenizer(tokenizer) if tokenizer else None, block_tokens)
    unanswered = incomplete = 0
    for request in requests:
        if request.failed or request.output_tokens == 0:
            unanswered += 1
        elif not collector.add(request):
            incomplete += 1
    if not collector.arrival_s:
        what = f"hold no request with a time and both lengths; {incomplete} lack some, {unanswered} failed"
        remedy = "say where they are: --field start=PATH --field input_tokens=PATH --field output_tokens=PATH"
        raise InputError(InputProblem("the logs", what, remedy))
    return LoggedTraffic(
        traffic=collector.traffic(),
        with_text=collector.with_text,
        unanswered=unanswered,
        incomplete=incomplete,
    )


class _Collector:
    """Columns that grow by a request at a time."""

    def __init__(self, tokenizer: Tokenizer | None, block_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._block_tokens = block_tokens
        self._salt = secrets.token_bytes(32)
        self._conversations: dict[bytes, int] = {}
        self._text_bytes = self._text_tokens = 0
        self.with_text = 0
        self.arrival_s = array("d")
        self._input_tokens, self._output_tokens, self._conversation = array("q"), array("q"), array("q")
        self._block, self._block_end = array("q"), array("q")

    def add(self, request: LoggedRequest) -> bool:
        """Take a request; returns whether it had a time and both lengths."""
        text = "".join(request.messages)
        ids = self._tokenizer.encode(text).ids if self._tokenizer and text else None
        tokens = request.input_tokens or (len(ids) if ids else 0)
        if request.at_s is None or not tokens or request.output_tokens is None:
            return False
        self.arrival_s.append(request.at_s)
        self._input_tokens.append(tokens)
        self._output_tokens.append(request.output_tokens)
        self._conversation.append(self._conversation_of(request))
        if ids is not None:
            self._add_blocks(np.array(ids, dtype=np.uint32).tobytes(), 4 * self._block_tokens)
        else:
            data = text.encode(errors="surrogatepass")
            self._add_blocks(data, BYTES_PER_TOKEN * self._block_tokens)
            self._text_bytes += len(data)
            self._text_tokens += tokens if data else 0
        self._block_end.append(len(self._block))
        self.with_text += bool(text)
        return True

    def traffic(self) -> Traffic:
        """All of it, in order of arrival."""
        block_tokens = float(self._block_tokens)
        if self._text_bytes:
            block_tokens *= BYTES_PER_TOKEN * self._text_tokens / self._text_bytes
        return Traffic.of(
            np.array(self._input_tokens),
            np.array(self._output_tokens),
            arrival_s=np.array(self.arrival_s),
            blocks=(np.array(self._block), np.array(self._block_end), block_tokens),
            conversation=np.array(self._conversation),
        )

    def _add_blocks(self, data: bytes, size: int) -> None:
        """Keys of the whole blocks that a prompt begins with."""
        before = b""
        for start in range(0, len(data) - size + 1, size):
            before = self._hash(before, data[start : start + size])
            # Non-negative, as Traffic's keys are.
            self._block.append(int.from_bytes(before, "little") >> 1)

    def _conversation_of(self, request: LoggedRequest) -> int:
        """The number of its conversation, -1 where that cannot be known.

        By the log's own id, else by its messages: a later turn begins with all messages of an earlier one.
        """
        if request.conversation is not None:
            return self._number(self._hash(b"id", request.conversation.encode(errors="surrogatepass")))
        heads: list[bytes] = []
        for message in request.messages:
            heads.append(self._hash(heads[-1] if heads else b"", message.encode(errors="surrogatepass")))
        if not heads:
            return -1
        known = next((head for head in reversed(heads[:-1]) if head in self._conversations), None)
        number = self._number(known or heads[-1])
        self._conversations[heads[-1]] = number
        return number

    def _number(self, key: bytes) -> int:
        return self._conversations.setdefault(key, len(self._conversations))

    def _hash(self, before: bytes, data: bytes) -> bytes:
        return blake2b(before + data, key=self._salt, digest_size=8).digest()
