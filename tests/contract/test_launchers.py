"""What every launcher promises, the fake of the unit tests included."""

from __future__ import annotations

import graphlib
import importlib
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from fake_environment import MOCK_ENGINE
from fakes import FakeLauncher
from host_harness import DEADLINE_S, never
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from autotune.adapters.engines.host import LocalEngineHost
from autotune.adapters.engines.places import places_for
from autotune.domain.basics.errors import InfeasibleConfigError
from autotune.domain.configs.config import SEARCHABLE, EngineConfig, Value
from autotune.domain.hardware.hardware import Device, DeviceKind
from autotune.domain.launches.commands import shell_commands
from autotune.domain.launches.launch import (
    REACTIONS,
    Container,
    EngineEnvironment,
    Evidence,
    FailureClass,
    LaunchContext,
    LaunchSpec,
    Phase,
    ProcessSpec,
    Reaction,
)
from autotune.domain.studies.ports import Launcher
from autotune.wiring import launchers
from launchers.options import HOST_WORDS, MODEL_WORD

TOY = Path(__file__).parents[2] / "docs/examples/toy-engine"
sys.path.append(str(TOY))
LAUNCHERS: Mapping[str, Launcher] = {
    **launchers(),
    "fake": FakeLauncher(),
    "toy": importlib.import_module("toy_launcher").LAUNCHER,  # of the documentation
}

POOLS: Mapping[str, Value] = {"prefill.workers": 1, "decode.workers": 1}
VALUES: Mapping[str, tuple[Value, ...]] = {
    "workers": (1, 2),
    "tensor_parallel": (1, 2, 4),
    "pipeline_parallel": (1, 2),
    "data_parallel": (1, 2),
    "context_parallel": (1, 2),
    "max_num_seqs": (16, 64),
    "max_num_batched_tokens": (2048, 8192),
    "context_length": (2048,),
    "memory_fraction": (0.8,),
    "graph_max_batch": (32,),
    "block_size": (32, 64),
    "speculation": ("none", "ngram"),
    "speculative_tokens": (3,),
    "prompt_lookup_max": (4,),
    "speculative_model": ("some/draft",),
    "scheduling_policy": ("fcfs",),
    "dtype": ("auto", "bfloat16"),
    "quantization": ("fp8",),
    "kv_cache_dtype": ("auto", "fp8"),
    "power_limit_w": (500,),
    "graphics_clock_mhz": (1410,),
}
NAMES: Mapping[str, tuple[Value, ...]] = {
    "attention_backend": ("triton",),
    "moe_backend": ("triton",),
    "all2all_backend": ("pplx",),
    "kv_transfer": ("nixl",),
    "tool_parser": ("hermes",),
    "profile": ("a-profile",),
    "checkpoint": ("some/model-fp8",),
}
WITHOUT_COMMAND = {"url", "fake"}
"""Engines that have no command line to be read."""

STRANGE_LOGS = [
    "",
    "\n\n",
    "The north wind and the sun disputed which was the stronger.\n" * 3,
    "0x7ffe 17:03 [main] done, 4 of 4\n",
    "\x00\x1b[31m\ufffd\n",
]
"""Logs in which no rule of any engine can find a cause."""


def values_of(word: str) -> tuple[Value, ...]:
    """Values to try; words that are not listed are on or off."""
    name = word.rpartition(".")[2]
    return VALUES.get(name) or NAMES.get(name) or (True, False)


def base_words(launcher: Launcher) -> Mapping[str, Value]:
    """Least words that an engine can be launched with: pools, where it has nothing else."""
    try:
        written(launcher, {})
    except InfeasibleConfigError:
        return POOLS
    return {}


def config_of(launcher: Launcher, words: Mapping[str, Value]) -> EngineConfig:
    return EngineConfig.model_validate({"engine": launcher.traits.engine, **words})


def context_for(launcher: Launcher, config: EngineConfig) -> LaunchContext:
    """Devices by the configuration's count; no parser was asked."""
    traits = launcher.traits
    kind = DeviceKind.CUDA if DeviceKind.CUDA in traits.device_kinds else next(iter(traits.device_kinds))
    is_container = traits.executable == "docker"
    return LaunchContext(
        model="some/model",
        environment=EngineEnvironment(
            engine=traits.engine,
            executable=Path("bin") / traits.executable,
            version="1",
            kind=kind,
            flags={},
        ),
        devices=tuple(
            Device(kind, i, "NVIDIA H200", f"GPU-{i}", 141 << 30, compute_capability=(9, 0))
            for i in range(config.devices)
        ),
        url="http://127.0.0.1:1",
        container=Container(image="registry.example/some/model:1") if is_container else None,
    ).of(config)


def written(launcher: Launcher, words: Mapping[str, Value]) -> LaunchSpec:
    config = config_of(launcher, words)
    return launcher.launch_spec(config, context_for(launcher, config))


@pytest.fixture(params=LAUNCHERS)
def launcher(request: pytest.FixtureRequest) -> Launcher:
    return LAUNCHERS[request.param]


@st.composite
def launches(draw: st.DrawFn, launcher: Launcher) -> tuple[EngineConfig, LaunchSpec]:
    """A configuration of a few words that the engine can express, and its launch."""
    known = sorted(launcher.traits.dimensions & {*SEARCHABLE})
    chosen = draw(st.lists(st.sampled_from(known), max_size=3, unique=True)) if known else []
    words = {word: draw(st.sampled_from(values_of(word))) for word in chosen}
    words = {**base_words(launcher), **words}
    if words.get("speculation") == "ngram":
        words["speculative_tokens"] = 3
    config = config_of(launcher, words)
    assume(config.devices <= 16)
    try:
        return config, written(launcher, words)
    except InfeasibleConfigError as refused:
        assert str(refused)  # noqa: PT017 - a refusal says why, whichever it is
        assume(False)
        raise


@pytest.mark.parametrize("name", LAUNCHERS)
@settings(max_examples=25)
@given(data=st.data())
def test_launches_are_whole(name: str, data: st.DataObject) -> None:
    """Devices add up, roles exist, dependences end, placeholders name something; twice the same."""
    launcher = LAUNCHERS[name]
    config, spec = data.draw(launches(launcher))
    assert launcher.launch_spec(config, context_for(launcher, config)) == spec
    roles = [process.role for process in spec.processes]
    assert len({*roles}) == len(roles)
    if spec.endpoint is not None:
        assert roles == []
        return
    assert {spec.serving_role, *spec.counter_roles} <= {*roles}
    given_out = [device.index for process in spec.processes for device in process.devices]
    assert sorted(given_out) == list(range(config.devices))
    graph = {process.role: process.depends_on for process in spec.processes}
    assert {*graphlib.TopologicalSorter(graph).static_order()} == {*roles}
    places_for(spec, Path("folder"))


def test_words_that_an_engine_cannot_express_are_refused_by_name(launcher: Launcher) -> None:
    base = base_words(launcher)
    for word in SEARCHABLE:
        if word not in launcher.traits.dimensions:
            with pytest.raises(InfeasibleConfigError, match=rf"\b{re.escape(word)}\b"):
                written(launcher, {**base, word: values_of(word)[0]})


def test_its_traits_are_sound(launcher: Launcher) -> None:
    traits = launcher.traits
    assert traits.dimensions <= {*SEARCHABLE}
    assert traits.device_kinds
    assert traits.environment in {"", *LAUNCHERS}
    assert all(ours.isidentifier() and theirs for ours, theirs in traits.counters.items())
    assert traits.reset_path == "" or traits.reset_path.startswith("/")
    for program in (traits.parser_probe, traits.config_probe):
        compile(program, traits.engine, "exec")


@pytest.mark.parametrize("name", LAUNCHERS)
@settings(max_examples=50)
@given(
    phase=st.sampled_from(Phase),
    exit_code=st.none() | st.integers(-64, 255),
    log=st.text(max_size=400),
    stream_error=st.text(max_size=80),
    flags=st.tuples(st.booleans(), st.booleans()),
)
def test_no_evidence_breaks_a_classifier(
    name: str, phase: Phase, exit_code: int | None, log: str, stream_error: str, flags: tuple[bool, bool]
) -> None:
    evidence = Evidence(
        phase=phase,
        exit_code=exit_code,
        log=log,
        stream_error=stream_error,
        kernel_log=log,
        timed_out=flags[0],
        stalled=flags[1],
    )
    failure = LAUNCHERS[name].classify_failure(evidence)
    assert failure.phase is phase
    assert failure.reaction in Reaction


@pytest.mark.parametrize("log", STRANGE_LOGS)
def test_logs_that_no_rule_knows_are_unrecognised(launcher: Launcher, log: str) -> None:
    evidence = Evidence(phase=Phase.STARTING, exit_code=1, log=log)
    assert launcher.classify_failure(evidence).failure_class is FailureClass.UNRECOGNISED
    assert FailureClass.UNRECOGNISED not in REACTIONS


@pytest.mark.parametrize("name", [name for name in LAUNCHERS if name not in WITHOUT_COMMAND])
@settings(max_examples=25)
@given(data=st.data())
def test_a_command_line_reads_back_as_what_it_was_written_from(name: str, data: st.DataObject) -> None:
    launcher = LAUNCHERS[name]
    config, spec = data.draw(launches(launcher))
    # Files are written by lines of their own, which are no command of the engine.
    bare = replace(spec, processes=tuple(replace(process, files={}) for process in spec.processes))
    line = "\n".join(shell_commands(bare).values())
    in_files = any(process.files for process in spec.processes)
    try:
        read, model = launcher.parse_command(line)
    except ValueError as unread:
        # Words that only a file explains: refused rather than guessed.
        if in_files and "not seen here" in str(unread):
            return
        raise
    assert read.engine == config.engine
    if launcher.traits.executable != "docker":
        assert model == (config.checkpoint or "some/model")
    said, asked = _meaning(read), _meaning(config)
    assert {word: value for word, value in said.items() if word in asked and asked[word] != value} == {}
    if not in_files:  # what stands in a file is on no command line
        assert [word for word in asked if word not in said and not _is_idle(asked[word])] == []


def _meaning(config: EngineConfig) -> dict[str, Value]:
    """What an engine is told: pools whole, no words of the host, and not the one that is the model."""
    untold = {*HOST_WORDS, MODEL_WORD, "extra_args"}
    words = {word: value for word, value in config.words.items() if word not in untold}
    for name, pool in config.pools.items():
        for word, value in pool.model_dump(exclude_none=True).items():
            words.pop(word, None)
            words[f"{name}.{word}"] = value
    if config.ranks == 1:
        words.pop("expert_parallel", None)  # of one rank it is nothing
    return words


def _is_idle(value: Value) -> bool:
    """Whether it may ask for what engines do anyway, which a command line need not say."""
    return isinstance(value, bool) or value in {"none", "auto", 1}


@pytest.mark.parametrize("name", [name for name, each in LAUNCHERS.items() if each.traits.launched])
def test_its_processes_can_be_served_by_the_host(name: str, tmp_path: Path) -> None:
    """The mock engine stands for each process: roles, ports, files and order are the launcher's."""
    launcher = LAUNCHERS[name]
    spec = written(launcher, {**base_words(launcher), **EXTRA_POOLS.get(name, {})})
    spec = replace(spec, processes=tuple(_mocked(process) for process in spec.processes))
    host = LocalEngineHost(launcher.traits.counters, tmp_path / "run", stop_grace_s=2.0)
    with host.serving(spec, workdir=tmp_path, start_timeout_s=DEADLINE_S, cancelled=never) as engine:
        assert engine.alive()
        assert engine.endpoint.model == spec.served_model
        assert {path.stem for path in tmp_path.glob("*.log")} == {p.role for p in spec.processes}
        for process in spec.processes:
            assert all((tmp_path / f"{process.role}-{file}").is_file() for file in process.files)


EXTRA_POOLS: Mapping[str, Mapping[str, Value]] = {
    "vllm-pd": {"decode.workers": 2},
    "dynamo": {"prefill.workers": 1, "decode.workers": 2},
}


def _mocked(process: ProcessSpec) -> ProcessSpec:
    """The mock engine on the role's port, which answers at the path that the role is asked at."""
    words = ("serve", "tiny", "--host", f"{{host:{process.role}}}", "--port", f"{{port:{process.role}}}")
    mocked = replace(process, argv=(sys.executable, str(MOCK_ENGINE), *words), stop_argv=())
    return replace(mocked, ready_path="/health" if process.ready_path else "", devices=())
