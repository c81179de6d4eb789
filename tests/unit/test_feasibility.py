"""Rules on paper: each refuses what it is about, in words that name the numbers, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fakes import hardware

from autotune.domain.config import EngineConfig
from autotune.domain.feasibility import Setting, why_infeasible
from autotune.domain.model import ModelShape
from autotune.domain.study import Requirements

DENSE = ModelShape(attention_heads=12, kv_heads=4, layers=4, vocab_size=1000, experts=0, most_positions=4096)
SETTING = Setting(
    hardware=hardware(8), model=DENSE, requirements=Requirements(), longest_request_tokens=512, real_text=True
)


def why(setting: Setting = SETTING, /, **words: object) -> str | None:
    return why_infeasible(EngineConfig.model_validate({"engine": "fake", **words}), setting)


def requiring(**words: object) -> Setting:
    return replace(SETTING, requirements=Requirements.model_validate(words))


SOUND: list[dict[str, object]] = [
    {},
    {"tensor_parallel": 4, "pipeline_parallel": 2},
    {"tensor_parallel": 2, "data_parallel": 4},
    {"pipeline_parallel": 4},
    {"context_length": 4096},
    {"context_length": 512},
    {"speculation": "ngram", "speculative_tokens": 3, "prompt_lookup_max": 4},
    {"speculation": "none"},
    {"expert_parallel": False},
    {"lora": True, "tool_parser": "hermes"},
]


@pytest.mark.parametrize("words", SOUND)
@pytest.mark.parametrize("model", [DENSE, None])
def test_a_sound_configuration_passes_with_and_without_a_models_shape(
    words: dict[str, object], model: ModelShape | None
) -> None:
    assert why(replace(SETTING, model=model), **words) is None


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ({"tensor_parallel": 16}, "needs 16 devices (TP x PP x DP), 8 may be used"),
        (
            {"tensor_parallel": 2, "pipeline_parallel": 2, "data_parallel": 3},
            "needs 12 devices (TP x PP x DP), 8 may be used",
        ),
        ({"tensor_parallel": 8}, "tensor_parallel 8 does not divide the model's 12 attention heads"),
        ({"pipeline_parallel": 5}, "pipeline_parallel 5 is more than the model's 4 layers"),
        ({"expert_parallel": True}, "expert_parallel needs a model with experts, and this one has none"),
        ({"context_length": 8192}, "context_length 8192 is beyond the model's 4096 positions"),
        ({"context_length": 256}, "serves 256 tokens of context, 512 are required"),
        (
            {"speculative_tokens": 3},
            "speculative_tokens and prompt_lookup_max mean nothing without speculation",
        ),
        (
            {"speculation": "none", "prompt_lookup_max": 4},
            "speculative_tokens and prompt_lookup_max mean nothing without speculation",
        ),
    ],
)
def test_each_rule_names_its_numbers(words: dict[str, object], reason: str) -> None:
    assert why(**words) == reason


def test_a_study_may_allow_fewer_devices_than_there_are() -> None:
    assert why(requiring(most_gpus=2), tensor_parallel=2) is None
    assert why(requiring(most_gpus=2), tensor_parallel=4) == "needs 4 devices (TP x PP x DP), 2 may be used"


def test_allowing_more_devices_than_there_are_makes_none() -> None:
    assert why(requiring(most_gpus=64), data_parallel=9) == "needs 9 devices (TP x PP x DP), 8 may be used"


def test_a_model_with_experts_may_spread_them() -> None:
    assert why(replace(SETTING, model=replace(DENSE, experts=8)), expert_parallel=True) is None


def test_sizes_that_the_model_does_not_tell_refuse_nothing() -> None:
    silent = ModelShape(attention_heads=0, kv_heads=0, layers=0, vocab_size=0, experts=0, most_positions=0)
    setting = replace(SETTING, model=silent)
    assert why(setting, tensor_parallel=8) is None
    assert why(setting, pipeline_parallel=8, context_length=1 << 20) is None


def test_the_required_context_is_served_or_refused() -> None:
    assert why(requiring(context_length=2048), context_length=2048) is None
    refused = "serves 1024 tokens of context, 2048 are required"
    assert why(requiring(context_length=2048), context_length=1024) == refused


def test_without_a_context_of_its_own_a_configuration_serves_the_models() -> None:
    assert why(requiring(context_length=4096)) is None
    assert why(requiring(context_length=5000)) == "serves 4096 tokens of context, 5000 are required"


def test_speculation_is_refused_where_it_drops_required_sampling() -> None:
    setting = requiring(sampling=["min_p", "logit_bias", "logprobs"])
    assert why(setting) is None
    assert why(setting, speculation="ngram") == (
        "speculation refuses requests that use logit_bias or min_p, which are required"
    )
    assert why(requiring(sampling=["logprobs"]), speculation="ngram") is None


@pytest.mark.parametrize("lora", [None, False])
def test_required_lora_is_not_given_up(lora: bool | None) -> None:
    assert why(requiring(lora=True), lora=True) is None
    assert why(requiring(lora=True), lora=lora) == "LoRA is required and this configuration turns it off"


@pytest.mark.parametrize("parser", [None, "mistral"])
def test_required_tools_are_not_given_up(parser: str | None) -> None:
    assert why(requiring(tools="hermes"), tool_parser="hermes") is None
    assert why(requiring(tools="hermes"), tool_parser=parser) == "tools through 'hermes' are required"


def test_speculation_is_refused_on_random_tokens() -> None:
    setting = replace(SETTING, real_text=False)
    reason = why(setting, speculation="ngram")
    assert reason is not None
    assert "prompts: {text: FOLDER}" in reason
    assert why(setting, speculation="none") is None
    assert why(SETTING, speculation="ngram") is None
