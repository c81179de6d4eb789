"""Workloads, and the pure functions that turn one into requests with due times."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Discriminator, Field, PositiveFloat, PositiveInt, Tag

FASTEST_TPOT_S = 0.003
"""No engine answers many users at once faster than this; closed-loop plans hold requests enough for it."""


class FixedLength(BaseModel):
    """Every request has the same number of tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: PositiveInt

    @property
    def longest(self) -> int:
        """Upper bound, tokens."""
        return self.tokens

    def draw(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:  # noqa: ARG002 - one signature
        """Return ``count`` lengths in tokens."""
        return np.full(count, self.tokens, dtype=np.int64)


class LogNormalLength(BaseModel):
    """Lengths scatter log-normally about their median, cut to ``[low, high]`` tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    median: PositiveInt
    sigma: PositiveFloat = Field(description="standard deviation of the logarithm")
    low: PositiveInt = 1
    high: PositiveInt

    @property
    def longest(self) -> int:
        """Upper bound, tokens."""
        return self.high

    def draw(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return ``count`` lengths in tokens."""
        lengths = np.rint(rng.lognormal(np.log(self.median), self.sigma, count))
        return np.clip(lengths, self.low, self.high).astype(np.int64)


def _form(length: Any) -> str:
    if isinstance(length, LogNormalLength) or (isinstance(length, dict) and "tokens" not in length):
        return "log-normal"
    return "fixed" if isinstance(length, FixedLength | dict) else "number"


Length = Annotated[
    Annotated[PositiveInt, Tag("number")]
    | Annotated[FixedLength, Tag("fixed")]
    | Annotated[LogNormalLength, Tag("log-normal")],
    Discriminator(_form),
]
"""A number of tokens, ``{tokens}``, or ``{median, sigma, low, high}``."""


class Workload(BaseModel):
    """What users send: how long prompts and answers are, and how requests arrive."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")] = "workload"
    input_tokens: Length = Field(description="prompt length, tokens; a number or a distribution")
    output_tokens: Length = Field(description="answer length, tokens; enforced with ignore_eos")
    arrivals: Literal["poisson"] = "poisson"

    @property
    def longest_tokens(self) -> int:
        """Context that the longest request needs, tokens."""
        return _length(self.input_tokens).longest + _length(self.output_tokens).longest


def _length(length: Length) -> FixedLength | LogNormalLength:
    return FixedLength(tokens=length) if isinstance(length, int) else length


@dataclass(frozen=True, slots=True)
class Level:
    """One load to measure: open loop at ``rate_rps``, or closed loop with ``concurrency`` in flight."""

    workload: str
    rate_rps: float | None = None
    concurrency: int | None = None

    def __post_init__(self) -> None:
        if (self.rate_rps is None) == (self.concurrency is None):
            raise ValueError("a level is either open loop (rate_rps) or closed loop (concurrency)")

    @property
    def label(self) -> str:
        """Short text: ``12.5 req/s`` or ``32 concurrent``."""
        return f"{self.concurrency} concurrent" if self.concurrency else f"{self.rate_rps:.3g} req/s"


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request to send: ``due_s`` counts from the plan's start (0 throughout in closed loop)."""

    due_s: float
    prompt: tuple[int, ...]
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """Requests in due order, and the deadlines of the run.

    Open loop sends each at its due time. Closed loop keeps ``concurrency`` in flight until ``duration_s``,
    taking requests in order; when they run out the run ends.
    """

    requests: tuple[PlannedRequest, ...]
    duration_s: float
    concurrency: int | None = None
    request_timeout_s: float = 60.0
    drain_timeout_s: float = 30.0

    def within(self, *, request_timeout_s: float) -> LoadPlan:
        """Return the same plan with another deadline per request, which is also the drain's."""
        return replace(self, request_timeout_s=request_timeout_s, drain_timeout_s=request_timeout_s)


def poisson_due_s(rate_rps: float, duration_s: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Due times of a Poisson process in ``[0, duration_s)``, ascending, seconds."""
    if rate_rps <= 0 or duration_s <= 0:
        raise ValueError(f"rate and duration must be positive, not {rate_rps} req/s and {duration_s} s")
    count = rng.poisson(rate_rps * duration_s)
    return np.sort(rng.uniform(0.0, duration_s, count))


def plan_load(workload: Workload, level: Level, *, duration_s: float, vocab_size: int, seed: int) -> LoadPlan:
    """Draw the requests of one load level; the same arguments give the same plan.

    Prompts are uniform random token ids, so that no two share a prefix block and no cache can flatter a run;
    the lowest ids, where vocabularies keep their special tokens, are left out.
    """
    rng = np.random.default_rng(seed)
    if level.rate_rps is not None:
        due_s = poisson_due_s(level.rate_rps, duration_s, rng)
    else:
        # More than any engine finishes, so that the run ends by time.
        least_s = FASTEST_TPOT_S * float(_length(workload.output_tokens).draw(1000, rng).mean())
        due_s = np.zeros(math.ceil((level.concurrency or 1) * (1 + duration_s / least_s)))
    inputs = _length(workload.input_tokens).draw(len(due_s), rng)
    outputs = _length(workload.output_tokens).draw(len(due_s), rng)
    lowest = min(1000, vocab_size // 10)
    ids = rng.integers(lowest, vocab_size, int(inputs.sum())).tolist()
    ends = np.cumsum(inputs)
    starts = ends - inputs
    rows = zip(due_s.tolist(), starts.tolist(), ends.tolist(), outputs.tolist(), strict=True)
    requests = tuple(PlannedRequest(due, tuple(ids[a:b]), output) for due, a, b, output in rows)
    return LoadPlan(requests=requests, duration_s=duration_s, concurrency=level.concurrency)
