"""Search spaces: dimensions of the vocabulary, with the values each may take and when it applies."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PositiveInt,
    Tag,
    field_validator,
    model_validator,
)

from autotune.domain.configs.config import (
    MODEL_WORDS,
    SETTING_WORDS,
    EngineConfig,
    Value,
    check_words,
    error_at,
)

DEFAULT = "default"
"""Value of a dimension that leaves the word unset: the engine's own default."""


def _set_words(point: Mapping[str, Value]) -> dict[str, Value]:
    return {word: value for word, value in point.items() if value != DEFAULT}


def _checked(point: dict[str, Value]) -> dict[str, Value]:
    check_words(_set_words(point))
    return point


Point = Annotated[dict[str, Value], AfterValidator(_checked)]
"""A value, or DEFAULT, for some words of the vocabulary."""


When = dict[str, Value | tuple[Value, ...]]
"""For which values of earlier dimensions one applies at all: a value, or a list of them, by word."""


class IntRange(BaseModel):
    """Whole numbers from ``low`` to ``high``: in steps, or doubling where ``log`` is set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: PositiveInt
    high: PositiveInt
    step: PositiveInt = 1
    log: bool = False
    when: When = {}

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"the range is empty: low {self.low} is above high {self.high}; swap them")
        if self.log and self.step != 1:
            raise ValueError("a range either doubles (log) or has a step; leave out one")
        return self

    @property
    def choices(self) -> tuple[Value, ...]:
        """The values, ascending."""
        if not self.log:
            return tuple(range(self.low, self.high + 1, self.step))
        doublings = int(math.log2(self.high / self.low) + 1e-9)
        return tuple(self.low << k for k in range(doublings + 1))


class Choices(BaseModel):
    """Named values; ``when`` says for which values of other dimensions this one applies at all."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    choices: Annotated[tuple[Value, ...], Field(min_length=1)]
    when: When = {}


def _form(dimension: Any) -> str:
    if isinstance(dimension, Choices | IntRange):
        return "choices" if isinstance(dimension, Choices) else "range"
    if isinstance(dimension, dict):
        return "choices" if "choices" in dimension else "range"
    return "values"


Dimension = Annotated[
    Annotated[tuple[Value, ...], Field(min_length=1), Tag("values")]
    | Annotated[Choices, Tag("choices")]
    | Annotated[IntRange, Tag("range")],
    Discriminator(_form),
]
"""A list of values, ``{choices, when}``, or ``{low, high, step | log, when}``."""


def _choices(dimension: Dimension) -> tuple[Value, ...]:
    return dimension if isinstance(dimension, tuple) else dimension.choices


def _condition(dimension: Dimension) -> Mapping[str, tuple[Value, ...]]:
    when = {} if isinstance(dimension, tuple) else dimension.when
    return {word: value if isinstance(value, tuple) else (value,) for word, value in when.items()}


class SearchSpace(BaseModel):
    """Dimensions in the order they are decided; what is not named stays at the engine's default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dimensions: dict[str, Dimension]

    @field_validator("dimensions")
    @classmethod
    def _sound(cls, dimensions: dict[str, Dimension]) -> dict[str, Dimension]:
        before: dict[str, tuple[Value, ...]] = {}
        for name, dimension in dimensions.items():
            for value in _choices(dimension):
                check_words(_set_words({name: value}))
            for other, values in _condition(dimension).items():
                for value in values:
                    if value not in before.get(other, ()):
                        what = (
                            f"no earlier dimension {other} can be {value!r}; correct it, or put {other} above"
                        )
                        raise error_at(what, name, "when", other)
            before[name] = _choices(dimension)
        return dimensions

    def choices(self, name: str) -> tuple[Value, ...]:
        """Values of one dimension."""
        return _choices(self.dimensions[name])

    def applies(self, name: str, words: Mapping[str, Any]) -> bool:
        """Whether a dimension is to be decided, given the words decided before it."""
        condition = _condition(self.dimensions[name])
        return all(words.get(other) in values for other, values in condition.items())

    def config_at(self, base: EngineConfig, point: Mapping[str, Value]) -> EngineConfig:
        """Return ``base`` with a point's words in place; DEFAULT leaves ``base``'s own."""
        return base.replaced(_set_words(point))

    def point_of(self, config: EngineConfig, base: EngineConfig) -> dict[str, Value]:
        """The point that ``config`` is; a dimension that has no such value is left out."""
        words, common = config.words, base.words
        point: dict[str, Value] = {}
        for name in self.dimensions:
            if not self.applies(name, point):
                continue
            value = words.get(name, DEFAULT)
            if value == common.get(name, DEFAULT) and DEFAULT in self.choices(name):
                value = DEFAULT
            if value in self.choices(name):
                point[name] = value
        return point

    def draw(self, choose: Callable[[Sequence[Value]], Value]) -> dict[str, Value]:
        """A point whose every value is one that ``choose`` picked among those of its dimension."""
        point: dict[str, Value] = {}
        for name in self.dimensions:
            if self.applies(name, point):
                point[name] = choose(self.choices(name))
        return point

    def neighbours(self, point: Mapping[str, Value]) -> Iterator[dict[str, Value]]:
        """Points that differ from one in a single dimension, and in what applies because of it."""
        for name in self.dimensions:
            for value in self.choices(name):
                if name in point and value != point[name]:
                    yield self.completed({**point, name: value})

    def completed(self, given: Mapping[str, Value]) -> dict[str, Value]:
        """The point of ``given`` values, without those that do not apply; of others the first."""
        point: dict[str, Value] = {}
        for name in self.dimensions:
            if self.applies(name, point):
                point[name] = given.get(name, self.choices(name)[0])
        return point

    def points(self) -> Iterator[dict[str, Value]]:
        """Every point of the space, in order; lazily, since there may be millions."""
        yield from self._points(tuple(self.dimensions), {})

    def _points(self, names: tuple[str, ...], words: dict[str, Value]) -> Iterator[dict[str, Value]]:
        if not names:
            yield dict(words)
            return
        name, rest = names[0], names[1:]
        if not self.applies(name, words):
            yield from self._points(rest, words)
            return
        for value in self.choices(name):
            yield from self._points(rest, {**words, name: value})


@dataclass(frozen=True, slots=True)
class Branch:
    """One engine's part of what a study searches: its space, and the words that no dimension decides."""

    base: EngineConfig
    space: SearchSpace

    def config_at(self, point: Mapping[str, Value]) -> EngineConfig:
        """The configuration at a point; DEFAULT leaves the base's own word."""
        return self.space.config_at(self.base, point)

    def under_other_settings(self, config: EngineConfig) -> Iterator[EngineConfig]:
        """A configuration with each other value of the words that change under a running engine."""
        point = self.space.point_of(config, self.base)
        words = [word for word in SETTING_WORDS if word in point]
        for values in itertools.product(*(self.space.choices(word) for word in words)):
            there = self.config_at({**point, **dict(zip(words, values, strict=True))})
            if there != self.config_at(point):
                kept = {word: value for word, value in config.words.items() if word not in SETTING_WORDS}
                own = {word: there.words[word] for word in SETTING_WORDS if word in there.words}
                yield EngineConfig.model_validate({"engine": config.engine, **kept, **own})

    @property
    def models_named(self) -> frozenset[str]:
        """Models that its configurations may name, beside the study's."""
        named = {v for word in MODEL_WORDS if word in self.space.dimensions for v in self.space.choices(word)}
        return frozenset({*map(str, named - {DEFAULT}), *self.base.models_named})

    def configs(self) -> Iterator[EngineConfig]:
        """The configuration of every point, in order; lazily, since there may be millions."""
        return (self.config_at(point) for point in self.space.points())
