"""Energy of windows, and the verdicts on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from synthetic_measurements import NOTHING, steady_power

from autotune.domain.measuring.power import (
    DevicePower,
    EnergyVerdict,
    Floats,
    PowerBasis,
    PowerTrace,
    Window,
    energy_in,
    integrate_j,
)

WINDOW = Window(10.0, 20.0)


def ramp(*, counter_scale: float | None = None, power_s: float = 0.05) -> DevicePower:
    """Power equal to the time in seconds, and a counter that is right times ``counter_scale``."""
    time_s = np.arange(9.0, 21.5, power_s)
    counted = counter_scale is not None
    return DevicePower(
        uid="ramp",
        time_s=time_s,
        power_w=time_s,
        counter_time_s=time_s if counted else NOTHING,
        counter_j=1e6 + (counter_scale or 0) * time_s**2 / 2 if counted else NOTHING,
    )


def trace(*devices: DevicePower) -> PowerTrace:
    return PowerTrace(basis=PowerBasis.GPU, source="synthetic", period_s=0.05, devices=devices)


def test_constant_power_of_several_devices_adds_up() -> None:
    energy = energy_in(steady_power(WINDOW, watts=70.0, devices=3), WINDOW)
    assert energy.joules == pytest.approx(3 * 70.0 * 10.0)
    assert energy.mean_w == pytest.approx(210.0)
    assert (energy.verdict, energy.reasons) == (EnergyVerdict.UNCHECKED, ())


@given(st.floats(10.0, 14.9), st.floats(15.0, 20.0))
def test_a_ramp_is_integrated_exactly_whatever_the_windows_edges(start_s: float, end_s: float) -> None:
    assert integrate_j(ramp(), Window(start_s, end_s)) == pytest.approx((end_s**2 - start_s**2) / 2)


@given(st.lists(st.floats(0.0, 1000.0), min_size=240, max_size=240), st.integers(1, 40))
def test_the_blocks_of_a_window_have_its_energy_between_them(powers: list[float], count: int) -> None:
    time_s = np.linspace(9.5, 20.5, 240)
    device = replace(ramp(), time_s=time_s, power_w=np.array(powers))
    parts = sum(energy_in(trace(device), block).joules for block in WINDOW.blocks(count))
    assert parts == pytest.approx(energy_in(trace(device), WINDOW).joules, abs=1e-6)


@pytest.mark.parametrize(
    ("scale", "verdict"),
    [
        (1.0, EnergyVerdict.CONSISTENT),
        (1.04, EnergyVerdict.CONSISTENT),
        (0.96, EnergyVerdict.CONSISTENT),
        (1.06, EnergyVerdict.INVALID),
        (0.94, EnergyVerdict.INVALID),
        (None, EnergyVerdict.UNCHECKED),
    ],
)
def test_the_counter_checks_the_samples(scale: float | None, verdict: EnergyVerdict) -> None:
    energy = energy_in(trace(ramp(counter_scale=scale)), WINDOW)
    assert energy.verdict is verdict
    assert energy.reasons == (("counter-disagrees:ramp",) if verdict is EnergyVerdict.INVALID else ())


def test_one_device_without_a_counter_leaves_the_whole_unchecked() -> None:
    energy = energy_in(trace(ramp(counter_scale=1.0), ramp()), WINDOW)
    assert energy.verdict is EnergyVerdict.UNCHECKED


def test_a_counter_that_does_not_span_the_window_checks_nothing() -> None:
    device = ramp(counter_scale=1.0)
    late = replace(device, counter_time_s=device.counter_time_s[40:], counter_j=device.counter_j[40:])
    assert energy_in(trace(late), WINDOW).verdict is EnergyVerdict.UNCHECKED


@pytest.mark.parametrize(
    "lost",
    [
        pytest.param(lambda at_s: (at_s < 14.0) | (at_s > 14.2), id="hole"),
        pytest.param(lambda at_s: at_s > 10.1, id="starts late"),
        pytest.param(lambda at_s: at_s < 19.9, id="ends early"),
        pytest.param(lambda at_s: at_s < 0, id="nothing"),
    ],
)
def test_a_gap_makes_the_energy_invalid(lost: Callable[[Floats], NDArray[np.bool_]]) -> None:
    device = ramp()
    kept = lost(device.time_s)
    energy = energy_in(
        trace(replace(device, time_s=device.time_s[kept], power_w=device.power_w[kept])), WINDOW
    )
    assert energy.verdict is EnergyVerdict.INVALID
    assert energy.reasons == ("gap:ramp",)


def test_a_gap_outside_the_window_does_no_harm() -> None:
    device = ramp()
    kept = (device.time_s < 9.2) | (device.time_s > 9.8)
    thinned = replace(device, time_s=device.time_s[kept], power_w=device.power_w[kept])
    assert energy_in(trace(thinned), WINDOW).verdict is EnergyVerdict.UNCHECKED


def test_no_device_is_no_energy() -> None:
    energy = energy_in(trace(), WINDOW)
    assert (energy.joules, energy.verdict, energy.reasons) == (0.0, EnergyVerdict.INVALID, ("no-device",))


@pytest.mark.parametrize(("start_s", "end_s"), [(1.0, 1.0), (2.0, 1.0), (float("nan"), 1.0)])
def test_a_window_ends_after_it_starts(start_s: float, end_s: float) -> None:
    with pytest.raises(ValueError, match="must end after it starts"):
        Window(start_s, end_s)


def test_blocks_meet_end_to_end() -> None:
    blocks = Window(3.0, 7.0).blocks(4)
    assert [(b.start_s, b.end_s) for b in blocks] == [(3, 4), (4, 5), (5, 6), (6, 7)]


def test_joules_that_are_a_models_or_unknown_do_not_rank() -> None:
    assert {basis for basis in PowerBasis if not basis.ranks} == {PowerBasis.ESTIMATED, PowerBasis.NONE}
