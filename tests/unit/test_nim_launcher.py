"""What a NIM's container is run with, how production command lines are read back, and how it fails."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.domain.basics.errors import InfeasibleConfigError
from autotune.domain.configs.config import EngineConfig
from autotune.domain.hardware.hardware import Device, DeviceKind
from autotune.domain.launches.launch import (
    Container,
    EngineEnvironment,
    Evidence,
    FailureClass,
    LaunchContext,
    Phase,
    ProcessSpec,
)
from launchers.nim import LAUNCHER
from launchers.options import HOST_WORDS

LOGS = Path(__file__).parents[1] / "data"
IMAGE = "nvcr.io/nim/meta/llama-3.3-70b-instruct:2.1.4"
PROFILE = "vllm-fp8-tp2-pp1"


def context(
    *,
    runtime: str = "docker",
    mounts: tuple[str, ...] = (),
    shown: tuple[str, ...] = ("GPU-0", "GPU-1"),
    args: tuple[str, ...] = (),
    env: Mapping[str, str] | None = None,
) -> LaunchContext:
    environment = EngineEnvironment(
        engine="nim", executable=Path("/usr/bin/docker"), version="", kind=DeviceKind.CUDA, flags={}
    )
    return LaunchContext(
        model="meta/llama-3.3-70b-instruct",
        environment=environment,
        devices=tuple(
            Device(DeviceKind.CUDA, index, "a GPU", uid, 1 << 37) for index, uid in enumerate(shown)
        ),
        container=Container(image=IMAGE, runtime=runtime, mounts=mounts),
        args=args,
        env=env or {},
    )


def config(**words: object) -> EngineConfig:
    return EngineConfig.model_validate({"engine": "nim", **words})


def server(words: Mapping[str, object], **more: object) -> ProcessSpec:
    (process,) = LAUNCHER.launch_spec(config(**words), context(**more)).processes  # type: ignore[arg-type]
    return process


def test_a_profile_under_docker() -> None:
    words = {"profile": PROFILE, "tensor_parallel": 2, "context_length": 32768}
    cache = "/scratch/nim:/opt/nim/.cache"
    process = server(words, mounts=(cache, "/models"), args=("--enable-log-requests",))
    assert shlex.join(process.argv) == (
        "docker run --rm --init --name 'autotune-nim-{port:server}' --gpus '\"device=0,1\"' --shm-size=16GB "
        f"-e NGC_API_KEY -e HF_TOKEN -e NIM_MODEL_PROFILE={PROFILE} "
        f"-v {cache} -v /models:/models -p '{{host:server}}:{{port:server}}:8000' {IMAGE} "
        "--tensor-parallel-size 2 --max-model-len 32768 --enable-log-requests"
    )
    assert process.stop_argv == ("docker", "rm", "-f", "autotune-nim-{port:server}")
    assert process.ready_path == "/v1/health/ready"
    assert process.role == "server"


def test_podman_takes_its_devices_one_by_one() -> None:
    process = server({}, runtime="podman")
    assert shlex.join(process.argv) == (
        "podman run --rm --init --name 'autotune-nim-{port:server}' --device nvidia.com/gpu=0 "
        "--device nvidia.com/gpu=1 --shm-size=16GB -e NGC_API_KEY -e HF_TOKEN "
        f"-p '{{host:server}}:{{port:server}}:8000' {IMAGE}"
    )
    assert process.stop_argv[0] == "podman"


def test_a_slice_of_a_gpu_is_named_by_its_uid() -> None:
    assert '"device=MIG-7,1"' in server({}, shown=("MIG-7", "GPU-1")).argv


def test_no_value_of_a_variable_stands_in_the_command() -> None:
    env = {"NGC_API_KEY": "nvapi-secret", "NIM_KVCACHE_PERCENT": "0.9"}
    process = server({}, env=env)
    assert "secret" not in shlex.join(process.argv)
    assert process.env == env
    given_by_name = [
        value for flag, value in zip(process.argv, process.argv[1:], strict=False) if flag == "-e"
    ]
    assert given_by_name == ["NGC_API_KEY", "HF_TOKEN", "NIM_KVCACHE_PERCENT"]


def test_requests_name_the_model_as_the_nim_does() -> None:
    assert LAUNCHER.launch_spec(config(), context()).served_model == "meta/llama-3.3-70b-instruct"
    renamed = context(env={"NIM_SERVED_MODEL_NAME": "mine,also"})
    assert LAUNCHER.launch_spec(config(), renamed).served_model == "mine"


@pytest.mark.parametrize(
    ("words", "runtime", "says"),
    [
        ({"max_num_seqs": 64}, "docker", "nim: cannot express max_num_seqs"),
        ({"profile": "vllm-bf16-tp4-pp1"}, "docker", "profile vllm-bf16-tp4-pp1 needs tensor_parallel: 4"),
        (
            {"profile": "tensorrt_llm-h100-fp8-tp2-pp2-latency", "tensor_parallel": 2},
            "docker",
            "needs pipeline_parallel: 2",
        ),
        ({}, "apptainer", "nim: runs under docker or podman, not apptainer"),
    ],
)
def test_what_cannot_be_said_is_refused_by_name(words: dict[str, object], runtime: str, says: str) -> None:
    with pytest.raises(InfeasibleConfigError, match=says):
        server(words, runtime=runtime)


def test_a_nim_without_an_image_is_refused() -> None:
    bare = LaunchContext(model="m", environment=context().environment, devices=())
    with pytest.raises(InfeasibleConfigError, match="nim: is a container: give the engine's `image`"):
        LAUNCHER.launch_spec(config(), bare)


VALUES: dict[str, st.SearchStrategy[object]] = {
    "profile": st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
    **dict.fromkeys(("tensor_parallel", "pipeline_parallel", "context_length"), st.integers(1, 1 << 20)),
}


def test_every_dimension_is_tried_here() -> None:
    assert LAUNCHER.traits.dimensions == {*VALUES, *HOST_WORDS}


@given(st.fixed_dictionaries({}, optional=VALUES), st.sampled_from(sorted(VALUES)))
def test_every_word_in_dimensions_changes_the_command(words: dict[str, object], word: str) -> None:
    without = {name: value for name, value in words.items() if name != word}
    assert (server(words).argv == server(without).argv) == (word not in words)


@given(st.fixed_dictionaries({}, optional=VALUES))
def test_what_is_written_is_read_back(words: dict[str, object]) -> None:
    line = shlex.join(server(words, args=("--enable-log-requests",)).argv)
    read, model = LAUNCHER.parse_command(line)
    assert model == "meta/llama-3.3-70b-instruct"
    assert read.words == {**words, "extra_args": ("--enable-log-requests",)}


QUICKSTART = """\
docker run -it --rm --name=nim --runtime=nvidia --gpus all --shm-size=16GB \\
  -e NGC_API_KEY=$NGC_API_KEY -e NIM_MODEL_PROFILE=vllm-fp8-tp4-pp1 -e NIM_MAX_MODEL_LEN=8192 \\
  -e NIM_TENSOR_PARALLEL_SIZE=2 -v "$LOCAL_NIM_CACHE:/opt/nim/.cache" -u $(id) -p 8000:8000 \\
  nvcr.io/nim/meta/llama-3.3-70b-instruct:2.1.4 --tensor-parallel-size 4 --seed 1
"""


def test_a_production_command_is_read() -> None:
    read, model = LAUNCHER.parse_command(QUICKSTART.replace("$(id)", "1000"))
    assert model == "meta/llama-3.3-70b-instruct"
    assert read.words == {
        "profile": "vllm-fp8-tp4-pp1",
        "tensor_parallel": 4,
        "context_length": 8192,
        "extra_args": ("--seed", "1"),
    }


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("vllm serve m", "it has neither `docker run` nor `podman run`"),
        ("docker run --rm", "names one image; found: none"),
        ("docker run ubuntu", "names one image; found: ubuntu"),
    ],
)
def test_other_commands_are_refused(command: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        LAUNCHER.parse_command(command)


# Lines of public threads: NVIDIA/nim-anywhere issue 4, NVIDIA/nvidia-docker issue 1352,
# NVIDIA/k8s-nim-operator issue 407, NVIDIA-AI-Blueprints/nemotron-voice-agent pull request 89.
CAUSES = {
    'docker: Error response from daemon: Head "https://nvcr.io/v2/nim/meta/llama3-8b-instruct/manifests/'
    '1.0.0": unauthorized: authentication required.': FailureClass.LICENSE,
    "docker: Error response from daemon: unknown or invalid runtime name: nvidia.": FailureClass.DRIVER,
    'docker: Error response from daemon: could not select device driver "" with capabilities: '
    "[[gpu]].": FailureClass.DRIVER,
    '"timestamp": "2025-04-03 20:44:43,942", "level": "ERROR", "message": "Error: Not all of the provided '
    "profiles are supported.": FailureClass.REFUSED_ARGUMENTS,
    "Could not match a profile in manifest": FailureClass.UNSUPPORTED_COMBINATION,
}


@pytest.mark.parametrize("line", CAUSES)
def test_failures_of_public_threads_are_understood(line: str) -> None:
    log = f"Unable to find image 'nvcr.io/nim/meta/llama3-8b-instruct:1.0.0' locally\n{line}\n"
    failure = LAUNCHER.classify_failure(Evidence(phase=Phase.STARTING, exit_code=125, log=log))
    assert (failure.failure_class, failure.line) == (CAUSES[line], line)


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("vllm_logs/kv_too_small.log", FailureClass.KV_CACHE_TOO_SMALL),
        ("trtllm_logs/kv_cache_out_of_memory.log", FailureClass.OUT_OF_MEMORY),
    ],
)
def test_the_engine_inside_is_understood(log: str, expected: FailureClass) -> None:
    evidence = Evidence(phase=Phase.STARTING, exit_code=1, log=(LOGS / log).read_text())
    assert LAUNCHER.classify_failure(evidence).failure_class is expected
