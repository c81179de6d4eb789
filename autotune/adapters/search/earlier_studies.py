"""Earlier studies of a catalog, as what a transfer prior learns from."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pydantic import ValidationError

from autotune.adapters.store.catalog import SqlCatalog
from autotune.domain.search.transfer import FEWEST, Earlier, Task, Trial
from autotune.domain.studies.records import TrialRow, TrialState
from autotune.domain.studies.study import StudySpec

_TOLD = frozenset({TrialState.MEASURED, TrialState.INFEASIBLE})

DeviceOf = Callable[[str, int], str]
"""Name of the accelerators that a trial of a study held."""


def earlier_studies(catalog: SqlCatalog, but: str, device_of: DeviceOf) -> tuple[Earlier, ...]:
    """Every other study with enough measured trials, of those whose file this version understands."""
    found = []
    for row in catalog.studies():
        trials = [trial for trial in catalog.trials(row.name) if _is_told(trial)]
        measured = [trial for trial in trials if trial.state is TrialState.MEASURED]
        if row.name == but or len(measured) < FEWEST:
            continue
        try:
            model = StudySpec.model_validate_json(row.spec).model
        except ValidationError:
            continue  # of a version whose studies are no longer understood
        task = Task(model=model, device=device_of(row.name, measured[0].number))
        found.append(Earlier(task, tuple(_trials(trials))))
    return tuple(found)


def _is_told(trial: TrialRow) -> bool:
    return trial.state in _TOLD and trial.final_of is None


def _trials(rows: Iterable[TrialRow]) -> Iterable[Trial]:
    """One objective each: the mean over SLAs of its share of the best of its study."""
    rows = tuple(rows)
    slas = {sla for row in rows for sla in row.objectives}
    best = {sla: max(row.objectives.get(sla, 0.0) for row in rows) for sla in slas}
    reached = [sla for sla in slas if best[sla] > 0]
    for row in rows:
        shares = [row.objectives.get(sla, 0.0) / best[sla] for sla in reached]
        yield Trial(row.config, sum(shares) / len(shares) if shares else 0.0)
