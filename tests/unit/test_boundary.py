"""The load-boundary decision, driven in a loop over analytic engines whose capacity is known."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_measurements import measurement, request

from autotune.domain.judging.scoring import score_curve, score_level
from autotune.domain.judging.sla import Bounds, JointSla, PercentileSla, Sla
from autotune.domain.load.level import Level
from autotune.domain.measuring.measurement import LoadCurve, Measurement
from autotune.domain.measuring.power import Window
from autotune.domain.search.boundary import (
    NO_FOREKNOWLEDGE,
    BoundarySettings,
    Foreknowledge,
    Length,
    Step,
    Stop,
    next_level,
)
from autotune.domain.search.capacity import Expectation, believed_capacity
from autotune.domain.search.expectation import UNTRIED

SETTINGS = BoundarySettings()
SLA = JointSla(name="chat", slos=Bounds(ttft="500ms"))
REQUESTS = 300

Engine = Callable[[float, np.ndarray], np.ndarray]
"""TTFT of each request at an offered rate, given the times they are due."""


def sharp(capacity_rps: float) -> Engine:
    """Keeps every SLA up to its capacity, and none above."""
    return lambda rate_rps, due_s: np.full(len(due_s), 0.1 if rate_rps <= capacity_rps else 3.0)


def single_server(served_rps: float) -> Engine:
    """M/M/1 in its stationary state: TTFT is exponential at served - offered; beyond that the queue grows."""
    rng = np.random.default_rng(0)

    def ttft_s(rate_rps: float, due_s: np.ndarray) -> np.ndarray:
        if rate_rps >= served_rps:
            return 1 / served_rps + due_s * (rate_rps / served_rps - 1)
        return rng.exponential(1 / (served_rps - rate_rps), len(due_s))

    return ttft_s


def measure(
    engine: Engine, level: Level, saturated_rps: float, rng: np.random.Generator | None = None
) -> Measurement:
    """Requests at even distances, or with ``rng`` as Poisson draws them."""
    rate_rps = level.rate_rps or saturated_rps
    window = Window(0.0, REQUESTS / rate_rps)
    due_s = np.arange(REQUESTS) / rate_rps
    if rng is not None and level.rate_rps is not None:
        due_s = np.sort(rng.uniform(0.0, window.end_s, rng.poisson(REQUESTS)))
    ttft_s = np.zeros(len(due_s)) if level.rate_rps is None else engine(rate_rps, due_s)
    records = [
        request(float(due), ttft_s=float(ttft), tpot_s=1e-6) for due, ttft in zip(due_s, ttft_s, strict=True)
    ]
    return measurement(records, level=level, window=window)


def explore(
    engine: Engine,
    *,
    saturated_rps: float = 10.0,
    slas: Sequence[Sla] = (SLA,),
    known: Foreknowledge = NO_FOREKNOWLEDGE,
) -> tuple[LoadCurve, Stop]:
    """Measure level after level until the decision is to stop."""
    curve: LoadCurve = ()
    while isinstance(step := next_level(curve, slas, "w", SETTINGS, known), Step):
        curve += (measure(engine, step.level, saturated_rps),)
        assert len(rates(curve)) <= SETTINGS.most_levels
    return curve, step


def rates(curve: LoadCurve) -> list[float]:
    return [m.level.rate_rps for m in curve if m.level.rate_rps is not None]


def test_the_first_level_is_closed_and_the_second_just_below_what_it_showed() -> None:
    curve, _ = explore(sharp(5.0))
    assert curve[0].level.concurrency == SETTINGS.saturating_concurrency
    assert 7.0 < rates(curve)[0] < 9.0


def bracket_ratio(curve: LoadCurve, capacity_rps: float) -> float:
    """Lowest rate that failed, over the capacity that was found below it."""
    found_rps = score_curve(curve, SLA, "w").capacity_rps
    assert found_rps is not None
    assert found_rps <= capacity_rps
    return min(rate for rate in rates(curve) if rate > capacity_rps) / found_rps


@settings(deadline=None, max_examples=5)
@given(st.floats(2.4, 11.0))
def test_capacity_is_bracketed_within_tolerance_and_its_operating_point_measured(capacity_rps: float) -> None:
    curve, _ = explore(sharp(capacity_rps))
    assert bracket_ratio(curve, capacity_rps) <= 1 + SETTINGS.tolerance
    score = score_curve(curve, SLA, "w")
    assert score.operating is not None
    assert score.operating.rate_rps == pytest.approx(SETTINGS.headroom * (score.capacity_rps or 0), rel=0.021)


@settings(deadline=None, max_examples=5)
@given(st.floats(0.6, 2.4))
def test_a_capacity_far_below_saturation_costs_resolution(capacity_rps: float) -> None:
    """Halving down to it takes levels that bisecting then lacks; its operating point is measured even so."""
    curve, _ = explore(sharp(capacity_rps))
    assert bracket_ratio(curve, capacity_rps) <= 1.42
    assert score_curve(curve, SLA, "w").operating is not None


@pytest.mark.parametrize("scale", [0.1, 4.0])
def test_the_decision_does_not_depend_on_how_fast_the_engine_is(scale: float) -> None:
    curve, _ = explore(sharp(4.0 * scale), saturated_rps=10.0 * scale)
    score = score_curve(curve, SLA, "w")
    assert score.capacity_rps is not None
    assert 4.0 / 1.15 <= score.capacity_rps / scale <= 4.0


def test_the_capacity_of_a_queue_is_found_from_below() -> None:
    """95 % within 0.5 s where exp(-(20 - rate) / 2) = 0.05: at 14 req/s."""
    curve, _ = explore(single_server(20.0), saturated_rps=20.0)
    capacity_rps = score_curve(curve, SLA, "w").capacity_rps
    assert capacity_rps is not None
    assert 0.8 * 14.0 <= capacity_rps <= 14.0 * 1.02


def test_an_sla_that_is_never_met_ends_early_with_nothing() -> None:
    curve, stop = explore(sharp(0.0))
    assert len(curve) <= SETTINGS.most_levels
    assert rates(curve) == sorted(rates(curve), reverse=True)
    assert score_curve(curve, SLA, "w").capacity_rps is None
    assert stop.reason


def test_an_sla_that_is_always_met_ends_above_saturation() -> None:
    curve, _ = explore(sharp(1e9))
    score = score_curve(curve, SLA, "w")
    assert score.capacity_rps == max(rates(curve))
    assert score.capacity_rps > 10.0
    assert score.operating is not None


def test_an_engine_that_is_bad_in_the_middle_still_ends_and_claims_only_what_it_kept() -> None:
    def engine(rate_rps: float, due_s: np.ndarray) -> np.ndarray:
        bad = rate_rps > 8 or 4 < rate_rps < 6
        return np.full(len(due_s), 3.0 if bad else 0.1)

    curve, _ = explore(engine)
    score = score_curve(curve, SLA, "w")
    assert score.capacity_rps in rates(curve)
    assert score.operating is not None
    assert score.operating.attainment == 1.0


def test_nothing_finished_in_closed_loop_stops_at_once() -> None:
    closed = measurement([], level=Level("w", concurrency=64), window=Window(0.0, 10.0))
    assert isinstance(next_level((closed,), (SLA,), "w", SETTINGS), Stop)


def test_what_is_expected_is_measured_first_and_no_closed_loop() -> None:
    known = Foreknowledge(expected={"chat": Expectation(rps=5.0, spread=0.2)})
    curve, _ = explore(sharp(5.2), known=known)
    assert curve[0].level.concurrency is None
    assert rates(curve)[0] == pytest.approx(5.0, rel=0.1)
    assert len(curve) < len(explore(sharp(5.2))[0])


@settings(deadline=None, max_examples=5)
@given(st.floats(2.0, 12.0), st.sampled_from([1 / 4, 1 / 2, 2.0, 4.0]))
def test_a_wrong_expectation_costs_levels_and_no_capacity(capacity_rps: float, off: float) -> None:
    known = Foreknowledge(expected={"chat": Expectation(rps=off * capacity_rps, spread=0.3)})
    curve, _ = explore(sharp(capacity_rps), known=known)
    score = score_curve(curve, SLA, "w")
    assert score.capacity_rps is not None
    assert 0.75 * capacity_rps <= score.capacity_rps <= capacity_rps


@pytest.mark.parametrize("off", [1e-3, 1e4])
def test_a_prior_that_no_launch_has_tried_never_floods_the_engine(off: float) -> None:
    known = Foreknowledge(expected={"chat": Expectation(rps=off * 5.0, spread=UNTRIED)})
    curve, _ = explore(sharp(5.0), known=known)
    assert curve[0].level.concurrency == SETTINGS.saturating_concurrency
    assert max(rates(curve)) <= 1.5 * 10.0
    capacity_rps = score_curve(curve, SLA, "w").capacity_rps
    assert capacity_rps is not None
    assert 3.75 <= capacity_rps <= 5.0


def test_the_answer_is_checked_on_either_side() -> None:
    for capacity_rps in (2.5, 5.0, 9.0):
        curve, _ = explore(sharp(capacity_rps))
        found_rps = score_curve(curve, SLA, "w").capacity_rps
        assert found_rps is not None
        assert any(found_rps < rate < 1.5 * found_rps for rate in rates(curve))
        assert any(0.7 * found_rps < rate < found_rps for rate in rates(curve))


def test_a_launch_that_can_beat_no_incumbent_is_cut_short() -> None:
    """Beyond 10 req/s of 5 tokens a queue grows: no load gives more than 50 tok/s."""
    slas = (SLA, JointSla(name="lax", slos=Bounds(ttft="2s")))
    expected = {sla.name: Expectation(rps=14.0, spread=0.2) for sla in slas}

    def stopped_by(**incumbents: float) -> tuple[int, Stop]:
        known = Foreknowledge(expected=expected, incumbents=incumbents)
        curve, stop = explore(single_server(10.0), slas=slas, known=known)
        return len(curve), stop

    # 100 W: 0.5 tokens per joule and a little, for the interval's upper end.
    why = "at no load can it beat an incumbent: at most 0.5044"
    assert stopped_by(chat=0.7, lax=0.7) == (1, Stop(why, lost=True))
    for incumbents in ({"chat": 0.7}, {"chat": 0.7, "lax": 0.3}, {}):
        levels, stop = stopped_by(**incumbents)
        assert levels > 1
        assert not stop.lost


def test_levels_are_brief_but_those_that_count() -> None:
    """A level that shows neither is measured again for longer where it may become the answer."""
    curve: LoadCurve = ()
    lengths: list[Length] = []
    engine = single_server(20.0)
    while isinstance(step := next_level(curve, (SLA,), "w", SETTINGS), Step):
        curve += (measure(engine, step.level, 20.0),)
        lengths.append(step.length)
    assert lengths[0] is Length.BRIEF
    assert Length.BRIEF in lengths[1:]
    assert Length.SHORT in lengths


def test_belief_sharpens_with_every_level_and_goes_with_the_least_of_several_goals() -> None:
    expected = Expectation(rps=10.0, spread=0.5)
    engine = single_server(20.0)
    levels = [measure(engine, Level("w", rate_rps=rate), 20.0) for rate in (10.0, 16.0, 13.0)]
    widths = []
    for count in range(4):
        belief = believed_capacity(levels[:count], SLA, expected)
        widths.append(belief.quantile(0.9) / belief.quantile(0.1))
    assert widths == sorted(widths, reverse=True)
    assert believed_capacity(levels, SLA, expected).quantile(0.5) == pytest.approx(14.0, rel=0.1)
    both = PercentileSla.model_validate(
        {"name": "both", "contract": "percentile", "slos": {"ttft": {"p95": "500ms", "p50": "500ms"}}}
    )
    assert believed_capacity(levels, both, expected).quantile(0.5) == pytest.approx(14.0, rel=0.12)


def test_no_level_is_measured_twice() -> None:
    for capacity_rps in np.linspace(0.6, 12.0, 5):
        measured = sorted(rates(explore(sharp(float(capacity_rps)))[0]))
        assert all(b / a > 1.01 for a, b in itertools.pairwise(measured))


def test_several_slas_share_the_levels_of_one_curve() -> None:
    """A strict and a lax SLA on one engine: each operating point is a level measured."""
    slas = (SLA, JointSla(name="lax", slos=Bounds(ttft="2s")))
    curve, _ = explore(single_server(20.0), saturated_rps=20.0, slas=slas)
    strict, lax = (score_curve(curve, sla, "w") for sla in slas)
    assert strict.capacity_rps is not None
    assert lax.capacity_rps is not None
    assert strict.capacity_rps < lax.capacity_rps
    for score in (strict, lax):
        assert score.operating is not None
        assert score.operating.rate_rps == pytest.approx(0.8 * (score.capacity_rps or 0), rel=0.021)


def test_the_closed_level_is_judged_for_no_sla() -> None:
    curve, _ = explore(sharp(5.0))
    assert score_level(curve[0], SLA).attainment == 1.0
    assert score_curve(curve[:1], SLA, "w").capacity_rps is None


def slots(count: int, service_s: float, rng: np.random.Generator) -> Engine:
    """A queue before slots, in the order of coming: Erlang's, whose knee is sharp."""

    def ttft_s(_: float, due_s: np.ndarray) -> np.ndarray:
        free_s, waits = [0.0] * count, []
        for due, takes in zip(due_s, rng.exponential(service_s, len(due_s)), strict=True):
            start = max(heapq.heappop(free_s), due)
            heapq.heappush(free_s, start + takes)
            waits.append(start - due + 0.01)
        return np.array(waits)

    return ttft_s


def test_capacity_of_a_noisy_queue_is_found_with_fewer_levels_where_it_is_expected() -> None:
    """M/M/4 of 20 req/s: 95 % wait for no more than 0.49 s at 15.2 req/s (Erlang C)."""
    found: dict[bool, list[float]] = {False: [], True: []}
    levels: dict[bool, list[int]] = {False: [], True: []}
    for seed, expected in itertools.product(range(4), (False, True)):
        rng = np.random.default_rng(seed)
        engine, curve = slots(4, 0.2, rng), ()
        known = Foreknowledge(expected={"chat": Expectation(rps=14.0, spread=0.3)} if expected else {})
        while isinstance(step := next_level(curve, (SLA,), "w", SETTINGS, known), Step):
            curve = (*curve, measure(engine, step.level, 20.0, rng))
        found[expected].append((score_curve(curve, SLA, "w").capacity_rps or 0.0) / 15.2)
        levels[expected].append(len(curve))
    for ratios in found.values():
        assert 0.75 <= np.median(ratios) <= 1.1
    assert np.mean(levels[True]) < np.mean(levels[False])
