"""SLOs and SLAs: what users were promised, and whether a measured level kept it."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    Tag,
    WithJsonSchema,
    model_validator,
)

from autotune.domain.basics.quantities import PositiveDurationS, show_duration
from autotune.domain.measuring.measurement import Bools, Floats


class TimedRequests(Protocol):
    """Requests by column, as SLOs see them: seconds, NaN for what never happened."""

    @property
    def ok(self) -> Bools:
        """Which finished, with tokens."""

    @property
    def ttft_s(self) -> Floats:
        """First token - due."""

    @property
    def tpot_s(self) -> Floats:
        """Time per output token after the first."""

    @property
    def e2e_s(self) -> Floats:
        """Last token - due."""

    @property
    def stall_s(self) -> Floats:
        """Longest gap between chunks."""


class Metric(StrEnum):
    """What an SLO bounds (terms: docs/reference/terms.md)."""

    TTFT = "ttft"
    TPOT = "tpot"
    E2E = "e2e"
    STALL = "stall"
    INTERACTIVITY = "interactivity"

    def of(self, requests: TimedRequests) -> Floats:
        """Value for each request, in seconds (interactivity: tok/s/user); NaN where there is none."""
        match self:
            case Metric.TTFT:
                return requests.ttft_s
            case Metric.TPOT:
                return requests.tpot_s
            case Metric.E2E:
                return requests.e2e_s
            case Metric.STALL:
                return requests.stall_s
            case Metric.INTERACTIVITY:
                return 1 / np.maximum(requests.tpot_s, 1e-9)

    def within(self, values: Floats, bound: float) -> Bools:
        """Which values keep ``bound``; a token rate that does not exist (one chunk) does."""
        keeps = values >= bound if self is Metric.INTERACTIVITY else values <= bound
        if self in {Metric.TPOT, Metric.INTERACTIVITY}:
            return keeps | np.isnan(values)
        return keeps


PERCENTILE = r"p(?!00)([0-9]{2}|9[0-9]+)"
"""p95 and p999, but not p5 and p100: read as decimals they would be the 50th and the 10th."""


def _percentile(text: Any) -> Any:
    """Read ``p95`` as 0.95 and ``p999`` as 0.999."""
    if isinstance(text, str) and re.fullmatch(PERCENTILE, text):
        digits = text[1:]
        return int(digits) / 10 ** len(digits)
    raise ValueError(f"{text!r} is no percentile; write p50, p90, p95, p99 or p999")


def _write_percentile(share: float) -> str:
    """Write 0.95 as ``p95`` and 0.999 as ``p999``."""
    return "p" + f"{share:.10f}"[2:].rstrip("0").ljust(2, "0")


Percentile = Annotated[
    float,
    BeforeValidator(_percentile),
    PlainSerializer(_write_percentile, return_type=str),
    WithJsonSchema({"type": "string", "pattern": f"^{PERCENTILE}$", "examples": ["p95"]}),
]
TokensPerS = Annotated[float, Field(gt=0, allow_inf_nan=False)]


BoundSet = tuple[tuple[Metric, float], ...]
"""Bounds that one request must keep together."""

Goals = tuple[tuple[BoundSet, float], ...]
"""Sets of bounds, each with the share of requests that must keep all of it."""


class Bounds(BaseModel):
    """One bound per metric; at least one. Durations carry their unit, interactivity is tok/s/user."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ttft: PositiveDurationS | None = None
    tpot: PositiveDurationS | None = None
    e2e: PositiveDurationS | None = None
    stall: PositiveDurationS | None = None
    interactivity: TokensPerS | None = None

    @model_validator(mode="after")
    def _some(self) -> Bounds:
        if not self.items():
            raise ValueError("an SLA needs at least one SLO; give ttft, tpot, e2e, stall or interactivity")
        return self

    def items(self) -> BoundSet:
        """The bounds that are set."""
        return tuple((m, bound) for m in Metric if (bound := getattr(self, m.value)) is not None)


class JointSla(BaseModel):
    """At least ``attainment`` of the offered requests meet every bound."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")]
    contract: Literal["joint"] = "joint"
    workload: str | None = Field(None, description="the workload it is judged on; the first if not named")
    attainment: Annotated[float, Field(gt=0, lt=1)] = 0.95
    slos: Bounds

    def goals(self) -> Goals:
        """Sets of bounds, each with the share of requests that must keep all of it."""
        return ((self.slos.items(), self.attainment),)

    def describe(self) -> str:
        """One line: ``95% of requests: ttft<=300ms tpot<=25ms``."""
        bounds = " ".join(show_slo(metric, bound) for metric, bound in self.slos.items())
        return f"{self.attainment * 100:.4g}% of requests: {bounds}"


class PercentileBounds(BaseModel):
    """Bounds by percentile for each metric: ``ttft: {p95: 2s, p99: 5s}``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ttft: dict[Percentile, PositiveDurationS] = {}
    tpot: dict[Percentile, PositiveDurationS] = {}
    e2e: dict[Percentile, PositiveDurationS] = {}
    stall: dict[Percentile, PositiveDurationS] = {}
    interactivity: dict[Percentile, TokensPerS] = {}

    @model_validator(mode="after")
    def _some(self) -> PercentileBounds:
        if not self.items():
            raise ValueError("an SLA needs at least one SLO; such as ttft: {p95: 2s}")
        return self

    def items(self) -> tuple[tuple[Metric, float, float], ...]:
        """Every (metric, share, bound)."""
        return tuple((m, share, bound) for m in Metric for share, bound in getattr(self, m.value).items())


class PercentileSla(BaseModel):
    """Each percentile keeps its own bound: p95 TTFT <= 2 s means that 95 % of requests do."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")]
    contract: Literal["percentile"]
    workload: str | None = Field(None, description="the workload it is judged on; the first if not named")
    slos: PercentileBounds

    def goals(self) -> Goals:
        """Sets of bounds, each with the share of requests that must keep all of it."""
        return tuple((((metric, bound),), share) for metric, share, bound in self.slos.items())

    def describe(self) -> str:
        """One line: ``p95 ttft<=2s, p99 tpot<=50ms``."""
        return ", ".join(f"p{share * 100:.4g} {show_slo(m, bound)}" for m, share, bound in self.slos.items())


def _contract(sla: Any) -> str:
    return str(sla.get("contract", "joint") if isinstance(sla, dict) else getattr(sla, "contract", "joint"))


Sla = Annotated[
    Annotated[JointSla, Tag("joint")] | Annotated[PercentileSla, Tag("percentile")],
    Discriminator(_contract),
]
"""A named promise, in one of two contracts; a file that names none means ``joint``."""


def show_slo(metric: Metric, bound: float) -> str:
    """One SLO for people: ``ttft<=300ms``."""
    if metric is Metric.INTERACTIVITY:
        return f"interactivity>={bound:.4g}tok/s/user"
    return f"{metric}<={show_duration(bound)}"


def good_requests(requests: TimedRequests, sla: Sla) -> Bools:
    """Which requests finished within every bound of the SLA."""
    good = requests.ok.copy()
    for bounds, _ in sla.goals():
        good &= keeping_requests(requests, bounds)
    return good


def keeping_requests(requests: TimedRequests, bounds: BoundSet) -> Bools:
    """Which requests finished within every one of these bounds."""
    keeps = requests.ok.copy()
    for metric, bound in bounds:
        keeps &= metric.within(metric.of(requests), bound)
    return keeps
