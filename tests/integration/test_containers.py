"""Engines in containers: the command lines, word by word, and that nothing outlives a launch.

``docker`` is a stand-in whose containers are real processes of a daemon.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_environment import MOCK_ENGINE
from host_harness import (
    DEADLINE_S,
    complete,
    host,
    never,
    nothing_left,  # noqa: F401 - a fixture
    other_tuner,
    wait_for,
)
from standin.container_runtime import SOCKET_VARIABLE, install, running_daemon

from autotune.adapters.engines import warden
from autotune.adapters.engines.containers import (
    ContainedLauncher,
    User,
    contained,
    identity_command,
    probe_command,
    pull_command,
)
from autotune.domain.basics.errors import BenchError
from autotune.domain.configs.config import EngineConfig
from autotune.domain.hardware.hardware import Device, DeviceKind
from autotune.domain.launches.launch import (
    Container,
    EngineEnvironment,
    LaunchContext,
    LaunchSpec,
    ProcessSpec,
)

pytestmark = pytest.mark.alone

GPUS = tuple(Device(DeviceKind.CUDA, i, "NVIDIA H200", f"GPU-{i}a", 1 << 37) for i in range(8))
ME = User(1000, 100)
IMAGE = "vllm/vllm-openai:v0.32.0"


def process(*devices: Device, **env: str) -> ProcessSpec:
    return ProcessSpec(
        role="server",
        argv=("vllm", "serve", "/models/tiny", "--port", "{port:server}"),
        env=env,
        devices=devices,
    )


def words_after(argv: tuple[str, ...], option: str) -> list[str]:
    return [argv[at + 1] for at, word in enumerate(argv) if word == option]


def test_docker_word_by_word() -> None:
    what = contained(
        process(GPUS[3], GPUS[1], CUDA_VISIBLE_DEVICES="3,1", HF_TOKEN="hf_x", MODE="fast"),
        Container(image=IMAGE, mounts=("/data", "/here:/there")),
        folders=("/models/tiny",),
        user=ME,
    )
    assert what.argv == (
        *("docker", "run", "--rm", "--init", "--pull", "never"),
        *("--name", "autotune-server-{port:server}"),
        *("--network", "host", "--ipc", "host", "--user", "1000:100"),
        *("--gpus", '"device=GPU-3a,GPU-1a"', "--ulimit", "memlock=-1"),
        *("--mount", "type=bind,source=/models/tiny,target=/models/tiny,readonly"),
        *("--mount", "type=bind,source=/data,target=/data,readonly"),
        *("--mount", "type=bind,source=/here,target=/there,readonly"),
        *("--env", "HF_TOKEN", "--env", "NGC_API_KEY"),
        # Inside there are two GPUs, in the order of the bus: the host's 1 is 0, its 3 is 1.
        *("--env", "CUDA_VISIBLE_DEVICES=1,0", "--env", "HOME=/tmp", "--env", "MODE=fast"),
        *("--env", "USER=autotune", "--entrypoint", "vllm", IMAGE),
        *("serve", "/models/tiny", "--port", "{port:server}"),
    )
    assert what.env == {"HF_TOKEN": "hf_x"}
    assert what.stop_argv == ("docker", "rm", "--force", "autotune-server-{port:server}")
    assert (what.role, what.devices, what.ready_path) == ("server", (GPUS[3], GPUS[1]), "/health")


def test_secrets_are_on_no_command_line() -> None:
    secrets = {"HF_TOKEN": "s1", "OPENAI_API_KEY": "s2", "DB_PASSWORD": "s3", "AWS_SECRET_ACCESS": "s4"}
    for runtime in ("docker", "podman", "apptainer"):
        what = contained(process(**secrets), Container(image=IMAGE, runtime=runtime), user=ME)
        line = " ".join((*what.argv, *what.stop_argv))
        assert not [value for value in secrets.values() if value in line]
        assert {*secrets.values()} <= {*what.env.values()}


def test_podman_names_gpus_as_cdi_does_and_keeps_the_user() -> None:
    what = contained(process(GPUS[0], GPUS[2]), Container(image=IMAGE, runtime="podman"), user=ME)
    assert words_after(what.argv, "--device") == ["nvidia.com/gpu=0", "nvidia.com/gpu=2"]
    assert words_after(what.argv, "--userns") == ["keep-id"]
    assert words_after(what.argv, "--security-opt") == ["label=disable"]
    assert what.stop_argv[:-1] == ("podman", "rm", "--force", "--ignore", "--time", "0")
    as_root = contained(process(), Container(image=IMAGE, runtime="podman"), user=User(0, 0))
    assert "--userns" not in as_root.argv


def test_apptainer_word_by_word() -> None:
    what = contained(
        process(GPUS[1], CUDA_VISIBLE_DEVICES="1", MODE="fast"),
        Container(image=IMAGE, runtime="apptainer", mounts=("/data",)),
        folders=("/models/tiny",),
        user=ME,
    )
    assert what.argv == (
        *("apptainer", "exec", "--writable-tmpfs", "--nv"),
        *("--bind", "/models/tiny:/models/tiny:ro", "--bind", "/data:/data:ro"),
        f"docker://{IMAGE}",
        *("vllm", "serve", "/models/tiny", "--port", "{port:server}"),
    )
    # It hides no GPU: the host's count holds inside.
    assert what.env == {"APPTAINERENV_CUDA_VISIBLE_DEVICES": "1", "APPTAINERENV_MODE": "fast"}
    assert what.stop_argv == ()


@pytest.mark.parametrize("image", ["/images/vllm.sif", "vllm.sif", "oras://registry/vllm:1"])
def test_apptainer_takes_files_and_addresses_as_they_are(image: str) -> None:
    assert image in contained(process(), Container(image=image, runtime="apptainer"), user=ME).argv


def test_cores_and_amd_gpus() -> None:
    cores = tuple(Device(DeviceKind.CPU, i, "core", f"cpu-{i}", 1) for i in (2, 5))
    assert words_after(contained(process(*cores), Container(image=IMAGE), user=ME).argv, "--cpuset-cpus") == [
        "2,5"
    ]
    amd = tuple(Device(DeviceKind.ROCM, i, "MI355X", f"amd-{i}", 1) for i in (6, 4))
    argv = contained(process(*amd), Container(image=IMAGE), user=ME).argv
    assert words_after(argv, "--device") == ["/dev/kfd", "/dev/dri"]
    assert {"ROCR_VISIBLE_DEVICES=4,6", "HIP_VISIBLE_DEVICES=1,0"} <= {*words_after(argv, "--env")}
    assert "--device" not in contained(process(), Container(image=IMAGE), user=ME).argv


def test_an_instance_of_a_gpu_keeps_its_name() -> None:
    mig = replace(GPUS[4], uid="MIG-77")
    for runtime, option, shown in (
        ("docker", "--gpus", '"device=MIG-77"'),
        ("podman", "--device", "nvidia.com/gpu=MIG-77"),
    ):
        what = contained(
            process(mig, CUDA_VISIBLE_DEVICES="MIG-77"), Container(image=IMAGE, runtime=runtime), user=ME
        )
        assert words_after(what.argv, option) == [shown]
        assert "CUDA_VISIBLE_DEVICES=MIG-77" in what.argv


def test_files_of_a_process_are_seen_inside() -> None:
    what = contained(replace(process(), files={"extra.yaml": "a: 1"}), Container(image=IMAGE), user=ME)
    assert words_after(what.argv, "--mount") == [
        "type=bind,source={file:extra.yaml},target={file:extra.yaml},readonly"
    ]
    assert what.files == {"extra.yaml": "a: 1"}


def test_without_arguments_the_image_runs_its_own_command() -> None:
    own = replace(process(), argv=())
    docker = contained(own, Container(image="nim:1"), user=ME)
    assert docker.argv[-1] == "nim:1"
    assert "--entrypoint" not in docker.argv
    apptainer = contained(own, Container(image="nim.sif", runtime="apptainer"), user=ME)
    assert apptainer.argv == ("apptainer", "run", "--writable-tmpfs", "nim.sif")


def test_an_image_is_asked_alone() -> None:
    at = Container(image=IMAGE)
    assert probe_command(at, ("python3", "-c", "print()")) == (
        *("docker", "run", "--rm", "--init", "--interactive", "--network", "none"),
        *("--entrypoint", "python3", IMAGE, "-c", "print()"),
    )
    assert pull_command(at) == ("docker", "pull", IMAGE)
    assert identity_command(at)[-1] == IMAGE
    apptainer = replace(at, runtime="apptainer")
    assert probe_command(apptainer, ("python3",)) == (
        *("apptainer", "exec", "--containall", f"docker://{IMAGE}", "python3"),
    )


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The stand-in on the PATH, its daemon running."""
    monkeypatch.setenv("PATH", f"{install(tmp_path / 'bin')}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv(SOCKET_VARIABLE, str(tmp_path / "docker.sock"))
    with running_daemon(tmp_path / "docker.sock"):
        yield


class MockLauncher:
    """Writes the mock engine's process and knows nothing of containers."""

    traits: Any = None

    def launch_spec(self, config: EngineConfig, context: LaunchContext) -> LaunchSpec:
        words = (str(MOCK_ENGINE), "serve", context.model, "--port", "{port:engine}")
        interpreter = str(context.environment.executable)
        server = ProcessSpec(role="engine", argv=(interpreter, *words), env={}, devices=())
        return LaunchSpec(processes=(server,), serving_role="engine", served_model="tiny")

    parse_command: Any = None
    classify_failure: Any = None


def engine_interpreter(folder: Path) -> Path:
    """An interpreter that is not the tuner's own, as an engine's is."""
    interpreter = folder / "python"
    interpreter.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    interpreter.chmod(0o755)
    return interpreter


def contained_mock(executable: Path, image: str | None = "mock:1") -> LaunchSpec:
    context = LaunchContext(
        model="tiny",
        environment=EngineEnvironment(
            engine="any", executable=executable, version="", kind=DeviceKind.CPU, flags={}
        ),
        devices=(),
        container=Container(image=image) if image else None,
    )
    return ContainedLauncher(MockLauncher()).launch_spec(EngineConfig(engine="any"), context)


def test_without_an_image_nothing_is_contained() -> None:
    assert contained_mock(Path("python"), None).processes[0].argv[0] == "python"
    assert contained_mock(Path("python")).processes[0].argv[0] == "docker"


def test_programs_of_the_tuner_and_containers_already_are_left_as_they_are() -> None:
    for own in (Path(sys.executable), Path("docker")):
        assert contained_mock(own) == contained_mock(own, None)


def engine_pids(tmp_path: Path) -> list[int]:
    """Processes of the mock engine that listen on this launch's port: containers, and clients of them."""
    port = next(line for line in (tmp_path / "engine.log").read_text().split() if line.startswith("127."))
    number = port.rpartition(":")[2]
    return [p.pid for p in warden.processes() if number in _words(p.pid) and "serve" in _words(p.pid)]


def _words(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


@pytest.mark.usefixtures("docker")
def test_a_container_serves_and_is_gone_at_the_end(tmp_path: Path) -> None:
    with host(tmp_path, stop_grace_s=0.5).serving(
        contained_mock(engine_interpreter(tmp_path)),
        workdir=tmp_path,
        start_timeout_s=DEADLINE_S,
        cancelled=never,
    ) as engine:
        assert "[DONE]" in complete(engine.endpoint.base_url)
        served = engine_pids(tmp_path)
        # The container itself descends from no warden: ending all that do does not end it.
        (watching,) = [p.pid for p in warden.descendants(os.getpid()) if warden.__file__ in _words(p.pid)]
        assert {*served} - {watching, *(process.pid for process in warden.descendants(watching))}
    assert [pid for pid in served if warden.find(pid)] == []


@pytest.mark.usefixtures("docker")
def test_a_container_is_gone_when_the_tuner_was_killed(tmp_path: Path) -> None:
    with other_tuner(tmp_path, contained_mock(engine_interpreter(tmp_path))) as tuner:
        served = engine_pids(tmp_path)
        assert len(served) > 1
        tuner.send_signal(signal.SIGKILL)
    host(tmp_path)
    assert [pid for pid in served if warden.find(pid)] == []


@pytest.mark.usefixtures("docker")
def test_a_container_is_gone_when_tuner_and_warden_were_killed(tmp_path: Path) -> None:
    with other_tuner(tmp_path, contained_mock(engine_interpreter(tmp_path))) as tuner:
        served = engine_pids(tmp_path)
        watching = warden.descendants(tuner.pid)[0]
        tuner.send_signal(signal.SIGSTOP)
        os.kill(watching.pid, signal.SIGKILL)
        tuner.send_signal(signal.SIGKILL)
    wait_for(lambda: warden.find(watching.pid) is None)
    assert [pid for pid in served if warden.find(pid)] != []
    host(tmp_path)
    assert [pid for pid in served if warden.find(pid)] == []


@pytest.mark.usefixtures("docker")
def test_a_container_sees_the_environment_that_it_is_given_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONLY_OUTSIDE", "x")
    monkeypatch.setenv("HF_TOKEN", "of the tuner")
    show = "import os; print({k: os.environ.get(k) for k in ('ONLY_OUTSIDE', 'HF_TOKEN', 'MODE')})"
    inside = replace(process(MODE="fast"), argv=(sys.executable, "-c", show))
    what = contained(inside, Container(image="mock:1"), user=User.current())
    argv = [word.replace("{port:server}", "1") for word in what.argv]
    said = subprocess.run(
        argv, env={**os.environ, **what.env}, capture_output=True, text=True, check=True, timeout=30
    )
    assert said.stdout == "{'ONLY_OUTSIDE': None, 'HF_TOKEN': 'of the tuner', 'MODE': 'fast'}\n"


def test_a_daemon_that_does_not_answer_is_a_bench_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{install(tmp_path / 'bin')}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv(SOCKET_VARIABLE, str(tmp_path / "nobody.sock"))
    with (
        pytest.raises(BenchError, match=r"docker rm --force.*Cannot connect to the daemon"),
        host(tmp_path).serving(
            contained_mock(engine_interpreter(tmp_path)),
            workdir=tmp_path,
            start_timeout_s=DEADLINE_S,
            cancelled=never,
        ),
    ):
        pass
