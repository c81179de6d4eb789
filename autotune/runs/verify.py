"""Verifies a contract: serves what was exported, measures it at its operating points, and judges."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autotune.domain.configs.config import EngineConfig
from autotune.domain.launches.deployment import Deployment
from autotune.domain.launches.launch import Evidence, Failure, LaunchContext, LaunchSpec, ProcessSpec
from autotune.domain.load.level import Level
from autotune.domain.load.progress import Cancelled
from autotune.domain.recommending.contract import SlaAnswer
from autotune.domain.recommending.verification import Verification, judge
from autotune.domain.studies.ports import EventSink, Launcher, LauncherTraits
from autotune.domain.studies.records import Purpose
from autotune.domain.studies.study import StudySpec
from autotune.runs.launch import Bench, LaunchTask, run_launch

SCRIPT = "serve.sh"


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyTask:
    """What to verify: recommendations of one configuration, and the study that measures them again."""

    study: StudySpec
    config: EngineConfig
    answers: Sequence[SlaAnswer]
    workdir: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedLauncher:
    """A launcher that runs an exported script as it stands; what it was exported from tells its failures.

    ``path`` are folders in which the script finds its programs. Beside the script there is in the environment
    only what the bench needs: which devices were leased, where to listen.
    """

    inner: Launcher
    deployment: Deployment
    script: str
    path: str

    @property
    def traits(self) -> LauncherTraits:
        """Those of the launcher inside."""
        return self.inner.traits

    def launch_spec(self, config: EngineConfig, context: LaunchContext) -> LaunchSpec:
        """Write the one process that runs the script; raises InfeasibleConfigError."""
        written = self.inner.launch_spec(config, context)
        serving = next(each for each in written.processes if each.role == written.serving_role)
        role = written.serving_role
        env = {
            **self._of_the_bench(written.processes[0]),
            "HOST": f"{{host:{role}}}",
            "PORT": f"{{port:{role}}}",
            "PATH": os.pathsep.join((self.path, os.environ.get("PATH", os.defpath))),
        }
        process = ProcessSpec(
            role=role,
            argv=("sh", f"{{file:{SCRIPT}}}"),
            env=env,
            devices=context.devices,
            ready_path=serving.ready_path,
            files={SCRIPT: self.script},
        )
        served = self.deployment.served_model
        return replace(written, processes=(process,), counter_roles=(), served_model=served)

    def parse_command(self, command: str) -> tuple[EngineConfig, str]:
        """Read a command line as the launcher inside does; raises ValueError."""
        return self.inner.parse_command(command)

    def classify_failure(self, evidence: Evidence) -> Failure:
        """Name the cause as the launcher inside does."""
        return self.inner.classify_failure(evidence)

    def _of_the_bench(self, process: ProcessSpec) -> Mapping[str, str]:
        """Variables of the engine that the deployment left out."""
        kept = {name for each in self.deployment.processes for name in each.environment}
        secret = {each.name for each in self.deployment.secrets}
        return {name: value for name, value in process.env.items() if name not in kept | secret}


def verify(task: VerifyTask, bench: Bench, sink: EventSink, cancelled: Cancelled) -> tuple[Verification, ...]:
    """Measure every answer's operating point on one launch; raises BenchError, StudyCancelledError."""
    levels = tuple(dict.fromkeys(Level(each.workload, rate_rps=each.operating_rps) for each in task.answers))
    record = run_launch(
        LaunchTask(
            study=task.study,
            number=0,
            purpose=Purpose.FINAL,
            config=task.config,
            workdir=task.workdir,
            levels=levels,
        ),
        bench,
        sink,
        cancelled,
    )
    return tuple(judge(answer, record) for answer in task.answers)
