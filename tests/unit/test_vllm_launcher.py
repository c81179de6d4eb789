"""What vLLM is run with for a configuration, and how its command lines are read back."""

from __future__ import annotations

import json
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.adapters.engines.environments import EngineEnvironments
from autotune.domain.basics.errors import InfeasibleConfigError
from autotune.domain.configs.config import SEARCHABLE, EngineConfig
from autotune.domain.hardware.hardware import Device, DeviceKind
from autotune.domain.launches.launch import EngineEnvironment, LaunchContext, ProcessSpec
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
    *("pipeline_parallel", "block_size", "context_length", "max_num_seqs"),
    *("power_limit_w", "graphics_clock_mhz"),
)
SWITCHES = ("expert_parallel", "chunked_prefill", "prefix_caching", "lora")
NAMES = (
    *("dtype", "kv_cache_dtype", "tool_parser", "scheduling_policy"),
    *("attention_backend", "moe_backend", "all2all_backend"),
)
names = st.from_regex(r"[a-z][a-z0-9_]{0,9}", fullmatch=True)
counts = st.integers(1, 10**6)
words: st.SearchStrategy[dict[str, object]] = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(COUNTS, counts),
        # Never below the sequences or the context, which the scheduler refuses.
        "max_num_batched_tokens": st.integers(10**6, 10**7),
        **dict.fromkeys(SWITCHES, st.booleans()),
        **dict.fromkeys(NAMES, names),
        "quantization": names.filter(lambda name: name != "none"),
        "memory_fraction": st.floats(0, 1, exclude_min=True),
    },
)
speculation: st.SearchStrategy[dict[str, object]] = st.one_of(
    st.just({}),
    st.fixed_dictionaries(
        {"speculation": st.just("ngram"), "speculative_tokens": counts},
        optional={"prompt_lookup_max": counts},
    ),
    st.fixed_dictionaries(
        {
            "speculation": st.sampled_from(["draft_model", "eagle", "eagle3"]),
            "speculative_tokens": counts,
            "speculative_model": names,
        }
    ),
    st.fixed_dictionaries(
        {"speculation": st.just("mtp")}, optional={"speculative_tokens": counts, "speculative_model": names}
    ),
)
graphs: st.SearchStrategy[dict[str, object]] = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"eager": st.just(True)}, optional={"graph_capture": st.just(False)}),
    st.fixed_dictionaries(
        {}, optional={"compilation": st.booleans(), "graph_capture": st.booleans(), "eager": st.just(False)}
    ),
    st.fixed_dictionaries(
        {"graph_max_batch": counts}, optional={"compilation": st.booleans(), "graph_capture": st.just(True)}
    ),
)
parallel: st.SearchStrategy[dict[str, object]] = st.one_of(
    st.fixed_dictionaries({}, optional={"tensor_parallel": counts, "data_parallel": counts}),
    st.builds(
        lambda split, times: {"tensor_parallel": split * times, "context_parallel": split}, counts, counts
    ),
)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (
            {"chunked_prefill": False, "max_num_batched_tokens": 512, "context_length": 2048},
            "without chunked_prefill max_num_batched_tokens 512 must hold context_length 2048",
        ),
        ({"max_num_batched_tokens": 16, "max_num_seqs": 32}, "16 is below max_num_seqs 32"),
        (
            {"tensor_parallel": 4, "context_parallel": 3},
            "context_parallel 3 does not divide tensor_parallel 4",
        ),
        ({"context_parallel": 2}, "context_parallel 2 does not divide tensor_parallel 1"),
        ({"dp_attention": True}, "dp_attention needs data_parallel above 1"),
        ({"eager": True, "graph_capture": True}, "eager excludes"),
        ({"eager": True, "compilation": True}, "eager excludes"),
        ({"eager": True, "graph_max_batch": 8}, "eager excludes"),
        ({"graph_capture": False, "graph_max_batch": 8}, "graph_max_batch needs graph_capture"),
    ],
)
def test_what_the_engine_always_refuses_or_overrides_is_refused_on_paper(
    words: dict[str, object], why: str
) -> None:
    with pytest.raises(InfeasibleConfigError, match=why):
        LAUNCHER.launch_spec(config(**words), context())


def test_every_word_of_one_server_can_be_expressed() -> None:
    other = {word for word in SEARCHABLE if "." in word} | {"kv_transfer", "profile"}
    assert LAUNCHER.traits.dimensions == frozenset(SEARCHABLE) - other


@pytest.mark.parametrize("word", ["kv_transfer", "profile", "prefill.workers", "decode.tensor_parallel"])
def test_words_of_other_engines_are_refused_by_name(word: str) -> None:
    value: object = 2 if "." in word else "nixl"
    with pytest.raises(InfeasibleConfigError, match=f"vllm: cannot express {word}"):
        LAUNCHER.launch_spec(config(**{word: value}), context())


# What the host is told, and what data parallelism is anyway, leaves no trace on a command line.
UNSAID = {"power_limit_w", "graphics_clock_mhz", "dp_attention"}


@given(words, speculation, graphs, parallel)
def test_what_is_launched_reads_back_as_the_same_configuration(
    some: dict[str, object],
    speculation: dict[str, object],
    graphs: dict[str, object],
    parallel: dict[str, object],
) -> None:
    given = {**some, **speculation, **graphs, **parallel}
    argv = server(config(**given), context(flags={})).argv
    written = config(**{word: value for word, value in given.items() if word not in UNSAID})
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
        ({"power_limit_w": 500, "graphics_clock_mhz": 1500}, ""),
        ({"data_parallel": 8, "dp_attention": True}, "--data-parallel-size 8"),
        (
            {"tensor_parallel": 8, "context_parallel": 4},
            "--tensor-parallel-size 8 --decode-context-parallel-size 4",
        ),
        ({"scheduling_policy": "priority"}, "--scheduling-policy priority"),
        ({"attention_backend": "FLASHINFER"}, "--attention-backend FLASHINFER"),
        (
            {"moe_backend": "deep_gemm", "all2all_backend": "deepep_low_latency"},
            "--moe-backend deep_gemm --all2all-backend deepep_low_latency",
        ),
        ({"graph_max_batch": 256}, "--max-cudagraph-capture-size 256"),
        (
            {"graph_capture": True},
            """--compilation-config '{"cudagraph_mode": "FULL_AND_PIECEWISE"}'""",
        ),
        (
            {"compilation": False, "graph_capture": True},
            """--compilation-config '{"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}'""",
        ),
        (
            {"compilation": True, "graph_capture": False},
            """--compilation-config '{"mode": 3, "cudagraph_mode": "NONE"}'""",
        ),
        (
            {"speculation": "eagle3", "speculative_tokens": 3, "speculative_model": "some/draft"},
            """--speculative-config
            '{"method": "eagle3", "num_speculative_tokens": 3, "model": "some/draft"}'""",
        ),
        ({"speculation": "mtp"}, """--speculative-config '{"method": "mtp"}'"""),
        (
            {"speculation": "ngram", "speculative_tokens": 3, "prompt_lookup_max": 4},
            """--speculative-config
            '{"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4}'""",
        ),
        ({"dtype": "float16", "quantization": "awq"}, "--dtype float16 --quantization awq"),
        ({"kv_cache_dtype": "fp8", "block_size": 32}, "--kv-cache-dtype fp8 --block-size 32"),
        ({"memory_fraction": 0.85}, "--gpu-memory-utilization 0.85"),
        ({"context_length": 4096}, "--max-model-len 4096"),
        ({"lora": True, "eager": True}, "--enforce-eager --enable-lora"),
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
        ({"speculative_tokens": 3}, "speculative_tokens means nothing with speculation: none"),
        ({"speculation": "none", "prompt_lookup_max": 3}, "prompt_lookup_max means nothing with"),
        (
            {
                "speculation": "eagle",
                "speculative_tokens": 2,
                "speculative_model": "d",
                "prompt_lookup_max": 3,
            },
            "prompt_lookup_max means nothing with speculation: eagle",
        ),
        ({"speculation": "ngram"}, "ngram needs speculative_tokens"),
        ({"speculation": "draft_model", "speculative_tokens": 2}, "draft_model needs speculative_model"),
        ({"data_parallel": 2, "dp_attention": False}, "no flag says dp_attention: false"),
        ({"all2all_backend": "pigeon"}, "all2all_backend: --all2all-backend of vllm 0.32.0 cannot be"),
        (
            {"compilation": False, "extra_args": ("--compilation-config", "no JSON")},
            "extra_args: --compilation-config: no JSON",
        ),
        (
            {"compilation": False, "extra_args": ("-cc.mode", "2")},
            "extra_args: --compilation-config: mode is said by a word of the configuration too",
        ),
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


@pytest.mark.parametrize("words", [{"graph_capture": True}, {"graph_max_batch": 8}])
def test_a_cpu_captures_no_graphs(words: dict[str, object]) -> None:
    with pytest.raises(InfeasibleConfigError, match="CPU build captures no graphs"):
        LAUNCHER.launch_spec(config(**words), context(DeviceKind.CPU))


@pytest.mark.parametrize(
    ("args", "extra", "merged"),
    [
        ((), ("--seed", "1"), {"mode": 0}),
        (("-cc", '{"backend": "eager"}'), ("--seed", "1"), {"mode": 0, "backend": "eager"}),
        (("--seed", "1"), ("--compilation-config.backend", "eager"), {"mode": 0, "backend": "eager"}),
        (
            ("-cc.pass_config.fuse_norm_quant", "true", "--seed", "1"),
            ("--compilation_config.pass_config.eliminate_noops=false",),
            {"mode": 0, "pass_config": {"fuse_norm_quant": True, "eliminate_noops": False}},
        ),
        (("--seed", "1"), ("--compilation-config.mode", "0"), {"mode": 0}),
    ],
)
def test_words_join_the_compilation_config_that_the_user_gave(
    args: tuple[str, ...], extra: tuple[str, ...], merged: dict[str, object]
) -> None:
    argv = server(config(compilation=False, extra_args=extra), context(args=args)).argv[3:-4]
    at = argv.index("--compilation-config")
    assert json.loads(argv[at + 1]) == merged
    assert (*argv[:at], *argv[at + 2 :]) == ("--seed", "1")


def test_each_installation_has_a_compile_cache_of_its_own() -> None:
    def root(executable: str, version: str) -> str:
        environment = replace(context().environment, executable=Path(executable), version=version)
        return server(config(), replace(context(), environment=environment)).env["VLLM_CACHE_ROOT"]

    roots = {root("/a/bin/vllm", "0.32.0"), root("/b/bin/vllm", "0.32.0"), root("/a/bin/vllm", "0.31.0")}
    assert len(roots) == 3
    assert all(path.startswith("~/") for path in roots)


def test_one_rank_on_cpu_runs_in_one_process() -> None:
    process = server(config(), context(DeviceKind.CPU))
    assert process.argv[3:5] == ("--distributed-executor-backend", "uni")
    env = dict(process.env)
    assert env.pop("TORCHINDUCTOR_CACHE_DIR").startswith(env.pop("VLLM_CACHE_ROOT"))
    assert env == {
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
        ("""vllm serve m -sc '{"method":"eagle3","model":"d","num_speculative_tokens":3}'""",
         {"speculation": "eagle3", "speculative_tokens": 3, "speculative_model": "d"}),
        ("""vllm serve m -dcp 2 -tp 4 -cc '{"mode":3,"cudagraph_mode":"NONE","backend":"eager"}'""",
         {"tensor_parallel": 4, "context_parallel": 2, "compilation": True, "graph_capture": False,
          "extra_args": ("--compilation-config", '{"backend": "eager"}')}),
        ("""vllm serve m -cc '{"mode":1,"cudagraph_mode":"FULL_DECODE_ONLY"}'""",
         {"extra_args": ("-cc", '{"mode":1,"cudagraph_mode":"FULL_DECODE_ONLY"}')}),
        ("vllm serve m -cc.mode 1", {"extra_args": ("-cc.mode", "1")}),
        ("vllm serve m -cc {", {"extra_args": ("-cc", "{")}),
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
