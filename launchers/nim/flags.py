"""The flags of ``docker run`` and of the NIM behind the image."""

from __future__ import annotations

from launchers.options import FlagTable

PROFILE_VARIABLE = "NIM_MODEL_PROFILE"
NAME_VARIABLE = "NIM_SERVED_MODEL_NAME"
SECRETS = ("NGC_API_KEY", "HF_TOKEN")
"""Given by name alone: docker takes the value from its own environment, and none where there is none."""

ENV = "--env"
PORT = 8000
"""``NIM_SERVER_PORT``'s default, inside the container."""

TABLE = FlagTable(
    engine="nim",
    # NIM's canonical arguments, which it translates for the engine inside.
    valued={
        "tensor_parallel": "--tensor-parallel-size",
        "pipeline_parallel": "--pipeline-parallel-size",
        "context_length": "--max-model-len",
    },
    switches={},
    aliases={
        "-e": ENV,
        "-p": "--publish",
        "-v": "--volume",
        "-u": "--user",
        "-w": "--workdir",
        "-h": "--hostname",
        "-l": "--label",
        "--net": "--network",
    },
    bare=frozenset(
        {
            *("-d", "-i", "-t", "-it", "-ti", "-dit", "-itd"),
            *("--rm", "--init", "--detach", "--interactive", "--tty", "--privileged", "--read-only"),
        }
    ),
    single=frozenset(
        {
            *(ENV, "--env-file", "--publish", "--volume", "--user", "--workdir", "--hostname", "--label"),
            *("--network", "--name", "--gpus", "--device", "--runtime", "--shm-size", "--ipc", "--ulimit"),
            *("--mount", "--cpus", "--cpuset-cpus", "--memory", "--restart", "--pull", "--entrypoint"),
            *("--platform", "--cap-add", "--security-opt", "--pid", "--log-driver", "--log-opt"),
        }
    ),
)

OF_DOCKER = TABLE.bare | TABLE.single
"""Flags that say how the container runs, not what the NIM does."""
