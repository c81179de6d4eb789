"""What truly happened, from the mock engine's log, and how far a tool's account of it is off."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


class ToolError(Exception):
    """A load generator did not do its work; the message says how."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One request as the mock engine served it; monotonic seconds."""

    id: str
    prompt: str
    received_s: float
    first_due_s: float
    first_token_s: float
    last_token_s: float
    tokens: int

    @property
    def ttft_s(self) -> float:
        """From received to first token: the engine's own share, without the network and the client."""
        return self.first_token_s - self.received_s

    @property
    def late_s(self) -> float:
        """How late the engine itself was woken for its first token: what this machine does to any process."""
        return self.first_token_s - self.first_due_s

    @property
    def tpot_s(self) -> float:
        """(Last token - first token) / (tokens - 1)."""
        return (self.last_token_s - self.first_token_s) / (self.tokens - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a tool says of one request that it counts as a success; ``key`` is the engine's id or a prompt."""

    key: str
    ttft_s: float
    tpot_s: float


@dataclass(frozen=True, slots=True)
class Account:
    """A tool's account of one run: the requests that it says went well, and how many it says did not."""

    claims: tuple[Claim, ...]
    failed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """How far a tool's account is off, milliseconds.

    ``*_median`` and ``*_p99`` compare the tool's percentile with the true one over the same requests;
    ``*_each_p99`` is the 99th percentile of the errors of single requests, ``engine_late_p99`` that of how
    late the engine was with their first tokens by its own clock: no client on this machine sees less.
    """

    requests: int
    failed: int
    ttft_median: float
    ttft_p99: float
    ttft_each_p99: float
    tpot_median: float
    tpot_p99: float
    tpot_each_p99: float
    engine_late_p99: float


def read_log(path: Path) -> tuple[Served, ...]:
    """Requests that got all their tokens, in the order in which they were received."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    served = [
        Served(
            id=row["id"],
            prompt=row["prompt"],
            received_s=row["received_s"],
            first_due_s=row["token_s"][0] if row["first_due_s"] is None else row["first_due_s"],
            first_token_s=row["token_s"][0],
            last_token_s=row["token_s"][-1],
            tokens=row["output_tokens"],
        )
        for row in rows
        if row["token_s"]
    ]
    return tuple(sorted(served, key=lambda s: s.received_s))


def load_duration_s(served: Sequence[Served]) -> float:
    """From the first request to the last token."""
    return max(s.last_token_s for s in served) - served[0].received_s


def errors(account: Account, served: Sequence[Served]) -> Errors:
    """Compare request by request; raises ToolError if the account is not of these requests."""
    by_key = {key: s for s in served for key in (s.id, s.prompt)}
    pairs = [(claim, by_key[claim.key]) for claim in account.claims if claim.key in by_key]
    if not pairs or len(pairs) < len(account.claims):
        raise ToolError(
            f"{len(pairs)} of the {len(account.claims)} requests that it reports are in the engine's log; "
            f"{account.failed} more failed"
        )
    ttft = _off([c.ttft_s for c, _ in pairs], [s.ttft_s for _, s in pairs])
    tpot = _off([c.tpot_s for c, _ in pairs], [s.tpot_s for _, s in pairs])
    return Errors(
        requests=len(pairs),
        failed=account.failed,
        ttft_median=ttft[0],
        ttft_p99=ttft[1],
        ttft_each_p99=ttft[2],
        tpot_median=tpot[0],
        tpot_p99=tpot[1],
        tpot_each_p99=tpot[2],
        engine_late_p99=1e3 * float(np.percentile([s.late_s for _, s in pairs], 99)),
    )


def _off(said_s: Sequence[float], true_s: Sequence[float]) -> tuple[float, float, float]:
    """Error of the median, of the 99th percentile, and 99th percentile of the errors; milliseconds."""
    said, true = np.array(said_s) * 1e3, np.array(true_s) * 1e3
    median, p99 = np.abs(np.percentile(said, (50, 99)) - np.percentile(true, (50, 99)))
    return float(median), float(p99), float(np.percentile(np.abs(said - true), 99))


def steady_part(served: Sequence[Served], concurrency: int) -> tuple[float, float, int]:
    """Start and end of the part of a closed loop in which all its requests were under way, and its tokens.

    From the first request received to the last one received: by then the client is done with all but
    ``concurrency`` of them, or it would not have sent the last; only those that it is done with count.
    """
    done = len(served) - concurrency
    if done < concurrency:
        raise ToolError(f"only {len(served)} requests came: too few at {concurrency} concurrent")
    tokens = sum(sorted(s.tokens for s in served)[:done])
    return served[0].received_s, served[-1].received_s, tokens
