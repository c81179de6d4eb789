"""Quality: what differs and what may, thresholds from the reference itself, and verdicts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.domain.configs.config import EngineConfig
from autotune.domain.judging.answers import (
    Answer,
    Step,
    aligned,
    distance,
    divergence,
    malformed,
    strays,
    text_lost,
    tokens_comparable,
)
from autotune.domain.judging.judgement import WrongOutputError, check_known, judge, readings
from autotune.domain.judging.quality import (
    Interview,
    Measure,
    Precision,
    QualitySpec,
    QualityState,
    QualityVerdict,
    Reading,
    ReferenceAnswers,
    Setting,
    TaskScore,
    objection,
)

SPEC = QualitySpec(answer_tokens=4)
BF16 = Precision.of("m", EngineConfig(engine="vllm"), "vllm 1")
FP8 = Precision.of("m", EngineConfig(engine="vllm", kv_cache_dtype="fp8"), "vllm 1")


def step(token: int | str, nats: float = -0.1, *others: tuple[int | str, float]) -> Step:
    return Step(token, nats, ((token, nats), *others))


def answer(*tokens: int, nats: float = -0.1, second_nats: float = -3.0) -> Answer:
    """An engine that is sure: the token after its own is far less likely."""
    steps = tuple(step(token, nats, (token + 1, second_nats)) for token in tokens)
    return Answer(text=" ".join(map(str, tokens)), output_tokens=len(tokens), steps=steps)


def text_only(text: str) -> Answer:
    return Answer(text=text, output_tokens=4)


def reference(alone: tuple[Answer, ...], *own: Reading, **more: tuple[Answer, ...]) -> ReferenceAnswers:
    return ReferenceAnswers(
        number=3, precision=BF16, questions=(), answers=Interview(alone=alone, **more), own=own
    )


# --- what differs


tokens = st.lists(st.integers(0, 3), max_size=8)


@given(tokens, tokens)
def test_steps_are_compared_up_to_the_first_token_that_differs(ours: list[int], theirs: list[int]) -> None:
    pairs = aligned(answer(*ours), answer(*theirs))
    same = [a.token == b.token for a, b in pairs]
    assert all(same[:-1])
    assert len(pairs) == min(len(ours), len(theirs)) or not same[-1]


@given(st.floats(0.0, 5.0), st.floats(0.01, 5.0))
def test_a_token_may_differ_where_the_reference_is_as_good_as_undecided(gap: float, margin: float) -> None:
    ours = Answer(steps=(step(1, -0.5, (2, -0.5 - gap)),))
    theirs = Answer(steps=(step(2),))
    assert strays(ours, theirs, margin_nats=margin) == (-0.5 - (-0.5 - gap) >= margin)
    assert not strays(ours, ours, margin_nats=margin)


def test_a_token_that_the_reference_does_not_even_tell_of_strays_whatever_the_margin() -> None:
    """Random weights make all tokens about as likely; garbage is not among the likeliest all the same."""
    flat = Answer(steps=(step(1, -6.5, (2, -6.55), (3, -6.6)),))
    assert strays(flat, Answer(steps=(step(9),)), margin_nats=5.0)
    assert not strays(flat, Answer(steps=(step(3),)), margin_nats=5.0)


def test_a_token_that_another_does_not_tell_of_has_the_least_of_those_it_does() -> None:
    apart = distance([(step(1, -0.1), step(2, -0.5, (3, -4.1)))])
    assert apart.mean_nats == pytest.approx(4.0)


def test_only_the_first_difference_counts_for_texts_differ_after_it() -> None:
    undecided = step(1, -0.7, (2, -0.7))
    ours = Answer(steps=(undecided, step(5, -0.1, (6, -9.0))))
    theirs = Answer(steps=(step(2), step(6)))
    assert not strays(ours, theirs, margin_nats=0.1)
    same_start = Answer(steps=(step(1), step(6)))
    assert strays(ours, same_start, margin_nats=0.1)


distributions = st.lists(st.floats(0.01, 1.0), min_size=3, max_size=8)


@given(distributions, distributions, st.integers(1, 8))
def test_what_is_told_of_two_distributions_never_overstates_their_divergence(
    left: list[float], right: list[float], told: int
) -> None:
    size = min(len(left), len(right))
    p = np.array(left[:size]) / sum(left[:size])
    q = np.array(right[:size]) / sum(right[:size])

    def top(chances: np.ndarray) -> dict[int | str, float]:
        return {int(t): float(np.log(chances[t])) for t in np.argsort(-chances)[:told]}

    true = float((p * np.log(p / q)).sum())
    found = divergence(top(p), top(q))
    assert 0 <= found <= true + 1e-9
    assert divergence(top(p), top(p)) == pytest.approx(0, abs=1e-9)
    if told >= size:
        assert found == pytest.approx(true, abs=1e-6)


def test_distances_of_log_probabilities() -> None:
    ours = answer(1, 2, 3, 4, nats=-0.1)
    theirs = answer(1, 2, 3, 4, nats=-0.4)
    apart = distance(aligned(ours, theirs))
    assert apart.steps == 4
    assert apart.mean_nats == pytest.approx(0.3)
    assert apart.high_nats == pytest.approx(0.3)
    assert apart.kl_nats > 0.01
    assert distance(aligned(ours, ours)).mean_nats == 0


@pytest.mark.parametrize("nats", [math.nan, -math.inf])
def test_no_number_is_infinitely_far(nats: float) -> None:
    apart = distance(aligned(answer(1), answer(1, nats=nats)))
    assert (apart.mean_nats, apart.high_nats) == (math.inf, math.inf)


@given(st.text(max_size=12), st.text(max_size=12))
def test_text_lost_is_a_share(ours: str, theirs: str) -> None:
    lost = text_lost(text_only(ours), text_only(theirs))
    assert 0 <= lost <= 1
    assert (lost == 0) == (ours == theirs)


def test_tokens_of_one_kind_alone_are_comparable() -> None:
    ids, texts = answer(1), Answer(steps=(step("one"),))
    assert tokens_comparable(ids, ids)
    assert not tokens_comparable(ids, texts)
    assert not tokens_comparable(ids, text_only("one"))


# --- known prompts


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (Answer(problem="HTTP 500: out of range"), "no answer: HTTP 500: out of range"),
        (Answer(output_tokens=4), "no answer"),
        (answer(1, 2, 3), "3 tokens where 4 were asked for"),
        (answer(1, 2, 3, 4, 5), "5 tokens where 4 were asked for"),
        (answer(1, 2, 3, 4, nats=math.nan), "a log-probability of nan at token 0"),
        (answer(1, 2, 3, 4, nats=-9999.0), "a log-probability of -9999 at token 0"),
        (answer(1, 2, 3, 4, nats=0.5), "a log-probability of 0.5 at token 0"),
    ],
)
def test_malformed_answers_are_wrong_whatever_was_asked(wrong: Answer, why: str) -> None:
    assert malformed(wrong, tokens=4, exact=True).startswith(why)
    with pytest.raises(WrongOutputError, match=why):
        check_known([answer(1, 2, 3, 4), wrong], None, SPEC, exact=True)


def test_an_engine_that_may_stop_early_may_answer_less() -> None:
    assert not malformed(answer(1, 2, 3), tokens=4, exact=False)
    assert not malformed(text_only("some text"), tokens=4, exact=True)


def test_without_a_reference_only_one_token_for_everything_is_wrong() -> None:
    one, other = answer(7, 7, 7, 7), answer(1, 2, 3, 4)
    assert "2 known prompts answered; there is no reference" in check_known(
        [one, other], None, SPEC, exact=True
    )
    check_known([one, answer(8, 8, 8, 8)], None, SPEC, exact=True)
    with pytest.raises(
        WrongOutputError, match="every known prompt is answered by one token alone: '7 7 7 7'"
    ):
        check_known([one, one], None, SPEC, exact=True)


FOUR = tuple(answer(n, n + 1, n + 2, n + 3) for n in (10, 20, 30, 40))
OTHER = answer(90, 91, 92, 93)


@pytest.mark.parametrize(("wrong", "passes"), [(0, True), (1, True), (2, False), (4, False)])
def test_known_prompts_are_held_against_the_references(wrong: int, passes: bool) -> None:
    answers = (*(OTHER for _ in range(wrong)), *FOUR[wrong:])
    if passes:
        said = check_known(answers, reference(FOUR), SPEC, exact=True)
        assert said == f"{4 - wrong} of 4 known prompts as by trial 3, within 0.5 nats"
        return
    with pytest.raises(
        WrongOutputError, match=f"{wrong} of 4 .* trial 3.*'90 91 92 93' where that says '10 11"
    ):
        check_known(answers, reference(FOUR), SPEC, exact=True)


def test_one_token_repeated_is_wrong_where_the_reference_says_more() -> None:
    undecided = tuple(replace(a, steps=(step(a.steps[0].token, -0.7, (7, -0.7)), *a.steps[1:])) for a in FOUR)
    stuck = (answer(7, 7, 7, 7),) * 4
    with pytest.raises(WrongOutputError, match="4 of 4"):
        check_known(stuck, reference(undecided), SPEC, exact=True)
    check_known(stuck, reference(stuck), SPEC, exact=True)


def test_known_prompts_without_log_probabilities_are_compared_by_text_and_it_is_said() -> None:
    expected = tuple(text_only(f"the answer to {n} is long enough") for n in range(4))
    why = "the endpoint tells no log-probabilities"
    said = check_known(expected, reference(expected), SPEC, exact=True)
    assert said.startswith("100% of the text")
    assert why in said
    with pytest.raises(WrongOutputError, match=why):
        check_known([text_only("!!!!!!!!")] * 4, reference(expected), SPEC, exact=True)


def test_text_of_a_reference_that_never_says_the_same_twice_proves_nothing() -> None:
    expected = tuple(text_only(f"{n} and so on") for n in range(4))
    restless = reference(expected, Reading(Setting.TOGETHER, Measure.TEXT, 0.6))
    assert "0% of the text" in check_known([text_only("!!!!")] * 4, restless, SPEC, exact=True)


# --- the gate


def interview(*alone: Answer, nats: float = -0.1) -> Interview:
    scored = tuple(
        replace(each, text="", steps=tuple(step(s.token, nats, (0, -3.0)) for s in each.steps))
        for each in alone
    )
    return Interview(alone=alone, together=alone, scored_alone=scored, scored_together=scored, long=alone[:1])


def judged(other: Interview, *own: Reading, spec: QualitySpec = SPEC) -> QualityVerdict:
    against = replace(reference(FOUR, *own), answers=interview(*FOUR))
    return judge(readings(against.answers, other, spec), against, FP8, number=5, spec=spec)


def test_the_reference_against_itself_passes() -> None:
    verdict = judged(interview(*FOUR))
    assert verdict.state is QualityState.PASSED
    assert {f.setting for f in verdict.figures} == set(Setting) - {Setting.TASKS}
    assert all(f.value == pytest.approx(0, abs=1e-9) for f in verdict.figures)
    assert (verdict.judged_in, verdict.reference) == (5, 3)


def test_what_is_too_far_from_another_engines_reference_is_not_judged() -> None:
    """Thresholds are those of one engine against itself: within them any may pass, beyond them none fails."""
    elsewhere = replace(FP8, build="sglang 1")
    against = replace(reference(FOUR), answers=interview(*FOUR))
    for nats, state in ((-0.12, QualityState.PASSED), (-0.3, QualityState.NOT_JUDGED)):
        found = readings(against.answers, interview(*FOUR, nats=nats), SPEC)
        verdict = judge(found, against, elsewhere, number=5, spec=SPEC)
        assert verdict.state is state
        assert ("held against vllm 1, whose kernels are others" in verdict.reasons) is (nats == -0.3)
    assert BF16.is_like(replace(BF16, build="sglang 1"))
    assert not BF16.is_like(elsewhere)


def test_a_precision_that_changes_nothing_is_told() -> None:
    (said,) = judged(interview(*FOUR)).reasons
    assert said == "no log-probability differs from the reference's: this precision changed nothing"
    assert judged(interview(*FOUR, nats=-0.11)).reasons == ()


def test_tokens_that_the_endpoint_scores_are_judged_where_greedy_answers_agree() -> None:
    verdict = judged(interview(*FOUR, nats=-0.3))
    assert verdict.state is QualityState.FAILED
    assert verdict.reasons[0].startswith("mean log-probability difference alone: 0.2 nats, at most 0.05")
    passed = {f.measure for f in verdict.figures if f.passed}
    assert Measure.DIFFERING in passed
    assert Measure.MEAN not in passed


def test_without_scored_tokens_those_that_both_wrote_are_judged() -> None:
    told = tuple(answer(n, n + 1, n + 2, n + 3, nats=-0.4) for n in (10, 20, 30, 40))
    verdict = judged(Interview(alone=told, together=told))
    assert verdict.state is QualityState.FAILED
    assert verdict.figures[1].value == pytest.approx(0.3)


def test_answers_of_another_model_fail_on_every_side() -> None:
    others = (OTHER,) * 4
    failed = {(f.setting, f.measure) for f in judged(interview(*others)).figures if not f.passed}
    assert (Setting.ALONE, Measure.DIFFERING) in failed
    assert (Setting.TOGETHER, Measure.DIFFERING) in failed
    assert (Setting.LONG, Measure.HIGH) in failed


@given(st.floats(0, 0.3), st.floats(0, 0.9), st.floats(1, 10))
def test_a_figure_may_be_its_floor_or_a_multiple_of_the_references_own(
    own: float, value: float, multiple: float
) -> None:
    spec = QualitySpec(multiple=multiple, tolerance=0.05)
    self_difference = Reading(Setting.ALONE, Measure.MEAN, own)
    found = Reading(Setting.ALONE, Measure.MEAN, value)
    verdict = judge((found,), reference((), self_difference), FP8, number=5, spec=spec)
    threshold = max(0.05, multiple * own)
    if threshold >= 1:
        assert verdict.state is QualityState.NOT_JUDGED
        assert "the reference differs from itself" in verdict.reasons[0]
    else:
        assert (verdict.state is QualityState.PASSED) == (value <= threshold)


def test_what_the_reference_answered_and_another_does_not_is_not_judged() -> None:
    own = Reading(Setting.LONG, Measure.HIGH, 0.0)
    verdict = judged(replace(interview(*FOUR), long=(Answer(problem="HTTP 400: too long"),)), own)
    assert verdict.state is QualityState.NOT_JUDGED
    assert verdict.reasons[0] == "nothing that it answered can be compared: long context"


def test_text_alone_is_judged_and_it_is_said() -> None:
    same = tuple(replace(a, steps=()) for a in FOUR)
    verdict = judged(Interview(alone=same, together=same))
    assert verdict.state is QualityState.PASSED
    assert verdict.reasons == ("compared by text alone: the endpoint tells no log-probabilities",)
    other = (text_only("something else"),) * 4
    assert judged(Interview(alone=other, together=same)).state is QualityState.FAILED


def solved(score: float, error: float = 0.01, *, higher_is_better: bool = True) -> TaskScore:
    return TaskScore(task="sums", metric="m", score=score, error=error, higher_is_better=higher_is_better)


def judged_by_tasks(ours: Sequence[TaskScore], theirs: Sequence[TaskScore]) -> QualityVerdict:
    spec = QualitySpec.model_validate({"tasks": {"names": ["sums"], "loss": 0.02}})
    against = replace(reference(FOUR), answers=replace(interview(*FOUR), tasks=tuple(ours)))
    found = readings(against.answers, interview(*FOUR), spec)
    return judge(found, against, FP8, number=5, spec=spec, tasks=theirs)


def test_a_metric_of_which_less_is_better_is_lost_by_more() -> None:
    ours, worse = (solved(value, 0.001, higher_is_better=False) for value in (1.0, 1.1))
    assert judged_by_tasks([ours], [worse]).state is QualityState.FAILED
    assert judged_by_tasks([worse], [ours]).state is QualityState.PASSED


def test_tasks_that_only_the_reference_solved_leave_it_open() -> None:
    verdict = judged_by_tasks([solved(0.8)], [])
    assert verdict.state is QualityState.NOT_JUDGED
    assert "nothing that it answered can be compared: tasks" in verdict.reasons


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 0.1))
def test_a_loss_fails_only_beyond_what_luck_explains(ours: float, theirs: float, error: float) -> None:
    verdict = judged_by_tasks([solved(ours, error)], [solved(theirs, error)])
    allowed = max(0.02, 1.645 * math.sqrt(2) * error)
    assert (verdict.state is QualityState.FAILED) == (ours - theirs > allowed and allowed < 0.2)


# --- precisions and what may be recommended


@pytest.mark.parametrize(
    ("words", "same"),
    [
        ({"max_num_seqs": 4, "tensor_parallel": 2, "speculation": "ngram"}, True),
        ({"quantization": "none", "kv_cache_dtype": "auto", "dtype": "auto"}, True),
        ({"kv_cache_dtype": "fp8"}, False),
        ({"quantization": "int8"}, False),
        ({"dtype": "float16"}, False),
        ({"profile": "throughput-fp8"}, False),
        ({"extra_args": ["--some-approximation"]}, False),
    ],
)
def test_precision_is_of_the_words_that_decide_how_exactly_a_model_is_computed(
    words: dict[str, object], same: bool
) -> None:
    config = EngineConfig.model_validate({"engine": "vllm", **words})
    assert (Precision.of("m", config, "vllm 1") == BF16) == same
    assert BF16.is_of("m", config) == same


def test_precision_is_of_one_checkpoint_and_one_build() -> None:
    config = EngineConfig(engine="vllm")
    assert Precision.of("m-quantised", config, "vllm 1") != BF16
    assert Precision.of("m", config, "vllm 2") != BF16
    assert not BF16.is_of("m", EngineConfig(engine="sglang"))


@pytest.mark.parametrize("gate", ["required", "report", "off"])
@pytest.mark.parametrize("precision", [BF16, FP8])
@pytest.mark.parametrize("state", list(QualityState))
def test_what_may_be_recommended(gate: str, precision: Precision, state: QualityState) -> None:
    spec = QualitySpec.model_validate({"gate": gate})
    verdict = QualityVerdict(state=state, precision=precision, judged_in=5, reasons=("so it is",))
    why = objection(verdict, BF16, spec)
    barred = state is QualityState.FAILED or (state is QualityState.NOT_JUDGED and precision == FP8)
    assert bool(why) == (barred and gate == "required")
    assert "so it is" in why or not why
