"""What vLLM is run with for a configuration, and how its command lines are read back."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.adapters.engine_env import EngineEnvironments
from autotune.domain.config import SEARCHABLE, EngineConfig
from autotune.domain.errors import InfeasibleConfigError
from autotune.domain.hardware import Device, DeviceKind
from autotune.domain.launch import EngineEnvironment, LaunchContext, ProcessSpec
from launchers.vllm import LAUNCHER

FLAGS = {
    flag: tuple(choices)
    for flag, choices in json.loads(
        (Path(__file__).parents[1] / "data/vllm_logs/flags-0.32.0.json").read_text()
    ).items()
}
"""What the parser probe said of vLLM 0.32.0."""


def device(index: int, kind: DeviceKind = DeviceKind.CUDA, uid: str = "") -> Device:
    return Device(kind=kind, index=index, name="a device", uid=uid or f"GPU-{index}", memory_bytes=1 << 30)


def context(
    kind: DeviceKind = DeviceKind.CUDA,
    *,
    model: str = "some/model",
    devices: tuple[Device, ...] = (device(0),),
    args: tuple[str, ...] = (),
    env: dict[str, str] | None = None,
    flags: dict[str, tuple[str, ...]] = FLAGS,
) -> LaunchContext:
    environment = EngineEnvironment(
        engine="vllm", executable=Path("/engines/vllm/bin/vllm"), version="0.32.0", kind=kind, flags=flags
    )
    return LaunchContext(model=model, environment=environment, devices=devices, args=args, env=env or {})


def config(**words: object) -> EngineConfig:
    return EngineConfig.model_validate({"engine": "vllm", **words})


def server(config: EngineConfig, context: LaunchContext) -> ProcessSpec:
    (process,) = LAUNCHER.launch_spec(config, context).processes
    return process


def flags_of(config: EngineConfig) -> tuple[str, ...]:
    """The part of the command line that the configuration decides."""
    argv = server(config, context()).argv
    return argv[3:-4]


COUNTS = (
    *("tensor_parallel", "pipeline_parallel", "data_parallel", "block_size", "context_length"),
    "max_num_seqs",
)
SWITCHES = ("expert_parallel", "chunked_prefill", "prefix_caching", "lora", "eager")
names = st.from_regex(r"[a-z][a-z0-9_]{0,9}", fullmatch=True)
counts = st.integers(1, 10**6)
words: st.SearchStrategy[dict[str, object]] = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(COUNTS, counts),
        # Never below the sequences or the context, which the scheduler refuses.
        "max_num_batched_tokens": st.integers(10**6, 10**7),
        **dict.fromkeys(SWITCHES, st.booleans()),
        **dict.fromkeys(("dtype", "kv_cache_dtype", "tool_parser"), names),
        "quantization": names.filter(lambda name: name != "none"),
        "memory_fraction": st.floats(0, 1, exclude_min=True),
    },
)
speculation: st.SearchStrategy[dict[str, object]] = st.just({}) | st.fixed_dictionaries(
    {"speculation": st.just("ngram"), "speculative_tokens": counts}, optional={"prompt_lookup_max": counts}
)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (
            {"chunked_prefill": False, "max_num_batched_tokens": 512, "context_length": 2048},
            "without chunked_prefill max_num_batched_tokens 512 must hold context_length 2048",
        ),
        ({"max_num_batched_tokens": 16, "max_num_seqs": 32}, "16 is below max_num_seqs 32"),
    ],
)
def test_what_the_scheduler_refuses_is_refused_on_paper(words: dict[str, object], why: str) -> None:
    with pytest.raises(InfeasibleConfigError, match=why):
        LAUNCHER.launch_spec(config(**words), context())


def test_every_word_of_the_vocabulary_can_be_expressed() -> None:
    assert LAUNCHER.traits.dimensions == frozenset(SEARCHABLE)


@given(words, speculation)
def test_what_is_launched_reads_back_as_the_same_configuration(
    some: dict[str, object], speculation: dict[str, object]
) -> None:
    written = config(**some, **speculation)
    argv = server(written, context(flags={})).argv
    assert LAUNCHER.parse_command(shlex.join(argv)) == (written, "some/model")


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        ({}, ""),
        ({"tensor_parallel": 2, "data_parallel": 4}, "--tensor-parallel-size 2 --data-parallel-size 4"),
        ({"pipeline_parallel": 2}, "--pipeline-parallel-size 2"),
        ({"expert_parallel": True}, "--enable-expert-parallel"),
        ({"expert_parallel": False}, "--no-enable-expert-parallel"),
        ({"max_num_seqs": 8, "max_num_batched_tokens": 512}, "--max-num-seqs 8 --max-num-batched-tokens 512"),
        ({"chunked_prefill": True}, "--enable-chunked-prefill"),
        ({"prefix_caching": False}, "--no-enable-prefix-caching"),
        ({"speculation": "none", "quantization": "none"}, ""),
        (
            {"speculation": "ngram", "speculative_tokens": 3, "prompt_lookup_max": 4},
            """--speculative-config
            '{"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4}'""",
        ),
        ({"dtype": "float16", "quantization": "awq"}, "--dtype float16 --quantization awq"),
        ({"kv_cache_dtype": "fp8", "block_size": 32}, "--kv-cache-dtype fp8 --block-size 32"),
        ({"memory_fraction": 0.85}, "--gpu-memory-utilization 0.85"),
        ({"context_length": 4096}, "--max-model-len 4096"),
        ({"lora": True, "eager": True}, "--enable-lora --enforce-eager"),
        ({"tool_parser": "hermes"}, "--enable-auto-tool-choice --tool-call-parser hermes"),
        ({"eager": False, "extra_args": ("--seed", "3")}, "--no-enforce-eager --seed 3"),
    ],
)  # fmt: skip
def test_words_become_flags(words: dict[str, object], flags: str) -> None:
    assert flags_of(config(**words)) == tuple(shlex.split(flags))


def test_the_command_starts_with_the_model_and_ends_with_the_address() -> None:
    argv = server(config(extra_args=("--seed", "1")), context(args=("--disable-log-stats",))).argv
    assert argv == (
        *("/engines/vllm/bin/vllm", "serve", "some/model", "--seed", "1", "--disable-log-stats"),
        *("--host", "{host:server}", "--port", "{port:server}"),
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"kv_cache_dtype": "int3"}, "kv_cache_dtype: --kv-cache-dtype of vllm 0.32.0 cannot be 'int3'"),
        ({"extra_args": ("--no-such-flag", "3")}, "extra_args: vllm 0.32.0 has no flag --no-such-flag"),
        ({"extra_args": ("--dtype=int3",)}, "extra_args: --dtype of vllm 0.32.0 cannot be 'int3'"),
        ({"speculative_tokens": 3}, "speculative_tokens needs speculation: ngram"),
        ({"speculation": "none", "prompt_lookup_max": 3}, "prompt_lookup_max needs speculation: ngram"),
        ({"speculation": "ngram"}, "ngram needs speculative_tokens"),
    ],
)
def test_what_the_engine_lacks_is_infeasible(words: dict[str, object], says: str) -> None:
    with pytest.raises(InfeasibleConfigError) as caught:
        LAUNCHER.launch_spec(config(**words), context())
    assert says in str(caught.value)


def test_a_word_whose_flag_the_version_lacks_is_infeasible() -> None:
    older = {flag: choices for flag, choices in FLAGS.items() if flag != "--no-enable-expert-parallel"}
    LAUNCHER.launch_spec(config(expert_parallel=True), context(flags=older))
    with pytest.raises(InfeasibleConfigError, match=r"expert_parallel: .* --no-enable-expert-parallel"):
        LAUNCHER.launch_spec(config(expert_parallel=False), context(flags=older))


def test_a_wrong_argument_of_the_study_is_named_as_such() -> None:
    with pytest.raises(InfeasibleConfigError, match=r"^args: .* --no-such-flag"):
        LAUNCHER.launch_spec(config(), context(args=("--no-such-flag",)))


def test_dotted_and_loosely_spelt_arguments_are_known_to_the_parser() -> None:
    args = ("--compilation-config.mode", "1", "--max_num_scheduled_tokens=8")
    assert server(config(), context(args=args)).argv[3:6] == args


def test_one_rank_on_cpu_runs_in_one_process() -> None:
    process = server(config(), context(DeviceKind.CPU))
    assert process.argv[3:5] == ("--distributed-executor-backend", "uni")
    assert process.env == {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }


def test_several_ranks_on_cpu_have_a_process_each() -> None:
    process = server(config(tensor_parallel=2), context(DeviceKind.CPU))
    assert "uni" not in process.argv
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in process.env
    assert process.env["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"


def test_only_the_leased_gpus_are_shown() -> None:
    leased = (device(3), device(1), device(0, uid="MIG-4c60"))
    process = server(config(), context(devices=leased))
    assert process.devices == leased
    assert process.env["CUDA_VISIBLE_DEVICES"] == "3,1,MIG-4c60"
    assert process.env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert not [name for name in process.env if name.startswith(("VLLM_CPU", "OMP"))]


def test_the_study_environment_wins() -> None:
    mine = {"VLLM_CPU_KVCACHE_SPACE": "4", "OTHER": "x"}
    env = server(config(), context(DeviceKind.CPU, env=mine)).env
    assert {**env, **mine} == env


def test_a_local_model_needs_no_hub(tmp_path: Path) -> None:
    assert server(config(), context(model=str(tmp_path))).env["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in server(config(), context(model="some/model")).env


@pytest.mark.parametrize(
    ("args", "served"),
    [((), "some/model"), (("--served-model-name", "a", "b"), "a"), (("--served_model_name=c",), "c")],
)
def test_requests_name_the_model_as_it_is_served(args: tuple[str, ...], served: str) -> None:
    assert LAUNCHER.launch_spec(config(), context(args=args)).served_model == served


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("vllm serve m -tp 2 --tensor-parallel-size=4", {"tensor_parallel": 4}),
        ("vllm serve m -tp=2 -pp 3 -dp 4 -ep", {"tensor_parallel": 2, "pipeline_parallel": 3,
                                                "data_parallel": 4, "expert_parallel": True}),
        ("vllm serve m --max_num_seqs=16 --no_enable_prefix_caching",
         {"max_num_seqs": 16, "prefix_caching": False}),
        ("vllm serve --enforce-eager m", {"eager": True}),
        ("vllm serve m --max-model-len 32K --max-num-batched-tokens 8k",
         {"context_length": 32768, "max_num_batched_tokens": 8000}),
        ("vllm serve m --max-model-len auto", {"extra_args": ("--max-model-len", "auto")}),
        ("vllm serve m --device-memory-utilization .9", {"memory_fraction": 0.9}),
        ("vllm serve m --tensor-parallel 2", {"tensor_parallel": 2}),
        ("vllm serve m --middleware a b --seed -1 -O3 --no-async-scheduling",
         {"extra_args": ("--middleware", "a", "b", "--seed", "-1", "-O3", "--no-async-scheduling")}),
        ("vllm serve m --enable-auto-tool-choice --tool-call-parser hermes", {"tool_parser": "hermes"}),
        ("vllm serve m --tool-call-parser hermes", {"extra_args": ("--tool-call-parser", "hermes")}),
        ("""vllm serve m -sc '{"method":"ngram","num_speculative_tokens":3}'""",
         {"speculation": "ngram", "speculative_tokens": 3}),
        ("""vllm serve m --speculative-config='{"method":"eagle","model":"d"}'""",
         {"extra_args": ('--speculative-config={"method":"eagle","model":"d"}',)}),
        ("""vllm serve m -sc '{"method":"ngram","num_speculative_tokens":3,"prompt_lookup_min":2}'""",
         {"extra_args": ("-sc", '{"method":"ngram","num_speculative_tokens":3,"prompt_lookup_min":2}')}),
        ("vllm serve m --speculative-config.method ngram",
         {"extra_args": ("--speculative-config.method", "ngram")}),
        ("A=1 B='x y' numactl -N 0 /usr/bin/vllm serve m \\\n  --max-num-seqs 4 \\\n", {"max_num_seqs": 4}),
        ("A=1 python3 -m vllm.entrypoints.openai.api_server --max-num-seqs 4 --model m", {"max_num_seqs": 4}),
        ("vllm serve --model=m --host 0.0.0.0 --port 80 --served-model-name a b --uds /run/s", {}),
    ],
)  # fmt: skip
def test_production_commands_are_read(command: str, words: dict[str, object]) -> None:
    assert LAUNCHER.parse_command(command) == (config(**words), "m")


@pytest.mark.parametrize(
    "flag",
    [
        "--api-key s3cret",
        "--api-key=s3cret",
        "--api_key s3cret more-s3cret",
        "--api-k s3cret",
        "--hf-token s3cret",
    ],
)
def test_no_secret_is_kept(flag: str) -> None:
    read, _ = LAUNCHER.parse_command(f"vllm serve m --seed 1 {flag} --max-num-seqs 4")
    assert read == config(max_num_seqs=4, extra_args=("--seed", "1"))


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("", "no vllm command"),
        ("python train.py --model m", "no vllm command"),
        ("vllm bench serve m", "no vllm command"),
        ("vllm serve --max-num-seqs 4", "none was found"),
        ("vllm serve m n", "m, n"),
        ("vllm serve 'm", "cannot be read"),
        ("vllm serve m | tee log", "alone"),
        ("vllm serve m >log", "alone"),
    ],
)
def test_other_commands_are_refused(command: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        LAUNCHER.parse_command(command)


@pytest.mark.engine
def test_the_probe_reads_the_real_parser() -> None:
    environment = EngineEnvironments().find(LAUNCHER, None)
    done = subprocess.run(
        [environment.executable.parent / "python", "-c", LAUNCHER.traits.parser_probe],
        capture_output=True,
        check=True,
        text=True,
        timeout=120,
    )
    answer = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert answer["device"] in {"cpu", "cuda"}
    assert answer["version"]
    assert "fp8" in answer["flags"]["--kv-cache-dtype"]
    assert {"-tp", "--tensor-parallel-size", "--no-enforce-eager"} <= answer["flags"].keys()
