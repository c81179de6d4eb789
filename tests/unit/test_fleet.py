"""Fleets: enough for the peak, a spare, and joules that no hour is missing from."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.domain.recommending.fleet import SECONDS_PER_DAY, Demand, Replica, plan_fleet

SHARES = st.lists(st.floats(0, 1), min_size=1, max_size=48).map(tuple)
RATES = st.floats(0.01, 1e4)


@st.composite
def replicas(draw: st.DrawFn) -> Replica:
    rate = draw(RATES)
    watts = sorted(draw(st.lists(st.floats(1, 1e4), min_size=2, max_size=4)))
    levels = tuple((rate * (place + 1) / len(watts), each) for place, each in enumerate(watts[1:]))
    idle_w = draw(st.none() | st.floats(0, watts[0]))
    return Replica(operating_rps=rate, devices=draw(st.integers(1, 16)), levels=levels, idle_w=idle_w)


@given(replica=replicas(), peak=RATES, curve=SHARES)
def test_no_replica_carries_more_than_its_operating_point(
    replica: Replica, peak: float, curve: tuple[float, ...]
) -> None:
    plan = plan_fleet(replica, Demand(peak_rps=peak, daily_curve=curve))
    assert plan.load_per_replica_rps <= replica.operating_rps * (1 + 1e-9)
    assert (plan.replicas - 1) * replica.operating_rps < peak
    assert plan.replicas_n_plus_1 == plan.replicas + 1
    assert plan.devices_n_plus_1 == plan.replicas_n_plus_1 * replica.devices
    for share, count in zip(curve, plan.replicas_by_step, strict=True):
        assert count * replica.operating_rps >= share * peak * (1 - 1e-9)
        assert count <= plan.replicas


@given(replica=replicas(), peak=RATES, curve=SHARES)
def test_energy_lies_between_rest_and_full_load(
    replica: Replica, peak: float, curve: tuple[float, ...]
) -> None:
    plan = plan_fleet(replica, Demand(peak_rps=peak, daily_curve=curve))
    assert plan.always_on is not None
    assert plan.scaled is not None
    least, most = replica.power_w(0.0), replica.power_w(replica.operating_rps)
    for policy in (plan.always_on, plan.scaled):
        seconds = policy.replica_hours * 3600
        assert least * seconds * (1 - 1e-9) <= policy.joules_per_day <= most * seconds * (1 + 1e-9)
        assert policy.idle_joules_per_day <= policy.joules_per_day * (1 + 1e-9)
    assert plan.scaled.replica_hours <= plan.always_on.replica_hours * (1 + 1e-9)


@given(replica=replicas(), peak=RATES, share=st.floats(0, 1), steps=st.integers(1, 24))
def test_a_curve_in_finer_steps_is_the_same_day(
    replica: Replica, peak: float, share: float, steps: int
) -> None:
    once = plan_fleet(replica, Demand(peak_rps=peak, daily_curve=(share,))).scaled
    finer = plan_fleet(replica, Demand(peak_rps=peak, daily_curve=(share,) * steps)).scaled
    assert once is not None
    assert finer is not None
    assert finer.joules_per_day == pytest.approx(once.joules_per_day)
    assert finer.requests_per_day == pytest.approx(share * peak * SECONDS_PER_DAY)


def test_watts_that_are_not_known_give_no_joules() -> None:
    plan = plan_fleet(Replica(operating_rps=5, devices=8), Demand(peak_rps=12))
    assert (plan.replicas, plan.devices, plan.always_on, plan.scaled) == (3, 24, None, None)
    assert "joules are not reckoned" in plan.remarks[0]


def test_a_load_that_is_a_whole_multiple_needs_no_further_replica() -> None:
    assert plan_fleet(Replica(operating_rps=0.1, devices=1), Demand(peak_rps=0.3)).replicas == 3


def test_idle_hours_are_told() -> None:
    replica = Replica(operating_rps=10, devices=1, levels=((10, 100),), idle_w=40)
    plan = plan_fleet(replica, Demand(peak_rps=10, daily_curve=(0, 1)))
    assert plan.scaled is not None
    assert plan.replicas_by_step == (0, 1)
    # The spare alone for half a day, then two that share the load.
    assert plan.scaled.idle_joules_per_day == pytest.approx(40 * 43_200)
    assert plan.scaled.joules_per_day == pytest.approx(43_200 * (40 + 2 * 70))
    assert plan.scaled.joules_per_request == pytest.approx(plan.scaled.joules_per_day / 432_000)
