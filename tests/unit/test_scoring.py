"""Scores of levels and curves: what counts as good, in which window, and where the operating point is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_measurements import measurement, request, steady_power

from autotune.domain.judging.scoring import (
    HEADROOM,
    SAME_RATE,
    VERDICTS_KEPT,
    SlaVerdict,
    holding,
    score_at,
    score_curve,
    score_level,
    verdict_of,
    worth_of,
)
from autotune.domain.judging.sla import Bounds, JointSla, PercentileBounds, PercentileSla, good_requests
from autotune.domain.load.level import Level
from autotune.domain.measuring.digest import digest
from autotune.domain.measuring.measurement import Measurement, RequestRecord
from autotune.domain.measuring.power import EnergyVerdict, PowerBasis, Window
from autotune.domain.measuring.stats import BLOCKS

WINDOW = Window(0.0, 100.0)
SLA = JointSla(name="chat", attainment=0.9, slos=Bounds(ttft="500ms"))


def level(
    rate_rps: float, *, slow: int = 0, failed: int = 0, workload: str = "w", watts: float = 100.0
) -> Measurement:
    """Requests evenly spaced, five tokens each; the slow and the failed ones evenly among them."""
    count = round(rate_rps * WINDOW.length_s)
    bad = [round(i * count / (slow + failed)) for i in range(slow + failed)]
    records = [
        request(
            i / rate_rps,
            ttft_s=2.0 if i in bad[failed:] else 0.1,
            error="HTTP 503" if i in bad[:failed] else "",
        )
        for i in range(count)
    ]
    power = steady_power(WINDOW, watts=watts)
    return measurement(records, level=Level(workload, rate_rps=rate_rps), window=WINDOW, power=power)


def test_goodput_and_joules_are_of_the_same_window() -> None:
    score = score_level(level(2.0), SLA)
    assert score.goodput_tok_per_s == pytest.approx(10.0, rel=0.01)
    assert score.mean_power_w == pytest.approx(100.0)
    assert score.tokens_per_joule == pytest.approx(0.1, rel=0.01)
    assert score.objective == score.tokens_per_joule
    assert score.tok_per_s_per_mw == pytest.approx(1e5, rel=0.01)
    assert score.verdict is SlaVerdict.MET
    assert score.requests == 200


def test_tokens_of_requests_that_were_not_good_are_no_goodput() -> None:
    score = score_level(level(2.0, slow=5, failed=5), SLA)
    assert score.attainment == pytest.approx(190 / 200)
    assert score.goodput_tok_per_s == pytest.approx(190 * 5 / 100.0, rel=0.01)
    assert score.throughput_tok_per_s == pytest.approx(195 * 5 / 100.0, rel=0.01)
    assert score.attainment_interval.low < 0.95 < score.attainment_interval.high


@pytest.mark.parametrize(
    ("slow", "verdict"),
    [(0, SlaVerdict.MET), (5, SlaVerdict.MET), (19, SlaVerdict.NOT_SHOWN), (21, SlaVerdict.MISSED)],
)
def test_met_needs_the_lower_bound_and_missed_the_estimate(slow: int, verdict: SlaVerdict) -> None:
    assert score_level(level(2.0, slow=slow), SLA).verdict is verdict


def test_too_few_requests_show_nothing_however_good() -> None:
    score = score_level(level(0.2), SLA)
    assert (score.verdict, score.too_few) == (SlaVerdict.NOT_SHOWN, True)
    assert score.may_hold


def test_a_level_without_requests_shows_nothing() -> None:
    empty = measurement([], level=Level("w", rate_rps=0.01), window=WINDOW)
    assert score_level(empty, SLA).verdict is SlaVerdict.NOT_SHOWN


def test_an_oversaturated_level_missed_even_while_requests_are_still_good() -> None:
    """With a bound of ten minutes every request so far is good, but the queue has no end."""
    records = [request(i / 4, ttft_s=0.3 * i / 4) for i in range(400)]
    score = score_level(
        measurement(records, level=Level("w", rate_rps=4.0), window=WINDOW),
        JointSla(name="patient", slos=Bounds(ttft="10m")),
    )
    assert (score.attainment, score.oversaturated, score.verdict) == (1.0, True, SlaVerdict.MISSED)


def test_each_percentile_is_judged_by_itself() -> None:
    measured = level(2.0, slow=5)

    def verdict(**ttft: str) -> SlaVerdict:
        bounds = PercentileBounds.model_validate({"ttft": ttft})
        return score_level(measured, PercentileSla(name="p", contract="percentile", slos=bounds)).verdict

    assert verdict(p90="500ms") is SlaVerdict.MET
    assert verdict(p99="500ms") is SlaVerdict.MISSED
    assert (
        verdict(p90="500ms", p99="3s") is SlaVerdict.NOT_SHOWN
    )  # 200 requests cannot show a 99th percentile
    assert verdict(p90="500ms", p95="3s") is SlaVerdict.MET


def test_without_a_meter_goodput_ranks() -> None:
    measured = replace(level(2.0), power=steady_power(WINDOW, basis=PowerBasis.ESTIMATED))
    score = score_level(measured, SLA)
    assert score.objective == score.goodput_tok_per_s
    assert score.objective_interval == score.goodput_interval


def test_an_energy_that_is_not_valid_is_no_energy() -> None:
    measured = level(2.0)
    late = steady_power(Window(50.0, 100.0))
    score = score_level(replace(measured, power=late), SLA)
    assert score.energy_verdict is EnergyVerdict.INVALID
    assert score.tokens_per_joule == 0.0


@given(
    st.lists(st.tuples(st.floats(0, 99.9), st.floats(0, 2), st.booleans()), max_size=40), st.floats(0.1, 2)
)
def test_scores_agree_with_a_count_by_hand(drawn: list[tuple[float, float, bool]], bound_s: float) -> None:
    records: Sequence[RequestRecord] = [
        request(due, ttft_s=ttft, error="x" if failed else "") for due, ttft, failed in drawn
    ]
    sla = JointSla(name="a", slos=Bounds.model_validate({"ttft": f"{bound_s:.6f}s"}))
    score = score_level(measurement(records, level=Level("w", rate_rps=1.0), window=WINDOW), sla)
    bound_s = float(f"{bound_s:.6f}")
    good = [r for r in records if not r.error and r.chunk_s[0] - r.due_s <= bound_s]
    tokens = sum(at < WINDOW.end_s for r in good for at in r.chunk_s)
    assert score.attainment == pytest.approx(len(good) / max(len(records), 1))
    assert score.goodput_tok_per_s == pytest.approx(tokens / 100.0)
    assert score.goodput_tok_per_s <= score.throughput_tok_per_s + 1e-9
    assert score.goodput_interval.low <= score.goodput_tok_per_s <= score.goodput_interval.high + 1e-9


def test_capacity_is_the_highest_rate_that_met_and_the_operating_point_a_measured_one_below() -> None:
    curve = (level(2.0), level(8.0), level(10.0), level(12.0, slow=900), level(7.9, watts=50.0))
    score = score_curve(curve, SLA, "w", headroom=0.8)
    assert score.capacity_rps == 10.0
    assert score.operating is not None
    assert score.operating.rate_rps == 8.0
    assert score.objective == score.operating.tokens_per_joule


def test_what_no_level_met_is_worth_nothing() -> None:
    score = score_curve((level(2.0, slow=100), level(1.0, slow=50)), SLA, "w")
    assert (score.capacity_rps, score.operating, score.objective) == (None, None, 0.0)


def test_closed_levels_and_other_workloads_carry_no_capacity() -> None:
    closed = replace(level(9.0), level=Level("w", concurrency=64))
    score = score_curve((closed, level(2.0), level(5.0, workload="other")), SLA, "w")
    assert score.capacity_rps == 2.0


SOME_LEVELS = [level(rate, slow=slow) for rate in (2.0, 4.0, 5.0) for slow in (0, 10, 21, 60)]


@given(
    st.lists(st.sampled_from(SOME_LEVELS), max_size=5, unique_by=lambda m: m.level.rate_rps),
    st.sampled_from((0.5, 0.9, 0.95, 0.99)),
)
def test_a_curve_is_scored_as_each_of_its_levels_is(curve: list[Measurement], attainment: float) -> None:
    sla = SLA.model_copy(update={"attainment": attainment})
    each = [score_level(m, sla) for m in curve]
    capacity = max((s.rate_rps for s in holding(each)), default=None)
    limit = HEADROOM * (capacity or 0.0) * (1 + SAME_RATE)
    held = [s for s in each if s.may_hold and s.rate_rps <= limit]
    whole = score_curve(list(map(digest, curve)), sla, "w")
    assert whole.capacity_rps == capacity
    assert whole.operating == max(held, key=lambda s: s.rate_rps, default=None)
    levels = [digest(m) for m in curve]
    worths = [worth_of(m, good_requests(m, sla)) for m in levels]
    assert worths == [(s.goodput_tok_per_s, s.objective) for s in each]


def test_a_level_that_was_judged_often_is_judged_as_a_fresh_one() -> None:
    measured = level(4.0, slow=40)
    kept = digest(measured)
    for ttft_ms in [*range(50, 2500, 2450 // (3 * VERDICTS_KEPT)), 500, 50]:
        goals = JointSla(
            name="moved", attainment=0.95, slos=Bounds.model_validate({"ttft": f"{ttft_ms}ms"})
        ).goals()
        assert verdict_of(kept, goals) is verdict_of(kept, goals)
        assert verdict_of(kept, goals) is verdict_of(digest(measured), goals)
    assert len(kept.judged) <= VERDICTS_KEPT


def test_a_level_found_over_saturated_later_keeps_no_verdict_of_before() -> None:
    kept = digest(level(4.0))
    assert verdict_of(kept, SLA.goals()) is SlaVerdict.MET
    assert verdict_of(replace(kept, oversaturated=True), SLA.goals()) is SlaVerdict.MISSED


def test_a_level_is_found_by_its_rate() -> None:
    curve = (level(2.0), level(4.0))
    found = score_at(curve, SLA, "w", 4.04)
    assert found is not None
    assert found.rate_rps == 4.0
    assert score_at(curve, SLA, "w", 3.0) is None


def test_percentiles_are_of_requests_due_in_the_window() -> None:
    slow_warmup = [request(-5.0 + i / 10, ttft_s=3.0) for i in range(49)]
    steady = [request(i / 2, ttft_s=0.1) for i in range(200)]
    score = score_level(
        measurement([*slow_warmup, *steady], level=Level("w", rate_rps=2.0), window=WINDOW), SLA
    )
    assert score.ttft_s[99] == pytest.approx(0.1)
    assert score.requests == 200


def test_blocks_of_joules_fit_a_window_on_no_round_number() -> None:
    window = Window(0.123, 17.891)
    records = [request(float(due)) for due in np.arange(0.0, 19.0, 0.05)]
    score = score_level(measurement(records, level=Level("w", rate_rps=20.0), window=window), SLA)
    assert BLOCKS == 20
    assert score.energy_verdict is EnergyVerdict.UNCHECKED
    assert (
        score.tokens_per_joule_interval.low <= score.tokens_per_joule <= score.tokens_per_joule_interval.high
    )
