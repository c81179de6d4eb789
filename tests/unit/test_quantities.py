"""Durations and sizes as people write and read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from autotune.domain.basics.quantities import (
    Bytes,
    DurationS,
    PositiveDurationS,
    parse_duration_s,
    show_duration,
    write_duration,
)

microseconds = st.integers(0, 10**12)


@given(microseconds)
def test_what_is_written_reads_the_same(count: int) -> None:
    seconds = count / 1e6
    assert parse_duration_s(write_duration(seconds)) == seconds


@given(st.integers(0, 10**6), st.sampled_from(["us", "ms", "s", "m", "min", "h", "d"]))
def test_reading_and_writing_is_stable(number: int, unit: str) -> None:
    """A study file and its copy in the database hold the same numbers, to the last bit."""
    seconds = parse_duration_s(f"{number}{unit}")
    assert parse_duration_s(write_duration(seconds)) == seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("9ms", 0.009),
        ("250us", 0.00025),
        ("2s", 2.0),
        ("1.5s", 1.5),
        ("12m", 720.0),
        ("12min", 720.0),
        ("11m30s", 690.0),
        ("1h 30m", 5400.0),
        ("3 d", 259200.0),
        ("0s", 0.0),
    ],
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "5", "5 bananas", "ms", "-2s", "1h30", "2s later", "two s", "1,5s", "5S", 200, 0.2, None, ["2s"]],
)
def test_anything_else_is_refused_with_the_units(text: object) -> None:
    with pytest.raises(ValueError, match="is no duration; write a number with its unit, such as 500ms"):
        parse_duration_s(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0ms"),
        (0.0831, "83.1ms"),
        (0.9994, "999ms"),
        (0.9996, "1s"),
        (2.44, "2.44s"),
        (61.0, "1m01s"),
        (665.0, "11m05s"),
        (3599.6, "1h00m"),
        (11520.0, "3h12m"),
        (float("nan"), "-"),
    ],
)
def test_durations_are_shown_in_three_digits(seconds: float, text: str) -> None:
    assert show_duration(seconds) == text


@given(st.floats(1e-3, 1e6))
def test_what_is_shown_is_a_duration_near_the_truth(seconds: float) -> None:
    assert parse_duration_s(show_duration(seconds)) == pytest.approx(seconds, rel=0.01)


def test_a_field_reads_and_writes_text() -> None:
    field: TypeAdapter[float] = TypeAdapter(DurationS)
    assert field.validate_python("83ms") == 0.083
    assert field.dump_python(0.083) == "0.083s"


def test_some_durations_must_be_above_zero() -> None:
    field: TypeAdapter[float] = TypeAdapter(PositiveDurationS)
    assert field.validate_python("1us") == 1e-6
    with pytest.raises(ValidationError, match="greater than 0"):
        field.validate_python("0s")


def test_sizes_are_read() -> None:
    field: TypeAdapter[int] = TypeAdapter(Bytes)
    assert field.validate_python("1GiB") == 1 << 30
    assert field.validate_python("512MB") == 512 * 10**6
