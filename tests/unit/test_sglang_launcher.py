"""What SGLang is run with for a configuration, and how its command lines are read back."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sglang_goldens import GOLDEN

from autotune.domain.basics.errors import InfeasibleConfigError
from autotune.domain.configs.config import SEARCHABLE, EngineConfig
from autotune.domain.hardware.hardware import Device, DeviceKind
from autotune.domain.launches.launch import EngineEnvironment, LaunchContext, ProcessSpec
from launchers.sglang import LAUNCHER
from launchers.sglang.flags import ALGORITHMS

FLAGS = {
    flag: tuple(choices)
    for flag, choices in json.loads(
        (Path(__file__).parents[1] / "data/sglang_logs/flags-0.5.23.json").read_text()
    ).items()
}
"""What the parser probe said of SGLang 0.5.23."""


ENGINE = Path("/engines/sglang/bin/sglang")


def device(index: int, kind: DeviceKind = DeviceKind.CUDA, uid: str = "") -> Device:
    return Device(kind=kind, index=index, name="a device", uid=uid or f"GPU-{index}", memory_bytes=1 << 30)


EIGHT = tuple(device(index) for index in range(8))


def context(
    kind: DeviceKind = DeviceKind.CUDA,
    *,
    model: str = "some/model",
    devices: tuple[Device, ...] = EIGHT,
    args: tuple[str, ...] = (),
    env: dict[str, str] | None = None,
    flags: dict[str, tuple[str, ...]] = FLAGS,
) -> LaunchContext:
    environment = EngineEnvironment(
        engine="sglang",
        executable=ENGINE,
        version="0.5.23",
        kind=kind,
        flags=flags,
    )
    return LaunchContext(model=model, environment=environment, devices=devices, args=args, env=env or {})


def config(**words: object) -> EngineConfig:
    return EngineConfig.model_validate({"engine": "sglang", **words})


def server(config: EngineConfig, context: LaunchContext) -> ProcessSpec:
    (process,) = LAUNCHER.launch_spec(config, context).processes
    return process


def flags_of(config: EngineConfig) -> tuple[str, ...]:
    """The part of the command line that the configuration decides, metrics aside."""
    argv = server(config, context()).argv[4:-4]
    at = argv.index("--enable-metrics")
    return argv[:at] + argv[at + 1 :]


@pytest.mark.parametrize(("words", "flags"), GOLDEN.values(), ids=GOLDEN)
def test_golden_commands(words: dict[str, object], flags: str) -> None:
    assert flags_of(config(**words)) == tuple(shlex.split(flags))


@pytest.mark.parametrize(("words", "flags"), GOLDEN.values(), ids=GOLDEN)
def test_golden_commands_read_back(words: dict[str, object], flags: str) -> None:
    command = f"sglang serve some/model {' '.join(flags.split())}"
    assert LAUNCHER.parse_command(command) == (config(**words), "some/model")


counts = st.integers(1, 10**6)
names = st.from_regex(r"[a-z][a-z0-9_]{0,9}", fullmatch=True)
backends = names.filter(lambda name: name != "none")
sizes = st.integers(1, 64)
words: st.SearchStrategy[dict[str, object]] = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("max_num_seqs", "max_num_batched_tokens", "context_length"), counts),
        "prefix_caching": st.just(False),
        "compilation": st.just(True),
        "lora": st.just(True),
        **dict.fromkeys(("dtype", "attention_backend", "scheduling_policy", "tool_parser"), names),
        "kv_cache_dtype": names | st.just("fp8"),
        "quantization": backends | st.sampled_from(("int8", "nvfp4")),
        "moe_backend": names,
        "memory_fraction": st.floats(0, 1, exclude_min=True),
    },
)
shapes: st.SearchStrategy[dict[str, object]] = st.one_of(
    st.fixed_dictionaries({}, optional={"tensor_parallel": sizes, "data_parallel": sizes}),
    st.fixed_dictionaries(
        {"tensor_parallel": sizes, "data_parallel": st.integers(2, 64), "dp_attention": st.just(True)}
    ),
    st.fixed_dictionaries({"tensor_parallel": sizes, "expert_parallel": st.just(True)}),
)
speculation: st.SearchStrategy[dict[str, object]] = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"speculation": st.just("mtp")}, optional={"speculative_tokens": counts}),
    st.fixed_dictionaries(
        {"speculation": st.sampled_from(("eagle", "eagle3")), "speculative_model": names},
        optional={"speculative_tokens": counts},
    ),
)
graphs: st.SearchStrategy[dict[str, object]] = st.sampled_from(
    ({}, {"graph_capture": False}, {"graph_max_batch": 8})
)


@given(words, shapes, speculation, graphs)
def test_what_is_launched_reads_back_as_the_same_configuration(
    some: dict[str, object],
    shape: dict[str, object],
    speculation: dict[str, object],
    graphs: dict[str, object],
) -> None:
    written = config(**some, **shape, **speculation, **graphs)
    argv = server(written, context(flags={})).argv
    assert LAUNCHER.parse_command(shlex.join(argv)) == (written, "some/model")


def test_the_words_that_sglang_has_no_flag_for() -> None:
    pools = {word for word in SEARCHABLE if "." in word}
    lacking = frozenset(SEARCHABLE) - LAUNCHER.traits.dimensions - pools
    assert lacking == {"prompt_lookup_max", "kv_transfer", "profile"}


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        ({}, ""),
        ({"data_parallel": 2, "dp_attention": False}, "--dp-size 2"),
        ({"context_parallel": 4, "tensor_parallel": 8}, "--tp-size 8 --dcp-size 4"),
        ({"expert_parallel": False, "all2all_backend": "none"}, "--moe-a2a-backend none"),
        ({"chunked_prefill": True, "prefix_caching": True, "graph_capture": True}, ""),
        ({"eager": True}, "--disable-decode-cuda-graph --disable-prefill-cuda-graph"),
        ({"graph_capture": False}, "--disable-decode-cuda-graph"),
        ({"compilation": True}, "--enable-torch-compile"),
        ({"speculation": "none", "quantization": "none"}, ""),
        (
            {"speculation": "ngram", "speculative_tokens": 7},
            "--speculative-algorithm NGRAM --speculative-num-draft-tokens 8",
        ),
        (
            {"speculation": "draft_model", "speculative_model": "small", "speculative_tokens": 3},
            """--speculative-algorithm STANDALONE --speculative-draft-model-path small
            --speculative-num-steps 3 --speculative-eagle-topk 1 --speculative-num-draft-tokens 4""",
        ),
        ({"quantization": "int8"}, "--quantization w8a8_int8"),
        ({"quantization": "nvfp4"}, "--quantization modelopt_fp4"),
        ({"quantization": "mxfp4"}, "--quantization mxfp4"),
        ({"lora": True}, "--enable-lora --max-lora-rank 16 --lora-target-modules all"),
        (
            {"lora": True, "extra_args": ("--lora-paths", "a=/a", "b=/b")},
            "--enable-lora --lora-paths a=/a b=/b",
        ),
    ],
)
def test_words_become_flags(words: dict[str, object], flags: str) -> None:
    assert flags_of(config(**words)) == tuple(shlex.split(flags))


def test_the_command_starts_with_the_model_and_ends_with_the_address() -> None:
    argv = server(config(extra_args=("--random-seed", "1")), context(args=("--log-level", "error"))).argv
    assert argv == (
        *("/engines/sglang/bin/sglang", "serve", "--model-path", "some/model", "--enable-metrics"),
        *("--random-seed", "1", "--log-level", "error", "--host", "{host:server}", "--port", "{port:server}"),
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"prompt_lookup_max": 3}, "sglang: cannot express prompt_lookup_max"),
        ({"prefill.workers": 1}, "sglang: cannot express prefill.workers"),
        ({"kv_cache_dtype": "int3"}, "kv_cache_dtype: --kv-cache-dtype of sglang 0.5.23 cannot be 'int3'"),
        ({"all2all_backend": "pigeon"}, "all2all_backend: --moe-a2a-backend of sglang 0.5.23 cannot be"),
        ({"extra_args": ("--no-such-flag", "3")}, "extra_args: sglang 0.5.23 has no flag --no-such-flag"),
        ({"speculative_tokens": 3}, "speculative_tokens needs speculation"),
        ({"speculation": "none", "speculative_model": "m"}, "speculative_model needs speculation"),
        ({"speculation": "eagle3"}, "eagle3 needs speculative_model"),
        ({"speculation": "ngram", "speculative_model": "m"}, "ngram has no speculative_model"),
        ({"speculation": "ngram", "pipeline_parallel": 2}, "no speculation ngram with pipeline_parallel"),
        (
            {"speculation": "ngram", "data_parallel": 2, "dp_attention": True},
            "no speculation ngram with dp_attention",
        ),
        ({"dp_attention": True}, "dp_attention needs data_parallel above 1"),
        ({"expert_parallel": False, "all2all_backend": "deepep"}, "deepep turns expert_parallel on"),
        ({"eager": True, "graph_max_batch": 8}, "eager leaves no graph_max_batch"),
        ({"graph_capture": False, "graph_max_batch": 8}, "graph_max_batch needs graph_capture"),
        ({"tensor_parallel": 4, "context_parallel": 3}, "context_parallel 3 does not divide"),
        ({"block_size": 64, "max_num_batched_tokens": 1000}, "1000 is no multiple of block_size 64"),
    ],
)
def test_what_the_engine_lacks_is_infeasible(words: dict[str, object], says: str) -> None:
    with pytest.raises(InfeasibleConfigError) as caught:
        LAUNCHER.launch_spec(config(**words), context())
    assert says in str(caught.value)


def test_a_word_whose_flag_the_version_lacks_is_infeasible() -> None:
    older = {flag: choices for flag, choices in FLAGS.items() if flag != "--dcp-size"}
    with pytest.raises(InfeasibleConfigError, match=r"context_parallel: .* no flag --dcp-size"):
        LAUNCHER.launch_spec(config(tensor_parallel=2, context_parallel=2), context(flags=older))


def test_older_versions_are_told_of_data_parallel_attention_in_their_way() -> None:
    older = {flag: choices for flag, choices in FLAGS.items() if flag != "--attn-dp-size"}
    shared = config(tensor_parallel=2, data_parallel=4, dp_attention=True)
    argv = server(shared, context(flags=older)).argv
    assert argv[4:9] == ("--tp-size", "8", "--dp-size", "4", "--enable-dp-attention")
    assert LAUNCHER.parse_command(shlex.join(argv)) == (shared, "some/model")


def test_only_the_leased_gpus_are_shown() -> None:
    leased = (device(3), device(1), device(0, uid="MIG-4c60"))
    process = server(config(tensor_parallel=3), context(devices=leased))
    assert process.devices == leased
    assert process.env == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "3,1,MIG-4c60"}


def test_amd_gpus_are_shown_in_their_own_way() -> None:
    leased = (device(3, DeviceKind.ROCM), device(1, DeviceKind.ROCM))
    process = server(config(tensor_parallel=2), context(DeviceKind.ROCM, devices=leased))
    assert process.env == {"HIP_VISIBLE_DEVICES": "3,1"}


def test_on_cpu_each_rank_has_its_core() -> None:
    cores = (device(0, DeviceKind.CPU), device(1, DeviceKind.CPU))
    native = ("--device", "cpu", "--attention-backend", "torch_native")
    process = server(config(tensor_parallel=2), context(DeviceKind.CPU, devices=cores))
    assert process.argv[6:11] == ("--enable-metrics", *native)
    assert process.env == {"SGLANG_USE_CPU_ENGINE": "1", "SGLANG_CPU_OMP_THREADS_BIND": "0|1"}
    chosen = server(config(attention_backend="intel_amx"), context(DeviceKind.CPU, devices=cores[:1]))
    assert chosen.argv.count("--attention-backend") == 1


def test_a_server_on_two_hosts_is_a_process_on_each() -> None:
    sixteen = tuple(device(index % 8, uid=f"GPU-{index}") for index in range(16))
    first, second = LAUNCHER.launch_spec(config(tensor_parallel=16), context(devices=sixteen)).processes
    assert (first.role, first.host_slot, first.devices) == ("server", 0, sixteen[:8])
    assert (second.role, second.host_slot, second.devices) == ("server-node1", 1, sixteen[8:])
    joined = ("--dist-init-addr", "{host:server}:{port:server/dist}")
    assert first.argv[-10:-4] == ("--nnodes", "2", "--node-rank", "0", *joined)
    assert second.argv[-10:] == (
        *("--nnodes", "2", "--node-rank", "1", *joined),
        *("--host", "{host:server-node1}", "--port", "{port:server-node1}"),
    )
    assert second.env["CUDA_VISIBLE_DEVICES"] == "0,1,2,3,4,5,6,7"


def test_hosts_have_equal_shares_of_a_server() -> None:
    uneven = (device(0), device(1), device(2), device(0, uid="GPU-other"))
    with pytest.raises(InfeasibleConfigError, match="3 and 1"):
        LAUNCHER.launch_spec(config(tensor_parallel=4), context(devices=uneven))


def test_whole_replicas_lie_on_one_host() -> None:
    two_hosts = (device(0), device(0, uid="GPU-other"))
    with pytest.raises(InfeasibleConfigError, match="dp_attention over several"):
        LAUNCHER.launch_spec(config(data_parallel=2), context(devices=two_hosts))


def test_the_study_environment_wins() -> None:
    mine = {"CUDA_VISIBLE_DEVICES": "7", "OTHER": "x"}
    env = server(config(), context(env=mine)).env
    assert {**env, **mine} == env


def test_a_local_model_needs_no_hub(tmp_path: Path) -> None:
    assert server(config(), context(model=str(tmp_path))).env["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in server(config(), context()).env


@pytest.mark.parametrize(
    ("args", "served"),
    [((), "some/model"), (("--served-model-name", "a"), "a"), (("--served-model-name=c",), "c")],
)
def test_requests_name_the_model_as_it_is_served(args: tuple[str, ...], served: str) -> None:
    assert LAUNCHER.launch_spec(config(), context(args=args)).served_model == served


EAGLE = (
    "--speculative-algorithm {} --speculative-num-steps {} --speculative-eagle-topk {} "
    "--speculative-num-draft-tokens {}"
)
PLACE = (
    "--host 0.0.0.0 --port 80 --served-model-name a --nnodes 2 --node-rank 0 --dist-init-addr 10.0.0.1:5000 "
    "--enable-metrics --device cuda"
)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("sglang serve --model-path m --tp 8 --dp 8 --ep 8 --enable-dp-attention",
         {"tensor_parallel": 1, "data_parallel": 8, "dp_attention": True, "expert_parallel": True}),
        ("sglang serve m --tp-size 16 --attn-dp-size 4 --max-running-requests 64",
         {"tensor_parallel": 4, "data_parallel": 4, "dp_attention": True, "max_num_seqs": 16}),
        ("python3 -m sglang.launch_server --model m --tensor-parallel-size=2 --dp 2",
         {"tensor_parallel": 2, "data_parallel": 2}),
        # What SGLang would turn off or refuse stays as it was written.
        ("sglang serve m --enable-dp-attention", {"extra_args": ("--enable-dp-attention",)}),
        ("sglang serve m --tp 8 --ep 4", {"tensor_parallel": 8, "extra_args": ("--ep", "4")}),
        ("sglang serve m --chunked-prefill-size 4096", {"max_num_batched_tokens": 4096}),
        ("sglang serve m --chunked-prefill-size 32768",
         {"extra_args": ("--chunked-prefill-size", "32768")}),
        ("sglang serve m --chunked-prefill-size 8192 --max-prefill-tokens 32k",
         {"max_num_batched_tokens": 8192, "extra_args": ("--max-prefill-tokens", "32k")}),
        ("sglang serve m --chunked-prefill-size -1", {"chunked_prefill": False}),
        ("sglang serve m --context-length 32Ki", {"context_length": 32768}),
        ("sglang serve m --disable-cuda-graph", {"eager": True}),
        ("sglang serve m --disable-decode-cuda-graph", {"graph_capture": False}),
        ("sglang serve m --cuda-graph-max-bs 64", {"graph_max_batch": 64}),
        ("sglang serve m --cuda-graph-bs 1 2 4 --trust-remote-code",
         {"extra_args": ("--cuda-graph-bs", "1", "2", "4", "--trust-remote-code")}),
        (f"sglang serve m {EAGLE.format('EAGLE', 3, 1, 4)}", {"speculation": "mtp", "speculative_tokens": 3}),
        (f"sglang serve m {EAGLE.format('EAGLE3', 5, 8, 64)} --speculative-draft-model d",
         {"extra_args": (*EAGLE.format("EAGLE3", 5, 8, 64).split(), "--speculative-draft-model", "d")}),
        ("A=1 numactl -N 0 /usr/bin/sglang serve m \\\n --page-size 64 \\\n", {"block_size": 64}),
        (f"sglang serve --model-path=m {PLACE}", {}),
    ],
)  # fmt: skip
def test_production_commands_are_read(command: str, words: dict[str, object]) -> None:
    assert LAUNCHER.parse_command(command) == (config(**words), "m")


@pytest.mark.parametrize("flag", ["--api-key s3cret", "--api-key=s3cret", "--admin-api-key s3cret"])
def test_no_secret_is_kept(flag: str) -> None:
    read, _ = LAUNCHER.parse_command(f"sglang serve m --random-seed 1 {flag} --page-size 4")
    assert read == config(block_size=4, extra_args=("--random-seed", "1"))


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("", "no sglang command"),
        ("python -m sglang.bench_serving --model m", "no sglang command"),
        ("sglang serve --page-size 4", "none was found"),
        ("sglang serve m --model-path n", "m, n"),
        ("sglang serve 'm", "cannot be read"),
        ("sglang serve m | tee log", "alone"),
    ],
)
def test_other_commands_are_refused(command: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        LAUNCHER.parse_command(command)


def test_every_algorithm_of_the_vocabulary_has_a_name() -> None:
    annotation = str(EngineConfig.model_fields["speculation"].annotation)
    assert all(repr(word) in annotation for word in ALGORITHMS)
