"""Configurations: words, pools, identity."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from autotune.domain.configs.config import SEARCHABLE, EngineConfig, check_words

POOL_WORDS = {
    "workers": st.integers(1, 4),
    "tensor_parallel": st.integers(1, 8),
    "data_parallel": st.integers(1, 8),
    "eager": st.booleans(),
}


@st.composite
def configs(draw: st.DrawFn) -> EngineConfig:
    words = draw(
        st.fixed_dictionaries({}, optional={"tensor_parallel": st.integers(1, 8), "dtype": st.just("x")})
    )
    for pool in ("prefill", "decode"):
        own = draw(st.fixed_dictionaries({}, optional=POOL_WORDS))
        words |= {f"{pool}.{word}": value for word, value in own.items()}
    return EngineConfig.model_validate({"engine": "any", **words})


@given(configs())
def test_words_say_the_whole_configuration(config: EngineConfig) -> None:
    again = EngineConfig.model_validate({"engine": config.engine, **config.words})
    assert again == config
    assert again.key == config.key
    assert EngineConfig.model_validate_json(config.model_dump_json()) == config


@given(configs())
def test_devices_are_those_of_the_pools_together(config: EngineConfig) -> None:
    words = config.words
    if not config.pools:
        assert config.devices == config.ranks
        return

    def of(pool: str, word: str) -> int:
        return int(words.get(f"{pool}.{word}") or words.get(word) or 1)

    each = [
        of(p, "workers") * of(p, "tensor_parallel") * of(p, "data_parallel") for p in ("prefill", "decode")
    ]
    assert config.devices == sum(each)


def test_a_pool_has_the_common_words_and_its_own_before_them() -> None:
    words = {"tensor_parallel": 2, "max_num_seqs": 64, "prefill.tensor_parallel": 4, "decode.workers": 3}
    pools = EngineConfig.model_validate({"engine": "any", **words}).pools
    assert (pools["prefill"].tensor_parallel, pools["prefill"].max_num_seqs) == (4, 64)
    assert (pools["decode"].tensor_parallel, pools["decode"].workers) == (2, 3)


def test_one_word_of_a_pool_can_be_replaced() -> None:
    config = EngineConfig.model_validate(
        {"engine": "any", "prefill.workers": 1, "prefill.tensor_parallel": 2}
    )
    assert config.replaced({"prefill.workers": 3}).words == {
        "prefill.workers": 3,
        "prefill.tensor_parallel": 2,
    }


def test_words_that_no_pool_has_are_refused() -> None:
    with pytest.raises(ValidationError, match="dtype"):
        EngineConfig.model_validate({"engine": "any", "prefill.dtype": "bfloat16"})
    with pytest.raises(ValidationError, match="dtype"):
        check_words({"prefill.dtype": "bfloat16"})
    assert "prefill.workers" in SEARCHABLE


def test_a_label_names_the_engine_where_it_is_another() -> None:
    here, there = (EngineConfig(engine=name, tensor_parallel=2) for name in ("one", "two"))
    assert here.label(here) == "engine defaults"
    assert there.label(here) == "two: engine defaults"
