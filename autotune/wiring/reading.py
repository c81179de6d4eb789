"""Reading studies for pages: digests of their launches, read once in the background and kept."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import optuna

from autotune.adapters.search.importances import importances
from autotune.adapters.store.archive import ArtifactArchive
from autotune.domain.basics.errors import InputError, InputProblem
from autotune.domain.measuring.digest import LevelDigest
from autotune.domain.recommending.recommendation import Candidate, candidates_of
from autotune.domain.studies.records import LaunchRecord, Purpose, TrialRow, TrialState
from autotune.domain.studies.study import StudySpec
from autotune.wiring.store import Store

STUDIES_KEPT = 8
"""Studies whose digests are held; about 20 kB a level."""
MOST_LAUNCHES = 600
"""Launches of one study that are read; of more, those with the best objectives."""
RECORDS_KEPT = 4
IMPORTANCE_DEADLINE_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Digested:
    """A study with its candidates as far as they are read.

    ``pending`` launches are still to be read, ``lost`` could not be; ``left_out`` are beyond MOST_LAUNCHES.
    """

    study: StudySpec
    rows: tuple[TrialRow, ...]
    candidates: tuple[Candidate, ...]
    pending: int
    lost: dict[int, str]
    left_out: int


@dataclass(slots=True)
class _Shelf:
    """What was read of one study; ``changed`` is notified with each launch."""

    records: dict[int, Candidate] = field(default_factory=dict)
    lost: dict[int, str] = field(default_factory=dict)
    asked: set[int] = field(default_factory=set)
    changed: threading.Condition = field(default_factory=threading.Condition)


class StudyReader:
    """Reads a store for pages; nothing is written. Close it to end its threads."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.storage = optuna.storages.get_storage(store.url)
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="study-reader")
        self._shelves: OrderedDict[str, _Shelf] = OrderedDict()
        self._lock = threading.Lock()
        self._record = lru_cache(maxsize=RECORDS_KEPT)(self._read_record)

    def close(self) -> None:
        """End what is being read."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def digested(self, name: str, *, wait_s: float) -> Digested:
        """A study's candidates, read as far as ``wait_s`` allows; raises InputError for no such study."""
        _, study = self.store.study(name)
        rows = self.store.catalog.trials(name)
        wanted, left_out = _wanted(rows)
        shelf = self._shelf(name)
        for number in wanted:
            self._ask(name, number, shelf)
        with shelf.changed:
            shelf.changed.wait_for(lambda: _settled(shelf) >= set(wanted), timeout=wait_s)
            read, lost = dict(shelf.records), dict(shelf.lost)
        return Digested(
            study=study,
            rows=rows,
            candidates=tuple(_joined(rows, read)),
            pending=len(set(wanted) - read.keys() - lost.keys()),
            lost=lost,
            left_out=left_out,
        )

    def record(self, name: str, number: int) -> LaunchRecord:
        """The raw records of one launch; raises InputError where there are none."""
        return self._record(name, number)

    def importances(self, name: str, objective: int) -> dict[str, float] | None:
        """Importances for one objective; None where they were not ready by IMPORTANCE_DEADLINE_S."""
        job = self._pool.submit(importances, name, self.storage, objective=objective)
        with suppress(TimeoutError):
            return job.result(timeout=IMPORTANCE_DEADLINE_S)
        job.cancel()
        return None

    def logs(self, name: str, number: int) -> dict[str, Path]:
        """Log files of a trial by name, as they lie in its folder; no link is followed."""
        folder = self.store.logs(name, number)
        if not folder.is_dir():
            return {}
        return {p.name: p for p in sorted(folder.iterdir()) if p.is_file() and not p.is_symlink()}

    def _shelf(self, name: str) -> _Shelf:
        with self._lock:
            shelf = self._shelves.setdefault(name, _Shelf())
            self._shelves.move_to_end(name)
            while len(self._shelves) > STUDIES_KEPT:
                self._shelves.popitem(last=False)
            return shelf

    def _ask(self, name: str, number: int, shelf: _Shelf) -> None:
        with shelf.changed:
            if number in shelf.asked:
                return
            shelf.asked.add(number)
        self._pool.submit(self._digest, name, number, shelf)

    def _digest(self, name: str, number: int, shelf: _Shelf) -> None:
        try:
            whole = Candidate(row=self._row(name, number), launch=self._read_record(name, number))
            # Whether figures held through a soak is told by its raw records.
            read = whole if whole.row.purpose is Purpose.SOAK else whole.digested()
            for level in read.levels:
                # Here, in the background, rather than by who first looks at the picture.
                level.draw_up()
        except Exception as broken:
            with shelf.changed:
                shelf.lost[number] = str(broken).splitlines()[0] if str(broken) else type(broken).__name__
                shelf.changed.notify_all()
            return
        with shelf.changed:
            shelf.records[number] = read
            shelf.changed.notify_all()

    def _row(self, name: str, number: int) -> TrialRow:
        row = self.store.catalog.trial(name, number)
        if row is None:
            raise InputError(InputProblem(f"study {name!r}", f"has no trial {number}", "its page lists them"))
        return row

    def _read_record(self, name: str, number: int) -> LaunchRecord:
        study = optuna.load_study(study_name=name, storage=self.storage)
        return ArtifactArchive(study, self.store.artifacts, self.storage).load(name, number)


def _settled(shelf: _Shelf) -> set[int]:
    return shelf.records.keys() | shelf.lost.keys()


def _wanted(rows: Sequence[TrialRow]) -> tuple[list[int], int]:
    """Numbers of the launches to read, by number, and how many are left out for there being too many."""
    measured = [row for row in rows if row.state is TrialState.MEASURED]
    if len(measured) <= MOST_LAUNCHES:
        return [row.number for row in measured], 0
    best = {name: max(row.objectives.get(name, 0.0) for row in measured) or 1.0 for name in _slas(measured)}

    def worth(row: TrialRow) -> tuple[bool, float]:
        shares = (row.objectives.get(name, 0.0) / top for name, top in best.items())
        return row.final_of is not None or row.purpose != "search", max(shares, default=0.0)

    kept = sorted(measured, key=worth, reverse=True)[:MOST_LAUNCHES]
    return sorted(row.number for row in kept), len(measured) - len(kept)


def _slas(rows: Sequence[TrialRow]) -> set[str]:
    return {name for row in rows for name in row.objectives}


def _joined(rows: Sequence[TrialRow], read: dict[int, Candidate]) -> Iterator[Candidate]:
    """Candidates with their finals and soaks, as ``candidates_of`` puts them together, digests kept."""

    def levels(launch: LaunchRecord | None) -> tuple[LevelDigest, ...]:
        return read[launch.number].levels if launch else ()

    for candidate in candidates_of(rows, [each.launch for each in read.values()]):
        candidate.__dict__.update(
            levels=levels(candidate.launch),
            final_levels=levels(candidate.final),
            soak_levels=levels(candidate.soak),
        )
        yield candidate
