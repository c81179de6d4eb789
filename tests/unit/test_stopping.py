"""When another launch is not worth it, and what a study spent."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fakes import curve, launch_record

from autotune.domain.configs.config import EngineConfig
from autotune.domain.measuring.power import PowerBasis
from autotune.domain.recommending.recommendation import Candidate
from autotune.domain.recommending.spending import spent_on
from autotune.domain.search.stopping import DeploymentSpec, expected_gain, why_stop
from autotune.domain.studies.records import Purpose, TrialRow, TrialState

LARGE = DeploymentSpec(accelerators=64, days=365)
SMALL = DeploymentSpec(accelerators=1, days=1)
HOUR_S = 3600.0


def test_the_gain_expected_falls_with_every_launch_that_brought_none() -> None:
    gains = [expected_gain([1.0] * count) for count in range(1, 30)]
    assert gains == sorted(gains, reverse=True)
    assert gains[0] == pytest.approx(0.095, abs=0.01)


def test_large_steps_lately_promise_more_than_small_ones() -> None:
    assert expected_gain([1.0, 1.5, 2.2]) > expected_gain([1.0, 1.02, 1.03])
    assert expected_gain([0.0, 0.0, 1.0]) == expected_gain([1.0, 1.0, 1.0])


def test_a_large_deployment_pays_for_launches_that_a_small_one_does_not() -> None:
    made = {"fast": [1.0, 1.3, 1.2, 1.31], "slow": [1.0] * 4}
    assert why_stop(LARGE, made, HOUR_S) == ""
    why = why_stop(SMALL, made, HOUR_S)
    assert why.startswith("another launch costs 1 accelerator-hours and is expected to save 0.")
    assert "1 accelerators, 1 days" in why


def row(number: int, state: TrialState = TrialState.MEASURED) -> TrialRow:
    config = EngineConfig(engine="fake", tensor_parallel=2)
    return TrialRow(
        study="s", number=number, purpose=Purpose.SEARCH, state=state, config=config, total_s=100.0
    )


def test_spending_counts_devices_and_idle_watts_while_engines_start() -> None:
    first = replace(launch_record(row(0), curve(watts=300.0)), load_s=40.0)
    spent = spent_on([row(0), row(1, TrialState.REJECTED)], [Candidate(row=row(0), launch=first)])
    assert (spent.launches, spent.power_basis) == (1, PowerBasis.GPU)
    assert spent.accelerator_hours == pytest.approx(400 / 3600)
    # 40 s at 300 W and 60 s at 20 W idle; the trial that left no level drew as much.
    assert spent.energy_kwh == pytest.approx(2 * (40 * 300 + 60 * 20) / 3.6e6)
    assert spent.describe() == "spent: 1 launches, 0.111 accelerator-hours, 0.00733 kWh (gpu)"
    assert spent_on([row(0)], []).energy_kwh is None
