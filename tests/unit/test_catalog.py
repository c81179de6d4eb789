"""The catalog in a real database: rows put are the rows read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from fakes import FakeCatalog

from autotune.adapters.store.catalog import SCHEMA_VERSION, SqlCatalog
from autotune.domain.basics.errors import InputError
from autotune.domain.configs.config import EngineConfig
from autotune.domain.studies.ports import Catalog
from autotune.domain.studies.records import Purpose, StudyRow, StudyStatus, TrialRow, TrialState

BARE = TrialRow(
    study="one",
    number=0,
    purpose=Purpose.DEFAULTS,
    state=TrialState.RUNNING,
    config=EngineConfig(engine="vllm"),
)
FULL = TrialRow(
    study="one",
    number=3,
    purpose=Purpose.FINAL,
    state=TrialState.MEASURED,
    config=EngineConfig(engine="vllm", max_num_seqs=8, eager=False, extra_args=("--a b", "'c'")),
    command="vllm serve 'a model'",
    final_of=1,
    failure_class="died under load",
    failure_line="line with ünicode",
    log_path="/logs/engine.log",
    launch_s=1.25,
    load_s=2.5,
    total_s=3.75,
    objectives={"fast": 0.1 + 0.2, "slow": 0.0},
    predicted={"fast": 0.5},
)
STUDY = StudyRow(
    name="one",
    spec='{"name": "one"}',
    status=StudyStatus.RUNNING,
    owner="host 1 2.5",
    spent_s=0.5,
    started_at="2026-01-02T03:04:05+00:00",
)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/studies.db"


@pytest.fixture
def sql(url: str) -> Iterator[SqlCatalog]:
    catalog = SqlCatalog(url)
    yield catalog
    catalog.close()


@pytest.fixture(params=["fake", "sqlite"])
def catalog(request: pytest.FixtureRequest, sql: SqlCatalog) -> Catalog:
    return FakeCatalog() if request.param == "fake" else sql


@pytest.mark.parametrize("row", [BARE, FULL])
def test_a_row_is_read_as_it_was_put(catalog: Catalog, row: TrialRow) -> None:
    catalog.put(row)
    assert catalog.trials("one") == (row,)


def test_a_row_put_again_replaces_the_first(catalog: Catalog) -> None:
    catalog.put(BARE)
    catalog.put(replace(BARE, state=TrialState.MEASURED, total_s=9.0))
    assert [(row.state, row.total_s) for row in catalog.trials("one")] == [(TrialState.MEASURED, 9.0)]


def test_trials_come_by_number(catalog: Catalog) -> None:
    for number in (10, 2, 7):
        catalog.put(replace(BARE, number=number))
    assert [row.number for row in catalog.trials("one")] == [2, 7, 10]


def test_studies_keep_their_trials_apart(catalog: Catalog) -> None:
    catalog.put(BARE)
    catalog.put(replace(BARE, study="two", state=TrialState.INFEASIBLE))
    assert [row.state for row in catalog.trials("one")] == [TrialState.RUNNING]
    assert catalog.trials("three") == ()


def test_a_study_is_read_as_it_was_put_last(sql: SqlCatalog) -> None:
    sql.put_study(STUDY)
    finished = replace(STUDY, status=StudyStatus.FINISHED, spent_s=7.5)
    sql.put_study(finished)
    assert sql.study("one") == finished
    assert sql.studies() == (finished,)
    assert sql.study("two") is None


def test_studies_come_newest_first(sql: SqlCatalog) -> None:
    for name, year in (("old", 2024), ("new", 2026), ("middle", 2025)):
        sql.put_study(replace(STUDY, name=name, started_at=f"{year}-01-01T00:00:00+00:00"))
    assert [row.name for row in sql.studies()] == ["new", "middle", "old"]


def test_rows_outlive_the_process(url: str, sql: SqlCatalog) -> None:
    sql.put(FULL)
    again = SqlCatalog(url)
    assert again.trials("one") == (FULL,)
    again.close()


@pytest.mark.parametrize(
    "url",
    ["no url", "nosuch://host/db", "sqlite:////no/such/folder/studies.db", "postgresql+nosuch://host/db"],
)
def test_a_storage_that_does_not_open_is_the_users_to_mend(url: str) -> None:
    with pytest.raises(InputError) as caught:
        SqlCatalog(url)
    (problem,) = caught.value.problems
    assert problem.where == f"storage {url}"
    assert problem.remedy


def test_tables_of_a_later_version_are_not_touched(url: str, sql: SqlCatalog) -> None:
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE autotune_schema SET version = {SCHEMA_VERSION + 1}"))
    engine.dispose()
    with pytest.raises(
        InputError, match=f"version {SCHEMA_VERSION + 1}, this package reads {SCHEMA_VERSION}"
    ):
        SqlCatalog(url)
