"""Studies: from a file to one that runs, goes on, and is kept."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.samplers import BaseSampler

from autotune.adapters.engines import warden
from autotune.adapters.files.model_files import ModelFiles
from autotune.adapters.files.study_file import check_against_hardware, read_study
from autotune.adapters.files.traffic_files import resolved_paths
from autotune.adapters.search.sampler import SurrogateSampler
from autotune.adapters.search.study import Naming, OptunaSearch, baseline_sampler, open_study
from autotune.adapters.store.archive import ArtifactArchive
from autotune.adapters.store.journal import journal
from autotune.domain.basics.errors import InputError, InputProblem
from autotune.domain.configs.config import MODEL_WORDS, EngineConfig
from autotune.domain.configs.space import DEFAULT
from autotune.domain.hardware.hardware import Hardware
from autotune.domain.judging.quality import QualitySpec
from autotune.domain.load.progress import Cancelled
from autotune.domain.studies.events import Event, Notice, StudyStarted
from autotune.domain.studies.feasibility import KnownModel, Setting
from autotune.domain.studies.ports import EventSink
from autotune.domain.studies.records import LaunchRecord, StudyRow, StudyStatus, TrialState
from autotune.domain.studies.study import StudySpec
from autotune.runs.candidates import Candidates
from autotune.runs.launch import Bench, LaunchTask, run_launch
from autotune.runs.launching import LaunchOrder
from autotune.runs.priors import Priors
from autotune.runs.study import StudyParts, StudyRun
from autotune.runs.trials import outcome_of, settle_interrupted
from autotune.wiring.bench import kind_of, lanes_for
from autotune.wiring.engines import environment_for, hardware_for, launcher_of
from autotune.wiring.priors import ground_of, priors_of
from autotune.wiring.store import Store, study_of

SPACES = Path(str(files("search_spaces")))


def load_study(path: Path, overrides: Mapping[str, Any] | None = None) -> StudySpec:
    """Read a study file and check it against this machine; raises InputError."""
    study = read_study(path, SPACES, overrides)
    workloads = tuple(resolved_paths(w, path.parent) for w in study.workloads)
    study = study.model_copy(update={"model": _resolved_model(study.model, path), "workloads": workloads})
    study = StudySpec.model_validate(_with_models(study.model_dump(), path))
    study = study.model_copy(update={"quality": _with_tasks(study.quality, path)})
    _check_endpoints(path, study)
    kind = kind_of([environment_for(engine) for engine in study.engines])
    check_against_hardware(path, study, hardware_for(study, kind))
    return study


def _with_tasks(quality: QualitySpec, study_file: Path) -> QualitySpec:
    """The tasks' paths as absolute ones; raises InputError where their folder or the harness is not there."""
    tasks = quality.tasks
    if tasks is None:
        return quality
    where, here = f"{study_file}: quality.tasks", study_file.parent.resolve()
    found = shutil.which(here / tasks.command if "/" in tasks.command else tasks.command)
    if found is None:
        remedy = "pip install 'lm_eval[api]' in an environment of its own, and give its lm_eval as `command`"
        raise InputError(InputProblem(where, f"there is no command {tasks.command!r} here", remedy))
    folder = here / tasks.folder if tasks.folder else None
    if folder is not None and not folder.is_dir():
        raise InputError(InputProblem(where, f"no folder {str(folder)!r}", "name one with tasks' YAML files"))
    known = {"command": str(found), "folder": str(folder) if folder else None}
    return quality.model_copy(update={"tasks": tasks.model_copy(update=known)})


def _check_endpoints(path: Path, study: StudySpec) -> None:
    """Raise InputError for workloads that an engine of the study could not be asked."""
    for engine in study.engines:
        if launcher_of(engine.name).traits.chat_only and any(w.api != "chat" for w in study.workloads):
            what = f"{engine.name} takes no token ids as a prompt"
            raise InputError(InputProblem(str(path), what, "write `api: chat` in every workload"))


def setting_for(study: StudySpec, hardware: Hardware) -> Setting:
    """What configurations of a study must fit into."""
    files = ModelFiles()
    named = {model for engine in study.branches for model in engine.models_named}
    return Setting(
        hardware=hardware,
        model=files.shape(study.model),
        stored=files.weights(study.model),
        named={model: KnownModel(files.shape(model), files.weights(model)) for model in named},
        args=tuple(argument for engine in study.engines for argument in engine.args),
        requirements=study.requirements,
        longest_request_tokens=max(w.longest_tokens for w in study.workloads),
        real_text=all(w.has_real_text for w in study.workloads),
    )


def baseline_config(study: StudySpec) -> EngineConfig | None:
    """Production's command line in the vocabulary of the engine that reads it; raises InputError."""
    if study.baseline is None:
        return None
    wrong = []
    for engine in study.engines:
        try:
            config, _ = launcher_of(engine.name).parse_command(study.baseline)
        except ValueError as unread:
            wrong.append(str(unread))
        else:
            return study.default_config(engine).replaced(config.words)
    remedy = "write the command line as production runs it"
    raise InputError([InputProblem("baseline", what, remedy) for what in wrong])


def tune(study: StudySpec, store: Store, sink: EventSink, cancelled: Cancelled) -> None:
    """Run a study, or go on with one that was interrupted; raises StudyCancelledError, BenchError.

    A study of that name that is finished is left as it is, unless its budget was changed: then it goes on.
    One that differs in anything else is refused.
    """
    earlier = _claim(study, store)
    if earlier and earlier.status is StudyStatus.FINISHED and study_of(earlier).budget == study.budget:
        what = "to go on with it raise its budget, to run it once more give it a --name of its own"
        sink(Notice(f"study {study.name} is finished; {what}"))
        return
    spent_s = earlier.spent_s if earlier else 0.0
    row = StudyRow(
        name=study.name,
        spec=study.model_dump_json(),
        status=StudyStatus.RUNNING,
        owner=_this_process(),
        spent_s=spent_s,
        started_at=earlier.started_at if earlier else _today(),
    )
    # The bench first: a study whose files cannot be read has not begun, and leaves its name free.
    with lanes_for(study) as lanes, journal(store.study_logs(study.name), sink) as sink_and_journal:
        store.catalog.put_study(row)
        began_s = time.monotonic()
        status = StudyStatus.INTERRUPTED
        try:
            _study_run(study, lanes, store, one_at_a_time(sink_and_journal), cancelled, spent_s=spent_s).run()
            status = StudyStatus.FINISHED
        finally:
            now_spent_s = spent_s + time.monotonic() - began_s
            store.catalog.put_study(replace(row, status=status, spent_s=now_spent_s))


def _claim(study: StudySpec, store: Store) -> StudyRow | None:
    """The earlier row of this study if there is one; raises InputError if it may not be gone on with."""
    row = store.catalog.study(study.name)
    if row is None:
        return None
    where = f"study {study.name!r}"
    if row.status is StudyStatus.RUNNING and _is_alive(row.owner):
        remedy = "wait for it, stop it with Ctrl-C, or give this one a --name of its own"
        raise InputError(InputProblem(where, f"is being run by process {row.owner}", remedy))
    before, now = study_of(row), study
    others = [key for key in StudySpec.model_fields if key != "budget"]
    changed = [key for key in others if getattr(before, key) != getattr(now, key)]
    if changed:
        what = f"is in {store.url} already, and differs in: {', '.join(changed)}"
        remedy = f"give this one a --name of its own, or go on with that one: autotune resume {study.name}"
        raise InputError(InputProblem(where, what, remedy))
    return row


def _study_run(
    study: StudySpec,
    lanes: Sequence[Mapping[str, Bench]],
    store: Store,
    sink: EventSink,
    cancelled: Cancelled,
    *,
    spent_s: float,
) -> StudyRun:
    benches = lanes[0]
    bench = next(iter(benches.values()))
    rows = settle_interrupted(store.catalog, study.name)
    setting = setting_for(study, bench.hardware)
    ground = ground_of(study, benches, setting, store)

    free: SimpleQueue[Mapping[str, Bench]] = SimpleQueue()
    for lane in lanes:
        free.put(lane)

    def launch(order: LaunchOrder) -> LaunchRecord:
        task = LaunchTask(
            study=study,
            number=order.suggestion.number,
            purpose=order.purpose,
            config=order.suggestion.config,
            workdir=store.logs(study.name, order.suggestion.number),
            levels=order.levels,
            must_hold=order.must_hold,
            start=order.start,
            known=order.known,
            foreknown=order.foreknown,
            time_left_s=order.time_left_s,
            variants=order.variants,
        )
        config = order.suggestion.config
        taken = [free.get() for _ in range(study.copies(config, order.purpose))]
        try:
            own, *beside = (lane[config.engine] for lane in taken)
            return run_launch(task, own, sink, cancelled, beside)
        finally:
            for lane in taken:
                free.put(lane)

    sink(
        StudyStarted(
            study=study.name,
            hardware=bench.hardware.describe(),
            engine=", ".join(f"{name} {each.environment.version}" for name, each in benches.items()),
            power=ground.basis,
            launches_done=sum(row.state is not TrialState.REJECTED for row in rows),
            most_launches=study.budget.launches or 0,
            wall_time_s=study.budget.wall_time or 0.0,
        )
    )
    for remark in bench.remarks:
        sink(Notice(remark))
    priors = priors_of(ground, sink)
    storage = optuna.storages.get_storage(store.url)
    optuna_study = open_study(
        study.name,
        storage,
        slas=[sla.name for sla in study.slas],
        sampler=sampler_for(study, setting, priors),
    )
    known = {row.number: outcome_of(row, study) for row in rows}
    search = OptunaSearch(optuna_study, study.branches, known=known)
    return StudyRun(
        StudyParts(
            study=study,
            setting=setting,
            priors=priors,
            baseline=baseline_config(study),
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


def one_at_a_time(sink: EventSink) -> EventSink:
    """A sink for several threads."""
    lock = threading.Lock()

    def take(event: Event) -> None:
        with lock:
            sink(event)

    return take


def sampler_for(study: StudySpec, setting: Setting, priors: Priors) -> BaseSampler:
    """What suggests the next configuration."""
    if study.sampler != "surrogate":
        return baseline_sampler(study.sampler, study.seed)
    naming, candidates = Naming.of(study.branches), Candidates(study, setting)

    def devices(points: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
        return np.array([float(study.devices_held(naming.config_of(point))) for point in points])

    return SurrogateSampler(
        seed=study.seed,
        points=lambda best: [naming.params_of(c) for c in candidates.around([*map(naming.config_of, best)])],
        foresee=lambda points: priors.foresee([*map(naming.config_of, points)]),
        # Where devices are what the budget counts, a launch costs as many as it holds.
        costs=devices if study.budget.accelerator_hours else None,
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


def _with_models(part: Any, study_file: Path) -> Any:
    """Plain data of a study in which every model that a word names is resolved as the study's own is."""
    if isinstance(part, Mapping):
        return {
            key: _each_model(value, study_file) if key in MODEL_WORDS else _with_models(value, study_file)
            for key, value in part.items()
        }
    return [_with_models(each, study_file) for each in part] if isinstance(part, list | tuple) else part


def _each_model(value: Any, study_file: Path) -> Any:
    """A model, a list of them, or a dimension whose choices they are."""
    if isinstance(value, Mapping):
        return {**_with_models(value, study_file), "choices": _each_model(value["choices"], study_file)}
    if isinstance(value, list | tuple):
        return [_each_model(each, study_file) for each in value]
    return value if value in {None, DEFAULT} else _resolved_model(value, study_file)


def _this_process() -> str:
    """Names this process so that no later one is taken for it: host, pid, start."""
    return f"{socket.gethostname()} {os.getpid()} {_started(os.getpid())}"


def _is_alive(owner: str) -> bool:
    """Whether the process that ``_this_process`` named still runs; on another host it may well."""
    host, pid, started = owner.split()
    return host != socket.gethostname() or _started(int(pid)) == started


def _started(pid: int) -> str:
    """When a process started, in ticks since boot, which no step of the clock moves; empty without one."""
    process = warden.find(pid)
    return str(process.started) if process else ""


def _today() -> str:
    """Date and time for people to read."""
    return datetime.now(UTC).isoformat(timespec="seconds")  # noqa: TID251 - nothing is reckoned with it
