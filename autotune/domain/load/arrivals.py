"""When requests arrive: pure functions from a rate and a random generator to ascending times in seconds."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    Tag,
    model_validator,
)

from autotune.domain.basics.quantities import PositiveDurationS

Floats = NDArray[np.float64]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Gamma(_Part):
    """Burstiness."""

    cv: PositiveFloat = Field(description="standard deviation / mean of the gaps; 1 is Poisson")


class GammaArrivals(_Part):
    """Gaps between arrivals scatter by a gamma distribution."""

    gamma: Gamma


class Ramp(_Part):
    """A triangle wave about the level's rate, from ``low`` up to ``high`` and back in a period."""

    low: NonNegativeFloat = Field(description="least rate / the level's rate")
    high: PositiveFloat = Field(description="highest rate / the level's rate")
    period: PositiveDurationS

    @model_validator(mode="after")
    def _centred(self) -> Self:
        if self.low > self.high or not math.isclose(self.low + self.high, 2):
            raise ValueError(
                f"low {self.low:g} and high {self.high:g} do not rise about 1, the level's mean rate; "
                "write low: 1 - x and high: 1 + x"
            )
        return self


class RampArrivals(_Part):
    """A Poisson process whose rate rises and falls."""

    ramp: Ramp


def _form(arrivals: Any) -> str | None:
    if isinstance(arrivals, GammaArrivals) or (isinstance(arrivals, dict) and "gamma" in arrivals):
        return "bursts"
    if isinstance(arrivals, RampArrivals) or (isinstance(arrivals, dict) and "ramp" in arrivals):
        return "wave"
    return "name" if arrivals in ("poisson", "trace") else None


Arrivals = Annotated[
    Annotated[Literal["poisson", "trace"], Tag("name")]
    | Annotated[GammaArrivals, Tag("bursts")]
    | Annotated[RampArrivals, Tag("wave")],
    Discriminator(
        _form,
        custom_error_type="no_arrivals",
        custom_error_message=(
            "names no arrivals; write poisson, trace, {gamma: {cv: 2}} or {ramp: {low: 0.5, high: 1.5, "
            "period: 1m}}"
        ),
    ),
]
"""How requests, or conversations, arrive."""


def arrivals_due_s(
    arrivals: Arrivals, rate_rps: float, duration_s: float, rng: np.random.Generator
) -> Floats:
    """Due times in ``[0, duration_s)``, ascending; those of a trace are not drawn, but scaled_due_s's."""
    match arrivals:
        case GammaArrivals(gamma=gamma):
            return gamma_due_s(rate_rps, duration_s, rng, cv=gamma.cv)
        case RampArrivals(ramp=ramp):
            return ramp_due_s(rate_rps, duration_s, rng, ramp=ramp)
        case "poisson":
            return poisson_due_s(rate_rps, duration_s, rng)
        case "trace":
            raise ValueError("the arrivals of a trace are not drawn")


def poisson_due_s(rate_rps: float, duration_s: float, rng: np.random.Generator) -> Floats:
    """Due times of a Poisson process."""
    _check(rate_rps, duration_s)
    count = rng.poisson(rate_rps * duration_s)
    return np.sort(rng.uniform(0.0, duration_s, count))


def gamma_due_s(rate_rps: float, duration_s: float, rng: np.random.Generator, *, cv: float) -> Floats:
    """Due times of a stationary renewal process with gamma gaps.

    The time to the first arrival is what is left of a gap that a moment falls into: such gaps are drawn in
    proportion to their length, which makes a gamma's shape one larger (D. R. Cox, Renewal Theory, ch. 5).
    """
    _check(rate_rps, duration_s)
    shape, scale_s = cv**-2, cv**2 / rate_rps
    at_s = rng.uniform() * rng.gamma(shape + 1, scale_s)
    parts: list[Floats] = []
    while at_s < duration_s:
        expected = rate_rps * (duration_s - at_s)
        gaps_s = rng.gamma(shape, scale_s, math.ceil(expected + 3 * cv * math.sqrt(expected)) + 1)
        times_s = at_s + np.concatenate(([0.0], np.cumsum(gaps_s)))
        parts.append(times_s[:-1])
        at_s = float(times_s[-1])
    due_s = np.concatenate(parts or [np.zeros(0)])
    return due_s[due_s < duration_s]


def ramp_due_s(rate_rps: float, duration_s: float, rng: np.random.Generator, *, ramp: Ramp) -> Floats:
    """Due times of a Poisson process whose rate follows the ramp, which starts at its low point.

    The mean rate is ``rate_rps`` over whole periods. By thinning (Lewis and Shedler, 1979).
    """
    at_s = poisson_due_s(rate_rps * ramp.high, duration_s, rng)
    phase = at_s / ramp.period % 1.0
    height = ramp.low + (ramp.high - ramp.low) * (1 - np.abs(1 - 2 * phase))
    return at_s[rng.uniform(0.0, ramp.high, len(at_s)) < height]


def scaled_due_s(arrival_s: Floats, rate_rps: float, duration_s: float) -> Floats:
    """Due times with the order and the relative gaps of a trace, at another rate.

    ``arrival_s`` has one arrival more than may be due: its last only says how long the others took. Where
    all arrived at one moment, as a trace with coarse times may say, they are spread evenly.
    """
    _check(rate_rps, duration_s)
    offsets_s = arrival_s[:-1] - arrival_s[0]
    span_s, count = float(arrival_s[-1] - arrival_s[0]), len(offsets_s)
    due_s = offsets_s * (count / rate_rps / span_s) if span_s > 0 else np.arange(count) / rate_rps
    return due_s[due_s < duration_s]


def _check(rate_rps: float, duration_s: float) -> None:
    if rate_rps <= 0 or duration_s <= 0:
        raise ValueError(f"rate and duration must be positive, not {rate_rps} req/s and {duration_s} s")
