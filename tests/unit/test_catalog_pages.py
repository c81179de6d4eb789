"""Pages of the catalog, and the journal that pages follow a study by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.adapters.store.catalog import SqlCatalog
from autotune.adapters.store.journal import JOURNAL_FILE, journal, read_journal
from autotune.domain.configs.config import EngineConfig
from autotune.domain.load.level import Level
from autotune.domain.studies.events import Event, LaunchStarted, LevelProgress, Notice
from autotune.domain.studies.records import Purpose, StudyRow, StudyStatus, TrialRow, TrialState

CONFIG = EngineConfig(engine="vllm")
ROW = TrialRow(study="one", number=0, purpose=Purpose.SEARCH, state=TrialState.MEASURED, config=CONFIG)


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[SqlCatalog]:
    catalog = SqlCatalog(f"sqlite:///{tmp_path}/studies.db")
    for number in range(5):
        state = TrialState.MEASURED if number % 2 else TrialState.INFEASIBLE
        catalog.put(replace(ROW, number=number, state=state))
    for name, day in (("one", 1), ("two", 2), ("three", 3)):
        status = StudyStatus.FINISHED if day > 1 else StudyStatus.RUNNING
        started = f"2026-01-0{day}T00:00:00+00:00"
        catalog.put_study(
            StudyRow(name=name, spec="{}", status=status, owner="", spent_s=0, started_at=started)
        )
    yield catalog
    catalog.close()


def test_trials_come_by_the_page_and_by_state(catalog: SqlCatalog) -> None:
    assert [r.number for r in catalog.some_trials("one", offset=1, limit=2)] == [1, 2]
    assert [r.number for r in catalog.some_trials("one", offset=1, limit=9, state=TrialState.MEASURED)] == [3]
    assert catalog.some_trials("none", offset=0, limit=9) == ()
    assert catalog.trial("one", 3) == replace(ROW, number=3)
    assert catalog.trial("one", 9) is None


def test_studies_come_by_the_page_newest_first_with_their_counts(catalog: SqlCatalog) -> None:
    assert [r.name for r in catalog.some_studies(offset=0, limit=2)] == ["three", "two"]
    assert catalog.count_studies() == 3
    assert catalog.states(["one", "two"]) == {
        "one": {TrialState.MEASURED: 2, TrialState.INFEASIBLE: 3},
        "two": {},
    }
    assert catalog.studies_by_status() == {StudyStatus.FINISHED: 2, StudyStatus.RUNNING: 1}
    assert catalog.trials_by_state() == {TrialState.MEASURED: 2, TrialState.INFEASIBLE: 3}


def test_a_journal_is_read_from_its_end_and_a_cut_line_is_left_out(tmp_path: Path) -> None:
    seen: list[Event] = []
    with journal(tmp_path, seen.append) as sink:
        sink(LaunchStarted(number=3, config=CONFIG, purpose="search"))
        sink(LevelProgress(number=3, level=Level("chat", rate_rps=2.0), stage="measuring"))
        sink(Notice("<b>careful</b>"))
    assert len(seen) == 3
    with (tmp_path / JOURNAL_FILE).open("a") as file:
        file.write('{"at": "2026')
    told = read_journal(tmp_path, most=3)
    assert [line["what"] for line in told] == ["2 req/s · measuring", "<b>careful</b>"]
    assert told[0]["trial"] == 3
    assert read_journal(tmp_path / "none", most=3) == ()
