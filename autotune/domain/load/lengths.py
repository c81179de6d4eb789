"""How long prompts and answers are: fixed, log-normal."""

from __future__ import annotations

from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
)

Ints = NDArray[np.int64]


class FixedLength(BaseModel):
    """Every one is the same number."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: PositiveInt

    @property
    def longest(self) -> int:
        """Upper bound."""
        return self.tokens

    def draw(self, count: int, rng: np.random.Generator) -> Ints:  # noqa: ARG002 - one signature
        """Return ``count`` lengths."""
        return np.full(count, self.tokens, dtype=np.int64)


class LogNormalLength(BaseModel):
    """Lengths scatter log-normally about their median, cut to ``[low, high]``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    median: PositiveInt
    sigma: PositiveFloat = Field(description="standard deviation of the logarithm")
    low: PositiveInt = 1
    high: PositiveInt

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}; exchange them")
        return self

    @property
    def longest(self) -> int:
        """Upper bound."""
        return self.high

    def draw(self, count: int, rng: np.random.Generator) -> Ints:
        """Return ``count`` lengths."""
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
"""A whole number, ``{tokens}``, or ``{median, sigma, low, high}``."""


def distribution(length: Length) -> FixedLength | LogNormalLength:
    """Return what lengths are drawn from, also where a plain number was written."""
    return FixedLength(tokens=length) if isinstance(length, int) else length
