"""Which processes SGLang's pools are, and how production's are read back."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from sglang_goldens import GOLDEN_PD

from autotune.domain.basics.errors import InfeasibleConfigError
from autotune.domain.configs.config import EngineConfig
from autotune.domain.hardware.hardware import Device, DeviceKind
from autotune.domain.launches.launch import EngineEnvironment, LaunchContext, LaunchSpec, ProcessSpec
from launchers.sglang_pd import LAUNCHER

FLAGS = {
    flag: tuple(choices)
    for flag, choices in json.loads(
        (Path(__file__).parents[1] / "data/sglang_logs/flags-0.5.23.json").read_text()
    ).items()
}


ENGINE = Path("/engines/sglang/bin/sglang")


def devices(count: int, *, per_host: int = 8, kind: DeviceKind = DeviceKind.CUDA) -> tuple[Device, ...]:
    return tuple(
        Device(kind=kind, index=index % per_host, name="a device", uid=f"GPU-{index}", memory_bytes=1 << 30)
        for index in range(count)
    )


def config(**words: object) -> EngineConfig:
    return EngineConfig.model_validate(
        {"engine": "sglang-pd", **{name.replace("__", "."): value for name, value in words.items()}}
    )


def launch(
    config: EngineConfig, *, per_host: int = 8, args: tuple[str, ...] = (), kind: DeviceKind = DeviceKind.CUDA
) -> LaunchSpec:
    environment = EngineEnvironment(
        engine="sglang-pd", executable=ENGINE, version="0.5.23", kind=kind, flags=FLAGS
    )
    given = devices(config.devices, per_host=per_host, kind=kind)
    context = LaunchContext(model="some/model", environment=environment, devices=given, args=args)
    return LAUNCHER.launch_spec(config, context)


def by_role(spec: LaunchSpec) -> dict[str, ProcessSpec]:
    return {process.role: process for process in spec.processes}


DEEPSEEK_R1, MI355X = (config(**words) for words in GOLDEN_PD.values())


def test_golden_two_nodes_with_mooncake() -> None:
    spec = launch(DEEPSEEK_R1, args=("--disaggregation-ib-device", "mlx5_0,mlx5_1"))
    prefill, decode, router = spec.processes
    common = "--enable-metrics --disaggregation-mode"
    tail = "--disaggregation-ib-device mlx5_0,mlx5_1 --host {{host:{role}}} --port {{port:{role}}}"
    assert prefill.argv == (
        "/engines/sglang/bin/sglang",
        *shlex.split(
            f"""serve --model-path some/model --tp-size 8 --kv-cache-dtype fp8_e4m3 --attention-backend fa3
            --chunked-prefill-size 32768 --max-prefill-tokens 32768 {common} prefill
            --disaggregation-transfer-backend mooncake
            --disaggregation-bootstrap-port {{port:prefill-0/bootstrap}} {tail.format(role="prefill-0")}"""
        ),
    )
    assert decode.argv == (
        "/engines/sglang/bin/sglang",
        *shlex.split(
            f"""serve --model-path some/model --tp-size 8 --attn-dp-size 8 --ep-size 8
            --moe-a2a-backend deepep --kv-cache-dtype fp8_e4m3 --attention-backend fa3
            --max-running-requests 1024 {common} decode --disaggregation-transfer-backend mooncake
            {tail.format(role="decode-0")}"""
        ),
    )
    assert router.argv == (
        "/engines/sglang/bin/python",
        *shlex.split(
            """-m sglang_router.launch_router --pd-disaggregation
            --prefill http://{host:prefill-0}:{port:prefill-0} {port:prefill-0/bootstrap}
            --decode http://{host:decode-0}:{port:decode-0} --worker-startup-check-interval 1
            --prometheus-host {host:router} --prometheus-port {port:router/metrics}
            --host {host:router} --port {port:router}"""
        ),
    )
    assert [process.host_slot for process in spec.processes] == [0, 1, 0]
    assert [len(process.devices) for process in spec.processes] == [8, 8, 0]
    assert decode.env["CUDA_VISIBLE_DEVICES"] == "0,1,2,3,4,5,6,7"
    assert router.depends_on == ("prefill-0", "decode-0")
    assert (router.ready_path, decode.ready_path) == ("/readiness", "/health")
    assert (spec.serving_role, spec.served_model) == ("router", "some/model")
    assert spec.counter_roles == ("decode-0",)


def test_golden_mi355x_with_mori() -> None:
    spec = launch(MI355X, kind=DeviceKind.ROCM)
    prefill, decode, _ = spec.processes
    worker = """serve --model-path some/model --tp-size 4 --attn-dp-size 4 --ep-size 4
        --mem-fraction-static 0.85 --moe-a2a-backend mori --kv-cache-dtype fp8_e4m3
        --attention-backend aiter"""
    assert prefill.argv[1:] == tuple(
        shlex.split(
            f"""{worker} --max-running-requests 96 --enable-metrics --disaggregation-mode prefill
            --disaggregation-transfer-backend mori --disaggregation-bootstrap-port
            {{port:prefill-0/bootstrap}} --host {{host:prefill-0}} --port {{port:prefill-0}}"""
        )
    )
    assert decode.argv[1:] == tuple(
        shlex.split(
            f"""{worker} --max-running-requests 2048 --enable-metrics --disaggregation-mode decode
            --disaggregation-transfer-backend mori --host {{host:decode-0}} --port {{port:decode-0}}"""
        )
    )
    assert prefill.env == {"HIP_VISIBLE_DEVICES": "0,1,2,3"}
    assert decode.env == {"HIP_VISIBLE_DEVICES": "4,5,6,7"}


def test_devices_are_divided_among_the_workers_in_order() -> None:
    spec = launch(config(prefill__workers=2, decode__workers=3, decode__tensor_parallel=2))
    shown = {role: process.env.get("CUDA_VISIBLE_DEVICES") for role, process in by_role(spec).items()}
    assert shown == {
        "prefill-0": "0",
        "prefill-1": "1",
        "decode-0": "2,3",
        "decode-1": "4,5",
        "decode-2": "6,7",
        "router": None,
    }
    router = by_role(spec)["router"]
    assert router.argv.count("--prefill") == 2
    assert router.argv.count("--decode") == 3
    assert spec.counter_roles == ("decode-0", "decode-1", "decode-2")


def test_a_worker_over_several_hosts_is_a_process_on_each() -> None:
    spec = launch(config(tensor_parallel=8, prefill__workers=1, decode__workers=1), per_host=4)
    slots = {role: process.host_slot for role, process in by_role(spec).items()}
    assert slots == {"prefill-0": 0, "prefill-0-node1": 1, "decode-0": 2, "decode-0-node1": 3, "router": 0}
    second = by_role(spec)["decode-0-node1"]
    assert "{host:decode-0}:{port:decode-0/dist}" in second.argv
    assert by_role(spec)["router"].argv.count("--decode") == 1


def test_nixl_says_which_transport_it_took() -> None:
    spec = launch(config(kv_transfer="nixl", prefill__workers=1, decode__workers=1))
    assert by_role(spec)["decode-0"].env["UCX_PROTO_INFO"] == "y"
    assert "UCX_PROTO_INFO" not in by_role(launch(DEEPSEEK_R1))["decode-0"].env


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"tensor_parallel": 8}, "sglang-pd: prefill.workers and decode.workers are needed"),
        ({"prefill.workers": 1, "kv_transfer": "pigeon"}, "cannot be 'pigeon'"),
        ({"prefill.workers": 1, "prompt_lookup_max": 3}, "sglang-pd: cannot express prompt_lookup_max"),
        ({"prefill.workers": 1, "decode.dp_attention": True}, "dp_attention needs data_parallel"),
        (
            {"kv_transfer": "mori", "decode.tensor_parallel": 2, "decode.context_parallel": 2},
            "no kv_transfer mori with context_parallel",
        ),
    ],
)
def test_what_the_pools_cannot_be_is_infeasible(words: dict[str, object], says: str) -> None:
    with pytest.raises(InfeasibleConfigError) as caught:
        launch(config(**words))
    assert says in str(caught.value)


def commands(spec: LaunchSpec) -> str:
    """The launch as a script that a person could have written."""
    return "#!/bin/sh\n" + "\n".join(f"{shlex.join(process.argv)} &" for process in spec.processes)


@pytest.mark.parametrize("written", [DEEPSEEK_R1, MI355X])
def test_what_is_launched_reads_back_as_the_same_configuration(written: EngineConfig) -> None:
    assert LAUNCHER.parse_command(commands(launch(written))) == (written, "some/model")


def test_further_hosts_of_a_worker_are_no_workers() -> None:
    written = config(tensor_parallel=8, prefill__workers=2, decode__workers=1)
    assert LAUNCHER.parse_command(commands(launch(written, per_host=4))) == (written, "some/model")


PREFILL = "sglang serve m --disaggregation-mode prefill"
DECODE = "sglang serve m --disaggregation-mode decode"


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("", "workers of one model"),
        ("sglang serve m", "--disaggregation-mode prefill or"),
        (PREFILL, "no command line starts a decode worker"),
        (f"{PREFILL}\n{DECODE.replace(' m ', ' n ')}", "found: m, n"),
        (f"{PREFILL}\n{PREFILL} --tp 2\n{DECODE}", "the prefill workers differ"),
        (f"{PREFILL} --dtype half\n{DECODE}", "the pools differ in dtype"),
    ],
)
def test_other_commands_are_refused(script: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        LAUNCHER.parse_command(script)
