"""Rules on paper: each refuses what it is about, in words that name numbers and rule, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fakes import hardware
from hypothesis import given
from hypothesis import strategies as st
from model_facts import (
    DEEPSEEK_R1,
    GPT_OSS_120B,
    LLAMA_8B,
    LLAMA_70B,
    PUBLISHED_PARAMETERS,
    QWEN3_30B,
    QWEN3_235B,
    QWEN3_235B_FP8,
    shape,
)

from autotune.domain.configs.config import EngineConfig
from autotune.domain.hardware.hardware import Device, DeviceKind, Hardware
from autotune.domain.models.checkpoint import StoredWeights
from autotune.domain.models.memory import GIB
from autotune.domain.models.model import ModelShape
from autotune.domain.studies.feasibility import (
    RULES,
    KnownModel,
    Refusal,
    Setting,
    calibrated_by,
    probability_it_runs,
    refusal,
    why_infeasible,
)
from autotune.domain.studies.study import Requirements

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
        ({"tensor_parallel": 16}, "needs 16 devices (TP x PP x DP), 8 may be used [devices]"),
        (
            {"tensor_parallel": 2, "pipeline_parallel": 2, "data_parallel": 3},
            "needs 12 devices (TP x PP x DP), 8 may be used [devices]",
        ),
        ({"tensor_parallel": 8}, "tensor_parallel 8 does not divide the model's 12 attention heads [heads]"),
        ({"pipeline_parallel": 5}, "pipeline_parallel 5 is more than the model's 4 layers [layers]"),
        (
            {"expert_parallel": True},
            "expert_parallel needs a model with experts, and this one has none [experts]",
        ),
        ({"context_length": 8192}, "context_length 8192 is beyond the model's 4096 positions [context]"),
        ({"context_length": 256}, "serves 256 tokens of context, 512 are required [context]"),
        (
            {"speculative_tokens": 3},
            "speculative_tokens and prompt_lookup_max mean nothing without speculation [speculation]",
        ),
        (
            {"speculation": "none", "prompt_lookup_max": 4},
            "speculative_tokens and prompt_lookup_max mean nothing without speculation [speculation]",
        ),
    ],
)
def test_each_rule_names_its_numbers(words: dict[str, object], reason: str) -> None:
    assert why(**words) == reason


def test_a_study_may_allow_fewer_devices_than_there_are() -> None:
    assert why(requiring(most_gpus=2), tensor_parallel=2) is None
    assert (
        why(requiring(most_gpus=2), tensor_parallel=4)
        == "needs 4 devices (TP x PP x DP), 2 may be used [devices]"
    )


def test_allowing_more_devices_than_there_are_makes_none() -> None:
    assert (
        why(requiring(most_gpus=64), data_parallel=9)
        == "needs 9 devices (TP x PP x DP), 8 may be used [devices]"
    )


def test_a_model_with_experts_may_spread_them() -> None:
    assert why(replace(SETTING, model=replace(DENSE, experts=8)), expert_parallel=True) is None


def test_sizes_that_the_model_does_not_tell_refuse_nothing() -> None:
    silent = ModelShape(attention_heads=0, kv_heads=0, layers=0, vocab_size=0, experts=0, most_positions=0)
    setting = replace(SETTING, model=silent)
    assert why(setting, tensor_parallel=8) is None
    assert why(setting, pipeline_parallel=8, context_length=1 << 20) is None


def test_the_required_context_is_served_or_refused() -> None:
    assert why(requiring(context_length=2048), context_length=2048) is None
    refused = "serves 1024 tokens of context, 2048 are required [context]"
    assert why(requiring(context_length=2048), context_length=1024) == refused


def test_without_a_context_of_its_own_a_configuration_serves_the_models() -> None:
    assert why(requiring(context_length=4096)) is None
    assert why(requiring(context_length=5000)) == "serves 4096 tokens of context, 5000 are required [context]"


def test_speculation_is_refused_where_it_drops_required_sampling() -> None:
    setting = requiring(sampling=["min_p", "logit_bias", "logprobs"])
    assert why(setting) is None
    assert why(setting, speculation="ngram") == (
        "speculation refuses requests that use logit_bias or min_p, which are required [sampling]"
    )
    assert why(requiring(sampling=["logprobs"]), speculation="ngram") is None


@pytest.mark.parametrize("lora", [None, False])
def test_required_lora_is_not_given_up(lora: bool | None) -> None:
    assert why(requiring(lora=True), lora=True) is None
    assert (
        why(requiring(lora=True), lora=lora)
        == "LoRA is required and this configuration turns it off [features]"
    )


@pytest.mark.parametrize("parser", [None, "mistral"])
def test_required_tools_are_not_given_up(parser: str | None) -> None:
    assert why(requiring(tools="hermes"), tool_parser="hermes") is None
    assert (
        why(requiring(tools="hermes"), tool_parser=parser) == "tools through 'hermes' are required [features]"
    )


def test_speculation_is_refused_on_random_tokens() -> None:
    setting = replace(SETTING, real_text=False)
    reason = why(setting, speculation="ngram")
    assert reason is not None
    assert "prompts: {text: FOLDER}" in reason
    assert why(setting, speculation="none") is None
    assert why(SETTING, speculation="ngram") is None


def gpus(count: int = 8, gib: float = 141.0, capability: tuple[int, ...] = (9, 0)) -> Hardware:
    device = Device(DeviceKind.CUDA, 0, "GPU", "GPU-0", int(gib * GIB), compute_capability=capability)
    return Hardware(DeviceKind.CUDA, tuple(replace(device, index=at, uid=f"GPU-{at}") for at in range(count)))


def rule(
    facts: dict[str, Any], engine: str = "vllm", on: Hardware | None = None, **words: object
) -> str | None:
    """Id of the rule that refuses a configuration of a public model, on eight H200 unless told otherwise."""
    setting = replace(SETTING, hardware=on or gpus(), model=shape(facts))
    refused = refusal(EngineConfig.model_validate({"engine": engine, **words}), setting)
    return refused.rule if refused else None


TWELVE_HEADS = {**LLAMA_8B, "num_attention_heads": 12, "num_key_value_heads": 4, "vocab_size": 32000}


@pytest.mark.parametrize(
    ("facts", "words", "expected"),
    [
        (LLAMA_70B, {"tensor_parallel": 8}, None),
        (LLAMA_70B, {"tensor_parallel": 2, "context_parallel": 2}, "context-parallel"),
        (LLAMA_70B, {"tensor_parallel": 3}, "heads"),
        (TWELVE_HEADS, {"tensor_parallel": 6}, "kv-heads"),
        ({**TWELVE_HEADS, "num_key_value_heads": 3}, {"tensor_parallel": 3}, "vocabulary"),
        (
            {**TWELVE_HEADS, "num_key_value_heads": 3, "vocab_size": 19200},
            {"tensor_parallel": 3},
            "widths",
        ),
        (
            {**TWELVE_HEADS, "num_key_value_heads": 3, "vocab_size": 19200, "intermediate_size": 12288},
            {"tensor_parallel": 3},
            None,
        ),
        ({**QWEN3_30B, "moe_intermediate_size": 770}, {"tensor_parallel": 4}, "widths"),
        (QWEN3_30B, {"tensor_parallel": 8}, None),
        (QWEN3_30B, {"tensor_parallel": 8, "context_parallel": 2}, None),
        (QWEN3_30B, {"tensor_parallel": 8, "context_parallel": 4}, "context-parallel"),
        (QWEN3_30B, {"tensor_parallel": 8, "context_parallel": 3}, "context-parallel"),
        (DEEPSEEK_R1, {"tensor_parallel": 8, "context_parallel": 8}, None),
        (QWEN3_235B_FP8, {"tensor_parallel": 4}, None),
        (QWEN3_235B_FP8, {"tensor_parallel": 8}, None),
        (GPT_OSS_120B, {"tensor_parallel": 8}, None),
        (LLAMA_8B, {"prefill.tensor_parallel": 3, "decode.tensor_parallel": 2}, "heads"),
        (LLAMA_8B, {"prefill.workers": 5, "decode.workers": 4}, "devices"),
        (LLAMA_8B, {"speculation": "mtp", "speculative_tokens": 1}, "speculation"),
        (LLAMA_8B, {"speculation": "draft_model", "speculative_tokens": 1}, "speculation"),
        (DEEPSEEK_R1, {"tensor_parallel": 8, "speculation": "mtp", "speculative_tokens": 1}, None),
        (LLAMA_8B, {"quantization": "awq"}, "checkpoint"),
        (LLAMA_8B, {"quantization": "fp8"}, None),
        (QWEN3_235B_FP8, {"tensor_parallel": 4, "quantization": "gptq"}, "checkpoint"),
    ],
)
def test_public_models_on_eight_gpus(
    facts: dict[str, Any], words: dict[str, object], expected: str | None
) -> None:
    assert rule(facts, **words) == expected


def test_experts_of_a_quantised_checkpoint_are_not_cut_too_fine() -> None:
    many = gpus(32)
    assert (
        rule(QWEN3_235B_FP8, on=many, tensor_parallel=32) == "quantised-blocks"
    )  # slices of 48 in blocks of 128
    assert rule(QWEN3_235B_FP8, on=many, tensor_parallel=32, expert_parallel=True) is None
    assert rule(QWEN3_235B_FP8, on=many, tensor_parallel=16) is None  # 96, as three parts of a block
    assert rule(QWEN3_235B, on=many, tensor_parallel=32) is None


def test_cutting_a_quantised_checkpoints_tiles_is_less_likely_to_run() -> None:
    setting = replace(SETTING, hardware=gpus(), model=shape(QWEN3_235B_FP8))
    cut, whole = (
        probability_it_runs(EngineConfig.model_validate({"engine": "sglang", "tensor_parallel": tp}), setting)
        for tp in (8, 4)
    )
    assert cut == pytest.approx(0.5, abs=0.01)
    assert whole > 0.99


def test_a_draft_model_has_the_models_vocabulary_and_heads_to_split() -> None:
    def drafted_by(draft: ModelShape, tp: int, engine: str = "vllm") -> str | None:
        named = {"draft": KnownModel(draft)}
        setting = replace(SETTING, hardware=gpus(), model=target, named=named, real_text=True)
        words = {"speculation": "draft_model", "speculative_model": "draft", "speculative_tokens": 3}
        config = EngineConfig.model_validate({"engine": engine, "tensor_parallel": tp, **words})
        broken = refusal(config, setting)
        return broken.rule if broken else None

    target = shape(LLAMA_8B)
    assert drafted_by(target, 4) is None
    assert drafted_by(replace(target, vocab_size=32_000), 1) == "draft"
    assert drafted_by(replace(target, vocab_size=32_000), 1, "sglang") is None
    assert drafted_by(replace(target, attention_heads=6), 4) == "draft"


def test_a_draft_model_takes_memory() -> None:
    setting = replace(SETTING, hardware=gpus(1), model=shape(LLAMA_8B), real_text=True)
    setting = replace(setting, named={"draft": KnownModel(shape(LLAMA_70B))})
    words = {"speculation": "draft_model", "speculative_model": "draft", "speculative_tokens": 3}
    config = EngineConfig.model_validate({"engine": "vllm", "context_length": 8192, **words})
    assert probability_it_runs(config, replace(setting, named={})) > 0.99
    assert probability_it_runs(config, setting) < 0.1


def test_a_checkpoint_of_its_own_is_the_model_that_the_rules_ask() -> None:
    named = {"q": KnownModel(replace(shape(LLAMA_8B), attention_heads=6))}
    setting = replace(SETTING, hardware=gpus(), model=shape(LLAMA_8B), named=named)
    config = EngineConfig.model_validate({"engine": "vllm", "tensor_parallel": 4})
    assert refusal(config, setting) is None
    broken = refusal(config.replaced({"checkpoint": "q"}), setting)
    assert broken is not None
    assert broken.rule == "heads"
    assert refusal(config.replaced({"checkpoint": "not at hand"}), setting) is None


def test_what_engines_logged_corrects_the_memory_model_of_that_engine() -> None:
    setting = replace(SETTING, hardware=gpus(1), model=shape(LLAMA_8B))
    configs = [
        EngineConfig.model_validate({"engine": "vllm", "context_length": 8192, "max_num_seqs": n})
        for n in (64, 128)
    ]
    learned = calibrated_by(setting, ((config, 100_000) for config in configs))
    assert set(learned.calibrated) == {"vllm"}
    assert learned.calibrated["vllm"].runtime_bytes > setting.constants.runtime_bytes
    # What held less than was expected is expected to hold less next time.
    large = configs[0].replaced({"context_length": 120_000})
    assert probability_it_runs(large, learned) < probability_it_runs(large, setting)
    cores = Hardware(DeviceKind.CPU, (Device(DeviceKind.CPU, 0, "a core", "cpu-0", 1 << 30),))
    assert (
        calibrated_by(replace(setting, hardware=cores), ((config, 1) for config in configs)).calibrated == {}
    )


def test_what_one_engine_refuses_another_may_run() -> None:
    assert rule({**QWEN3_30B, "moe_intermediate_size": 770}, "trtllm", tensor_parallel=4) is None
    assert rule(LLAMA_8B, "nim", quantization="awq") is None


@pytest.mark.parametrize(
    ("facts", "engine", "words", "capability", "expected"),
    [
        (LLAMA_8B, "vllm", {"dtype": "bfloat16"}, (7, 5), "precision"),
        (LLAMA_8B, "vllm", {"dtype": "float16"}, (7, 5), None),
        (LLAMA_8B, "vllm", {"quantization": "fp8"}, (7, 0), "precision"),
        (LLAMA_8B, "vllm", {"quantization": "fp8"}, (8, 0), None),
        (LLAMA_8B, "trtllm", {"quantization": "fp8"}, (8, 0), "precision"),
        (LLAMA_8B, "trtllm", {"quantization": "nvfp4"}, (9, 0), "precision"),
        (LLAMA_8B, "trtllm", {"quantization": "nvfp4"}, (10, 0), None),
        (LLAMA_8B, "sglang", {"quantization": "w8a8_fp8"}, (8, 6), "precision"),
        (GPT_OSS_120B, "vllm", {}, (7, 5), "precision"),
        (GPT_OSS_120B, "vllm", {}, (9, 0), None),
        (LLAMA_8B, "vllm", {"dtype": "bfloat16"}, (), None),
    ],
)
def test_precisions_and_the_gpus_that_cannot(
    facts: dict[str, Any],
    engine: str,
    words: dict[str, object],
    capability: tuple[int, ...],
    expected: str | None,
) -> None:
    assert rule(facts, engine, gpus(capability=capability), **words) == expected


@pytest.mark.parametrize(
    ("facts", "words", "gib", "expected"),
    [
        (LLAMA_70B, {}, 80, "memory"),
        (LLAMA_70B, {}, 141, None),
        (LLAMA_70B, {"tensor_parallel": 2}, 80, None),
        (LLAMA_70B, {"quantization": "fp8"}, 80, None),
        (LLAMA_70B, {"memory_fraction": 0.9}, 141, "memory"),
        (DEEPSEEK_R1, {"tensor_parallel": 8}, 141, None),
        (DEEPSEEK_R1, {"tensor_parallel": 8}, 72, "memory"),
        (DEEPSEEK_R1, {"data_parallel": 8, "expert_parallel": True}, 141, None),
        (DEEPSEEK_R1, {"data_parallel": 8, "dp_attention": False}, 141, "memory"),
        (QWEN3_235B, {"tensor_parallel": 4}, 80, "memory"),
        (QWEN3_235B, {"tensor_parallel": 4, "extra_args": ("--cpu-offload-gb", "100")}, 80, None),
        (LLAMA_8B, {"context_length": 131072}, 24, "memory"),
        (LLAMA_8B, {"context_length": 131072, "kv_cache_dtype": "fp8"}, 24, None),
        (LLAMA_8B, {"context_length": 32768}, 24, None),
    ],
)
def test_memory_refuses_by_the_least_that_is_needed(
    facts: dict[str, Any], words: dict[str, object], gib: float, expected: str | None
) -> None:
    assert rule(facts, on=gpus(gib=gib), **words) == expected


def test_only_vllm_wants_its_longest_context_to_fit_before_it_starts() -> None:
    assert rule(LLAMA_8B, "sglang", gpus(gib=24), context_length=131072) is None


def test_cores_have_no_memory_of_their_own() -> None:
    core = Device(DeviceKind.CPU, 0, "core", "cpu-0", GIB)
    assert rule(LLAMA_70B, on=Hardware(DeviceKind.CPU, (core,))) is None


@pytest.mark.parametrize(
    "arguments",
    [
        ("--hf-overrides", '{"num_attention_heads": 12}'),
        ("--json-model-override-args", '{"num_attention_heads": 12}'),
        ("--cpu-offload-gb=100",),
        ("--quantization", "fp8"),
        ("-q", "fp8"),
        ("-tp", "4"),
        ("--tp-size", "4"),
        ("--pipeline-parallel-size", "4"),
    ],
)
def test_arguments_that_change_model_or_split_leave_nothing_certain(arguments: tuple[str, ...]) -> None:
    assert rule(LLAMA_8B, tensor_parallel=3) == "heads"
    assert rule(LLAMA_8B, tensor_parallel=3, extra_args=arguments) is None
    assert rule(LLAMA_70B, on=gpus(gib=24)) == "memory"
    assert rule(LLAMA_70B, on=gpus(gib=24), extra_args=arguments) is None


@pytest.mark.parametrize(
    ("size", "expected"), [(16, "block-size"), (48, "block-size"), (32, None), (96, None)]
)
def test_blocks_of_vllm_on_a_cpu_are_multiples_of_32(size: int, expected: str | None) -> None:
    cores = Hardware(DeviceKind.CPU, (Device(DeviceKind.CPU, 0, "core", "cpu-0", GIB),))
    assert rule(LLAMA_8B, on=cores, block_size=size) == expected
    assert rule(LLAMA_8B, block_size=size) is None
    assert rule(LLAMA_8B, "sglang", cores, block_size=size) is None
    assert rule(DEEPSEEK_R1, on=cores, block_size=size) is None


@pytest.mark.parametrize(
    ("instructions", "expected"),
    [((), "kv-on-cores"), (("avx512f",), None), (("amx_tile",), None), (None, None)],
)
def test_an_fp8_cache_on_a_cpu_needs_wide_vectors(
    instructions: tuple[str, ...] | None, expected: str | None
) -> None:
    known = None if instructions is None else frozenset(instructions)
    core = Device(DeviceKind.CPU, 0, "core", "cpu-0", GIB, instructions=known)
    cores = Hardware(DeviceKind.CPU, (core,))
    assert rule(LLAMA_8B, on=cores, kv_cache_dtype="fp8") == expected
    assert rule(LLAMA_8B, on=cores, kv_cache_dtype="auto") is None
    assert rule(LLAMA_8B, "sglang", cores, kv_cache_dtype="fp8") is None


@pytest.mark.parametrize(
    ("facts", "engine", "quantization", "expected"),
    [
        (LLAMA_8B, "vllm", "fp8", "precision"),
        (LLAMA_8B, "vllm", "int8_per_channel_weight_only", None),
        (LLAMA_8B, "vllm", "experts_int8", None),
        (QWEN3_30B, "vllm", "experts_int8", "precision"),
        (LLAMA_8B, "sglang", "fp8", None),
        (QWEN3_235B_FP8, "vllm", "fp8", None),
    ],
)
def test_what_a_cpu_cannot_quantise_on_loading(
    facts: dict[str, Any], engine: str, quantization: str, expected: str | None
) -> None:
    cores = Hardware(DeviceKind.CPU, (Device(DeviceKind.CPU, 0, "core", "cpu-0", GIB),))
    assert rule(facts, engine, cores, quantization=quantization) == expected


def test_a_method_told_in_a_file_of_its_own_is_missed_only_where_all_files_are_there() -> None:
    config = EngineConfig.model_validate({"engine": "vllm", "quantization": "modelopt"})
    setting = replace(SETTING, model=shape(LLAMA_8B), hardware=gpus())
    assert refusal(config, setting) is None
    stored = StoredWeights(bytes_by_dtype={"BF16": 1000}, numbers_by_dtype={"BF16": 500})
    refused = refusal(config, replace(setting, stored=stored))
    assert refused is not None
    assert refused.rule == "checkpoint"


def test_arguments_of_the_study_count_too() -> None:
    overridden = ("--hf-overrides", '{"num_attention_heads": 12}')
    assert rule(LLAMA_8B, tensor_parallel=3, extra_args=("--seed", "1")) == "heads"
    of_the_study = replace(SETTING, model=shape(LLAMA_8B), args=overridden)
    config = EngineConfig.model_validate({"engine": "vllm", "tensor_parallel": 3})
    assert refusal(config, of_the_study) is None


def test_a_refusal_shows_its_rule() -> None:
    refused = Refusal("heads", "tensor_parallel 3 does not divide")
    assert str(refused) == "tensor_parallel 3 does not divide [heads]"
    assert len(RULES) == len(set(RULES))


def test_the_chance_to_run_is_1_of_what_is_not_known_and_0_of_what_is_refused() -> None:
    assert probability_it_runs(EngineConfig(engine="fake"), SETTING) == 1.0
    assert probability_it_runs(EngineConfig(engine="vllm"), replace(SETTING, model=None)) == 1.0
    refused = EngineConfig.model_validate({"engine": "vllm", "tensor_parallel": 3})
    assert probability_it_runs(refused, replace(SETTING, model=shape(LLAMA_8B))) == 0.0


@given(
    name=st.sampled_from(sorted(PUBLISHED_PARAMETERS)),
    tensor=st.sampled_from([1, 2, 4, 8]),
    gib=st.sampled_from([24.0, 80.0, 141.0, 288.0]),
)
def test_the_chance_to_run_is_0_just_where_a_rule_refuses(name: str, tensor: int, gib: float) -> None:
    model = shape(PUBLISHED_PARAMETERS[name][0])
    config = EngineConfig.model_validate({"engine": "vllm", "tensor_parallel": tensor})
    chances = [
        (probability_it_runs(config, setting), refusal(config, setting))
        for setting in (replace(SETTING, hardware=gpus(gib=size), model=model) for size in (gib, 2 * gib))
    ]
    for chance, refused in chances:
        assert 0 <= chance <= 1
        assert (chance == 0) == (refused is not None)
    assert chances[0][0] <= chances[1][0] + 1e-9
