"""What transformers serve is run with, how its command lines are read back, and what its failures mean."""

from __future__ import annotations

import json
import shlex
import signal
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from autotune.domain.basics.errors import InfeasibleConfigError
from autotune.domain.configs.config import SEARCHABLE, EngineConfig
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
from launchers.transformers_serve import LAUNCHER

LOGS = Path(__file__).parents[1] / "data/transformers_logs"
FLAGS = {
    flag: tuple(choices) for flag, choices in json.loads((LOGS / "flags-5.23.0.json").read_text()).items()
}
"""What the parser probe said of transformers 5.23.0."""


def context(
    kind: DeviceKind = DeviceKind.CUDA, *, model: str = "some/model", args: tuple[str, ...] = ()
) -> LaunchContext:
    environment = EngineEnvironment(
        engine="transformers",
        executable=Path("/engines/transformers/bin/transformers"),
        version="5.23.0",
        kind=kind,
        flags=FLAGS,
    )
    device = Device(kind=kind, index=3, name="a device", uid="GPU-3", memory_bytes=1 << 30)
    return LaunchContext(model=model, environment=environment, devices=(device,), args=args)


def config(**words: object) -> EngineConfig:
    return EngineConfig.model_validate({"engine": "transformers", **words})


def launched(words: dict[str, object], at: LaunchContext | None = None) -> LaunchSpec:
    return LAUNCHER.launch_spec(config(**words), at or context())


def flags_of(words: dict[str, object], at: LaunchContext | None = None) -> tuple[str, ...]:
    """The part of the command line that configuration and study decide."""
    (process,) = launched(words, at).processes
    return process.argv[6:-4]


def test_the_model_is_forced_and_requests_name_it_as_the_command_does() -> None:
    spec = launched({})
    (process,) = spec.processes
    assert process.argv[:6] == (
        *("/engines/transformers/bin/transformers", "serve", "some/model", "--continuous-batching"),
        *("--device", "cuda:0"),
    )
    assert process.argv[-4:] == ("--host", "{host:server}", "--port", "{port:server}")
    assert process.ready_path == "/health"
    assert spec.served_model == "some/model"
    assert not spec.ignore_eos
    assert process.env["CUDA_VISIBLE_DEVICES"] == "3"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"max_num_batched_tokens": 512}, ("--cb-max-batch-tokens", "512")),
        ({"block_size": 64}, ("--cb-block-size", "64")),
        ({"memory_fraction": 0.5}, ("--cb-max-memory-percent", "0.5")),
        ({"attention_backend": "sdpa"}, ("--attn-implementation", "sdpa")),
        ({"dtype": "bfloat16"}, ("--dtype", "bfloat16")),
        ({"quantization": "bnb-4bit"}, ("--quantization", "bnb-4bit")),
        ({"quantization": "none"}, ()),
        ({"graph_capture": True}, ("--cb-use-cuda-graph",)),
        ({"graph_capture": False}, ("--no-cb-use-cuda-graph",)),
        ({"extra_args": ("--trust-remote-code",)}, ("--trust-remote-code",)),
    ],
)
def test_words_are_flags(words: dict[str, object], expected: tuple[str, ...]) -> None:
    assert flags_of(words) == expected


def a_value_of(word: str) -> object:
    """Any value that the vocabulary takes for a word."""
    for value in (2, True, 0.5, "ngram"):
        with suppress(ValidationError):
            config(**{word: value})
            return value
    raise AssertionError(word)


@pytest.mark.parametrize("word", sorted({*SEARCHABLE} - LAUNCHER.traits.dimensions))
def test_what_it_cannot_express_is_refused_by_name(word: str) -> None:
    with pytest.raises(InfeasibleConfigError, match=word):
        launched({word: a_value_of(word)})


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ({"extra_args": ("--no-such-flag",)}, "extra_args: transformers 5.23.0 has no flag --no-such-flag"),
        ({"extra_args": ("--reasoning", "maybe")}, "--reasoning of transformers 5.23.0 cannot be 'maybe'"),
    ],
)
def test_what_the_engine_would_refuse_is_refused_on_paper(words: dict[str, object], why: str) -> None:
    with pytest.raises(InfeasibleConfigError, match=why):
        launched(words)


def test_there_are_no_graphs_on_cpus() -> None:
    with pytest.raises(InfeasibleConfigError, match="graph_capture"):
        launched({"graph_capture": True}, context(DeviceKind.CPU))


@pytest.mark.parametrize(
    ("words", "args", "fraction"),
    [
        ({}, (), "0.1"),
        ({"memory_fraction": 0.3}, (), "0.3"),
        ({}, ("--cb-num-blocks", "64"), None),
        ({"extra_args": ("--cb-max-memory-percent", "0.2")}, (), "0.2"),
    ],
)
def test_on_cpus_the_cache_is_kept_small_unless_something_says_how_large(
    words: dict[str, object], args: tuple[str, ...], fraction: str | None
) -> None:
    flags = flags_of(words, context(DeviceKind.CPU, args=args))
    said = [flags[at + 1] for at, flag in enumerate(flags) if flag == "--cb-max-memory-percent"]
    assert said == ([fraction] if fraction else [])


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (DeviceKind.CPU, "OMP_NUM_THREADS", "1"),
        (DeviceKind.CUDA, "CUDA_DEVICE_ORDER", "PCI_BUS_ID"),
        (DeviceKind.ROCM, "HIP_VISIBLE_DEVICES", "3"),
    ],
)
def test_it_sees_the_leased_devices_alone(kind: DeviceKind, name: str, value: str) -> None:
    (process,) = launched({}, context(kind)).processes
    assert process.env[name] == value


words: st.SearchStrategy[dict[str, object]] = st.fixed_dictionaries(
    {},
    optional={
        "max_num_batched_tokens": st.integers(1, 10**6),
        "block_size": st.integers(4, 4096),
        "memory_fraction": st.floats(0, 1, exclude_min=True),
        "attention_backend": st.sampled_from(["eager", "sdpa", "flash_attention_2"]),
        "dtype": st.sampled_from(["bfloat16", "float16"]),
        "quantization": st.sampled_from(["bnb-4bit", "bnb-8bit"]),
        "graph_capture": st.booleans(),
    },
)


@given(words=words)
def test_a_command_line_is_read_back_as_the_configuration_that_it_was_written_for(
    words: dict[str, object],
) -> None:
    (command,) = shell_commands(launched(words)).values()
    assert LAUNCHER.parse_command(command) == (config(**words), "some/model")


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("transformers serve m", ("--no-continuous-batching",)),
        ("HF_TOKEN=x /venv/bin/transformers serve m --continuous-batching --port 80 --host=0.0.0.0", ()),
        (
            "transformers serve --continuous-batching --trust-remote-code m --cb-num-blocks 64",
            ("--trust-remote-code", "--cb-num-blocks", "64"),
        ),
        ("transformers serve m --compile", ("--compile", "--no-continuous-batching")),
    ],
)
def test_what_has_no_word_is_kept(command: str, extra: tuple[str, ...]) -> None:
    read, model = LAUNCHER.parse_command(command)
    assert (read, model) == (config(extra_args=extra), "m")


@pytest.mark.parametrize(
    "command",
    ["transformers serve", "transformers serve a b", "transformers chat m", "vllm serve m", "a | b"],
)
def test_what_is_no_command_of_it_is_told(command: str) -> None:
    with pytest.raises(ValueError, match="command"):
        LAUNCHER.parse_command(command)


CASES = json.loads((LOGS / "index.json").read_text())
"""Real logs of transformers 5.23.0 on CPU, with how each was provoked and what it is."""


@pytest.mark.parametrize("name", CASES)
def test_real_logs_are_understood(name: str) -> None:
    case = CASES[name]
    failure = LAUNCHER.classify_failure(
        Evidence(
            phase=Phase(case["phase"]),
            exit_code=case["exit_code"],
            log=(LOGS / f"{name}.log").read_text(),
            stream_error=case.get("stream_error", ""),
        )
    )
    assert failure.failure_class is FailureClass(case["class"]), failure
    assert case["line"] in failure.line


def test_a_log_that_no_rule_knows_stays_unrecognised() -> None:
    evidence = Evidence(phase=Phase.STARTING, exit_code=1, log="Loading some/model@main\nWeltschmerz: 7\n")
    assert LAUNCHER.classify_failure(evidence).failure_class is FailureClass.UNRECOGNISED


def test_an_operators_signal_is_the_benchs() -> None:
    evidence = Evidence(phase=Phase.LOADING, exit_code=-signal.SIGTERM, log="INFO: Shutting down\n")
    assert LAUNCHER.classify_failure(evidence).failure_class is FailureClass.KILLED


def test_the_shell_line_can_be_copied() -> None:
    spec = launched({"extra_args": ("--chat-template-kwargs", '{"enable_thinking": true}')})
    assert '{"enable_thinking": true}' in shlex.split(shell_commands(spec)["server"])
