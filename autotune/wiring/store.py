"""Where studies are kept: a storage URL, and the artifacts and logs that lie beside it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import optuna
import sqlalchemy as sa
from optuna.artifacts import FileSystemArtifactStore
from optuna.artifacts._protocol import ArtifactStore

from autotune.adapters.store.archive import ArtifactArchive
from autotune.adapters.store.catalog import SqlCatalog
from autotune.domain.basics.errors import InputError, InputProblem
from autotune.domain.recommending.recommendation import Candidate, candidates_of
from autotune.domain.studies.records import LaunchRecord, StudyRow, TrialRow, TrialState
from autotune.domain.studies.study import StudySpec

DEFAULT_STORAGE = "sqlite:///studies.db"
NOWHERE = "sqlite://"
"""A database in memory."""


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

    def study_logs(self, study: str) -> Path:
        """Folder of a study's journal, and of its trials' logs."""
        return self.folder / "logs" / study

    def logs(self, study: str, number: int) -> Path:
        """Folder of a trial's engine logs."""
        return self.study_logs(study) / f"{number:04}"

    def study(self, name: str) -> tuple[StudyRow, StudySpec]:
        """A study's row and its file as it was resolved; raises InputError that names those there are."""
        row = self.catalog.study(name)
        if row is None:
            known = ", ".join(r.name for r in self.catalog.studies()) or "none yet"
            raise InputError(InputProblem(f"study {name!r}", f"is not in {self.url}", f"known: {known}"))
        return row, study_of(row)


def study_of(row: StudyRow) -> StudySpec:
    """A study's file as it was resolved; a file is checked once, for large spaces take a while."""
    return _parsed(row.spec)


@lru_cache(maxsize=64)
def _parsed(spec: str) -> StudySpec:
    return StudySpec.model_validate_json(spec)


def open_store(url: str) -> Store:
    """Open a storage; artifacts and logs of a SQLite file lie beside it, of a server in this folder."""
    at = _file_of(url) or Path("studies.db")
    return Store(url, SqlCatalog(url), at.with_name(f"{at.stem}-artifacts").absolute())


def read_store(url: str) -> Store:
    """Open a storage to read it: a SQLite file that is not there holds nothing, and is not made."""
    file = _file_of(url)
    if file is None or file.exists():
        return open_store(url)
    return replace(open_store(NOWHERE), url=url)


def _file_of(url: str) -> Path | None:
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError:
        return None  # who opens it says what is wrong with it
    return Path(parsed.database) if parsed.get_backend_name() == "sqlite" and parsed.database else None


class Results(NamedTuple):
    """A study, its trials, and every measured configuration."""

    study: StudySpec
    rows: tuple[TrialRow, ...]
    candidates: tuple[Candidate, ...]


def results(store: Store, name: str) -> Results:
    """A study, its trials, and every measured configuration with its raw records read back."""
    _, study = store.study(name)
    rows = store.catalog.trials(name)
    archive = _archive(store, name)
    records = [archive.load(name, row.number) for row in rows if row.state is TrialState.MEASURED]
    return Results(study, rows, candidates_of(rows, records))


def launch_record(store: Store, name: str, number: int) -> LaunchRecord:
    """The raw records of one launch; raises InputError where there are none."""
    return _archive(store, name).load(name, number)


def versions_run(store: Store) -> dict[str, set[str]]:
    """Versions of engines that were measured, by engine; one trial of each study and engine is read."""
    versions: dict[str, set[str]] = {}
    for study in store.catalog.studies():
        measured = (row for row in store.catalog.trials(study.name) if row.state is TrialState.MEASURED)
        for engine, number in {row.config.engine: row.number for row in measured}.items():
            version = launch_record(store, study.name, number).versions.get(engine)
            versions.setdefault(engine, set()).update([version] if version else [])
    return versions


def _archive(store: Store, name: str) -> ArtifactArchive:
    storage = optuna.storages.get_storage(store.url)
    return ArtifactArchive(optuna.load_study(study_name=name, storage=storage), store.artifacts, storage)
