"""What TensorRT-LLM is run with for a configuration, how its command lines are read back, how it fails."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.domain.basics.errors import InfeasibleConfigError
from autotune.domain.configs.config import SEARCHABLE, EngineConfig
from autotune.domain.hardware.hardware import Device, DeviceKind
from autotune.domain.launches.launch import (
    EngineEnvironment,
    Evidence,
    FailureClass,
    LaunchContext,
    Phase,
    ProcessSpec,
)
from launchers.options import HOST_WORDS, MODEL_WORD
from launchers.trtllm import LAUNCHER

LOGS = Path(__file__).parents[1] / "data/trtllm_logs"
COUNTING = "return_perf_metrics: true\nenable_iter_perf_stats: true\n"
"""What every YAML ends with: without it the server counts nothing."""


def devices(count: int) -> tuple[Device, ...]:
    return tuple(Device(DeviceKind.CUDA, index, "a GPU", f"GPU-{index}", 1 << 37) for index in range(count))


def context(
    *,
    model: str = "some/model",
    count: int = 1,
    args: tuple[str, ...] = (),
    flags: dict[str, tuple[str, ...]] | None = None,
    env: dict[str, str] | None = None,
) -> LaunchContext:
    environment = EngineEnvironment(
        engine="trtllm",
        executable=Path("/engines/trtllm/bin/trtllm-serve"),
        version="1.3.0",
        kind=DeviceKind.CUDA,
        flags=flags or {},
    )
    return LaunchContext(
        model=model, environment=environment, devices=devices(count), args=args, env=env or {}
    )


def config(**words: object) -> EngineConfig:
    return EngineConfig.model_validate({"engine": "trtllm", **words})


def server(config: EngineConfig, context: LaunchContext) -> ProcessSpec:
    (process,) = LAUNCHER.launch_spec(config, context).processes
    return process


def said(config: EngineConfig, **more: object) -> tuple[str, str]:
    """The flags that the configuration decides, and the YAML's lines before what every YAML ends with."""
    process = server(config, context(**more))  # type: ignore[arg-type]
    assert process.argv[:5] == (
        *("/engines/trtllm/bin/trtllm-serve", "serve", "some/model", "--backend", "pytorch"),
    )
    address = ("--host", "{host:server}", "--port", "{port:server}")
    options = ("--extra_llm_api_options", "{file:options.yaml}")
    end = (*options, *config.extra_args, *address)
    assert process.argv[-len(end) :] == end
    yaml = process.files["options.yaml"]
    assert yaml.endswith(COUNTING)
    return shlex.join(process.argv[5 : -len(end)]), yaml.removesuffix(COUNTING)


GOLDEN = {
    "DeepSeek-R1 on 8 x H200, latency": (
        {
            "tensor_parallel": 8,
            "expert_parallel": True,
            "max_num_seqs": 64,
            "max_num_batched_tokens": 8192,
            "kv_cache_dtype": "fp8",
            "memory_fraction": 0.85,
            "graph_max_batch": 64,
            "moe_backend": "deepgemm",
            "speculation": "mtp",
            "speculative_tokens": 3,
        },
        (
            "--tp_size 8 --ep_size 8 --max_batch_size 64 --max_num_tokens 8192 "
            "--kv_cache_free_gpu_memory_fraction 0.85 --kv_cache_dtype fp8"
        ),
        """\
moe_config:
  backend: DEEPGEMM
cuda_graph_config:
  enable_padding: true
  max_batch_size: 64
speculative_config:
  decoding_type: MTP
  max_draft_len: 3
""",
    ),
    "DeepSeek-R1 in NVFP4 on 8 x B200, throughput": (
        {
            "data_parallel": 8,
            "dp_attention": True,
            "expert_parallel": True,
            "max_num_seqs": 1024,
            "max_num_batched_tokens": 8192,
            "kv_cache_dtype": "fp8",
            "memory_fraction": 0.8,
            "prefix_caching": False,
            "graph_capture": True,
            "graph_max_batch": 1024,
            "moe_backend": "CUTLASS",
            "all2all_backend": "nvlink_one_sided",
        },
        (
            "--tp_size 8 --enable_attention_dp --ep_size 8 --max_batch_size 1024 --max_num_tokens 8192 "
            "--kv_cache_free_gpu_memory_fraction 0.8 --kv_cache_dtype fp8"
        ),
        """\
kv_cache_config:
  enable_block_reuse: false
moe_config:
  backend: CUTLASS
cuda_graph_config:
  enable_padding: true
  max_batch_size: 1024
""",
    ),
    "gpt-oss-120b on 8 x B200": (
        {
            "data_parallel": 8,
            "dp_attention": True,
            "expert_parallel": True,
            "moe_backend": "TRTLLM",
            "max_num_seqs": 640,
            "chunked_prefill": True,
            "speculation": "eagle3",
            "speculative_model": "nvidia/gpt-oss-120b-Eagle3",
            "speculative_tokens": 3,
        },
        "--tp_size 8 --enable_attention_dp --ep_size 8 --max_batch_size 640 --enable_chunked_prefill",
        """\
moe_config:
  backend: TRTLLM
speculative_config:
  decoding_type: Eagle3
  max_draft_len: 3
  speculative_model: nvidia/gpt-oss-120b-Eagle3
""",
    ),
    "Qwen3-235B on 8 x H200": (
        {
            "tensor_parallel": 4,
            "pipeline_parallel": 2,
            "expert_parallel": False,
            "attention_backend": "FLASHINFER",
            "block_size": 64,
            "context_length": 40960,
            "scheduling_policy": "max_utilization",
        },
        "--tp_size 4 --ep_size 1 --pp_size 2 --max_seq_len 40960",
        """\
kv_cache_config:
  tokens_per_block: 64
attn_backend: FLASHINFER
scheduler_config:
  capacity_scheduler_policy: MAX_UTILIZATION
""",
    ),
    "Llama-3.3-70B on 8 x H200": (
        {
            "tensor_parallel": 8,
            "max_num_seqs": 256,
            "kv_cache_dtype": "bfloat16",
            "compilation": True,
            "speculation": "ngram",
            "speculative_tokens": 4,
            "prompt_lookup_max": 3,
            "tool_parser": "llama",
        },
        "--tp_size 8 --max_batch_size 256 --tool_parser llama",
        """\
kv_cache_config:
  dtype: bfloat16
torch_compile_config:
  enable_fullgraph: true
speculative_config:
  decoding_type: NGram
  max_draft_len: 4
  max_matching_ngram_size: 3
""",
    ),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_golden_commands(case: str) -> None:
    words, flags, yaml = GOLDEN[case]
    assert said(config(**words), count=8) == (flags, yaml)


DRAFTING = """\
speculative_config:
  decoding_type: Draft_Target
  max_draft_len: 2
  speculative_model: d
"""


@pytest.mark.parametrize(
    ("words", "yaml"),
    [
        ({}, ""),
        ({"eager": True}, "cuda_graph_config: null\ntorch_compile_config: null\n"),
        ({"eager": False}, ""),
        ({"graph_capture": False}, "cuda_graph_config: null\n"),
        ({"graph_capture": True}, "cuda_graph_config:\n  enable_padding: true\n"),
        ({"compilation": False}, "torch_compile_config: null\n"),
        ({"chunked_prefill": False}, "enable_chunked_prefill: false\n"),
        ({"dp_attention": False}, "enable_attention_dp: false\n"),
        ({"scheduling_policy": "priority"}, "scheduler_config:\n  waiting_queue_policy: priority\n"),
        ({"dtype": "bfloat16"}, "dtype: bfloat16\n"),
        ({"speculation": "none"}, ""),
        ({"speculation": "mtp"}, "speculative_config:\n  decoding_type: MTP\n"),
        (
            {"speculation": "draft_model", "speculative_tokens": 2, "speculative_model": "d"},
            DRAFTING,
        ),
        ({"lora": False}, "enable_lora: false\n"),
        (
            {"lora": True},
            "lora_config:\n  lora_target_modules:\n  - attn_q\n  - attn_k\n  - attn_v\n  max_lora_rank: 16\n",
        ),
    ],
)
def test_what_has_no_flag_stands_in_the_yaml(words: dict[str, object], yaml: str) -> None:
    assert said(config(**words)) == ("", yaml)


def test_helix_ranks_are_tensor_parallel_ranks() -> None:
    words = {"tensor_parallel": 8, "context_parallel": 2, "expert_parallel": True, "block_size": 64}
    flags, yaml = said(config(**words), count=8)
    assert flags == "--tp_size 4 --cp_size 2 --ep_size 8"
    assert yaml == (
        "cp_config:\n  cp_type: HELIX\n  tokens_per_block: 64\nkv_cache_config:\n  tokens_per_block: 64\n"
    )
    assert config(**words).ranks == 8


def test_blocks_are_named_to_helix_where_no_word_names_them() -> None:
    _, yaml = said(config(tensor_parallel=2, context_parallel=2), count=2)
    assert yaml.count("tokens_per_block: 32") == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"quantization": "fp8"}, "trtllm: cannot express quantization: fp8"),
        ({"profile": "p"}, "trtllm: cannot express profile"),
        ({"prefill.workers": 2}, "trtllm: cannot express prefill.workers"),
        ({"data_parallel": 2}, "data_parallel 2 needs dp_attention: true"),
        ({"data_parallel": 2, "dp_attention": False}, "data_parallel 2 needs dp_attention: true"),
        ({"tensor_parallel": 2, "dp_attention": True}, "dp_attention with tensor_parallel 2"),
        (
            {"tensor_parallel": 4, "context_parallel": 3},
            "context_parallel 3 does not divide tensor_parallel 4",
        ),
        ({"eager": True, "compilation": True}, "eager leaves no room for compilation"),
        ({"eager": True, "graph_max_batch": 8}, "eager leaves no room for graph_max_batch"),
        ({"graph_capture": False, "graph_max_batch": 8}, "graph_max_batch needs graph_capture"),
        ({"kv_cache_dtype": "int4"}, "kv_cache_dtype cannot be 'int4'; choices: auto, fp8"),
        ({"moe_backend": "wideep"}, "moe_backend cannot be 'wideep'; choices: AUTO"),
        ({"attention_backend": "fa3"}, "attention_backend cannot be 'fa3'; choices: TRTLLM"),
        ({"all2all_backend": "pplx"}, "all2all_backend cannot be 'pplx'; choices: NVLINK_ONE_SIDED"),
        ({"scheduling_policy": "lpm"}, "scheduling_policy cannot be 'lpm'; choices: fcfs"),
        ({"dtype": "float64"}, "dtype cannot be 'float64'"),
        ({"speculation": "eagle"}, "eagle is not served"),
        ({"speculation": "ngram"}, "ngram needs speculative_tokens"),
        ({"speculation": "eagle3", "speculative_tokens": 3}, "eagle3 needs speculative_model"),
        ({"speculative_tokens": 3}, "speculative_tokens needs speculation"),
        ({"speculation": "none", "speculative_tokens": 3}, "speculative_tokens needs speculation"),
        (
            {"speculation": "mtp", "speculative_tokens": 1, "prompt_lookup_max": 2},
            "prompt_lookup_max needs speculation: ngram",
        ),
        (
            {"speculation": "ngram", "speculative_tokens": 1, "speculative_model": "d"},
            "speculative_model needs speculation",
        ),
    ],
)
def test_what_cannot_be_said_is_refused_by_name(words: dict[str, object], says: str) -> None:
    with pytest.raises(InfeasibleConfigError) as caught:
        LAUNCHER.launch_spec(config(**words), context(count=8))
    assert str(caught.value).startswith("trtllm: ")
    assert says in str(caught.value)


COUNTS = st.integers(1, 10**6)
VALUES: dict[str, st.SearchStrategy[object]] = {
    **dict.fromkeys(
        ("pipeline_parallel", "max_num_seqs", "max_num_batched_tokens", "block_size", "context_length"),
        COUNTS,
    ),
    "tensor_parallel": COUNTS,
    "data_parallel": st.just(1),
    "context_parallel": st.just(1),
    "dp_attention": st.booleans(),
    "expert_parallel": st.booleans(),
    "memory_fraction": st.floats(0.01, 1),
    "kv_cache_dtype": st.sampled_from(("auto", "fp8", "nvfp4", "bfloat16")),
    "prefix_caching": st.booleans(),
    "chunked_prefill": st.booleans(),
    "attention_backend": st.sampled_from(("TRTLLM", "flashinfer")),
    "moe_backend": st.sampled_from(("CUTLASS", "trtllm")),
    "all2all_backend": st.sampled_from(("DEEPEP", "allgather")),
    "dtype": st.sampled_from(("auto", "float16")),
    "scheduling_policy": st.sampled_from(("fcfs", "guaranteed_no_evict")),
    "eager": st.just(True),
    "graph_capture": st.booleans(),
    "graph_max_batch": COUNTS,
    "compilation": st.booleans(),
    "speculation": st.just("mtp"),
    "lora": st.booleans(),
    "tool_parser": st.sampled_from(("auto", "qwen3")),
}
NEEDED: dict[str, dict[str, object]] = {
    "speculative_tokens": {"speculation": "ngram"},
    "speculative_model": {"speculation": "mtp"},
    "prompt_lookup_max": {"speculation": "ngram", "speculative_tokens": 2},
}
"""Words that say nothing without others."""


def test_every_dimension_is_tried_here() -> None:
    assert LAUNCHER.traits.dimensions == {*VALUES, *NEEDED, *HOST_WORDS, MODEL_WORD}


@given(st.data())
def test_every_word_in_dimensions_changes_the_output(data: st.DataObject) -> None:
    word = data.draw(st.sampled_from(sorted(VALUES)))
    with_word = server(config(**{word: data.draw(VALUES[word])}), context())
    without = server(config(), context())
    assert (with_word.argv, with_word.files, with_word.env) != (without.argv, without.files, without.env)


@pytest.mark.parametrize("word", NEEDED)
def test_words_of_speculation_change_the_output(word: str) -> None:
    base = {"speculative_tokens": 1, **NEEDED[word]}
    changed = {**base, word: "d" if word == "speculative_model" else 7}
    assert server(config(**base), context()).files != server(config(**changed), context()).files


@pytest.mark.parametrize("word", sorted(set(SEARCHABLE) - LAUNCHER.traits.dimensions))
def test_every_other_word_is_refused(word: str) -> None:
    kind = EngineConfig.model_fields.get(word)
    text = kind is not None and "str" in str(kind.annotation) and "Literal" not in str(kind.annotation)
    value: object = "x" if text or word.endswith("backend") else 1 if "memory" in word else True
    if word.rpartition(".")[2] in {"workers", "tensor_parallel", "pipeline_parallel", "data_parallel"} or (
        word.rpartition(".")[2].startswith(("max_", "graph_max", "context_"))
    ):
        value = 2
    with pytest.raises(InfeasibleConfigError, match=word):
        LAUNCHER.launch_spec(config(**{word: value}), context())


@pytest.mark.parametrize("flag", ["--extra_llm_api_options", "--config"])
def test_a_yaml_of_the_studys_own_is_the_only_one(flag: str) -> None:
    mine = (flag, "mine.yaml")
    process = server(config(tensor_parallel=2), context(args=mine, count=2))
    assert process.argv[5:9] == ("--tp_size", "2", *mine)
    assert not process.files
    with pytest.raises(
        InfeasibleConfigError, match="enable_block_reuse must stand in a YAML, and args name one"
    ):
        LAUNCHER.launch_spec(config(prefix_caching=False), context(args=mine))


def test_arguments_are_checked_against_the_installed_parser() -> None:
    flags = {"--tp_size": (), "--kv_cache_dtype": ("auto", "fp8")}
    with pytest.raises(
        InfeasibleConfigError, match=r"max_num_seqs: trtllm 1.3.0 has no flag --max_batch_size"
    ):
        LAUNCHER.launch_spec(config(max_num_seqs=4), context(flags=flags))
    with pytest.raises(InfeasibleConfigError, match=r"kv_cache_dtype: --kv_cache_dtype .* cannot be 'nvfp4'"):
        LAUNCHER.launch_spec(config(kv_cache_dtype="nvfp4"), context(flags=flags))
    with pytest.raises(InfeasibleConfigError, match=r"extra_args: trtllm 1.3.0 has no flag --tp-size"):
        LAUNCHER.launch_spec(config(extra_args=("--tp-size", "2")), context(flags=flags))


def test_only_the_leased_gpus_are_shown_and_the_study_wins() -> None:
    words = {"all2all_backend": "deepep"}
    env = server(config(**words), context(count=2, env={"TRTLLM_NO_USAGE_STATS": "0"})).env
    assert env == {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "0,1",
        "TRTLLM_NO_USAGE_STATS": "0",
        "TRTLLM_FORCE_COMM_METHOD": "DEEPEP",
    }


def test_a_folder_is_served_under_its_last_name(tmp_path: Path) -> None:
    spec = LAUNCHER.launch_spec(config(), context(model=str(tmp_path)))
    assert spec.served_model == tmp_path.name
    assert spec.processes[0].env["HF_HUB_OFFLINE"] == "1"
    named = LAUNCHER.launch_spec(config(), context(args=("--served_model_name", "m")))
    assert named.served_model == "m"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("trtllm-serve m", {}),
        ("trtllm-serve serve m --tp_size 8 --ep_size=8", {"tensor_parallel": 8, "expert_parallel": True}),
        ("A=1 trtllm-serve m --tensor_parallel_size 4 --ep_size 1",
         {"tensor_parallel": 4, "expert_parallel": False}),
        ("trtllm-serve m --tp_size 8 --ep_size 2", {"tensor_parallel": 8, "extra_args": ("--ep_size", "2")}),
        ("trtllm-serve m --tp_size 8 --ep_size 8 --enable_attention_dp --pp_size 2",
         {"data_parallel": 8, "dp_attention": True, "expert_parallel": True, "pipeline_parallel": 2}),
        ("trtllm-serve serve m --backend pytorch --max_batch_size 4 --max_num_tokens 64 --max_seq_len 32",
         {"max_num_seqs": 4, "max_num_batched_tokens": 64, "context_length": 32}),
        ("trtllm-serve m --free_gpu_memory_fraction .8 --kv_cache_dtype fp8 --enable_chunked_prefill",
         {"memory_fraction": 0.8, "kv_cache_dtype": "fp8", "chunked_prefill": True}),
        ("trtllm-serve m --host 0.0.0.0 --port 80 --config a.yaml --reasoning_parser r --trust_remote_code",
         {"extra_args": ("--config", "a.yaml", "--reasoning_parser", "r", "--trust_remote_code")}),
        ("python -m tensorrt_llm.commands.serve m --tool_parser qwen3", {"tool_parser": "qwen3"}),
    ],
)  # fmt: skip
def test_production_commands_are_read(command: str, words: dict[str, object]) -> None:
    assert LAUNCHER.parse_command(command) == (config(**words), "m")


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("", "no trtllm-serve command"),
        ("vllm serve m", "no trtllm-serve command"),
        ("trtllm-serve", "none was found"),
        ("trtllm-serve serve m n", "m, n"),
        ("trtllm-serve disaggregated -c c.yaml", "starts no server of one model"),
        ("trtllm-serve m --backend _autodeploy", "is another engine"),
        ("trtllm-serve m --tp_size x", "--tp_size takes a positive number, not 'x'"),
        ("trtllm-serve m --cp_size 2", "--cp_size says how many"),
        ("trtllm-serve m | tee log", "alone"),
    ],
)
def test_other_commands_are_refused(command: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        LAUNCHER.parse_command(command)


OF_FLAGS = (
    *("tensor_parallel", "pipeline_parallel", "max_num_seqs", "max_num_batched_tokens"),
    *("context_length", "memory_fraction", "tool_parser"),
)
FLAGGED = {
    **{word: VALUES[word] for word in OF_FLAGS},
    "chunked_prefill": st.just(True),
    "kv_cache_dtype": st.sampled_from(("auto", "fp8", "nvfp4")),
}


@given(st.fixed_dictionaries({}, optional=FLAGGED))
def test_what_flags_say_reads_back_as_the_same_configuration(words: dict[str, object]) -> None:
    written = config(**words)
    argv = server(written, context()).argv
    read, model = LAUNCHER.parse_command(shlex.join(argv))
    own = ("--extra_llm_api_options", "{file:options.yaml}")
    assert (read, model) == (written.replaced({"extra_args": own}), "some/model")


CAUSES = {
    "no_such_option.log": (FailureClass.REFUSED_ARGUMENTS, "Error: No such option: --ep"),
    "invalid_argument.log": (FailureClass.REFUSED_ARGUMENTS, "Failed to parse the arguments for the LLM"),
    "unexpected_keyword.log": (FailureClass.REFUSED_ARGUMENTS, "TypeError: LlmArgs.__init__() got"),
    "unknown_architecture.log": (FailureClass.CHECKPOINT, "ValueError: Unknown architecture"),
    "unsupported_architecture.log": (FailureClass.CHECKPOINT, "NotImplementedError: The given huggingface"),
    "kv_cache_out_of_memory.log": (FailureClass.OUT_OF_MEMORY, "Executor creation failed due to"),
    "loading_out_of_memory.log": (
        FailureClass.OUT_OF_MEMORY_LOADING,
        "Error executing load_single_module with args",
    ),
    "nccl.log": (FailureClass.COMMUNICATION, "Assertion failed: Failed, NCCL error"),
    "fp8_on_blackwell.log": (
        FailureClass.UNSUPPORTED_QUANTIZATION,
        "fp8 blockscale gemm only support Hopper.",
    ),
    "deepgemm_on_blackwell.log": (
        FailureClass.UNSUPPORTED_COMBINATION,
        "RuntimeError: DeepGEMM only supports Hopper (SM90)",
    ),
}


def evidence(name: str, phase: Phase = Phase.STARTING, exit_code: int = 1) -> Evidence:
    log = (LOGS / name).read_text()
    assert log.startswith("# source: https://github.com/NVIDIA/TensorRT-LLM/")
    return Evidence(phase=phase, exit_code=exit_code, log=log.partition("\n")[2])


def test_every_log_is_judged() -> None:
    judged = {*CAUSES, "gemm.log", "forward_error.log"}
    assert judged == {path.name for path in LOGS.iterdir()}


@pytest.mark.parametrize("name", CAUSES)
def test_failures_of_public_issues_are_understood(name: str) -> None:
    failure = LAUNCHER.classify_failure(evidence(name))
    assert (failure.failure_class, failure.line.startswith(CAUSES[name][1])) == (CAUSES[name][0], True)


def test_a_message_that_no_rule_knows_is_kept_and_not_guessed_at() -> None:
    failure = LAUNCHER.classify_failure(evidence("gemm.log"))
    assert failure.failure_class is FailureClass.UNRECOGNISED
    assert "Error occurred when running GEMM!" in failure.line


@pytest.mark.parametrize(
    ("phase", "failure_class"),
    [
        (Phase.FIRST_REQUEST, FailureClass.DIED_AT_FIRST_REQUEST),
        (Phase.LOADING, FailureClass.DIED_UNDER_LOAD),
    ],
)
def test_an_executor_that_is_dead_has_died_whatever_its_process_does(
    phase: Phase, failure_class: FailureClass
) -> None:
    failure = LAUNCHER.classify_failure(evidence("forward_error.log", phase, exit_code=0))
    assert failure.failure_class is failure_class


@pytest.mark.parametrize(
    ("before", "failure_class"),
    [
        ("Loading weights: 12%|#  | 9/801", FailureClass.OUT_OF_MEMORY_LOADING),
        ("Model init total -- 49.14s", FailureClass.OUT_OF_MEMORY_PROFILING),
    ],
)
def test_want_of_memory_is_told_apart_by_what_was_logged_before(
    before: str, failure_class: FailureClass
) -> None:
    log = f"{before}\n{evidence('kv_cache_out_of_memory.log').log}"
    failure = LAUNCHER.classify_failure(Evidence(phase=Phase.STARTING, exit_code=1, log=log))
    assert failure.failure_class is failure_class
