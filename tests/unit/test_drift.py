"""Drift of the reference: found beyond the noise, never across nodes, and corrected in between."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from autotune.domain.judging.drift import (
    DriftAction,
    DriftSpec,
    Reference,
    correction,
    drift_between,
    drifts,
)
from autotune.domain.measuring.stats import Interval


def reference(index: int, value: float, half: float = 1.0, node: str = "n1") -> Reference:
    return Reference(index=index, node=node, value=value, interval=Interval(value - half, value + half))


values = st.floats(1.0, 1e6)


@st.composite
def references(draw: st.DrawFn, index: int = 0) -> Reference:
    value = draw(values)
    interval = Interval(value * draw(st.floats(0, 1)), value * draw(st.floats(1, 10)))
    return Reference(index=index, node="n1", value=value, interval=interval)


def test_a_loss_beyond_the_noise_is_told_in_per_cent() -> None:
    drift = drift_between(reference(0, 100.0, 1.5), reference(9, 93.7, 1.5))
    assert drift.beyond_noise
    assert drift.describe() == "the reference lost 6.3 % [4.2, 8.4] on n1 between trial 0 and trial 9"


def test_a_gain_is_told_as_one() -> None:
    drift = drift_between(reference(0, 100.0), reference(4, 110.0))
    assert drift.describe() == "the reference gained 10.0 % [8.6, 11.4] on n1 between trial 0 and trial 4"


def test_a_loss_within_the_noise_is_none() -> None:
    drift = drift_between(reference(0, 100.0, 5.0), reference(9, 94.0, 5.0))
    assert not drift.beyond_noise
    said = "the reference held within the noise on n1 between trial 0 and trial 9: -6.0 % [-13.1, +1.1]"
    assert drift.describe() == said


def test_the_side_of_a_lopsided_interval_that_faces_the_other_counts() -> None:
    """A fall is doubted as far as the first may have been lower, a rise as far as it may have been higher."""
    may_be_higher = Reference(index=0, node="n1", value=100.0, interval=Interval(99.0, 150.0))
    may_be_lower = Reference(index=0, node="n1", value=100.0, interval=Interval(50.0, 101.0))
    fell, rose = reference(1, 90.0), reference(1, 110.0)
    assert drift_between(may_be_higher, fell).beyond_noise
    assert not drift_between(may_be_higher, rose).beyond_noise
    assert drift_between(may_be_lower, rose).beyond_noise
    assert not drift_between(may_be_lower, fell).beyond_noise


def test_nodes_are_never_compared() -> None:
    with pytest.raises(ValueError, match="n1 and n2 are two nodes"):
        drift_between(reference(0, 100.0), reference(1, 50.0, node="n2"))
    measured = [
        reference(0, 100.0),
        reference(1, 50.0, node="n2"),
        reference(9, 99.9),
        reference(5, 90.0),
        reference(8, 50.1, node="n2"),
    ]
    found = drifts(measured)
    assert [(d.node, d.first, d.later, d.beyond_noise) for d in found] == [
        ("n1", 0, 5, True),
        ("n1", 0, 9, False),
        ("n2", 1, 8, False),
    ]


def test_the_interval_covers_the_true_change_as_often_as_those_it_is_made_of() -> None:
    rng = np.random.default_rng(0)
    half = 1.645 * 2.0
    firsts, laters = rng.normal(100.0, 2.0, 4000), rng.normal(95.0, 2.0, 4000)
    found = [
        drift_between(reference(0, a, half), reference(1, b, half)).interval
        for a, b in zip(firsts, laters, strict=True)
    ]
    covered = np.mean([i.low <= -0.05 <= i.high for i in found])
    assert 0.88 <= covered <= 0.92


@given(references(), references(index=1))
def test_an_interval_holds_its_change_and_is_no_narrower_than_either_part(
    first: Reference, later: Reference
) -> None:
    drift = drift_between(first, later)
    assert drift.interval.low <= drift.change <= drift.interval.high
    width = (drift.interval.high - drift.interval.low) * first.value
    for part in (first, later):
        assert width >= (part.interval.high - part.interval.low) * (1 - 1e-9)


def test_a_correction_runs_in_a_straight_line_between_the_neighbours() -> None:
    measured = [reference(10, 80.0), reference(0, 100.0), reference(20, 90.0)]
    levels = {0: 1.0, 5: 0.9, 10: 0.8, 15: 0.85, 20: 0.9, 99: 0.9}
    for index, level in levels.items():
        assert correction(measured, "n1", index) == pytest.approx(1 / level)


def test_what_is_within_the_noise_is_not_corrected() -> None:
    measured = [reference(0, 100.0), reference(10, 99.0), reference(20, 90.0)]
    assert correction(measured, "n1", 10) == 1.0
    assert correction(measured, "n1", 5) == 1.0
    assert correction(measured, "n1", 15) == pytest.approx(1 / 0.95)


def test_another_nodes_drift_corrects_nothing() -> None:
    measured = [reference(0, 100.0), reference(10, 50.0), reference(0, 70.0, node="n2")]
    assert correction(measured, "n1", 10) == pytest.approx(2.0)
    assert correction(measured, "n2", 10) == 1.0
    assert correction(measured, "n3", 10) == 1.0


@given(values, st.floats(0.1, 3.0), st.integers(1, 50))
def test_a_corrected_reference_is_what_it_was_at_first(first: float, level: float, index: int) -> None:
    measured = [reference(0, first, 0.0), reference(index, first * level, 0.0)]
    assert first * level * correction(measured, "n1", index) == pytest.approx(first)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_reference_without_an_objective_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="trial 3 has no objective"):
        reference(3, value)


def test_a_reference_outside_its_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="outside its interval"):
        Reference(index=0, node="n1", value=10.0, interval=Interval(11.0, 12.0))


def test_a_study_file_says_what_to_do() -> None:
    assert DriftSpec.model_validate({"every": 3, "action": "stop"}).action is DriftAction.STOP
    for wrong in ({"every": 0}, {"action": "panic"}, {"evry": 3}):
        with pytest.raises(ValidationError):
            DriftSpec.model_validate(wrong)
