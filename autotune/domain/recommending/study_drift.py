"""Two studies of one question, on other versions of an engine: what changed, and whether to tune again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from autotune.domain.judging.sla import Sla
from autotune.domain.recommending.comparison import Advantage, advantage
from autotune.domain.recommending.recommendation import Candidate, Standing, recommend, standing
from autotune.domain.studies.records import TrialRow, TrialState
from autotune.domain.studies.study import StudySpec

COMPARED = ("driver", "kernel", "python", "autotune")
"""Components whose versions are told beside the engine's."""


class Change(StrEnum):
    """What became of an SLA's recommendation from the first study to the second."""

    SAME = "same"
    BETTER = "better"
    WORSE = "worse"
    LOST = "lost"
    GAINED = "gained"
    NOT_COMPARED = "not compared"


@dataclass(frozen=True, slots=True, kw_only=True)
class Studied:
    """A study with what it found."""

    study: StudySpec
    rows: Sequence[TrialRow]
    candidates: Sequence[Candidate]

    def best(self, sla: Sla) -> Standing | None:
        """What it recommends for an SLA."""
        return recommend(self.study, sla, self.candidates).best

    @property
    def versions(self) -> dict[str, str]:
        """Versions of what it ran on, by component."""
        return dict(self.candidates[0].launch.versions) if self.candidates else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class SlaDrift:
    """One SLA in both studies; ``kept`` is the first's configuration, measured in the second."""

    sla: str
    change: Change
    tune_again: bool
    reasons: tuple[str, ...]
    before: Standing | None = None
    after: Standing | None = None
    kept: Standing | None = None
    best_against_best: Advantage | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyDrift:
    """Both studies compared; ``different`` are versions that differ, ``hindrances`` why figures are not."""

    different: tuple[str, ...]
    hindrances: tuple[str, ...]
    slas: tuple[SlaDrift, ...]

    @property
    def tune_again(self) -> bool:
        """Whether any recommendation of the first study should not be kept as it is."""
        return any(each.tune_again for each in self.slas)

    @property
    def judged(self) -> bool:
        """Whether any SLA could be compared."""
        return any(each.change is not Change.NOT_COMPARED for each in self.slas)


def study_drift(before: Studied, after: Studied) -> StudyDrift:
    """Compare what two studies found, SLA by SLA."""
    hindrances = tuple(_hindrances(before, after))
    return StudyDrift(
        different=tuple(_different(before, after)),
        hindrances=hindrances,
        slas=tuple(_sla(sla, before, after, hindrances) for sla in before.study.slas),
    )


def drift_document(found: StudyDrift) -> dict[str, Any]:
    """The comparison as plain data."""
    return {
        "tune_again": found.tune_again,
        "different": list(found.different),
        "hindrances": list(found.hindrances),
        "slas": [
            {
                "name": each.sla,
                "change": each.change,
                "tune_again": each.tune_again,
                "reasons": list(each.reasons),
                "before": _standing(each.before),
                "after": _standing(each.after),
                "first_configuration_in_second": _standing(each.kept),
                "ratio": each.best_against_best.ratio if each.best_against_best else None,
                "ratio_interval": [each.best_against_best.interval.low, each.best_against_best.interval.high]
                if each.best_against_best
                else None,
            }
            for each in found.slas
        ],
    }


def _standing(of: Standing | None) -> dict[str, Any] | None:
    if of is None:
        return None
    return {
        "trial": of.candidate.row.number,
        "configuration": of.candidate.row.config.words,
        "objective": of.figures.objective,
        "objective_interval": [of.figures.objective_interval.low, of.figures.objective_interval.high],
        "capacity_rps": of.capacity_rps,
        "power_basis": of.figures.power_basis,
    }


def _hindrances(before: Studied, after: Studied) -> Iterator[str]:
    """Why figures of the two would not be of one question."""
    if not before.candidates or not after.candidates:
        empty = before.study.name if not before.candidates else after.study.name
        yield f"study {empty} measured nothing"
        return
    one, other = before.candidates[0].launch, after.candidates[0].launch
    if before.study.model != after.study.model:
        yield f"models differ: {before.study.model}, {after.study.model}"
    if (one.device, one.device_count) != (other.device, other.device_count):
        yield f"devices differ: {one.device_count} x {one.device}, {other.device_count} x {other.device}"


def _different(before: Studied, after: Studied) -> Iterator[str]:
    was, now = before.versions, after.versions
    engines = [engine.name for engine in (*before.study.engines, *after.study.engines)]
    for name in dict.fromkeys((*engines, *COMPARED)):
        if was.get(name, "") != now.get(name, ""):
            yield f"{name}: {was.get(name) or 'none'} -> {now.get(name) or 'none'}"


def _sla(sla: Sla, before: Studied, after: Studied, hindrances: tuple[str, ...]) -> SlaDrift:
    why = next(_not_comparable(sla, before, after, hindrances), None)
    if why is not None:
        return SlaDrift(sla=sla.name, change=Change.NOT_COMPARED, tune_again=False, reasons=(why,))
    was, now = before.best(sla), after.best(sla)
    found = advantage(now, was) if was and now else None
    kept, fate = _kept(sla, was, after)
    change = _change(was, now, found)
    reasons = [*_shift(change, found), *fate]
    again = change in {Change.LOST, Change.WORSE} or bool(fate)
    if was and now and kept and kept.candidate.row.number != now.candidate.row.number:
        gain = advantage(now, kept)
        if gain and gain.shown:
            reasons.append(f"another configuration is now {gain.ratio:.3g} times as good as the first's")
            again = True
    return SlaDrift(
        sla=sla.name,
        change=change,
        tune_again=again,
        reasons=tuple(reasons),
        before=was,
        after=now,
        kept=kept,
        best_against_best=found,
    )


def _not_comparable(sla: Sla, before: Studied, after: Studied, hindrances: tuple[str, ...]) -> Iterator[str]:
    yield from hindrances[:1]
    other = next((each for each in after.study.slas if each.name == sla.name), None)
    if other is None:
        yield f"study {after.study.name} has no SLA of that name"
        return
    one = before.study.workload(before.study.workload_of(sla))
    if other.goals() != sla.goals():
        yield f"its bounds differ: {sla.describe()}; {other.describe()}"
    if one != after.study.workload(after.study.workload_of(other)):
        yield "its workloads differ"


def _change(was: Standing | None, now: Standing | None, found: Advantage | None) -> Change:
    if was is None or now is None:
        return Change.SAME if was is now else Change.LOST if now is None else Change.GAINED
    if found is None:
        return Change.NOT_COMPARED
    if found.interval.low > 1:
        return Change.BETTER
    return Change.WORSE if found.interval.high < 1 else Change.SAME


def _shift(change: Change, found: Advantage | None) -> Iterator[str]:
    match change:
        case Change.LOST:
            yield "nothing meets it any more"
        case Change.GAINED:
            yield "something meets it now, and nothing did"
        case Change.NOT_COMPARED:
            yield "ranked on another power basis"
        case _ if found is not None:
            low, high = found.interval.low, found.interval.high
            yield f"the best's {found.measure} is {found.ratio:.3g} [{low:.3g}, {high:.3g}] times what it was"
        case _:
            yield "nothing met it before, nothing does now"


def _kept(sla: Sla, was: Standing | None, after: Studied) -> tuple[Standing | None, tuple[str, ...]]:
    """The first's configuration as the second measured it, and what became of it where it did not."""
    if was is None:
        return None, ()
    key = was.candidate.row.config.key
    for candidate in after.candidates:
        if candidate.row.config.key == key:
            found = standing(candidate, sla, after.study)
            return found, () if found else ("the first's configuration meets it at no measured load now",)
    states = {row.state: row for row in after.rows if row.config.key == key}
    for state in (TrialState.INFEASIBLE, TrialState.REJECTED):
        if row := states.get(state):
            return None, (f"the first's configuration does not run now: {row.failure_line}",)
    return None, ("the first's configuration was not measured in the second: put it into `try_first`",)
