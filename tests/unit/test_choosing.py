"""What the choice of a launch rests on: likeness, culprits of failures, curves and how far they are off."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.domain.search.choosing import ByCurve, ByObjective, Launch, next_point
from autotune.domain.search.culprits import chances_to_run
from autotune.domain.search.curves import CONCURRENCIES, NOTHING, Curves, Floats, SeenLevels
from autotune.domain.search.likeness import likeness

POINTS = st.dictionaries(
    st.sampled_from("abcd"), st.one_of(st.integers(1, 64), st.booleans(), st.just("default"), st.just("x"))
)


@given(st.lists(POINTS, min_size=1, max_size=6))
def test_likeness_is_a_covariance_of_the_points(points: list[dict[str, Any]]) -> None:
    alike = likeness(points).whole
    assert np.allclose(alike, alike.T)
    assert np.allclose(np.diag(alike), 1)
    assert np.linalg.eigvalsh(alike).min() > -1e-6


def test_near_numbers_are_more_alike_than_far_ones_and_a_default_is_none_of_them() -> None:
    alike = likeness([{"n": 8}, {"n": 16}, {"n": 256}, {"n": "default"}]).whole
    assert alike[0, 1] > alike[0, 2] > 0
    assert 0 < alike[0, 3] < alike[0, 1]


def chances(others: list[Any], ran: list[Any], failed: list[Any]) -> Floats:
    """Of the others, then of those that ran."""
    points = [*others, *ran, *failed]
    places = range(len(others), len(points))
    alike = likeness(points).together
    of_all = chances_to_run(points, places[: len(ran)], places[len(ran) :], alike)
    return of_all[: len(others) + len(ran)]


def test_a_value_that_never_ran_is_blamed_for_what_failed() -> None:
    ran = [{"pp": 1, "tp": 1, "n": 8}, {"pp": 1, "tp": 2, "n": 8}]
    failed = [{"pp": 2, "tp": 2, "n": 8}]
    guilty, innocent, *_ = chances([{"pp": 2, "tp": 1, "n": 8}, {"pp": 1, "tp": 1, "n": 16}], ran, failed)
    assert guilty < 0.3
    assert innocent > 0.7


def test_what_failures_share_is_the_more_suspect() -> None:
    failed = [{"q": "fp8", "n": 4}, {"q": "fp8", "n": 8}]
    by_precision, by_size = chances([{"q": "fp8", "n": 2}, {"q": "none", "n": 4}], [], failed)
    assert by_precision < by_size < 1


def test_a_number_further_out_than_one_that_failed_is_likely_to_fail_too() -> None:
    ran, failed = [{"users": 8}, {"users": 16}], [{"users": 64}]
    beyond, between, inside, *_ = chances([{"users": 128}, {"users": 32}, {"users": 12}], ran, failed)
    assert beyond < 0.3 < between < 0.75 < inside


@given(st.lists(POINTS, max_size=4), st.lists(POINTS, max_size=4), st.lists(POINTS, min_size=1, max_size=4))
def test_chances_are_chances_and_certain_before_any_failure(
    ran: list[Any], failed: list[Any], others: list[Any]
) -> None:
    told = chances(others, ran, failed)
    assert np.all((told >= 0) & (told <= 1))
    assert np.all(chances(others, ran, []) == 1)


def tpot_below(bound_s: float) -> Any:
    return lambda latency: latency[0] - math.log(bound_s)


def curves(*slower: float) -> Curves:
    """Points whose TPOT is so many times 10 ms at one request, and doubles with eight times the requests."""
    at = np.array(CONCURRENCIES)
    tpot = np.array([0.01 * factor * at ** (1 / 3) for factor in slower])
    return Curves(np.log([tpot, at / tpot]))


def levels(of: Curves, index: int, tpot_factor: float, value_factor: float) -> SeenLevels:
    figures = of.figures[:, index, [0, 3, 6]] + np.log([[tpot_factor], [value_factor]])
    return SeenLevels(np.array(CONCURRENCIES)[[0, 3, 6]], figures)


def none(of: Curves) -> Floats:
    return np.zeros((of.figures.shape[1], 2))


def test_a_curve_is_read_off_where_it_meets_the_sla() -> None:
    one = curves(1.0)
    # TPOT is 20 ms at 8 requests: 400 tok/s.
    assert np.exp(one.best_at(tpot_below(0.02), none(one)))[0] == pytest.approx(400)
    moved = np.log([[2.0, 1.0]])
    assert np.exp(one.best_at(tpot_below(0.02), moved))[0] == pytest.approx(100)


def test_misses_have_an_order() -> None:
    both = curves(2.0, 3.0)
    faster, slower = both.best_at(tpot_below(0.01), none(both))
    assert faster > slower


@given(st.floats(0.3, 3), st.floats(0.3, 3))
def test_the_error_of_a_forecast_is_what_its_levels_are_off_by(tpot: float, value: float) -> None:
    one = curves(1.0)
    off = one.error(0, levels(one, 0, tpot, value), tpot_below(0.02))
    assert np.exp(off) == pytest.approx([tpot, value])


def test_a_launch_that_missed_moves_its_neighbours_curves_too() -> None:
    points = [{"tp": 1, "dtype": "a", "n": n} for n in (8, 9)] + [{"tp": 8, "dtype": "b", "n": 8}]
    said = curves(1.0, 1.0, 1.02)
    prior = ByCurve(said, tpot_below(0.02), none(said))
    missed = Launch(index=0, objectives=(0.0,), levels={0: levels(said, 0, 4.0, 0.25)})
    assert next_point(points, [missed], [{"roofline": prior}], among=[1, 2]) == 2


def test_a_launch_of_what_was_foreseen_to_fit_nowhere_teaches_nothing_of_others() -> None:
    said = curves(1.0, 1.0)
    said.figures[:, 0] = NOTHING
    prior = ByCurve(said, tpot_below(0.02), none(said))
    alike = likeness([{"a": 1}, {"a": 2}]).whole
    launch = Launch(index=0, objectives=(5.0,), levels={0: levels(said, 1, 1.0, 1.0)})
    assert np.array_equal(prior.corrected([launch], 0, alike), prior.expected)
    assert prior.expected[0] == -np.inf
    assert next_point([{"a": 1}, {"a": 2}, {"a": 3}], [], [{"p": prior3()}], among=[0, 1, 2]) == 1


def prior3() -> ByCurve:
    """Of three points the first serves nothing, and the last is unknown."""
    said = curves(1.0, 1.0, 1.0)
    said.figures[:, 0], said.figures[:, 2] = NOTHING, np.nan
    return ByCurve(said, tpot_below(0.02), none(said))


def test_what_a_prior_says_nothing_of_stands_in_the_middle() -> None:
    points = [{"n": n} for n in (1, 2, 4, 8)]
    prior = ByObjective(np.log([1.0, 9.0, np.nan, 2.0]))
    assert next_point(points, [], [{"p": prior}], among=[0, 2, 3]) == 2
    assert next_point(points, [], [{"p": prior}], among=[0, 1, 2, 3]) == 1


def test_without_priors_values_that_did_well_are_tried_together() -> None:
    points = [{"dtype": d, "n": n, "x": x} for d in ("a", "b") for n in (1, 2) for x in (1, 2)]
    measured = {0: 1.0, 4: 3.0, 2: 2.0, 1: 0.9}
    launches = [Launch(index=k, objectives=(value,)) for k, value in measured.items()]
    assert points[next_point(points, launches, [{}], among=[3, 5, 6, 7])] == {"dtype": "b", "n": 2, "x": 1}


def test_the_sla_with_most_to_gain_by_what_its_launch_costs_decides() -> None:
    points = [{"tp": tp} for tp in (1, 8, 2)]
    small = ByObjective(np.log([1.0, 1.0, 1.2]))
    large = ByObjective(np.log([1.0, 2.0, 1.0]))
    launches, foresights = [Launch(index=0, objectives=(1.0, 1.0))], [{"p": small}, {"p": large}]
    assert next_point(points, launches, foresights, among=[1, 2]) == 1
    costs = np.array([1.0, 8.0, 2.0])
    assert next_point(points, launches, foresights, among=[1, 2], costs=costs) == 2


def test_an_sla_that_nothing_met_does_not_take_every_launch() -> None:
    points = [{"n": 2**k} for k in range(8)]
    launches: list[Launch] = [Launch(index=0, objectives=(1.0, 0.0))]
    for _ in range(6):
        left = [k for k in range(8) if k not in {one.index for one in launches}]
        place = next_point(points, launches, [{}, {}], among=left)
        launches.append(Launch(index=place, objectives=(2.0**place, 0.0)))
    assert 7 in [one.index for one in launches[:6]]
