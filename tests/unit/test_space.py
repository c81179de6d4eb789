"""Search spaces: their points, the configurations these are, and what no space may hold."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from autotune.domain.configs.config import EngineConfig, Value
from autotune.domain.configs.space import DEFAULT, IntRange, SearchSpace

BASE = EngineConfig(engine="fake", context_length=2048)
CONDITIONAL = {
    "max_num_seqs": [DEFAULT, 4, 8],
    "speculation": [DEFAULT, "ngram"],
    "speculative_tokens": {"low": 2, "high": 5, "when": {"speculation": "ngram"}},
    "prompt_lookup_max": {"choices": [DEFAULT, 3], "when": {"speculation": "ngram"}},
}


def space(dimensions: dict[str, Any]) -> SearchSpace:
    return SearchSpace.model_validate({"dimensions": dimensions})


def complaints(dimensions: dict[str, Any]) -> list[tuple[tuple[int | str, ...], str]]:
    with pytest.raises(ValidationError) as caught:
        space(dimensions)
    return [(error["loc"], error["msg"]) for error in caught.value.errors()]


def lists(values: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.one_of(st.just(DEFAULT), values), min_size=1, max_size=3, unique=True)


SPACES = st.fixed_dictionaries(
    {},
    optional={
        "max_num_seqs": lists(st.integers(1, 64)),
        "chunked_prefill": lists(st.booleans()),
        "dtype": lists(st.sampled_from(["float16", "bfloat16"])),
        "memory_fraction": lists(st.floats(0.1, 1.0)),
        "block_size": st.builds(
            lambda low, more, step: {"low": low, "high": low + more, "step": step},
            st.integers(1, 32),
            st.integers(0, 8),
            st.integers(1, 4),
        ),
    },
).map(space)


@given(SPACES)
def test_every_point_is_found_again_in_its_configuration(space: SearchSpace) -> None:
    for point in space.points():
        config = space.config_at(BASE, point)
        assert space.config_at(BASE, space.point_of(config, BASE)) == config
        assert space.point_of(config, BASE) == point


@given(SPACES)
def test_points_hold_values_of_the_space_and_no_two_are_alike(space: SearchSpace) -> None:
    points = list(space.points())
    assert all(value in space.choices(name) for point in points for name, value in point.items())
    assert len({tuple(point.items()) for point in points}) == len(points)


@given(SPACES)
def test_a_written_space_reads_the_same(space: SearchSpace) -> None:
    assert SearchSpace.model_validate_json(space.model_dump_json()) == space


def test_points_come_in_the_order_of_the_file() -> None:
    points = list(space({"max_num_seqs": [DEFAULT, 4], "eager": [True, False]}).points())
    assert points == [
        {"max_num_seqs": DEFAULT, "eager": True},
        {"max_num_seqs": DEFAULT, "eager": False},
        {"max_num_seqs": 4, "eager": True},
        {"max_num_seqs": 4, "eager": False},
    ]


def test_a_space_without_dimensions_is_the_defaults() -> None:
    assert list(space({}).points()) == [{}]


def test_a_dimension_is_decided_only_where_it_applies() -> None:
    points = list(space(CONDITIONAL).points())
    with_speculation = [point for point in points if point["speculation"] == "ngram"]
    without = [point for point in points if point["speculation"] == DEFAULT]
    assert len(with_speculation) == 3 * 4 * 2
    assert without == [{"max_num_seqs": seqs, "speculation": DEFAULT} for seqs in (DEFAULT, 4, 8)]


def test_a_condition_may_ask_for_the_default() -> None:
    chain = space({"eager": [DEFAULT, True], "block_size": {"choices": [16, 32], "when": {"eager": DEFAULT}}})
    assert list(chain.points()) == [
        {"eager": DEFAULT, "block_size": 16},
        {"eager": DEFAULT, "block_size": 32},
        {"eager": True},
    ]


def test_words_that_do_not_apply_are_no_part_of_a_configurations_point() -> None:
    config = EngineConfig(engine="fake", context_length=2048, speculative_tokens=3)
    assert space(CONDITIONAL).point_of(config, BASE) == {"max_num_seqs": DEFAULT, "speculation": DEFAULT}


def test_default_leaves_the_bases_own_word() -> None:
    contexts = space({"context_length": [DEFAULT, 4096]})
    configs = [contexts.config_at(BASE, point) for point in contexts.points()]
    assert [config.context_length for config in configs] == [2048, 4096]
    assert [contexts.point_of(config, BASE) for config in configs] == [
        {"context_length": DEFAULT},
        {"context_length": 4096},
    ]


def test_a_value_outside_of_the_space_is_left_out_of_the_point() -> None:
    config = BASE.replaced({"max_num_seqs": 99, "dtype": "float16"})
    assert space({"max_num_seqs": [4, 8], "dtype": ["float16"]}).point_of(config, BASE) == {
        "dtype": "float16"
    }


@pytest.mark.parametrize(
    ("words", "choices"),
    [
        ({"low": 2, "high": 5}, (2, 3, 4, 5)),
        ({"low": 1, "high": 10, "step": 4}, (1, 5, 9)),
        ({"low": 7, "high": 7}, (7,)),
        ({"low": 4, "high": 64, "log": True}, (4, 8, 16, 32, 64)),
        ({"low": 3, "high": 20, "log": True}, (3, 6, 12)),
    ],
)
def test_ranges_go_in_steps_or_double(words: dict[str, Any], choices: tuple[Value, ...]) -> None:
    assert IntRange.model_validate(words).choices == choices


@given(st.integers(1, 2**20), st.integers(0, 2**20))
def test_a_doubling_range_ends_within_a_factor_of_two(low: int, more: int) -> None:
    last = IntRange(low=low, high=low + more, log=True).choices[-1]
    assert isinstance(last, int)
    assert last <= low + more < 2 * last


@pytest.mark.parametrize(
    ("dimensions", "where", "says"),
    [
        ({"max_num_seq": [4]}, ("dimensions", "max_num_seq"), "not permitted"),
        ({"engine": ["vllm"]}, ("dimensions", "engine"), "not permitted"),
        ({"extra_args": ["--fast"]}, ("dimensions", "extra_args"), "not permitted"),
        ({"max_num_seqs": [4, 0]}, ("dimensions", "max_num_seqs"), "greater than 0"),
        ({"memory_fraction": [0.9, 1.5]}, ("dimensions", "memory_fraction"), "less than or equal to 1"),
        ({"speculation": ["medusa"]}, ("dimensions", "speculation"), "'none', 'ngram'"),
        (
            {"chunked_prefill": ["no"]},
            ("dimensions", "chunked_prefill"),
            "'no' is read as False; write false",
        ),
        (
            {"block_size": {"choices": [16], "when": {"eager": True}}, "eager": [True]},
            ("dimensions", "block_size", "when", "eager"),
            "no earlier dimension eager can be True",
        ),
        (
            {"eager": [True], "block_size": {"choices": [16], "when": {"eager": False}}},
            ("dimensions", "block_size", "when", "eager"),
            "no earlier dimension eager can be False",
        ),
    ],
)
def test_a_mistake_is_told_at_its_dimension(
    dimensions: dict[str, Any], where: tuple[str, ...], says: str
) -> None:
    ((loc, message),) = complaints(dimensions)
    assert loc == where
    assert says in message


@pytest.mark.parametrize(
    ("dimension", "says"),
    [
        ([], "at least 1 item"),
        ({"choices": []}, "at least 1 item"),
        ({"low": 8, "high": 4}, "the range is empty: low 8 is above high 4"),
        ({"low": 2, "high": 8, "step": 2, "log": True}, "either doubles"),
        ({"low": 0, "high": 4}, "greater than 0"),
    ],
)
def test_an_empty_dimension_is_refused(dimension: object, says: str) -> None:
    ((loc, message),) = complaints({"max_num_seqs": dimension})
    assert loc[:2] == ("dimensions", "max_num_seqs")
    assert says in message


def test_a_condition_may_name_several_values() -> None:
    when = {"speculation": ["ngram", "mtp"]}
    several = space(
        {"speculation": [DEFAULT, "ngram", "mtp"], "speculative_tokens": {"choices": [2, 4], "when": when}}
    )
    found = [(p["speculation"], p.get("speculative_tokens")) for p in several.points()]
    assert found == [(DEFAULT, None), ("ngram", 2), ("ngram", 4), ("mtp", 2), ("mtp", 4)]
    with pytest.raises(ValidationError, match="no earlier dimension speculation can be 'eagle'"):
        space({"speculation": ["ngram"], "block_size": {"choices": [16], "when": {"speculation": ["eagle"]}}})
