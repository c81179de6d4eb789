"""Chooses the concrete classes: from a study file and a storage URL to a study that runs."""

from __future__ import annotations

import hashlib
import platform
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from typing import Any

import optuna
import psutil
import sqlalchemy as sa
from optuna.artifacts import FileSystemArtifactStore
from optuna.artifacts._protocol import ArtifactStore

from autotune import __version__
from autotune.adapters.archive import ArtifactArchive
from autotune.adapters.catalog import SqlCatalog
from autotune.adapters.devices import LocalInventory
from autotune.adapters.engine_env import EngineEnvironments
from autotune.adapters.engine_host import LocalEngineHost
from autotune.adapters.load_client import HttpLoadDriver
from autotune.adapters.model_files import ModelFiles
from autotune.adapters.optuna_search import OptunaSearch, open_study
from autotune.adapters.power_estimated import EstimatedPowerMeter
from autotune.adapters.power_nvml import NvmlPowerMeter
from autotune.adapters.study_file import check_against_hardware, read_study
from autotune.domain.config import EngineConfig
from autotune.domain.errors import InputError, InputProblem
from autotune.domain.events import Notice, StudyStarted
from autotune.domain.feasibility import Setting
from autotune.domain.hardware import DeviceKind, Hardware
from autotune.domain.launch import EngineEnvironment, LaunchContext
from autotune.domain.ports import Cancelled, EventSink, Launcher, PowerMeter
from autotune.domain.power import PowerBasis
from autotune.domain.recommendation import Candidate, candidates_of
from autotune.domain.records import LaunchRecord, StudyRow, StudyStatus, TrialRow, TrialState
from autotune.domain.study import HardwareSpec, StudySpec
from autotune.runs.launch import Bench, LaunchTask, run_launch
from autotune.runs.study import (
    LaunchOrder,
    StudyParts,
    StudyRun,
    outcome_of,
    settle_interrupted,
)

DEFAULT_STORAGE = "sqlite:///studies.db"
SPACES = Path(str(files("search_spaces")))


def launchers() -> Mapping[str, Launcher]:
    """Every launcher that is installed, ours like anyone's, by engine id."""
    return {point.name: point.load() for point in entry_points(group="autotune.launchers")}


def launcher_of(engine: str) -> Launcher:
    """One launcher; raises InputError that names those there are."""
    known = launchers()
    if engine not in known:
        raise InputError(InputProblem(f"engine {engine!r}", "no launcher", f"known: {', '.join(known)}"))
    return known[engine]


def load_study(path: Path, overrides: Mapping[str, Any] | None = None) -> StudySpec:
    """Read a study file and check it against this machine; raises InputError."""
    study = read_study(path, SPACES, overrides)
    study = study.model_copy(update={"model": _resolved_model(study.model, path)})
    environment = environment_for(study, launcher_of(study.engine.name))
    check_against_hardware(path, study, hardware_for(study, environment.kind))
    return study


def hardware_for(study: StudySpec, kind: DeviceKind) -> Hardware:
    """The devices that the study may use of those here; raises InputError for more than there are."""
    here = LocalInventory(kind=kind).devices()
    asked = HardwareSpec() if study.hardware == "auto" else study.hardware
    large = tuple(d for d in here.devices if d.memory_bytes >= (asked.least_memory or 0))
    count = (asked.cpus if kind is DeviceKind.CPU else asked.gpus) or len(large)
    if not large or count > len(large):
        what = f"asks for {asked.model_dump(exclude_none=True) or 'auto'}; the engine is built for {kind}, "
        remedy = "write `hardware: auto` or what there is, or name an engine built for it with --engine"
        raise InputError(InputProblem("hardware", f"{what}and there are {here.describe()}", remedy))
    return Hardware(kind, large[:count])


@dataclass(frozen=True, slots=True)
class Store:
    """A storage URL and what lies beside it: the catalog, the artifacts, the logs."""

    url: str
    catalog: SqlCatalog
    folder: Path

    @property
    def artifacts(self) -> ArtifactStore:
        """Optuna's artifact store, a folder."""
        folder = self.folder / "artifacts"
        folder.mkdir(parents=True, exist_ok=True)
        return FileSystemArtifactStore(str(folder))

    def logs(self, study: str, number: int) -> Path:
        """Folder of a trial's engine logs."""
        return self.folder / "logs" / study / f"{number:04}"

    def study(self, name: str) -> tuple[StudyRow, StudySpec]:
        """A study's row and its file as it was resolved; raises InputError that names those there are."""
        row = self.catalog.study(name)
        if row is None:
            known = ", ".join(r.name for r in self.catalog.studies()) or "none yet"
            raise InputError(InputProblem(f"study {name!r}", f"is not in {self.url}", f"known: {known}"))
        return row, StudySpec.model_validate_json(row.spec)


def open_store(url: str) -> Store:
    """Open a storage; artifacts and logs of a SQLite file lie beside it, of a server in this folder."""
    catalog = SqlCatalog(url)
    database = sa.make_url(url).database if url.startswith("sqlite") else None
    at = Path(database) if database else Path("studies.db")
    return Store(url, catalog, at.with_name(f"{at.stem}-artifacts").absolute())


def results(store: Store, name: str) -> tuple[StudySpec, tuple[TrialRow, ...], tuple[Candidate, ...]]:
    """A study, its trials, and every measured configuration with its raw records read back."""
    _, study = store.study(name)
    rows = store.catalog.trials(name)
    storage = optuna.storages.get_storage(store.url)
    archive = ArtifactArchive(optuna.load_study(study_name=name, storage=storage), store.artifacts, storage)
    records = [archive.load(name, row.number) for row in rows if row.state is TrialState.MEASURED]
    return study, rows, candidates_of(rows, records)


def tune(study: StudySpec, store: Store, sink: EventSink, cancelled: Cancelled) -> None:
    """Run a study, or go on with one that was interrupted; raises StudyCancelledError, BenchError.

    A study of that name that is finished is left as it is; one that differs is refused.
    """
    earlier = _claim(study, store)
    if earlier is not None and earlier.status is StudyStatus.FINISHED:
        sink(Notice(f"study {study.name} is finished; to run it once more give it a --name of its own"))
        return
    spent_s = earlier.spent_s if earlier else 0.0
    row = StudyRow(
        name=study.name,
        spec=study.model_dump_json(),
        status=StudyStatus.RUNNING,
        owner=_this_process(),
        spent_s=spent_s,
        started_at=earlier.started_at if earlier else datetime.now(UTC).isoformat(timespec="seconds"),
    )
    store.catalog.put_study(row)
    began_s = time.monotonic()
    status = StudyStatus.INTERRUPTED
    try:
        _study_run(study, store, sink, cancelled, spent_s).run()
        status = StudyStatus.FINISHED
    finally:
        store.catalog.put_study(replace(row, status=status, spent_s=spent_s + time.monotonic() - began_s))


def _claim(study: StudySpec, store: Store) -> StudyRow | None:
    """The earlier row of this study if there is one; raises InputError if it may not be gone on with."""
    row = store.catalog.study(study.name)
    if row is None:
        return None
    where = f"study {study.name!r}"
    if row.status is StudyStatus.RUNNING and _is_alive(row.owner):
        remedy = "wait for it, stop it with Ctrl-C, or give this one a --name of its own"
        raise InputError(InputProblem(where, f"is being run by process {row.owner}", remedy))
    before, now = StudySpec.model_validate_json(row.spec), study
    changed = [key for key in StudySpec.model_fields if getattr(before, key) != getattr(now, key)]
    if changed:
        what = f"is in {store.url} already, with another {', '.join(changed)}"
        remedy = f"give this one a --name of its own, or go on with that one: autotune resume {study.name}"
        raise InputError(InputProblem(where, what, remedy))
    return row


def _study_run(
    study: StudySpec, store: Store, sink: EventSink, cancelled: Cancelled, spent_s: float
) -> StudyRun:
    launcher = launcher_of(study.engine.name)
    bench = bench_for(study, launcher)
    hardware = hardware_for(study, bench.environment.kind)
    rows = settle_interrupted(store.catalog, study.name)
    slas = [sla.name for sla in study.slas]
    storage = optuna.storages.get_storage(store.url)
    optuna_study = open_study(study.name, storage, slas=slas, seed=study.seed)
    search = OptunaSearch(
        optuna_study,
        study.space,
        study.default_config(),
        known={row.number: outcome_of(row, slas) for row in rows},
    )

    def launch(order: LaunchOrder) -> LaunchRecord:
        task = LaunchTask(
            study=study,
            number=order.suggestion.number,
            purpose=order.purpose,
            config=order.suggestion.config,
            workdir=store.logs(study.name, order.suggestion.number),
            levels=order.levels,
            must_hold=order.must_hold,
        )
        return run_launch(task, bench, sink, cancelled)

    sink(
        StudyStarted(
            study=study.name,
            hardware=hardware.describe(),
            engine=f"{launcher.traits.engine} {bench.environment.version}",
            power=basis_for(study, bench.environment.kind),
            launches_done=sum(row.state is not TrialState.REJECTED for row in rows),
            most_launches=study.budget.launches or 0,
            wall_time_s=study.budget.wall_time or 0.0,
        )
    )
    return StudyRun(
        StudyParts(
            study=study,
            setting=setting_for(study, hardware),
            baseline=baseline_config(study, launcher),
            search=search,
            archive=ArtifactArchive(optuna_study, store.artifacts, storage),
            catalog=store.catalog,
            launch=launch,
            workdir=lambda number: store.logs(study.name, number),
            sink=sink,
            cancelled=cancelled,
        ),
        spent_s=spent_s,
    )


def setting_for(study: StudySpec, hardware: Hardware) -> Setting:
    """What configurations of a study must fit into."""
    return Setting(
        hardware=hardware,
        model=ModelFiles().shape(study.model),
        requirements=study.requirements,
        longest_request_tokens=max(w.longest_tokens for w in study.workloads),
    )


def baseline_config(study: StudySpec, launcher: Launcher) -> EngineConfig | None:
    """Production's command line in the vocabulary; raises InputError."""
    if study.baseline is None:
        return None
    try:
        config, _ = launcher.parse_command(study.baseline)
    except ValueError as wrong:
        remedy = "write the command line as production runs it"
        raise InputError(InputProblem("baseline", str(wrong), remedy)) from wrong
    return study.default_config().replaced(config.words)


def environment_for(study: StudySpec, launcher: Launcher) -> EngineEnvironment:
    """The engine's environment, with what its parser said; raises InputError."""
    at = study.engine.environment
    return EngineEnvironments().find(launcher, Path(at) if at else None)


def paper_context(study: StudySpec, launcher: Launcher) -> LaunchContext:
    """What a launcher needs to write a launch, with devices by count alone: nothing is leased."""
    environment = environment_for(study, launcher)
    return LaunchContext(
        model=study.model,
        environment=environment,
        devices=hardware_for(study, environment.kind).devices,
        args=study.engine.args,
        env=study.engine.env,
    )


def basis_for(study: StudySpec, kind: DeviceKind) -> PowerBasis:
    """The basis that ranks: the study's own, else what can be measured on these devices."""
    if study.power.basis != "auto":
        return study.power.basis
    return PowerBasis.GPU if kind is DeviceKind.CUDA else PowerBasis.ESTIMATED


def meter_for(study: StudySpec, kind: DeviceKind) -> PowerMeter:
    """The meter of the study's power basis; raises InputError for one that this machine has not."""
    basis = basis_for(study, kind)
    if basis is PowerBasis.GPU and kind is DeviceKind.CUDA:
        return NvmlPowerMeter()
    if basis is PowerBasis.ESTIMATED and kind is DeviceKind.CPU:
        return EstimatedPowerMeter()
    what = f"no meter here gives basis {basis.value!r} for {kind.value} devices"
    raise InputError(InputProblem("power.basis", what, "write `basis: auto`"))


def versions_of(study: StudySpec, environment: EngineEnvironment, hardware: Hardware) -> dict[str, str]:
    """What a figure depends on beside the configuration."""
    return {
        "autotune": __version__,
        "study_sha256": hashlib.sha256(study.model_dump_json().encode()).hexdigest(),
        environment.engine: environment.version,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "hardware": hardware.describe(),
        "driver": hardware.devices[0].driver if hardware.devices else "",
        "devices": ", ".join(device.uid for device in hardware.devices),
    }


def bench_for(study: StudySpec, launcher: Launcher) -> Bench:
    """Everything outside that the study's launches need on this machine; raises InputError, BenchError."""
    environment = environment_for(study, launcher)
    hardware = hardware_for(study, environment.kind)
    return Bench(
        launcher=launcher,
        environment=environment,
        # Made before the first lease: it ends what a killed tuner left on the devices.
        host=LocalEngineHost(counters=launcher.traits.counters),
        hardware=hardware,
        inventory=LocalInventory(kind=environment.kind),
        driver=HttpLoadDriver(),
        meter=meter_for(study, environment.kind),
        model=ModelFiles().shape(study.model),
        versions=versions_of(study, environment, hardware),
    )


def _resolved_model(model: str, study_file: Path) -> str:
    """An absolute path where the model is a folder here, else a name on the hub; raises InputError."""
    for at in (study_file.parent / model, Path(model)):
        if at.is_dir():
            return str(at.resolve())
    if model.startswith((".", "/", "~")):
        remedy = "name a folder with a config.json; `autotune models make tiny-dense DIR` makes a small one"
        raise InputError(InputProblem(str(study_file), f"model: no folder {model!r}", remedy))
    return model


def _this_process() -> str:
    """Names this process so that no later one is taken for it: host, pid, start time."""
    me = psutil.Process()
    return f"{socket.gethostname()} {me.pid} {me.create_time()}"


def _is_alive(owner: str) -> bool:
    """Whether the process that ``_this_process`` named still runs; on another host it may well."""
    host, pid, created = owner.split()
    if host != socket.gethostname():
        return True
    try:
        return bool(psutil.Process(int(pid)).create_time() == float(created))
    except psutil.NoSuchProcess:
        return False
