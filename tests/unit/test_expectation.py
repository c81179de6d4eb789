"""Where a capacity is expected before a launch."""

from __future__ import annotations

import pytest

from autotune.domain.configs.config import EngineConfig
from autotune.domain.search.boundary import EXACT_ENOUGH
from autotune.domain.search.expectation import expected_capacity


def config(**words: object) -> EngineConfig:
    return EngineConfig.model_validate({"engine": "fake", **words})


MEASURED = [
    (config(), {"fast": 4.0}),
    (config(max_num_seqs=8), {"fast": 6.0}),
    (config(max_num_seqs=8, dtype="float16"), {"fast": 12.0, "slow": 20.0}),
]


def test_the_likest_configuration_says_most() -> None:
    near = expected_capacity(config(max_num_seqs=8, dtype="float16", eager=True), "fast", MEASURED)
    far = expected_capacity(config(block_size=16), "fast", MEASURED)
    assert near is not None
    assert far is not None
    assert far.rps < near.rps < 12.0


def test_what_is_less_alike_says_less_exactly() -> None:
    measured = [(config(), {"fast": 4.0})]
    spreads = []
    for words in ({}, {"max_num_seqs": 8}, {"max_num_seqs": 8, "dtype": "float32"}):
        found = expected_capacity(config(**words), "fast", measured)
        assert found is not None
        spreads.append(found.spread)
    assert spreads == sorted(spreads)
    assert spreads[1] < EXACT_ENOUGH < spreads[2], "two words apart a closed-loop level comes first"


def test_an_sla_that_nobody_met_has_no_expectation() -> None:
    assert expected_capacity(config(), "strict", MEASURED) is None
    only = expected_capacity(config(), "slow", MEASURED)
    assert only is not None
    assert only.rps == pytest.approx(20.0)
    assert only.spread > 0.3


def test_a_prior_that_is_off_by_the_same_factor_is_corrected_and_trusted() -> None:
    truths = [4.0, 9.0, 30.0]
    measured = [(config(max_num_seqs=n), {"fast": rps}) for n, rps in zip((1, 8, 64), truths, strict=True)]
    predicted = [{"fast": 4.6 * rps} for rps in truths]
    found = expected_capacity(config(max_num_seqs=256), "fast", measured, predicted, {"fast": 4.6 * 80.0})
    assert found is not None
    assert found.rps == pytest.approx(80.0, rel=0.01)


def test_a_prior_that_scatters_is_left_alone() -> None:
    measured = [(config(max_num_seqs=n), {"fast": 10.0}) for n in (1, 8, 64)]
    predicted = [{"fast": 1.0}, {"fast": 200.0}, {"fast": 15.0}]
    found = expected_capacity(config(max_num_seqs=256), "fast", measured, predicted, {"fast": 500.0})
    assert found is not None
    assert found.rps == pytest.approx(10.0)


def test_before_any_launch_the_prior_is_all_there_is() -> None:
    found = expected_capacity(config(), "fast", [], (), {"fast": 7.0})
    assert found is not None
    assert (found.rps, found.spread) == (pytest.approx(7.0), pytest.approx(0.8))
