"""Workloads as study files describe them, and the load levels at which they are measured."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from autotune.domain.basics.quantities import DurationS
from autotune.domain.load.arrivals import Arrivals, Gamma, GammaArrivals, RampArrivals
from autotune.domain.load.lengths import Length, distribution
from autotune.domain.load.level import Level
from autotune.domain.load.load_plan import Api

CHAT_TOKENS, CHAT_MESSAGE_TOKENS = 64, 8
"""Room in the context for what a chat template adds: to a prompt, and to each message of it."""

Share = Annotated[float, Field(ge=0, le=1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Conversations(_Part):
    """Several turns: each prompt holds all earlier turns and then the user's new words.

    Earlier answers stand in it as the plan has them, not as the engine gave them: a prefix cache can serve
    the earlier prompt, not the answer to it.
    """

    turns: Length = Field(description="turns of a conversation")
    think_time: DurationS = Field(
        0.0, description="mean pause between an answer and the next turn; pauses scatter exponentially"
    )
    system_tokens: NonNegativeInt = Field(0, description="length of the system prompt")
    system_prompts: PositiveInt = Field(1, description="how many system prompts conversations choose from")


class TextFiles(_Part):
    """Real text to make prompts of."""

    text: str = Field(description="a file, or a folder of files, of UTF-8 text")


BURSTS = GammaArrivals(gamma=Gamma(cv=2.0))
"""Arrivals of a soak: four times the scatter of Poisson's, as gateways of production see it."""


class PrefixHits(_Part):
    """What share of its prompt tokens an engine is expected to find in its prefix cache."""

    expected: Share
    tolerance: Share = 0.1


class Workload(_Part):
    """What users send: how long prompts and answers are, what prompts share, and how requests arrive.

    Lengths are drawn (``input_tokens`` and ``output_tokens``), or are pairs from a file (``lengths``), or
    come with the arrivals and shared prefixes of real traffic (``trace``).
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")] = "workload"
    input_tokens: Length | None = Field(
        None, description="prompt length, or of a user's turn, tokens; a number or a distribution"
    )
    output_tokens: Length | None = Field(None, description="answer length, tokens; enforced with ignore_eos")
    lengths: str | None = Field(None, description="file of (input_length, output_length) pairs to draw from")
    trace: str | None = Field(
        None, description="file of real traffic, as `autotune workload from-logs` makes"
    )
    length_scale: PositiveFloat = Field(1.0, description="factor on the lengths of a file")
    longest: PositiveInt | None = Field(
        None, description="context, tokens: longer requests of a file, or later turns, are left out"
    )
    arrivals: Arrivals | None = Field(None, description="poisson, or the trace's own, unless said otherwise")
    conversations: Conversations | None = None
    prompts: Literal["random"] | TextFiles = "random"
    api: Api = "completions"
    temperature: NonNegativeFloat = 0.0
    prefix_hits: PrefixHits | None = Field(
        None, description="prefix cache hits; a measurement that departs from them is invalid"
    )

    @model_validator(mode="after")
    def _one_source_of_lengths(self) -> Self:
        sources = ("input_tokens", "output_tokens", "lengths", "trace")
        given = [name for name in sources if getattr(self, name) is not None]
        if given not in (["input_tokens", "output_tokens"], ["lengths"], ["trace"]):
            what = f"lengths come from {', '.join(given) or 'nowhere'}"
            raise ValueError(f"{what}; give input_tokens and output_tokens, or lengths, or trace")
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.traffic_file is None and self.length_scale != 1:
            raise ValueError("length_scale is a factor on a file's lengths; write the lengths that you want")
        if self.traffic_file is not None and self.longest is None:
            raise ValueError("a file's longest request is not known here; give longest: tokens of context")
        if self.traffic_file is None and self.conversations is None and self.longest is not None:
            raise ValueError("longest cuts what files hold, and conversations; lower the lengths' high")
        if self.trace is None and self.arrivals == "trace":
            raise ValueError("there is no trace to take arrivals from; give trace: FILE")
        if self.trace is not None and self.conversations is not None:
            raise ValueError("a trace has its own turns; leave out conversations, or draw from lengths: FILE")
        return self

    @model_validator(mode="after")
    def _a_first_turn_fits(self) -> Self:
        first = self._system_tokens + self._turn_tokens
        if self.conversations is not None and self.longest is not None and first > self.longest:
            raise ValueError(f"longest {self.longest} is less than the {first} tokens of one turn; raise it")
        return self

    @property
    def traffic_file(self) -> str | None:
        """The file that lengths come from, if any."""
        return self.trace or self.lengths

    @property
    def pacing(self) -> Arrivals:
        """How requests, or conversations, arrive."""
        return self.arrivals or ("trace" if self.trace else "poisson")

    @property
    def dispersion(self) -> float:
        """Variance / mean of arrival counts over times longer than a gap; infinite on a wave.

        There a queue that rises with the wave cannot be told from one that only grows.
        """
        match self.pacing:
            case GammaArrivals(gamma=gamma):
                return gamma.cv**2
            case RampArrivals():
                return math.inf
            case _:
                return 1.0

    def under(self, level: Level) -> Workload:
        """As it arrives at a level: in bursts where the level wants them and it brings none of its own."""
        if not level.bursty or self.pacing != "poisson":
            return self
        return self.model_copy(update={"arrivals": BURSTS})

    @property
    def has_real_text(self) -> bool:
        """Whether prompts are real text: speculation is ranked on nothing else."""
        return isinstance(self.prompts, TextFiles)

    @property
    def longest_tokens(self) -> int:
        """Context that the longest request needs, tokens."""
        turns = distribution(self.conversations.turns).longest if self.conversations else 1
        longest = self.longest or self._system_tokens + turns * self._turn_tokens
        return longest + (CHAT_TOKENS + CHAT_MESSAGE_TOKENS * 2 * turns if self.api == "chat" else 0)

    @property
    def _system_tokens(self) -> int:
        return self.conversations.system_tokens if self.conversations else 0

    @property
    def _turn_tokens(self) -> int:
        """Longest prompt and answer of a turn; 1 + 1 where a file says."""
        if self.input_tokens is None or self.output_tokens is None:
            return 2
        return distribution(self.input_tokens).longest + distribution(self.output_tokens).longest
