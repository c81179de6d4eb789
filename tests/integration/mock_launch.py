"""A launch of the mock engine through the whole measuring path: every part real, windows of half a second."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from fake_environment import MOCK_ENGINE, make_fake_environment

from autotune.adapters.devices.inventory import LocalInventory
from autotune.adapters.devices.preflight import LocalPreflight
from autotune.adapters.engines import warden
from autotune.adapters.engines.host import LocalEngineHost
from autotune.adapters.engines.lm_eval import LmEval
from autotune.adapters.load.output_probe import HttpOutputProbe
from autotune.adapters.power import settings as power_settings
from autotune.adapters.power.estimated import EstimatedPowerMeter
from autotune.domain.configs.config import EngineConfig
from autotune.domain.hardware.hardware import DeviceKind, Hardware
from autotune.domain.launches.launch import EngineEnvironment
from autotune.domain.load.level import Level
from autotune.domain.load.load_plan import LoadPlan
from autotune.domain.load.planning import plan_load
from autotune.domain.load.prompts import RandomTokens
from autotune.domain.studies.events import Event, LevelProgress
from autotune.domain.studies.ports import LoadDriver, PowerMeter
from autotune.domain.studies.records import LaunchRecord, Purpose
from autotune.domain.studies.study import StudySpec
from autotune.runs.launch import Bench, LaunchTask, run_launch
from launchers.vllm import LAUNCHER

WORKLOAD = "chat"
QUICK = {
    "warmup": "200ms",
    "longest_warmup": "600ms",
    "window": "500ms",
    "longest_window": "500ms",
    "request_timeout": "1s",
    "start_timeout": "30s",
}

Kind = TypeVar("Kind")


def at_rate(rate_rps: float) -> Level:
    return Level(WORKLOAD, rate_rps=rate_rps)


class Sink(list[Event]):
    """Remembers events, and lets things happen: as a window opens, given its number from 1, and after it."""

    def __init__(
        self,
        in_window: Callable[[int], None] = lambda _: None,
        *,
        as_it_empties: Callable[[], None] = lambda: None,
    ) -> None:
        self.in_window, self.as_it_empties = in_window, as_it_empties
        self.windows = 0

    def __call__(self, event: Event) -> None:
        self.append(event)
        match event:
            case LevelProgress(stage="measuring"):
                self.windows += 1
                self.in_window(self.windows)
            case LevelProgress(stage="emptying"):
                self.as_it_empties()

    def of(self, kind: type[Kind]) -> list[Kind]:
        return [event for event in self if isinstance(event, kind)]


@dataclass(frozen=True, kw_only=True)
class MockLaunch:
    """What one launch is made of; ``program`` stands for vLLM and has the arguments and environment given."""

    folder: Path
    driver: LoadDriver
    meter: PowerMeter = field(default_factory=EstimatedPowerMeter)
    beside: tuple[PowerMeter, ...] = ()
    kind: DeviceKind = DeviceKind.CPU
    program: Path = MOCK_ENGINE
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    measurement: Mapping[str, str] = field(default_factory=dict)

    @property
    def study(self) -> StudySpec:
        return StudySpec.model_validate(
            {
                "name": "faults",
                "model": "tiny",
                "engines": [{"name": "vllm", "args": self.args, "env": dict(self.env)}],
                "workloads": [{"name": WORKLOAD, "input_tokens": 8, "output_tokens": 8}],
                "slas": [{"name": "fast", "attainment": 0.9, "slos": {"ttft": "900ms"}}],
                "space": {"dimensions": {"max_num_seqs": ["default", 4]}},
                "budget": {"launches": 1},
                "measurement": {**QUICK, **self.measurement},
            }
        )

    def run(self, *levels: Level, sink: Sink) -> LaunchRecord:
        """Measure the levels given; as ``run_launch``."""
        study = self.study
        task = LaunchTask(
            study=study,
            number=7,
            purpose=Purpose.SEARCH,
            config=EngineConfig(engine="vllm"),
            workdir=self.folder / "logs",
            levels=levels,
        )
        return run_launch(task, self._bench(study), sink, lambda: False)

    def _bench(self, study: StudySpec) -> Bench:
        inventory = LocalInventory(self.folder, kind=self.kind)
        environment = EngineEnvironment(
            engine="vllm",
            executable=make_fake_environment(self.folder / "vllm", self.program) / "bin" / "vllm",
            version="0.32.0",
            kind=self.kind,
            flags={},
        )
        return Bench(
            launcher=LAUNCHER,
            environment=environment,
            hardware=Hardware(self.kind, inventory.devices().devices[-1:]),
            inventory=inventory,
            host=LocalEngineHost(LAUNCHER.traits.counters, self.folder, stop_grace_s=0.5),
            driver=self.driver,
            probe=HttpOutputProbe(),
            tasks=LmEval(),
            meter=self.meter,
            beside=self.beside,
            preflight=LocalPreflight(),
            settings=power_settings.settings,
            plan=lambda level, duration_s, seed: _plan(study, level, duration_s, seed),
            versions={},
        )


def _plan(study: StudySpec, level: Level, duration_s: float, seed: int) -> LoadPlan:
    prompts = RandomTokens(vocab_size=5000, seed=seed)
    return plan_load(study.workload(level.workload), level, duration_s=duration_s, seed=seed, prompts=prompts)


def engine_pids() -> list[int]:
    """Processes of the engines that this process has running, their wardens left out."""
    return [
        process.pid
        for process in warden.descendants(os.getpid())
        if "_engine.py serve " in _command(process.pid)
    ]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""
