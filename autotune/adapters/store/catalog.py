"""The catalog: summary tables of studies and trials, beside Optuna's in the same database."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from autotune.domain.basics.errors import InputError, InputProblem
from autotune.domain.configs.config import EngineConfig
from autotune.domain.studies.observations import Observation
from autotune.domain.studies.records import Purpose, StudyRow, StudyStatus, TrialRow, TrialState

SCHEMA_VERSION = 3
_METADATA = sa.MetaData()

_VERSION = sa.Table("autotune_schema", _METADATA, sa.Column("version", sa.Integer, primary_key=True))

_STUDIES = sa.Table(
    "autotune_studies",
    _METADATA,
    sa.Column("name", sa.String(100), primary_key=True),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("status", sa.String(20), nullable=False),
    sa.Column("owner", sa.String(200), nullable=False),
    sa.Column("spent_s", sa.Float, nullable=False),
    sa.Column("started_at", sa.String(40), nullable=False),
)

_TRIALS = sa.Table(
    "autotune_trials",
    _METADATA,
    sa.Column("study", sa.String(100), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("purpose", sa.String(20), nullable=False),
    sa.Column("state", sa.String(20), nullable=False, index=True),
    sa.Column("config", sa.Text, nullable=False),
    sa.Column("command", sa.Text, nullable=False),
    sa.Column("final_of", sa.Integer),
    sa.Column("failure_class", sa.String(60)),
    sa.Column("failure_line", sa.Text),
    sa.Column("log_path", sa.Text),
    sa.Column("launch_s", sa.Float, nullable=False),
    sa.Column("load_s", sa.Float, nullable=False),
    sa.Column("total_s", sa.Float, nullable=False),
    sa.Column("objectives", sa.Text, nullable=False),
    sa.Column("quality", sa.String(20)),
    sa.Column("predicted", sa.Text, nullable=False),
)

_OBSERVATIONS = sa.Table(
    "autotune_observations",
    _METADATA,
    sa.Column("study", sa.String(100), primary_key=True),
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("observation", sa.Text, nullable=False),
)
"""What other tools measured; added without a new version, since no reader of the others' minds it."""


class SqlCatalog:
    """Rows of studies and trials in any database that SQLAlchemy speaks to."""

    def __init__(self, url: str) -> None:
        """Open the database, making the tables where they are missing; raises InputError."""
        try:
            self._engine = sa.create_engine(url)
            _METADATA.create_all(self._engine)
            self._check_version()
        except (sa.exc.SQLAlchemyError, ModuleNotFoundError) as broken:
            raise InputError(
                InputProblem(
                    f"storage {url}", str(broken).splitlines()[0], "give an SQLAlchemy URL that opens"
                )
            ) from broken

    def close(self) -> None:
        """Let go of the database's connections."""
        self._engine.dispose()

    def put(self, row: TrialRow) -> None:
        """Insert a trial's row, or replace it."""
        values = {f.name: getattr(row, f.name) for f in fields(row)}
        values["config"] = row.config.model_dump_json(exclude_none=True)
        values["objectives"] = json.dumps(dict(row.objectives))
        values["predicted"] = json.dumps(dict(row.predicted))
        key = (_TRIALS.c.study == row.study) & (_TRIALS.c.number == row.number)
        self._replace(_TRIALS, key, values)

    def trials(self, study: str) -> tuple[TrialRow, ...]:
        """Rows of a study's trials, by number."""
        query = sa.select(_TRIALS).where(_TRIALS.c.study == study).order_by(_TRIALS.c.number)
        with self._engine.connect() as connection:
            return tuple(_trial_row(dict(row)) for row in connection.execute(query).mappings())

    def put_study(self, row: StudyRow) -> None:
        """Insert a study's row, or replace it."""
        values = {f.name: getattr(row, f.name) for f in fields(row)}
        self._replace(_STUDIES, _STUDIES.c.name == row.name, values)

    def studies(self) -> tuple[StudyRow, ...]:
        """Rows of all studies, newest first."""
        query = sa.select(_STUDIES).order_by(_STUDIES.c.started_at.desc())
        with self._engine.connect() as connection:
            return tuple(_study_row(dict(row)) for row in connection.execute(query).mappings())

    def study(self, name: str) -> StudyRow | None:
        """One study's row, None where there is none."""
        query = sa.select(_STUDIES).where(_STUDIES.c.name == name)
        with self._engine.connect() as connection:
            row = connection.execute(query).mappings().first()
        return _study_row(dict(row)) if row else None

    def trial(self, study: str, number: int) -> TrialRow | None:
        """One trial's row, None where there is none."""
        query = sa.select(_TRIALS).where(_TRIALS.c.study == study, _TRIALS.c.number == number)
        with self._engine.connect() as connection:
            row = connection.execute(query).mappings().first()
        return _trial_row(dict(row)) if row else None

    def some_trials(
        self, study: str, *, offset: int, limit: int, state: TrialState | None = None
    ) -> tuple[TrialRow, ...]:
        """A page of a study's trials, by number; those of one state where it is given."""
        query = sa.select(_TRIALS).where(_TRIALS.c.study == study).order_by(_TRIALS.c.number)
        if state is not None:
            query = query.where(_TRIALS.c.state == state)
        with self._engine.connect() as connection:
            found = connection.execute(query.offset(offset).limit(limit)).mappings()
            return tuple(_trial_row(dict(row)) for row in found)

    def some_studies(self, *, offset: int, limit: int) -> tuple[StudyRow, ...]:
        """A page of the studies, newest first."""
        query = sa.select(_STUDIES).order_by(_STUDIES.c.started_at.desc(), _STUDIES.c.name)
        with self._engine.connect() as connection:
            found = connection.execute(query.offset(offset).limit(limit)).mappings()
            return tuple(_study_row(dict(row)) for row in found)

    def count_studies(self) -> int:
        """How many studies there are."""
        with self._engine.connect() as connection:
            return int(connection.scalar(sa.select(sa.func.count()).select_from(_STUDIES)) or 0)

    def states(self, studies: Sequence[str]) -> dict[str, dict[TrialState, int]]:
        """How many trials of each study are in each state."""
        query = (
            sa.select(_TRIALS.c.study, _TRIALS.c.state, sa.func.count())
            .where(_TRIALS.c.study.in_(studies))
            .group_by(_TRIALS.c.study, _TRIALS.c.state)
        )
        counts: dict[str, dict[TrialState, int]] = {study: {} for study in studies}
        with self._engine.connect() as connection:
            for study, state, count in connection.execute(query):
                counts[study][TrialState(state)] = count
        return counts

    def studies_by_status(self) -> dict[StudyStatus, int]:
        """How many studies have each status."""
        query = sa.select(_STUDIES.c.status, sa.func.count()).group_by(_STUDIES.c.status)
        with self._engine.connect() as connection:
            return {StudyStatus(status): count for status, count in connection.execute(query)}

    def trials_by_state(self) -> dict[TrialState, int]:
        """How many trials of all studies are in each state."""
        query = sa.select(_TRIALS.c.state, sa.func.count()).group_by(_TRIALS.c.state)
        with self._engine.connect() as connection:
            return {TrialState(state): count for state, count in connection.execute(query)}

    def put_observation(self, study: str, observation: Observation) -> None:
        """Insert what another tool measured, or replace it."""
        key = (_OBSERVATIONS.c.study == study) & (_OBSERVATIONS.c.key == observation.key)
        text = json.dumps(asdict(observation))
        self._replace(_OBSERVATIONS, key, {"study": study, "key": observation.key, "observation": text})

    def observations(self, study: str) -> tuple[Observation, ...]:
        """What other tools measured of a study's question, in order of their keys."""
        query = sa.select(_OBSERVATIONS.c.observation).where(_OBSERVATIONS.c.study == study)
        with self._engine.connect() as connection:
            rows = connection.scalars(query.order_by(_OBSERVATIONS.c.key))
            return tuple(Observation(**json.loads(row)) for row in rows)

    def _replace(self, table: sa.Table, key: sa.ColumnElement[bool], values: dict[str, Any]) -> None:
        with self._engine.begin() as connection:
            if not connection.execute(sa.update(table).where(key).values(values)).rowcount:
                connection.execute(sa.insert(table).values(values))

    def _check_version(self) -> None:
        with self._engine.begin() as connection:
            version = connection.scalar(sa.select(_VERSION.c.version))
            if version is None:
                connection.execute(sa.insert(_VERSION).values(version=SCHEMA_VERSION))
            elif version != SCHEMA_VERSION:
                raise InputError(
                    InputProblem(
                        "storage",
                        f"its tables are of version {version}, this package reads {SCHEMA_VERSION}",
                        "name another storage, or use the package that made this one",
                    )
                )


def _trial_row(values: dict[str, Any]) -> TrialRow:
    return TrialRow(
        **{
            **values,
            "purpose": Purpose(values["purpose"]),
            "state": TrialState(values["state"]),
            "config": _config(values["config"]),
            "objectives": json.loads(values["objectives"]),
            "predicted": json.loads(values["predicted"]),
        }
    )


@lru_cache(maxsize=4096)
def _config(text: str) -> EngineConfig:
    """A configuration, checked once: pages read the same rows over and over."""
    return EngineConfig.model_validate_json(text)


def _study_row(values: dict[str, Any]) -> StudyRow:
    return StudyRow(**{**values, "status": StudyStatus(values["status"])})
