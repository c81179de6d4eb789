"""What is known of a drive while it runs, and how it is steered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

Cancelled = Callable[[], bool]
"""Turns true when the user asked to stop."""


class EndedRequest(NamedTuple):
    """One request that ended, in a few numbers; monotonic seconds, NaN for what never happened."""

    due_s: float
    first_token_s: float
    last_token_s: float
    finished_s: float
    tpot_s: float
    stall_s: float
    output_tokens: int
    ok: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedRequests:
    """Requests that ended so far, by column, in the order of ending."""

    due_s: Floats
    first_token_s: Floats
    last_token_s: Floats
    finished_s: Floats
    tpot_s: Floats
    stall_s: Floats
    output_tokens: NDArray[np.int64]
    ok: Bools

    @classmethod
    def of(cls, rows: Sequence[EndedRequest] | Floats) -> EndedRequests:
        """Lay rows out by column; they may be an array already."""
        due_s, first_s, last_s, finished_s, tpot_s, stall_s, tokens, ok = (
            np.array(rows, dtype=np.float64).reshape(len(rows), len(EndedRequest._fields)).T
        )
        return cls(
            due_s=due_s,
            first_token_s=first_s,
            last_token_s=last_s,
            finished_s=finished_s,
            tpot_s=tpot_s,
            stall_s=stall_s,
            output_tokens=tokens.astype(np.int64),
            ok=ok > 0,
        )

    @property
    def ttft_s(self) -> Floats:
        """First token - due."""
        return self.first_token_s - self.due_s

    @property
    def e2e_s(self) -> Floats:
        """Last token - due."""
        return self.last_token_s - self.due_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A drive at one moment: ``started_s`` is its time 0, ``due_s`` of every request due by ``at_s``."""

    started_s: float
    at_s: float
    due_s: Floats
    ended: EndedRequests


class Steer(Enum):
    """What the driver is to do next.

    ::

        GO_ON ──> DRAIN: send nothing more, wait for the answers
              └─> CUT: send nothing more, drop what is in flight
    """

    GO_ON = auto()
    DRAIN = auto()
    CUT = auto()


Steering = Callable[[Progress], Steer]
"""Asked about once a second while load is driven."""


def to_the_end(_: Progress) -> Steer:
    """Drive the whole plan."""
    return Steer.GO_ON
