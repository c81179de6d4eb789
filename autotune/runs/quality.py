"""Examines a running engine: known prompts at every launch, and the quality gate once for each precision."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from autotune.domain.judging.answers import Answer, AnswerTerms, Question
from autotune.domain.judging.judgement import check_known, judge, readings
from autotune.domain.judging.quality import (
    Interview,
    Precision,
    QualitySpec,
    QualityState,
    QualityVerdict,
    ReferenceAnswers,
    TaskScore,
)
from autotune.domain.launches.endpoint import Endpoint
from autotune.domain.load.level import Level
from autotune.domain.load.progress import Cancelled
from autotune.domain.load.prompts import PromptSource, Segment
from autotune.domain.studies.ports import OutputProbe
from autotune.domain.studies.study import StudySpec
from autotune.runs.measure import Planner

TEMPLATE_TOKENS = 64
"""Room that a chat's template takes of the context beside a long prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityKnown:
    """What a study knows of quality before a launch: the reference's answers, and the verdicts so far.

    ``others`` are the references of further engines: each engine is held against itself.
    """

    reference: ReferenceAnswers | None = None
    others: tuple[ReferenceAnswers, ...] = ()
    verdicts: tuple[QualityVerdict, ...] = ()

    def reference_for(self, precision: Precision) -> ReferenceAnswers | None:
        """The engine's own reference, else the study's."""
        own = (each for each in self.others if each.precision.engine == precision.engine)
        return next(own, self.reference)


NOTHING_KNOWN = QualityKnown()


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """What a reference is asked: prompts, and a long one where the context allows."""

    prompts: tuple[Question, ...]
    long: tuple[Question, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """One launch to be examined; ``questions`` are for a launch that may become the reference, else None."""

    number: int
    precision: Precision
    known: QualityKnown
    questions: Questions
    may_be_reference: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Examiner:
    """Asks one running engine, and has it ``solve`` tasks; raises NoAnswerError, StudyCancelledError."""

    probe: OutputProbe
    endpoint: Endpoint
    spec: QualitySpec
    timeout_s: float
    cancelled: Cancelled
    solve: Callable[[], tuple[TaskScore, ...]] = tuple

    def ask(self, questions: Sequence[Question], *, together: int = 1) -> tuple[Answer, ...]:
        """Put some questions, so many at once."""
        terms = AnswerTerms(
            output_tokens=self.spec.answer_tokens, together=together, timeout_s=self.timeout_s
        )
        return self.probe.ask(self.endpoint, questions, terms, self.cancelled)

    def interview(
        self, prompts: Sequence[Question], scored: Sequence[Question], long: Sequence[Question]
    ) -> Interview:
        """Ask everything, alone and together."""
        together = self.spec.concurrency
        return Interview(
            alone=self.ask(prompts),
            together=self.ask(prompts, together=together),
            scored_alone=self.ask(scored),
            scored_together=self.ask(scored, together=together),
            long=self.ask(long),
        )


def examine(examiner: Examiner, task: Examination) -> tuple[QualityVerdict, ReferenceAnswers | None]:
    """Have the known prompts answered, then judge; returns the answers of one that became a reference.

    The first to answer is the study's. Of another engine the first of the same precision becomes its own
    reference: kernels differ by more than thresholds between configurations of one engine allow.
    Raises WrongOutputError, NoAnswerError, StudyCancelledError.
    """
    spec, reference = examiner.spec, task.known.reference_for(task.precision)
    prompts = reference.questions if reference else task.questions.prompts
    answers = examiner.ask(prompts[: spec.known], together=spec.known)
    said = check_known(answers, reference, spec, exact=examiner.endpoint.ignore_eos)
    learned = None
    if task.may_be_reference and (reference is None or _is_first_of_its_engine(task.precision, reference)):
        learned = learn_reference(examiner, task.questions, task.precision, number=task.number)
        verdict = judge_reference(learned, spec)
    else:
        verdict = _verdict(examiner, task)
    return replace(verdict, known=said), learned


def _is_first_of_its_engine(precision: Precision, reference: ReferenceAnswers) -> bool:
    return precision.engine != reference.precision.engine and precision.is_like(reference.precision)


def _verdict(examiner: Examiner, task: Examination) -> QualityVerdict:
    reference = task.known.reference_for(task.precision)
    if reference is not None and task.precision == reference.precision:
        return QualityVerdict(
            state=QualityState.PASSED,
            precision=task.precision,
            judged_in=reference.number,
            reference=reference.number,
            reasons=("the reference's own precision",),
        )
    if reference is None or examiner.spec.gate == "off":
        why = "the gate is off" if examiner.spec.gate == "off" else "no reference has answered"
        return QualityVerdict(
            state=QualityState.NOT_JUDGED, precision=task.precision, judged_in=task.number, reasons=(why,)
        )
    known = next(
        (
            verdict
            for verdict in task.known.verdicts
            if (verdict.precision, verdict.reference) == (task.precision, reference.number)
        ),
        None,
    )
    return known or judge_engine(examiner, reference, task.precision, number=task.number)


def learn_reference(
    examiner: Examiner, questions: Questions, precision: Precision, *, number: int
) -> ReferenceAnswers:
    """Ask everything twice: what differs between the two is the engine's own, and no fault of others.

    With the gate off only the known prompts are asked.
    """
    spec = examiner.spec
    gated = spec.gate != "off"
    prompts = questions.prompts if gated else questions.prompts[: spec.known]
    alone = examiner.ask(prompts)
    scored = _scored_after(prompts, alone) if gated else ()
    scored_alone = examiner.ask(scored)
    if not any(answer.steps for answer in scored_alone):
        scored, scored_alone = (), ()
    long = questions.long if gated else ()
    long_answers = examiner.ask(long)
    if not any(answer.output_tokens for answer in long_answers):
        long, long_answers = (), ()
    tasks = examiner.solve() if gated else ()
    first = Interview(alone=alone, scored_alone=scored_alone, long=long_answers, tasks=tasks)
    again = examiner.interview(prompts, scored, long)
    return ReferenceAnswers(
        number=number,
        precision=precision,
        questions=prompts,
        scored_questions=scored,
        long_questions=long,
        answers=first,
        own=readings(first, again, spec),
    )


def _scored_after(prompts: Sequence[Question], answers: Sequence[Answer]) -> tuple[Question, ...]:
    """The reference's own answers as questions; the prompts' last tokens where no ids are known."""
    questions = []
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = tuple(step.token for step in answer.steps if isinstance(step.token, int))
        most = len(answer.steps) if ids else min(len(prompt.ids) - 1, answer.output_tokens)
        if most > 0:
            questions.append(Question((*prompt.ids, *ids), scored=most))
    return tuple(questions)


def judge_reference(reference: ReferenceAnswers, spec: QualitySpec) -> QualityVerdict:
    """The reference against itself: passed, with how far it is from itself."""
    verdict = judge(
        reference.own,
        reference,
        reference.precision,
        number=reference.number,
        spec=spec,
        tasks=reference.answers.tasks,
    )
    reasons = ("the reference itself", *verdict.reasons)
    return replace(verdict, state=QualityState.PASSED, reasons=reasons)


def judge_engine(
    examiner: Examiner, reference: ReferenceAnswers, precision: Precision, *, number: int
) -> QualityVerdict:
    """Ask an engine all that the reference was asked, and hold its answers against the reference's."""
    other = examiner.interview(reference.questions, reference.scored_questions, reference.long_questions)
    found = readings(reference.answers, other, examiner.spec)
    tasks = examiner.solve() if reference.answers.tasks else ()
    return judge(found, reference, precision, number=number, spec=examiner.spec, tasks=tasks)


def questions_of(study: StudySpec, plan: Planner) -> Questions:
    """The prompts of a study: its own text where it has some, else random tokens; the same at every call."""
    spec = study.quality
    with_text = (w.name for w in study.workloads if w.has_real_text)
    workload = next(with_text, study.workload_names[0])
    seed = zlib.crc32(f"{study.seed} quality".encode())
    source = plan(Level(workload, concurrency=1), 1.0, seed).prompts
    context = study.default_config().context_length
    room = (context - spec.answer_tokens) if context else spec.prompt_tokens
    length = max(min(spec.prompt_tokens, room), 1)
    long = spec.long_prompt_tokens or (
        (context or max(w.longest_tokens for w in study.workloads)) - spec.answer_tokens - TEMPLATE_TOKENS
    )
    return Questions(
        prompts=tuple(_question(source, key, length) for key in range(spec.prompts)),
        long=(_question(source, spec.prompts, long),) if long > length else (),
    )


def _question(source: PromptSource, key: int, tokens: int) -> Question:
    segments = (Segment(key, tokens),)
    ids = tuple(source.token_ids(segments))
    try:
        messages = tuple((each["role"], each["content"]) for each in source.messages(segments))
    except ValueError:  # these prompts are token ids, not text
        messages = ()
    return Question(ids, messages)
