"""Quality: what a study asks of it, what was answered, and the verdicts.

States of a verdict::

    not judged ──(same precision as the reference)──> passed
        └───────(figures against thresholds)──> passed | failed
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from autotune.domain.basics.quantities import PositiveDurationS
from autotune.domain.configs.config import EngineConfig
from autotune.domain.judging.answers import Answer, Question


class TaskSpec(BaseModel):
    """Tasks of lm-evaluation-harness that the reference and each other precision are given once."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    names: Annotated[tuple[str, ...], Field(min_length=1)] = Field(description="tasks, as lm_eval names them")
    folder: str | None = Field(None, description="folder with tasks of one's own; lm_eval's --include_path")
    limit: PositiveInt | None = Field(None, description="questions of each task; left out: all of them")
    loss: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.02, description="by how much a score may be below the reference's, whatever its standard error"
    )
    model: dict[str, str | int | float | bool] = Field(
        {}, description="further arguments of lm_eval's model, such as a tokenizer for tasks that need one"
    )
    command: str = Field("lm_eval", description="the harness: on the PATH, or a path of its own environment")
    timeout: PositiveDurationS = Field(3600.0, description="for all tasks together")


class QualitySpec(BaseModel):
    """How the quality of configurations is judged."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gate: Literal["required", "report", "off"] = Field(
        "required",
        description="required: never recommend what fails; report: show the figures; off: do not judge",
    )
    prompts: PositiveInt = Field(16, description="prompts of the gate")
    known: PositiveInt = Field(4, description="how many of them every launch answers before it is measured")
    prompt_tokens: PositiveInt = Field(128, description="length of each prompt")
    answer_tokens: PositiveInt = Field(32, description="length of each answer")
    long_prompt_tokens: PositiveInt | None = Field(
        None, description="length of the long prompt; left out: what the context that is served allows"
    )
    concurrency: PositiveInt = Field(16, description="questions at once: numerics hang on the batch")
    margin: PositiveFloat = Field(
        0.5, description="nats; a token may differ where the reference holds both as likely within it"
    )
    differing: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.25, description="share of the answers that may differ beyond the margin"
    )
    tolerance: PositiveFloat = Field(
        0.05, description="nats; mean difference of log-probabilities, and KL, that always pass"
    )
    multiple: Annotated[float, Field(ge=1)] = Field(
        3.0, description="how much further than the reference is from itself others may be from it"
    )

    tasks: TaskSpec | None = Field(None, description="tasks of lm-evaluation-harness to be solved as well")

    def bars(self, verdict: QualityVerdict) -> bool:
        """Whether what has this verdict may never be recommended."""
        return self.gate == "required" and verdict.state is QualityState.FAILED


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """What decides how exactly a model is computed: configurations with the same are judged once.

    ``other`` are choices whose effect on precision is not known: a container's profile, arguments without a
    word. Speculation is not among them, for it proposes tokens and decides none.
    """

    checkpoint: str
    weights: str
    activations: str
    kv_cache: str
    build: str
    other: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: str, config: EngineConfig, build: str) -> Precision:
        """The precision of a configuration of an engine's ``build``, such as ``vllm 0.32.0``."""
        quantization = config.quantization or "none"
        return cls(
            checkpoint=config.checkpoint or model,
            weights="as stored" if quantization == "none" else quantization,
            activations=config.dtype or "auto",
            kv_cache=config.kv_cache_dtype or "auto",
            build=build,
            other=(*([config.profile] if config.profile else []), *config.extra_args),
        )

    @property
    def engine(self) -> str:
        """The engine that computes."""
        return self.build.partition(" ")[0]

    def is_like(self, other: Precision) -> bool:
        """Whether it is the same but for the engine and its version."""
        return replace(self, build=other.build) == other

    def is_of(self, model: str, config: EngineConfig) -> bool:
        """Whether a configuration has this precision, on the build that this one names."""
        return self.engine == config.engine and self == self.of(model, config, self.build)

    @property
    def label(self) -> str:
        """Short text for people."""
        other = f", {' '.join(self.other)}" if self.other else ""
        return f"weights {self.weights}, KV {self.kv_cache}, dtype {self.activations}, {self.build}{other}"


class Setting(StrEnum):
    """How questions were asked."""

    ALONE = "alone"
    TOGETHER = "together"
    LONG = "long context"
    TASKS = "tasks"


class Measure(StrEnum):
    """Distances from the reference; the unit of each is in ``unit``."""

    MEAN = "mean log-probability difference"
    HIGH = "p95 log-probability difference"
    KL = "KL divergence, at least"
    DIFFERING = "answers that differ beyond the margin"
    TEXT = "text after the common beginning"
    SCORE = "score lost"

    @property
    def unit(self) -> str:
        """Nats, or a share."""
        return "nats" if self in {Measure.MEAN, Measure.HIGH, Measure.KL} else "share"


@dataclass(frozen=True, slots=True)
class Reading:
    """One distance from the reference."""

    setting: Setting
    measure: Measure
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityFigure:
    """A distance, the reference's from itself, and what it may be at most.

    Of a ``task`` it is the score lost to the reference, and ``own`` the standard error of that.
    """

    setting: Setting
    measure: Measure
    value: float
    own: float
    threshold: float
    task: str = ""

    @property
    def passed(self) -> bool:
        """Whether it is within the threshold."""
        return self.value <= self.threshold

    def __str__(self) -> str:
        unit = f" {self.measure.unit}" if self.measure.unit == "nats" else ""
        if self.task:
            return (
                f"{self.measure} in {self.task}: {self.value:.3g}, at most {self.threshold:.3g} "
                f"(standard error {self.own:.3g})"
            )
        return (
            f"{self.measure} {self.setting}: {self.value:.3g}{unit}, at most {self.threshold:.3g} "
            f"(reference against itself {self.own:.3g})"
        )


class QualityState(StrEnum):
    """What is known of a precision's quality."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_JUDGED = "not judged"


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityVerdict:
    """The verdict on a precision; ``judged_in`` is the trial it was reached in, ``reference`` whose it is.

    ``known`` says how the launch itself answered the known prompts.
    """

    state: QualityState
    precision: Precision
    judged_in: int
    reference: int | None = None
    figures: tuple[QualityFigure, ...] = ()
    reasons: tuple[str, ...] = ()
    known: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskScore:
    """What an engine scored in a task, by one of its metrics; ``error`` is the score's standard error."""

    task: str
    metric: str
    score: float
    error: float
    higher_is_better: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Interview:
    """What an engine answered; ``scored`` are answers of the reference's words, with this engine's steps."""

    alone: tuple[Answer, ...] = ()
    together: tuple[Answer, ...] = ()
    scored_alone: tuple[Answer, ...] = ()
    scored_together: tuple[Answer, ...] = ()
    long: tuple[Answer, ...] = ()
    tasks: tuple[TaskScore, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceAnswers:
    """Everything that others are judged by: what was asked, what was answered, how far it is from itself.

    ``scored_questions`` and ``long_questions`` are empty where the gate is off, or the endpoint cannot tell.
    """

    number: int
    precision: Precision
    questions: tuple[Question, ...]
    scored_questions: tuple[Question, ...] = ()
    long_questions: tuple[Question, ...] = ()
    answers: Interview
    own: tuple[Reading, ...] = ()


def objection(verdict: QualityVerdict, reference: Precision, spec: QualitySpec) -> str:
    """Why a configuration of that verdict may not be recommended; empty if it may."""
    if spec.bars(verdict):
        return f"failed the quality gate in trial {verdict.judged_in}: {verdict.reasons[0]}"
    unknown = verdict.state is QualityState.NOT_JUDGED and verdict.precision != reference
    if spec.gate == "required" and unknown:
        return f"its quality is not judged ({verdict.precision.label}): {verdict.reasons[0]}"
    return ""
