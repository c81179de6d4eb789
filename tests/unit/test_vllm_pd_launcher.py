"""What vLLM in two pools is run with, how its command lines are read back, and what its KV travelled over."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.adapters.engines import pd_router
from autotune.domain.basics.errors import InfeasibleConfigError
from autotune.domain.configs.config import EngineConfig
from autotune.domain.hardware.hardware import Device, DeviceKind
from autotune.domain.launches.commands import shell_commands
from autotune.domain.launches.launch import (
    EngineEnvironment,
    Evidence,
    FailureClass,
    LaunchContext,
    LaunchSpec,
    Phase,
)
from launchers.vllm_pd import LAUNCHER
from launchers.vllm_pd.connectors import CONNECTORS

MODEL = "meta-llama/Llama-3.3-70B-Instruct"


def context(
    devices: int = 8, kind: DeviceKind = DeviceKind.CUDA, *, args: tuple[str, ...] = ()
) -> LaunchContext:
    environment = EngineEnvironment(
        engine="vllm-pd", executable=Path("/engines/vllm/bin/vllm"), version="0.32.0", kind=kind, flags={}
    )
    some = tuple(
        Device(kind=kind, index=index, name="a device", uid=f"GPU-{index}", memory_bytes=1 << 30)
        for index in range(devices)
    )
    return LaunchContext(model=MODEL, environment=environment, devices=some, args=args)


def config(words: dict[str, object]) -> EngineConfig:
    return EngineConfig.model_validate({"engine": "vllm-pd", **words})


def launch(words: dict[str, object], context: LaunchContext) -> LaunchSpec:
    return LAUNCHER.launch_spec(config(words), context)


def router_arguments(spec: LaunchSpec) -> list[str]:
    router = spec.processes[-1]
    assert router.role == "router"
    assert router.argv[1:3] == ("-m", "autotune.adapters.engines.pd_router")
    return list(router.argv[3:])


TWO_AND_ONE: dict[str, object] = {
    "kv_transfer": "nixl",
    "context_length": 32768,
    "prefill.workers": 2,
    "prefill.tensor_parallel": 2,
    "prefill.max_num_batched_tokens": 16384,
    "decode.workers": 1,
    "decode.tensor_parallel": 4,
    "decode.max_num_seqs": 512,
}


def test_two_prefill_workers_and_one_for_decoding_on_eight_gpus() -> None:
    spec = launch(TWO_AND_ONE, context())
    transfer = (
        '--kv-transfer-config \'{{"kv_connector": "NixlConnector", "kv_role": "{role}", '
        '"engine_id": "{engine}", "kv_load_failure_policy": "fail"}}\''
    )
    common = f"/engines/vllm/bin/vllm serve {MODEL} --tensor-parallel-size"
    prefill = f"{common} 2 --max-num-batched-tokens 16384 --max-model-len 32768 "
    decode = f"{common} 4 --max-num-seqs 512 --max-model-len 32768 "
    expected = {
        "prefill-0": prefill + transfer.format(role="kv_producer", engine="prefill-0"),
        "prefill-1": prefill + transfer.format(role="kv_producer", engine="prefill-1"),
        "decode-0": decode + transfer.format(role="kv_consumer", engine="decode-0"),
    }
    for process in spec.processes[:-1]:
        address = f"--host {{host:{process.role}}} --port {{port:{process.role}}}"
        assert list(process.argv) == shlex.split(f"{expected[process.role]} {address}")
        assert process.env["VLLM_NIXL_SIDE_CHANNEL_HOST"] == f"{{host:{process.role}}}"
        assert process.env["VLLM_NIXL_SIDE_CHANNEL_PORT"] == f"{{port:{process.role}/nixl}}"
        assert process.env["UCX_PROTO_INFO"] == "y"
    shown = {p.role: (p.env["CUDA_VISIBLE_DEVICES"], len(p.devices)) for p in spec.processes[:-1]}
    assert shown == {"prefill-0": ("0,1", 2), "prefill-1": ("2,3", 2), "decode-0": ("4,5,6,7", 4)}


def test_the_router_knows_every_worker_and_waits_for_all() -> None:
    spec = launch(TWO_AND_ONE, context())
    assert router_arguments(spec) == [
        *("--host", "{host:router}", "--port", "{port:router}", "--transfer", "nixl"),
        *("--prefill", "http://{host:prefill-0}:{port:prefill-0}"),
        *("--prefill", "http://{host:prefill-1}:{port:prefill-1}"),
        *("--decode", "http://{host:decode-0}:{port:decode-0}"),
    ]
    router = spec.processes[-1]
    assert router.depends_on == ("prefill-0", "prefill-1", "decode-0")
    assert router.devices == ()
    assert spec.serving_role == "router"
    assert spec.served_model == MODEL
    # Prefill workers would count each prompt twice.
    assert spec.counter_roles == ("decode-0",)


def test_mooncake_workers_are_found_by_their_bootstrap_servers() -> None:
    spec = launch({**TWO_AND_ONE, "kv_transfer": "mooncake"}, context())
    prefill, _, decode, _ = spec.processes
    assert prefill.env["VLLM_MOONCAKE_BOOTSTRAP_PORT"] == "{port:prefill-0/bootstrap}"
    assert not [name for name in decode.env if "MOONCAKE" in name or "NIXL" in name]
    assert router_arguments(spec)[-4:] == [
        *("--bootstrap", "http://{host:prefill-0}:{port:prefill-0/bootstrap}"),
        *("--bootstrap", "http://{host:prefill-1}:{port:prefill-1/bootstrap}"),
    ]


@pytest.mark.parametrize("word", CONNECTORS)
def test_the_router_takes_what_it_is_given(word: str) -> None:
    spec = launch({**TWO_AND_ONE, "kv_transfer": word}, context())
    filled = [re.sub(r"\{port:[^}]*\}", "80", token) for token in router_arguments(spec)]
    assert len(pd_router.parse_arguments(filled).prefill) == 2


def test_nothing_said_of_the_transfer_is_nixl() -> None:
    words = {word: value for word, value in TWO_AND_ONE.items() if word != "kv_transfer"}
    assert launch(words, context()).processes == launch(TWO_AND_ONE, context()).processes


def test_two_workers_on_two_cores() -> None:
    spec = launch({"prefill.workers": 1, "eager": True}, context(2, DeviceKind.CPU))
    assert [(p.role, len(p.devices)) for p in spec.processes] == [
        ("prefill-0", 1),
        ("decode-0", 1),
        ("router", 0),
    ]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"tensor_parallel": 2}, "there are no pools"),
        (
            {**TWO_AND_ONE, "kv_transfer": "pigeon"},
            "kv_transfer: pigeon is none of nixl, nixl-push, mooncake",
        ),
        ({**TWO_AND_ONE, "profile": "x"}, "vllm-pd: cannot express profile"),
        (
            {**TWO_AND_ONE, "decode.context_parallel": 3},
            "decode: vllm: context_parallel 3 does not divide tensor_parallel 4",
        ),
        (
            {**TWO_AND_ONE, "kv_transfer": "mooncake", "prefill.data_parallel": 2},
            "mooncake cannot be routed to prefill.data_parallel 2",
        ),
        (
            {**TWO_AND_ONE, "extra_args": ("--kv-transfer-config.kv_port", "1")},
            "extra_args: --kv-transfer-config is written from the word kv_transfer",
        ),
    ],
)
def test_what_cannot_be_launched_is_refused_by_name(words: dict[str, object], says: str) -> None:
    with pytest.raises(InfeasibleConfigError) as caught:
        launch(words, context())
    assert says in str(caught.value)


counts = st.integers(1, 4)
pools = st.fixed_dictionaries(
    {"prefill.workers": counts, "decode.workers": counts},
    optional={
        **{f"{pool}.{word}": counts for pool in ("prefill", "decode") for word in ("tensor_parallel",)},
        "prefill.data_parallel": counts,
        "decode.max_num_seqs": counts,
        "decode.expert_parallel": st.booleans(),
        "kv_transfer": st.sampled_from(["nixl", "nixl-push"]),
        "tensor_parallel": counts,
        "kv_cache_dtype": st.sampled_from(["fp8", "auto"]),
        "compilation": st.booleans(),
        "extra_args": st.just(("--seed", "1")),
    },
)


@given(pools)
def test_what_is_launched_reads_back_as_what_launches_the_same(words: dict[str, object]) -> None:
    # More devices than any of them asks for; a word may be said of a pool or of both.
    spec = launch(words, context(200))
    commands = "\n".join(shell_commands(spec).values())
    read, model = LAUNCHER.parse_command(commands)
    assert model == MODEL
    assert LAUNCHER.launch_spec(read, context(200)) == spec
    assert read.devices == config(words).devices


PREFILL = (
    """vllm serve m -tp 2 --kv-transfer-config '{"kv_connector":"NixlConnector","kv_role":"kv_producer"}'"""
)
DECODE = PREFILL.replace("producer", "consumer")


def test_a_production_script_is_read() -> None:
    script = f"""
    A=1 {PREFILL} --port 8001 --max-num-batched-tokens 8k &
    {PREFILL} --port 8002 \\
        --max-num-batched-tokens 8k &
    {DECODE} --port 8003; sleep 60
    vllm-router --vllm-pd-disaggregation --prefill http://localhost:8001
    """
    read, model = LAUNCHER.parse_command(script)
    assert model == "m"
    assert read.words == {
        "tensor_parallel": 2,
        "kv_transfer": "nixl",
        "prefill.workers": 2,
        "prefill.max_num_batched_tokens": 8000,
        "decode.workers": 1,
    }


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("", "no command line starts a prefill or a decode worker"),
        (PREFILL, "no command line starts a decode worker"),
        (f"{PREFILL} & {DECODE.replace(' m ', ' n ')}", "differ in model or connector"),
        (f"{PREFILL} & {DECODE} & {DECODE} -pp 2", "decode workers differ"),
        (f"{PREFILL} --dtype half & {DECODE}", "the pools differ in dtype"),
        (f"{PREFILL} & vllm serve m", "each worker of a pool has one --kv-transfer-config"),
        (f"{PREFILL} & {DECODE.replace('kv_consumer', 'kv_both')}", "kv_role 'kv_both' says not which"),
        (f"{PREFILL} & {DECODE.replace('Nixl', 'FlexKV')}", "connector 'FlexKVConnector' is none of"),
        (f"{PREFILL} & {DECODE.replace('kv_role', 'kv_port')}", "no word says kv_port"),
        (f"{PREFILL} & 'vllm", "cannot be read"),
    ],
)
def test_other_scripts_are_refused(script: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        LAUNCHER.parse_command(script)


def test_it_runs_from_vllms_own_installation() -> None:
    assert LAUNCHER.traits.environment == "vllm"
    assert LAUNCHER.traits.executable == "vllm"
    assert {"kv_transfer", "prefill.workers", "decode.tensor_parallel"} <= LAUNCHER.traits.dimensions


def test_a_workers_failure_is_read_as_vllms() -> None:
    log = "vllm serve: error: unrecognized arguments: --no-such-flag"
    failure = LAUNCHER.classify_failure(Evidence(phase=Phase.STARTING, exit_code=2, log=log))
    assert failure.failure_class is FailureClass.REFUSED_ARGUMENTS


def test_the_transfer_is_json_that_names_the_worker() -> None:
    spec = launch(TWO_AND_ONE, context())
    for process in spec.processes[:-1]:
        given = json.loads(process.argv[process.argv.index("--kv-transfer-config") + 1])
        assert given["engine_id"] == process.role
