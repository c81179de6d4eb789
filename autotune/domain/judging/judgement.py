"""Holds an engine's answers against the reference's: known prompts, distances, thresholds, verdict."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from autotune.domain.judging.answers import (
    Answer,
    Pairs,
    aligned,
    distance,
    malformed,
    quoted,
    strays,
    text_lost,
    tokens_comparable,
)
from autotune.domain.judging.quality import (
    Interview,
    Measure,
    Precision,
    QualityFigure,
    QualitySpec,
    QualityState,
    QualityVerdict,
    Reading,
    ReferenceAnswers,
    Setting,
    TaskScore,
)

HIGH_TO_MEAN = 5.0
"""What the high quantile may be where the mean may be 1; a long prompt's, of few tokens, twice that."""
LARGEST_NATS = 1.0
"""A reference that is so far from itself is no reference: nothing can be judged by it."""
ONE_SIDED = 1.645
"""Standard errors that one loss in twenty exceeds by luck."""
MOST_SCORE = 0.2
"""A task so uncertain that such a loss would pass tells nothing: it has too few questions."""
TEXT_FLOOR = 0.5
"""Share of the text that may be another where there is text alone: one rounding changes all that follows."""


class WrongOutputError(Exception):
    """The engine answers, and the answers are wrong."""


def check_known(
    answers: Sequence[Answer], reference: ReferenceAnswers | None, spec: QualitySpec, *, exact: bool
) -> str:
    """Say how known prompts were answered; raises WrongOutputError, with what was seen.

    ``exact``: the engine is made to give as many tokens as are asked for.
    """
    for place, answer in enumerate(answers):
        if why := malformed(answer, tokens=spec.answer_tokens, exact=exact):
            raise WrongOutputError(f"known prompt {place}: {why}")
    if reference is None:
        first = {answer.steps[0].token for answer in answers if answer.is_one_token}
        if len(answers) > 1 and len(first) == 1 and all(answer.is_one_token for answer in answers):
            raise WrongOutputError(f"every known prompt is answered by one token alone: {quoted(answers[0])}")
        return f"{len(answers)} known prompts answered; there is no reference to compare with"
    expected = reference.answers.alone[: len(answers)]
    if all(map(tokens_comparable, expected, answers)):
        return _check_tokens(answers, expected, reference.number, spec)
    return _check_text(answers, expected, reference, spec)


def _check_tokens(
    answers: Sequence[Answer], expected: Sequence[Answer], number: int, spec: QualitySpec
) -> str:
    wrong = [
        (theirs, ours)
        for theirs, ours in zip(answers, expected, strict=True)
        if strays(ours, theirs, margin_nats=spec.margin) or (theirs.is_one_token and not ours.is_one_token)
    ]
    if len(wrong) > spec.differing * len(answers):
        theirs, ours = wrong[0]
        raise WrongOutputError(
            f"{len(wrong)} of {len(answers)} known prompts are answered otherwise than by trial {number}, "
            f"beyond {spec.margin:g} nats: {quoted(theirs)} where that says {quoted(ours)}"
        )
    agreeing = len(answers) - len(wrong)
    return f"{agreeing} of {len(answers)} known prompts as by trial {number}, within {spec.margin:g} nats"


def _check_text(
    answers: Sequence[Answer], expected: Sequence[Answer], reference: ReferenceAnswers, spec: QualitySpec
) -> str:
    lost = _mean([text_lost(ours, theirs) for theirs, ours in zip(answers, expected, strict=True)])
    own = _own(reference.own, Setting.TOGETHER, Measure.TEXT)
    threshold = _threshold(Setting.TOGETHER, Measure.TEXT, own, spec)
    said = f"compared by text alone ({_why_text(answers, expected)})"
    if lost > threshold and threshold < _limit(Measure.TEXT):
        raise WrongOutputError(
            f"known prompts are answered otherwise than by trial {reference.number}, {said}: "
            f"{quoted(answers[0])} where that says {quoted(expected[0])}"
        )
    return f"{1 - lost:.0%} of the text of known prompts as by trial {reference.number}, {said}"


def _why_text(*sides: Sequence[Answer]) -> str:
    problems = (answer.problem for side in sides for answer in side if answer.problem)
    return next(problems, "the endpoint tells no log-probabilities of its tokens")


def readings(reference: Interview, other: Interview, spec: QualitySpec) -> tuple[Reading, ...]:
    """Distances of an engine's answers from the reference's, asked alone, wherever they can be told."""
    answers, scored = reference.alone, reference.scored_alone
    return (
        *_read(Setting.ALONE, (answers, other.alone), (scored, other.scored_alone), spec),
        *_read(Setting.TOGETHER, (answers, other.together), (scored, other.scored_together), spec),
        *_read_long(reference.long, other.long),
    )


Sides = tuple[Sequence[Answer], Sequence[Answer]]


def _read(setting: Setting, answers: Sides, scored: Sides, spec: QualitySpec) -> Iterator[Reading]:
    both = list(zip(*answers, strict=False))
    if not both:
        return
    if not all(tokens_comparable(ours, theirs) for ours, theirs in both):
        yield Reading(setting, Measure.TEXT, _mean([text_lost(ours, theirs) for ours, theirs in both]))
        return
    straying = [strays(ours, theirs, margin_nats=spec.margin) for ours, theirs in both]
    yield Reading(setting, Measure.DIFFERING, _mean(straying))
    # The reference's own tokens where the endpoint scores them, else those that both wrote.
    forced = _pairs(scored)
    apart = distance(forced or _pairs(answers))
    yield Reading(setting, Measure.MEAN, apart.mean_nats)
    yield Reading(setting, Measure.HIGH, apart.high_nats)
    yield Reading(setting, Measure.KL, apart.kl_nats)


def _read_long(reference: Sequence[Answer], other: Sequence[Answer]) -> Iterator[Reading]:
    """One answer is too little for a mean: its p95 is near the largest difference."""
    # Refused as too long, it says nothing of quality.
    both = [sides for sides in zip(reference, other, strict=False) if sides[1].output_tokens]
    if pairs := _pairs((reference, other)):
        yield Reading(Setting.LONG, Measure.HIGH, distance(pairs).high_nats)
    elif both:
        yield Reading(Setting.LONG, Measure.TEXT, _mean([text_lost(*sides) for sides in both]))


def _pairs(sides: Sides) -> Pairs:
    comparable = [both for both in zip(*sides, strict=False) if tokens_comparable(*both)]
    return [pair for both in comparable for pair in aligned(*both)]


def judge(
    found: Sequence[Reading],
    reference: ReferenceAnswers,
    precision: Precision,
    *,
    number: int,
    spec: QualitySpec,
    tasks: Sequence[TaskScore] = (),
) -> QualityVerdict:
    """Hold distances, and scores in tasks, against what the reference's own and the tolerance allow."""
    figures = tuple(
        QualityFigure(
            setting=each.setting,
            measure=each.measure,
            value=each.value,
            own=(own := _own(reference.own, each.setting, each.measure)),
            threshold=_threshold(each.setting, each.measure, own, spec),
        )
        for each in found
    )
    figures += tuple(_task_figures(reference.answers.tasks, tasks, spec))
    blind = [f for f in figures if f.threshold >= _limit(f.measure)]
    failed = [f for f in figures if not f.passed and f not in blind]
    asked = {own.setting for own in reference.own} | {Setting.TASKS for _ in reference.answers.tasks}
    missing = asked - {f.setting for f in figures}
    reasons = [str(f) for f in failed]
    reasons += [
        f"too few questions: {f}"
        if f.task
        else f"the reference differs from itself: {f.measure} {f.setting}: {f.own:.3g}"
        for f in blind
    ]
    reasons += [f"nothing that it answered can be compared: {setting}" for setting in sorted(missing)]
    state = (
        QualityState.FAILED
        if failed
        else QualityState.NOT_JUDGED
        if blind or missing or not figures
        else QualityState.PASSED
    )
    if failed and precision.engine != reference.precision.engine:
        # Thresholds are those between configurations of one engine; within them is near enough for any.
        state = QualityState.NOT_JUDGED
        reasons.append(f"held against {reference.precision.build}, whose kernels are others")
    if any(f.measure is Measure.TEXT for f in figures):
        reasons.append("compared by text alone: the endpoint tells no log-probabilities")
    means = [f.value for f in figures if f.measure is Measure.MEAN]
    if means and not any(means) and precision != reference.precision:
        # vLLM 0.32 takes an online quantisation for experts, and leaves a model without any as it is.
        reasons.append("no log-probability differs from the reference's: this precision changed nothing")
    return QualityVerdict(
        state=state,
        precision=precision,
        judged_in=number,
        reference=reference.number,
        figures=figures,
        reasons=tuple(reasons),
    )


def _task_figures(
    reference: Sequence[TaskScore], other: Sequence[TaskScore], spec: QualitySpec
) -> Iterator[QualityFigure]:
    """Scores lost; a loss within ONE_SIDED standard errors of the difference is luck."""
    known = {(score.task, score.metric): score for score in other}
    for ours in reference:
        theirs = known.get((ours.task, ours.metric))
        if theirs is not None and spec.tasks is not None:
            error = math.hypot(ours.error, theirs.error)
            lost = ours.score - theirs.score
            yield QualityFigure(
                setting=Setting.TASKS,
                measure=Measure.SCORE,
                value=lost if ours.higher_is_better else -lost,
                own=error,
                threshold=max(spec.tasks.loss, ONE_SIDED * error),
                task=f"{ours.task} ({ours.metric})",
            )


def _threshold(setting: Setting, measure: Measure, own: float, spec: QualitySpec) -> float:
    """What a distance may be: the floor for its measure, or a multiple of the reference's from itself."""
    floors = {
        Measure.MEAN: spec.tolerance,
        Measure.HIGH: spec.tolerance * HIGH_TO_MEAN * (2 if setting is Setting.LONG else 1),
        Measure.KL: spec.tolerance,
        Measure.DIFFERING: spec.differing,
        Measure.TEXT: TEXT_FLOOR,
    }
    return max(floors[measure], spec.multiple * own)


def _limit(measure: Measure) -> float:
    """A threshold from which on nearly anything would pass."""
    if measure is Measure.SCORE:
        return MOST_SCORE
    if measure.unit == "share":
        return 1.0
    return LARGEST_NATS * (HIGH_TO_MEAN if measure is Measure.HIGH else 1)


def _own(own: Sequence[Reading], setting: Setting, measure: Measure) -> float:
    values = (reading.value for reading in own if (reading.setting, reading.measure) == (setting, measure))
    return next(values, 0.0)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
