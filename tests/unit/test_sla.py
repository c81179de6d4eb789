"""SLAs: what they promise, in which words, and which requests keep them."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError
from synthetic_measurements import request

from autotune.domain.judging.sla import Metric, Sla, good_requests, keeping_requests
from autotune.domain.measuring.measurement import RequestTable

SLA: TypeAdapter[Sla] = TypeAdapter(Sla)


def sla(slos: object, **words: object) -> Sla:
    return SLA.validate_python({"name": "promise", "slos": slos, **words})


def percentile(slos: object) -> Sla:
    return sla(slos, contract="percentile")


FAST = request(0.0, ttft_s=0.1, tokens=5, tpot_s=0.01)
LATE = request(0.0, ttft_s=0.5, tokens=5, tpot_s=0.01)
SLOW = request(0.0, ttft_s=0.1, tokens=5, tpot_s=0.1)
FAILED = request(0.0, error="HTTP 503")
ONE_CHUNK = request(0.0, ttft_s=0.1, tokens=1)
TABLE = RequestTable.of([FAST, LATE, SLOW, FAILED, ONE_CHUNK])


@pytest.mark.parametrize(
    ("slos", "good"),
    [
        ({"ttft": "200ms"}, [True, False, True, False, True]),
        ({"tpot": "20ms"}, [True, True, False, False, True]),
        ({"ttft": "200ms", "tpot": "20ms"}, [True, False, False, False, True]),
        ({"e2e": "300ms"}, [True, False, False, False, True]),
        ({"stall": "50ms"}, [True, True, False, False, True]),
        ({"interactivity": 50}, [True, True, False, False, True]),
        ({"interactivity": 5}, [True, True, True, False, True]),
    ],
)
def test_a_good_request_keeps_every_bound(slos: dict[str, object], good: list[bool]) -> None:
    assert good_requests(TABLE, sla(slos)).tolist() == good


def test_in_a_percentile_contract_a_good_request_keeps_each_percentiles_bound() -> None:
    promise = percentile({"ttft": {"p50": "200ms"}, "tpot": {"p99": "20ms"}})
    assert good_requests(TABLE, promise).tolist() == [True, False, False, False, True]


def test_a_bound_is_kept_by_what_is_equal_to_it() -> None:
    table = RequestTable.of([request(0.0, ttft_s=0.25)])
    assert good_requests(table, sla({"ttft": "250ms"})).all()


def test_a_token_rate_that_does_not_exist_breaks_no_bound() -> None:
    table = RequestTable.of([ONE_CHUNK])
    assert np.isnan(Metric.TPOT.of(table)).all()
    assert np.isnan(Metric.INTERACTIVITY.of(table)).all()
    for metric in (Metric.TPOT, Metric.INTERACTIVITY):
        assert metric.within(metric.of(table), 1e-3).all()


def test_a_first_token_that_never_came_breaks_its_bound() -> None:
    nan = np.array([np.nan])
    for metric in (Metric.TTFT, Metric.E2E, Metric.STALL):
        assert not metric.within(nan, 1e9).any()


def test_interactivity_is_tokens_per_second_of_one_user() -> None:
    assert Metric.INTERACTIVITY.of(RequestTable.of([SLOW])) == pytest.approx([10.0])


def test_a_joint_sla_has_one_goal_for_all_its_bounds() -> None:
    promise = sla({"ttft": "200ms", "tpot": "20ms"}, attainment=0.9)
    assert promise.goals() == ((((Metric.TTFT, 0.2), (Metric.TPOT, 0.02)), 0.9),)


def test_a_percentile_sla_has_a_goal_for_each_percentile() -> None:
    promise = percentile({"ttft": {"p95": "2s", "p999": "5s"}, "interactivity": {"p90": 20}})
    assert promise.goals() == (
        (((Metric.TTFT, 2.0),), 0.95),
        (((Metric.TTFT, 5.0),), 0.999),
        (((Metric.INTERACTIVITY, 20.0),), 0.9),
    )


def test_requests_of_a_percentile_are_counted_by_themselves() -> None:
    promise = percentile({"ttft": {"p50": "200ms"}, "tpot": {"p50": "20ms"}})
    kept = [keeping_requests(TABLE, bounds).tolist() for bounds, _ in promise.goals()]
    assert kept == [[True, False, True, False, True], [True, True, False, False, True]]


@pytest.mark.parametrize(
    ("promise", "text"),
    [
        (sla({"ttft": "300ms", "tpot": "25ms"}), "95% of requests: ttft<=300ms tpot<=25ms"),
        (sla({"e2e": "90s"}, attainment=0.999), "99.9% of requests: e2e<=1m30s"),
        (sla({"interactivity": 40}), "95% of requests: interactivity>=40tok/s/user"),
        (percentile({"ttft": {"p95": "2s"}, "tpot": {"p999": "50ms"}}), "p95 ttft<=2s, p99.9 tpot<=50ms"),
    ],
)
def test_a_promise_in_one_line(promise: Sla, text: str) -> None:
    assert promise.describe() == text


def test_the_contract_is_joint_unless_it_is_named() -> None:
    assert sla({"ttft": "1s"}).contract == "joint"


@pytest.mark.parametrize(
    ("text", "share"),
    [("p50", 0.5), ("p05", 0.05), ("p95", 0.95), ("p99", 0.99), ("p999", 0.999), ("p975", 0.975)],
)
def test_percentiles_are_read_and_written(text: str, share: float) -> None:
    promise = percentile({"ttft": {text: "1s"}})
    ((_, read),) = promise.goals()
    assert read == share
    assert promise.model_dump(mode="json")["slos"]["ttft"] == {text: "1s"}


@pytest.mark.parametrize("text", ["p5", "p100", "p00", "p500", "95", "p", "p9.5", "P95", 95, 0.95])
def test_what_is_no_percentile_is_refused(text: object) -> None:
    with pytest.raises(ValidationError, match="is no percentile; write p50, p90, p95, p99 or p999"):
        percentile({"ttft": {text: "1s"}})


@pytest.mark.parametrize("slos", [{}, {"ttft": None}])
def test_a_promise_of_nothing_is_refused(slos: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="at least one SLO"):
        sla(slos)


@pytest.mark.parametrize("slos", [{}, {"ttft": {}}])
def test_percentiles_of_nothing_are_refused(slos: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="at least one SLO"):
        percentile(slos)


@pytest.mark.parametrize("wrong", [{"attainment": 1.0}, {"attainment": 0}, {"slos": {"ttft": "0s"}}])
def test_shares_and_bounds_that_nothing_can_keep_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SLA.validate_python({"name": "promise", "slos": {"ttft": "1s"}, **wrong})
