"""What Dynamo is run with over each engine, how its command lines are read back, and how it fails."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.domain.basics.errors import InfeasibleConfigError
from autotune.domain.configs.config import POOLS, SEARCHABLE, EngineConfig, Pool
from autotune.domain.hardware.hardware import Device, DeviceKind
from autotune.domain.launches.launch import (
    EngineEnvironment,
    Evidence,
    FailureClass,
    LaunchContext,
    LaunchSpec,
    Phase,
    ProcessSpec,
)
from launchers.dynamo import LAUNCHER
from launchers.options import HOST_WORDS
from launchers.sglang.traits import TRAITS as SGLANG
from launchers.trtllm.traits import OF_OPTIONS as TRTLLM_WORDS
from launchers.vllm.traits import TRAITS as VLLM

LOGS = Path(__file__).parents[1] / "data"
PYTHON = "/engines/dynamo/bin/python"
ETCD = {"ETCD_ENDPOINTS": "http://etcd:2379"}
OVER = {"vllm": (), "sglang": ("-m", "dynamo.sglang"), "trtllm": ("-m", "dynamo.trtllm")}
"""What a study's ``args`` say of the engine inside."""
FRONTEND = f"{PYTHON} -m dynamo.frontend --http-host '{{host:frontend}}' --http-port '{{port:frontend}}'"


def devices(count: int, hosts: int = 1) -> tuple[Device, ...]:
    """``count`` GPUs on each host."""
    return tuple(
        Device(DeviceKind.CUDA, index, "a GPU", f"GPU-{host}-{index}", 1 << 37)
        for host in range(hosts)
        for index in range(count)
    )


def context(
    *,
    model: str = "some/model",
    count: int = 8,
    hosts: int = 1,
    args: tuple[str, ...] = (),
    env: Mapping[str, str] | None = None,
) -> LaunchContext:
    environment = EngineEnvironment(
        engine="dynamo", executable=Path(PYTHON), version="1.6.1", kind=DeviceKind.CUDA, flags={}
    )
    return LaunchContext(
        model=model, environment=environment, devices=devices(count, hosts), args=args, env=env or {}
    )


def config(**words: object) -> EngineConfig:
    return EngineConfig.model_validate({"engine": "dynamo", **words})


def launch(words: Mapping[str, object], **more: object) -> LaunchSpec:
    given = config(**words)
    return LAUNCHER.launch_spec(given, context(**more).of(given))  # type: ignore[arg-type]


def written(words: Mapping[str, object], **more: object) -> dict[str, str]:
    """The command line of each process, the launch's order kept."""
    spec = launch(words, **more)
    assert spec.serving_role == "frontend"
    return {process.role: shlex.join(process.argv) for process in spec.processes}


def process(words: Mapping[str, object], role: str, **more: object) -> ProcessSpec:
    return next(process for process in launch(words, **more).processes if process.role == role)


def worker(module: str, rest: str) -> str:
    return f"{PYTHON} -m dynamo.{module} {rest}".rstrip()


def producing(kind: str = "NixlConnector", role: str = "kv_producer") -> str:
    return f"--kv-transfer-config '{json.dumps({'kv_connector': kind, 'kv_role': role})}'"


CONSUMING = producing(role="kv_consumer")


def telling(role: str, **more: object) -> str:
    endpoint = f"tcp://*:{{port:{role}/events}}"
    return "--kv-events-config " + shlex.quote(
        json.dumps({"publisher": "zmq", "topic": "kv-events", "endpoint": endpoint, **more})
    )


LLAMA = {"tensor_parallel": 8, "max_num_seqs": 256, "tool_parser": "llama3_json"}
"""Llama-3.3-70B on 8 GPUs, one worker."""


def test_one_worker_over_vllm_is_what_there_is_without_pools() -> None:
    assert written(LLAMA) == {
        "worker": worker(
            "vllm",
            "--model some/model --tensor-parallel-size 8 --max-num-seqs 256 "
            "--dyn-tool-call-parser llama3_json",
        ),
        "frontend": FRONTEND,
    }


def test_one_worker_over_sglang() -> None:
    assert written(LLAMA, args=OVER["sglang"]) == {
        "worker": worker(
            "sglang",
            "--model-path some/model --tp-size 8 --max-running-requests 256 --enable-metrics "
            "--dyn-tool-call-parser llama3_json --host '{host:worker}' --port '{port:worker}'",
        ),
        "frontend": FRONTEND,
    }


def test_one_worker_over_tensorrt_llm_has_its_words_in_a_yaml() -> None:
    spec = launch({**LLAMA, "block_size": 64}, args=OVER["trtllm"])
    inner, frontend = spec.processes
    assert shlex.join(inner.argv) == worker(
        "trtllm",
        "--model-path some/model --extra-engine-args '{file:engine.yaml}' --kv-block-size 64 "
        "--dyn-tool-call-parser llama3_json",
    )
    assert dict(inner.files) == {
        "engine.yaml": """\
tensor_parallel_size: 8
max_batch_size: 256
kv_cache_config:
  tokens_per_block: 64
"""
    }
    assert shlex.join(frontend.argv) == FRONTEND
    assert not frontend.files


def test_pools_over_vllm_on_one_host() -> None:
    words = {"prefill.workers": 2, "decode.tensor_parallel": 2, "kv_cache_dtype": "fp8"}
    prefill = f"--model some/model --kv-cache-dtype fp8 --disaggregation-mode prefill {producing()}"
    assert written(words, count=4) == {
        "prefill-0": worker("vllm", prefill),
        "prefill-1": worker("vllm", prefill),
        "decode-0": worker(
            "vllm",
            "--model some/model --tensor-parallel-size 2 --kv-cache-dtype fp8 "
            f"--disaggregation-mode decode {CONSUMING}",
        ),
        "frontend": FRONTEND,
    }
    shown = {
        p.role: p.env["CUDA_VISIBLE_DEVICES"] for p in launch(words, count=4).processes if p.env and p.devices
    }
    assert shown == {"prefill-0": "0", "prefill-1": "1", "decode-0": "2,3"}


def test_pools_over_tensorrt_llm_on_one_host() -> None:
    words = {
        "tensor_parallel": 4,
        "expert_parallel": True,
        "prefill.graph_capture": False,
        "prefill.max_num_batched_tokens": 8192,
        "decode.max_num_seqs": 640,
        "kv_transfer": "ucx",
    }
    files = {p.role: dict(p.files) for p in launch(words, args=OVER["trtllm"]).processes}
    common = "tensor_parallel_size: 4\nmoe_expert_parallel_size: 4\n"
    assert files == {
        "prefill-0": {
            "engine.yaml": f"{common}max_num_tokens: 8192\ncuda_graph_config: null\n"
            "cache_transceiver_config:\n  backend: UCX\ndisable_overlap_scheduler: true\n"
        },
        "decode-0": {
            "engine.yaml": f"{common}max_batch_size: 640\ncache_transceiver_config:\n  backend: UCX\n"
        },
        "frontend": {},
    }
    del words["kv_transfer"]
    assert "backend: DEFAULT" in process(words, "decode-0", args=OVER["trtllm"]).files["engine.yaml"]


NVL72 = {
    "prefill.workers": 10,
    "prefill.tensor_parallel": 4,
    "prefill.max_num_batched_tokens": 32768,
    "decode.data_parallel": 32,
    "decode.dp_attention": True,
    "decode.expert_parallel": True,
    "decode.max_num_seqs": 2048,
    "decode.all2all_backend": "deepep",
    "moe_backend": "flashinfer_cutedsl",
    "kv_cache_dtype": "fp8_e4m3",
    "memory_fraction": 0.83,
    "kv_transfer": "nixl",
}
"""DeepSeek-R1 in NVFP4 on the 18 trays of a GB200 NVL72: 10 prefill workers of a tray each, and one decode
worker over the other eight."""


def test_a_gb200_nvl72_in_pools_over_sglang() -> None:
    more = {"count": 4, "hosts": 18, "args": (*OVER["sglang"], "--router-mode", "kv"), "env": ETCD}
    spec = launch(NVL72, model="nvidia/DeepSeek-R1-FP4", **more)
    assert config(**NVL72).devices == 72
    by_role = {process.role: process for process in spec.processes}
    decoding = [f"decode-0-node{rank}" if rank else "decode-0" for rank in range(8)]
    assert list(by_role) == [*(f"prefill-{index}" for index in range(10)), *decoding, "frontend"]
    assert [by_role[role].host_slot for role in by_role] == [*range(18), 0]
    assert all(len(process.devices) == 4 for process in spec.processes[:-1])
    assert shlex.join(by_role["prefill-9"].argv) == worker(
        "sglang",
        "--model-path nvidia/DeepSeek-R1-FP4 --tp-size 4 --mem-fraction-static 0.83 "
        "--moe-runner-backend flashinfer_cutedsl --kv-cache-dtype fp8_e4m3 --chunked-prefill-size 32768 "
        "--max-prefill-tokens 32768 --enable-metrics "
        "--disaggregation-mode prefill --disaggregation-transfer-backend nixl "
        f"--disaggregation-bootstrap-port '{{port:prefill-9/bootstrap}}' {telling('prefill-9')} "
        "--host '{host:prefill-9}' --port '{port:prefill-9}'",
    )
    flags = shlex.join(by_role["decode-0-node7"].argv)
    for said in (
        "--tp-size 32 --attn-dp-size 32 --ep-size 32",
        "--moe-a2a-backend deepep",
        "--max-running-requests 65536",
        "--disaggregation-mode decode --disaggregation-transfer-backend nixl",
        "--nnodes 8 --node-rank 7 --dist-init-addr '{host:decode-0}:{port:decode-0/dist}'",
    ):
        assert said in flags
    assert "--kv-events-config" not in flags
    frontend = by_role["frontend"]
    assert frontend.depends_on == (*(f"prefill-{index}" for index in range(10)), "decode-0")
    assert "--router-mode kv" in shlex.join(frontend.argv)
    assert all(process.env["DYN_DISCOVERY_BACKEND"] == "etcd" for process in spec.processes)
    assert all(process.env.items() >= ETCD.items() for process in spec.processes)
    silent = [role for role, process in by_role.items() if not process.ready_path]
    assert silent == decoding[1:]


def test_replicas_over_several_hosts_are_shared_out() -> None:
    words = {"data_parallel": 8, "dp_attention": True, "expert_parallel": True}
    argv = written(words, count=4, hosts=2, env=ETCD)
    joined = "--data-parallel-address '{host:worker}' --data-parallel-rpc-port '{port:worker/replicas}'"
    common = (
        "--model some/model --data-parallel-size 8 --enable-expert-parallel --data-parallel-hybrid-lb "
        "--data-parallel-size-local 4 --data-parallel-start-rank"
    )
    assert argv["worker"] == worker("vllm", f"{common} 0 {joined}")
    assert argv["worker-node1"] == worker("vllm", f"{common} 4 {joined}")
    with pytest.raises(InfeasibleConfigError, match="data_parallel 3 does not divide over 2 hosts"):
        launch({**words, "data_parallel": 3, "tensor_parallel": 2}, count=3, hosts=2, env=ETCD)


def test_ranks_of_one_replica_over_several_hosts() -> None:
    more = {"count": 4, "hosts": 2, "env": ETCD}
    argv = written({"tensor_parallel": 8}, **more)
    joined = "--master-addr '{host:worker}' --master-port '{port:worker/ranks}'"
    common = "--model some/model --tensor-parallel-size 8 --nnodes 2 --node-rank"
    assert argv["worker"] == worker("vllm", f"{common} 0 {joined}")
    assert argv["worker-node1"] == worker("vllm", f"{common} 1 {joined} --headless")
    assert process({"tensor_parallel": 8}, "worker-node1", **more).ready_path == ""
    assert process({"tensor_parallel": 8}, "worker", **more).ready_path == "/health"


def test_workers_find_the_frontend_of_their_own_launch() -> None:
    own = {
        "DYN_DISCOVERY_BACKEND": "file",
        "DYN_REQUEST_PLANE": "tcp",
        "DYN_EVENT_PLANE": "zmq",
        "DYN_NAMESPACE": "autotune-{port:frontend}",
    }
    inner, frontend = launch(LLAMA).processes
    assert frontend.env == own
    assert inner.env.items() >= {**own, "DYN_SYSTEM_PORT": "{port:worker}"}.items()
    assert frontend.depends_on == ("worker",)
    mine = {"DYN_REQUEST_PLANE": "nats", "NATS_SERVER": "nats://n:4222"}
    for process in launch(LLAMA, env=mine).processes:
        assert process.env.items() >= mine.items()


@pytest.mark.parametrize("module", OVER)
def test_a_router_by_cache_hears_of_what_is_cached(module: str) -> None:
    flag = "--publish-kv-events" if module == "trtllm" else "--kv-events-config"
    words = {"prefill.workers": 1, "decode.workers": 1}

    def told(*router: str) -> list[str]:
        argv = written(words, args=(*OVER[module], *router))
        return [role for role, line in argv.items() if flag in line]

    assert told() == []
    assert told("--router-mode", "round-robin") == []
    assert told("--router-mode", "kv") == ["prefill-0"]
    assert told("--router-mode=kv", "--no-router-kv-events") == []
    assert told("--router-mode", "kv", "--no-kv-events") == []
    assert flag in written({}, args=(*OVER[module], "--router-mode", "kv"))["worker"]


def test_vllm_is_told_to_keep_events() -> None:
    line = written({}, args=("--router-mode", "kv"))["worker"]
    assert line.endswith(telling("worker", enable_kv_cache_events=True))


def test_arguments_go_to_whom_they_belong() -> None:
    extra = ("--router-temperature", "0.5", "--enable-lora")
    args = ("--router-mode", "random", "--block-size", "64", "--no-enforce-disagg")
    argv = written({"extra_args": extra}, args=args)
    assert argv["worker"] == worker("vllm", "--model some/model --enable-lora --block-size 64")
    assert argv["frontend"] == FRONTEND.replace(
        "dynamo.frontend",
        "dynamo.frontend --router-temperature 0.5 --router-mode random --no-enforce-disagg",
    )


def test_the_engine_of_the_configuration_is_overruled_by_the_studys() -> None:
    extra = {"extra_args": OVER["sglang"]}
    assert "dynamo.sglang" in written(extra)["worker"]
    assert "dynamo.trtllm" in written(extra, args=OVER["trtllm"])["worker"]


def test_a_name_of_the_studys_own_is_the_one_requests_give() -> None:
    assert launch({}).served_model == "some/model"
    assert launch({}, args=("--served-model-name", "mine")).served_model == "mine"


def test_pools_over_vllm_by_mooncake_meet_at_the_prefill_workers() -> None:
    words = {"prefill.workers": 1, "kv_transfer": "mooncake"}
    prefill, decode = (process(words, role) for role in ("prefill-0", "decode-0"))
    assert producing("MooncakeConnector") in shlex.join(prefill.argv)
    assert prefill.env["VLLM_MOONCAKE_BOOTSTRAP_PORT"] == "{port:prefill-0/bootstrap}"
    assert "VLLM_MOONCAKE_BOOTSTRAP_PORT" not in decode.env
    nixl = process({"prefill.workers": 1}, "decode-0")
    assert nixl.env["VLLM_NIXL_SIDE_CHANNEL_PORT"] == "{port:decode-0/nixl}"


@pytest.mark.parametrize(
    ("words", "more", "says"),
    [
        ({"profile": "x"}, {}, "dynamo: cannot express profile"),
        ({"kv_transfer": "nixl"}, {}, "dynamo: kv_transfer needs pools"),
        (
            {"prefill.workers": 1, "kv_transfer": "ucx"},
            {},
            "dynamo over dynamo.vllm: kv_transfer cannot be 'ucx'; choices: nixl, mooncake",
        ),
        (
            {"prefill.workers": 1, "kv_transfer": "ucx"},
            {"args": OVER["sglang"]},
            "dynamo over dynamo.sglang: kv_transfer cannot be 'ucx'; choices: nixl, mooncake, mori",
        ),
        (
            {"quantization": "fp8"},
            {"args": OVER["trtllm"]},
            "dynamo over dynamo.trtllm: cannot express quantization",
        ),
        (
            {"tensor_parallel": 8},
            {"args": OVER["trtllm"], "count": 4, "hosts": 2, "env": ETCD},
            "dynamo over dynamo.trtllm: worker would lie on 2 hosts",
        ),
        (
            {"moe_backend": "wideep"},
            {"args": OVER["trtllm"]},
            "dynamo over dynamo.trtllm: moe_backend cannot be 'wideep'",
        ),
        ({}, {"args": ("-m", "dynamo.mlx")}, "dynamo: -m dynamo.mlx is none of dynamo.vllm, dynamo.sglang"),
        ({}, {"args": ("--http-port", "80")}, "dynamo: --http-port is the launch's own"),
        ({}, {"args": ("loose",)}, "dynamo: loose belongs to no flag"),
        ({"tensor_parallel": 8}, {"count": 4, "hosts": 2}, "give ETCD_ENDPOINTS in `env`"),
        (
            {"tensor_parallel": 4, "prefill.workers": 1, "prefill.tensor_parallel": 2},
            {"count": 3, "hosts": 2, "env": ETCD},
            "dynamo: decode-0's devices lie unevenly on its hosts: 1 and 3",
        ),
    ],
)
def test_what_cannot_be_said_is_refused_by_name(
    words: dict[str, object], more: dict[str, object], says: str
) -> None:
    with pytest.raises(InfeasibleConfigError) as caught:
        launch(words, **more)
    assert says in str(caught.value)


INSIDE = {"vllm": VLLM.dimensions, "sglang": SGLANG.dimensions, "trtllm": TRTLLM_WORDS}
VALUES: dict[str, object] = {
    **dict.fromkeys(
        (
            *("tensor_parallel", "pipeline_parallel", "data_parallel", "context_parallel"),
            *("max_num_seqs", "max_num_batched_tokens", "graph_max_batch", "block_size"),
            *("context_length", "speculative_tokens", "prompt_lookup_max", "workers"),
        ),
        2,
    ),
    **dict.fromkeys(("dp_attention", "expert_parallel", "eager", "lora"), True),
    **dict.fromkeys(("graph_capture", "chunked_prefill", "prefix_caching", "compilation"), False),
    "memory_fraction": 0.5,
    "moe_backend": "triton",
    "all2all_backend": "deepep",
    "attention_backend": "flashinfer",
    "scheduling_policy": "priority",
    "speculation": "ngram",
    "speculative_model": "d",
    "dtype": "bfloat16",
    "quantization": "fp8",
    "kv_cache_dtype": "fp8",
    "tool_parser": "hermes",
    "kv_transfer": "nixl",
    "checkpoint": "some/model-fp8",
}
NEEDED: dict[str, dict[str, object]] = {
    "context_parallel": {"tensor_parallel": 2},
    "data_parallel": {"dp_attention": True},
    "dp_attention": {"data_parallel": 2},
    "expert_parallel": {"tensor_parallel": 2},
    "all2all_backend": {"data_parallel": 2, "dp_attention": True, "expert_parallel": True},
    "speculation": {"speculative_tokens": 3, "prompt_lookup_max": 3},
    "speculative_tokens": {"speculation": "ngram", "prompt_lookup_max": 3},
    "prompt_lookup_max": {"speculation": "ngram", "speculative_tokens": 3},
    "speculative_model": {"speculation": "eagle3", "speculative_tokens": 3},
    "kv_transfer": {"prefill.workers": 1},
}
"""Words that say nothing, or nothing that is served, without others."""


def outcome(words: Mapping[str, object], module: str) -> object:
    """All that a configuration makes of a launch, or that it is refused."""
    try:
        spec = launch(words, count=64, args=OVER[module])
    except InfeasibleConfigError as refused:
        return f"refused: {refused}"
    return [(process.argv, dict(process.env), dict(process.files)) for process in spec.processes]


def changed(word: str, module: str) -> bool:
    """Whether a word changes what is run over an engine; one refused changes nothing."""
    pool, _, bare = word.rpartition(".")
    around = {(f"{pool}.{each}" if pool else each): v for each, v in NEEDED.get(bare, {}).items()}
    base = {**({"prefill.workers": 1, "decode.workers": 1} if pool else {}), **around}
    before, after = (
        outcome({name: value for name, value in words.items() if name != left}, module)
        for words, left in (({**base}, word), ({**base, word: VALUES[bare]}, ""))
    )
    return not isinstance(after, str) and before != after


@pytest.mark.parametrize("word", sorted(LAUNCHER.traits.dimensions - HOST_WORDS))
def test_every_word_in_dimensions_changes_what_some_engine_is_run_with(word: str) -> None:
    assert any(changed(word, module) for module in OVER)


@pytest.mark.parametrize("word", sorted(set(SEARCHABLE) - LAUNCHER.traits.dimensions))
def test_every_other_word_is_refused(word: str) -> None:
    with pytest.raises(InfeasibleConfigError, match=word):
        launch({word: "x"})


@pytest.mark.parametrize("module", OVER)
def test_words_that_the_engine_inside_lacks_are_refused(module: str) -> None:
    lacking = set().union(*INSIDE.values()) - INSIDE[module] - HOST_WORDS - {"tool_parser"}
    for word in lacking:
        assert f"dynamo over dynamo.{module}: cannot express {word}" in str(
            outcome({word: VALUES[word]}, module)
        )


@given(
    st.fixed_dictionaries(
        {f"{pool}.{word}": st.integers(1, 3) for pool in POOLS for word in ("workers", "tensor_parallel")}
    ),
    st.sampled_from(sorted(OVER)),
)
def test_every_device_is_used_once_and_every_role_is_one(words: dict[str, int], module: str) -> None:
    count = config(**words).devices
    spec = launch(words, count=count, args=OVER[module])
    used = [device.index for process in spec.processes for device in process.devices]
    assert used == list(range(count))
    roles = [process.role for process in spec.processes]
    assert len(roles) == len(set(roles)) == sum(words[f"{pool}.workers"] for pool in POOLS) + 1


def test_pools_have_words_of_their_own() -> None:
    assert {f"{pool}.{word}" for pool in POOLS for word in Pool.model_fields} <= LAUNCHER.traits.dimensions


READ_BACK = [
    ({}, ()),
    (LLAMA, ()),
    (LLAMA, OVER["sglang"]),
    ({"extra_args": ("--router-mode", "kv", "--router-temperature", "0.5")}, ()),
    (
        {"prefill.workers": 2, "decode.tensor_parallel": 2, "kv_cache_dtype": "fp8", "kv_transfer": "nixl"},
        (),
    ),
    ({"prefill.workers": 1, "decode.workers": 3, "kv_transfer": "mooncake"}, ("--router-mode", "kv")),
    (
        {"prefill.workers": 2, "decode.workers": 1, "decode.max_num_seqs": 64, "kv_transfer": "mori"},
        OVER["sglang"],
    ),
]


@pytest.mark.parametrize(("words", "args"), READ_BACK)
def test_what_is_written_is_read_back(words: dict[str, object], args: tuple[str, ...]) -> None:
    lines = "\n".join(written(words, args=args).values())
    config_read, model = LAUNCHER.parse_command(lines)
    assert model == "some/model"
    again = written(config_read.model_dump(exclude={"engine"}, exclude_none=True))
    assert {role: sorted(shlex.split(line)) for role, line in again.items()} == {
        role: sorted(shlex.split(line)) for role, line in written(words, args=args).items()
    }


def test_a_recipes_script_is_read() -> None:
    script = """\
#!/bin/bash
trap 'kill 0' EXIT
python -m dynamo.frontend --router-mode kv --http-port 8000 &
CUDA_VISIBLE_DEVICES=0 python3 -m dynamo.vllm \\
    --model Qwen/Qwen3-0.6B --enforce-eager --is-prefill-worker &
CUDA_VISIBLE_DEVICES=1 python3 -m dynamo.vllm --model Qwen/Qwen3-0.6B --max-num-seqs 32 --is-decode-worker
"""
    read, model = LAUNCHER.parse_command(script)
    assert model == "Qwen/Qwen3-0.6B"
    assert read.words == {
        "prefill.workers": 1,
        "prefill.eager": True,
        "decode.workers": 1,
        "decode.max_num_seqs": 32,
        "extra_args": ("--router-mode", "kv"),
    }


READ_ONE = "python -m dynamo.vllm --model m --disaggregation-mode"


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("vllm serve m", "workers of one model and one engine are needed"),
        ("python -m dynamo.frontend", "found: none"),
        ("python -m dynamo.trtllm --model-path m --extra-engine-args e.yaml", "-m dynamo.trtllm is not read"),
        ("python -m dynamo.vllm --model m\npython -m dynamo.vllm --model n", "found: dynamo.vllm, m, n"),
        (
            "python -m dynamo.vllm --model m\npython -m dynamo.vllm --model m --max-num-seqs 2",
            "the aggregated workers differ",
        ),
        ("python -m dynamo.vllm --model m --disaggregation-mode prefill", "a pool for each of the two"),
        (
            "python -m dynamo.vllm --model m --disaggregation-mode encode",
            "--disaggregation-mode encode is none",
        ),
        (
            'python -m dynamo.vllm --model m --kv-transfer-config \'{"kv_connector": "Other"}\'',
            "has no word; there are nixl, mooncake",
        ),
        ("python -m dynamo.vllm --model 'm", "cannot be read"),
        (
            f"{READ_ONE} prefill --dtype half\n{READ_ONE} decode",
            "the pools differ in dtype",
        ),
    ],
)
def test_what_cannot_be_read_is_said(script: str, says: str) -> None:
    with pytest.raises(ValueError, match=says.replace("(", r"\(")):
        LAUNCHER.parse_command(script)


def cause(log: str) -> tuple[FailureClass, str]:
    failure = LAUNCHER.classify_failure(Evidence(phase=Phase.STARTING, exit_code=1, log=log))
    return failure.failure_class, failure.line


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("vllm_logs/kv_too_small.log", FailureClass.KV_CACHE_TOO_SMALL),
        ("vllm_logs/unknown_quantization.log", FailureClass.UNSUPPORTED_QUANTIZATION),
        ("vllm_logs/healthy.log", FailureClass.UNRECOGNISED),
        ("trtllm_logs/kv_cache_out_of_memory.log", FailureClass.OUT_OF_MEMORY),
        ("trtllm_logs/nccl.log", FailureClass.COMMUNICATION),
    ],
)
def test_a_workers_log_is_read_as_that_of_the_engine_inside(log: str, expected: FailureClass) -> None:
    assert cause((LOGS / log).read_text())[0] is expected


def test_an_error_is_told_without_what_dynamo_writes_before_it() -> None:
    line = "Internal server error: Failed to generate completions: no instances found for endpoint"
    # github.com/ai-dynamo/dynamo, issue 1280
    log = f"2025-05-30T00:35:01.153Z ERROR chat_completions: dynamo_llm::http::service::openai: {line}\n"
    assert cause(log) == (FailureClass.UNRECOGNISED, f"dynamo_llm::http::service::openai: {line}")


def test_a_port_that_another_has_is_the_benchs_trouble() -> None:
    # What the frontend of 1.6.1 wrote here.
    line = (
        "Exception: Failed to start HTTP server: port 47125 already in use. Use --http-port to specify a "
        "different port."
    )
    assert cause(f"    await run_input(runtime, 'http', engine)\n{line}\n") == (FailureClass.PORT_TAKEN, line)
