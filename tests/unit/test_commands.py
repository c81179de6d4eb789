"""A launch as shell lines."""

from __future__ import annotations

import shlex

from autotune.domain.launches.commands import shell_commands
from autotune.domain.launches.launch import LaunchSpec, ProcessSpec


def process(role: str, *argv: str, host_slot: int = 0, **more: object) -> ProcessSpec:
    return ProcessSpec(role=role, argv=argv, devices=(), host_slot=host_slot, **{"env": {}, **more})  # type: ignore[arg-type]


def test_each_role_has_a_port_of_its_own_and_the_serving_one_the_first() -> None:
    worker = process("worker", "/bin/engine", "--port", "{port:worker}", "--side", "{port:worker/side}")
    router = process(
        "router", "/bin/router", "--to", "http://{host:worker}:{port:worker}", "--port", "{port:router}"
    )
    lines = shell_commands(LaunchSpec(processes=(worker, router), serving_role="router", served_model="m"))
    assert lines == {
        "worker": "engine --port 8001 --side 8002",
        "router": "router --to http://127.0.0.1:8001 --port 8000",
    }


def test_hosts_have_names_where_there_are_several() -> None:
    one, two = process("a", "x", "{host:b}"), process("b", "x", "{host:a}", host_slot=1)
    lines = shell_commands(LaunchSpec(processes=(one, two), serving_role="a", served_model="m"))
    assert lines == {"a": "x node-1", "b": "x node-0"}


def test_files_are_written_before_they_are_read() -> None:
    reading = process("a", "x", "{file:o.yaml}", files={"o.yaml": "port: {port:a}\n"})
    lines = shell_commands(LaunchSpec(processes=(reading,), serving_role="a", served_model="m"))
    assert lines["a"] == "cat > o.yaml <<'END'\nport: 8000\nEND\nx o.yaml"


def test_values_are_quoted_and_the_home_folder_is_left_to_the_shell() -> None:
    env = {"A": "two words", "B": "~/some where"}
    lines = shell_commands(
        LaunchSpec(processes=(process("a", "x", '{"k": 1}', env=env),), serving_role="a", served_model="m")
    )
    assert lines["a"] == "A='two words' B=~/'some where' x '{\"k\": 1}'"
    assert shlex.split(lines["a"])[-1] == '{"k": 1}'


def test_secrets_stand_as_the_variables_that_hold_them() -> None:
    secret = process("a", "x", "--api-key", "sesame", env={"HF_TOKEN": "sesame", "A": "1"})
    lines = shell_commands(LaunchSpec(processes=(secret,), serving_role="a", served_model="m"))
    assert lines["a"] == 'A=1 HF_TOKEN="$HF_TOKEN" x --api-key "$API_KEY"'
