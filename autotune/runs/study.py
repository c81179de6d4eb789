"""The study: what to launch next, within the budget, until the finals are run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autotune.domain import budget
from autotune.domain.config import EngineConfig
from autotune.domain.errors import BenchError, DevicesBusyError, InfeasibleConfigError, StudyCancelledError
from autotune.domain.events import Incumbent, LaunchEnded, LaunchStarted, Notice, Rejected
from autotune.domain.feasibility import Setting, why_infeasible
from autotune.domain.launch import FailureClass, Reaction
from autotune.domain.level import Level
from autotune.domain.node import NodeState
from autotune.domain.ports import Archive, Catalog, EventSink, Outcome, Search, Suggestion
from autotune.domain.progress import Cancelled
from autotune.domain.recommendation import Candidate, candidates_of, finalists
from autotune.domain.records import LaunchRecord, Purpose, TrialRow, TrialState
from autotune.domain.scoring import CurveScore, open_levels, score_curve
from autotune.domain.study import StudySpec
from autotune.runs.drift_watch import DriftWatch
from autotune.runs.quality import NOTHING_KNOWN, QualityKnown

ATTEMPTS_PER_TRIAL = 2
"""A launch that the bench broke is tried once more; then its trial is a bench error."""

BROKEN_IN_A_ROW = 3
"""After so many broken trials in a row the bench itself is at fault: the study stops."""

STATES: Mapping[Reaction, TrialState] = {
    Reaction.INFEASIBLE: TrialState.INFEASIBLE,
    Reaction.CENSORED: TrialState.CENSORED,
    Reaction.BENCH: TrialState.BENCH_ERROR,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyParts:
    """What a study run needs beside its file."""

    study: StudySpec
    setting: Setting
    baseline: EngineConfig | None
    search: Search
    archive: Archive
    catalog: Catalog
    launch: Callable[[LaunchOrder], LaunchRecord]
    workdir: Callable[[int], Path]
    sink: EventSink
    cancelled: Cancelled


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchOrder:
    """One launch to carry out; ``levels``, ``must_hold``, ``start`` and ``known`` as in LaunchTask."""

    suggestion: Suggestion
    purpose: Purpose
    levels: tuple[Level, ...] | None = None
    must_hold: tuple[str, ...] = ()
    final_of: int | None = None
    start: NodeState | None = None
    known: QualityKnown = NOTHING_KNOWN


class StudyRun:
    """Carries a study out; everything it must know after an interruption is in catalog and archive."""

    def __init__(self, parts: StudyParts, *, spent_s: float = 0.0) -> None:
        self._parts = parts
        self._study = parts.study
        self._started_s = time.monotonic() - spent_s
        self._rows: dict[int, TrialRow] = {r.number: r for r in parts.catalog.trials(parts.study.name)}
        self._records: dict[int, LaunchRecord] = {
            row.number: parts.archive.load(row.study, row.number)
            for row in self._rows.values()
            if row.state is TrialState.MEASURED
        }
        self._lead: dict[str, float] = {}
        self._broken_in_a_row = 0
        self._drift = DriftWatch(self._study, self._reference_again, parts.sink)
        if (reference := self._reference()) is not None:
            self._drift.learn(reference, self._references_again())

    @property
    def spent_s(self) -> float:
        """Wall time of this run and of those before it, seconds."""
        return time.monotonic() - self._started_s

    def run(self) -> None:
        """Search, then run the finals; raises StudyCancelledError, BenchError."""
        self._launch_given(self._first())
        while self._may_launch(then_finals=True) and (suggestion := self._parts.search.ask()) is not None:
            self._try(suggestion, Purpose.SEARCH)
            if budget.was_judged(self._rows[suggestion.number]):
                self._drift.after_launch(self._reference(), self._references_again())
        self._launch_given(self._references_without_verdict())
        self._finals()

    def _launch_given(self, given: Sequence[tuple[Purpose, EngineConfig]]) -> None:
        for purpose, config in given:
            # References come before finals: a small budget buys the figures of what runs today.
            if self._may_launch(then_finals=purpose is Purpose.SEARCH):
                self._try(self._parts.search.begin(config), purpose)

    def _references(self) -> list[tuple[Purpose, EngineConfig]]:
        """Production's configuration and each engine's defaults."""
        production = self._parts.baseline
        defaults = [(Purpose.DEFAULTS, branch.base) for branch in self._study.branches]
        return [(Purpose.BASELINE, production), *defaults] if production else defaults

    def _first(self) -> list[tuple[Purpose, EngineConfig]]:
        """The references, the recipes, what was interrupted; those that no trial had."""
        first = self._references()
        first += [
            (Purpose.SEARCH, branch.config_at(point))
            for point in self._study.try_first
            for branch in self._study.branches
        ]
        first += [(Purpose.SEARCH, row.config) for row in self._rows.values() if _is_interrupted(row)]
        seen = {row.config.key for row in self._rows.values() if not _is_interrupted(row)}
        fresh = []
        for purpose, config in first:
            if config.key not in seen:
                seen.add(config.key)
                fresh.append((purpose, config))
        return fresh

    def _references_without_verdict(self) -> list[tuple[Purpose, EngineConfig]]:
        """References whose launch the bench broke: nothing can be compared without them."""
        without = [row.config.key for row in self._rows.values() if row.state is TrialState.BENCH_ERROR]
        judged = {row.config.key for row in self._rows.values() if budget.was_judged(row)}
        return [(p, c) for p, c in self._references() if c.key in without and c.key not in judged]

    def _try(self, suggestion: Suggestion, purpose: Purpose) -> None:
        why = why_infeasible(suggestion.config, self._parts.setting)
        if why is None and purpose is Purpose.SEARCH:
            why = self._why_below_quality(suggestion.config)
        if why is not None:
            self._reject(suggestion, purpose, why)
            return
        self._launch(LaunchOrder(suggestion=suggestion, purpose=purpose))

    def _quality_known(self) -> QualityKnown:
        records = sorted(self._records.values(), key=lambda record: record.number)
        return QualityKnown(
            reference=next((r.answers for r in records if r.answers is not None), None),
            verdicts=tuple(
                r.quality for r in records if r.quality is not None and r.quality.judged_in == r.number
            ),
        )

    def _why_below_quality(self, config: EngineConfig) -> str | None:
        """Why a launch would be in vain: its precision failed the gate that a recommendation requires."""
        barred = (v for v in self._quality_known().verdicts if self._study.quality.bars(v))
        verdict = next((v for v in barred if v.precision.is_of(self._study.model, config)), None)
        if verdict is None:
            return None
        return f"its precision failed the quality gate in trial {verdict.judged_in}: {verdict.reasons[0]}"

    def _reject(self, suggestion: Suggestion, purpose: Purpose, why: str) -> None:
        self._parts.sink(Rejected(suggestion.number, suggestion.config, why))
        self._close(
            TrialRow(
                study=self._study.name,
                number=suggestion.number,
                purpose=purpose,
                state=TrialState.REJECTED,
                config=suggestion.config,
                failure_class="rejected on paper",
                failure_line=why,
            )
        )

    def _reference(self) -> Candidate | None:
        """The configuration that drift is watched by: the first engine's defaults, once measured."""
        key = self._study.default_config().key
        return next((c for c in self._candidates() if c.row.config.key == key), None)

    def _references_again(self) -> dict[int, LaunchRecord]:
        return {
            number: record for number, record in self._records.items() if record.purpose is Purpose.REFERENCE
        }

    def _reference_again(self, reference: Candidate) -> LaunchRecord | None:
        """Launch the reference at its operating points; None where budget or bench did not let it."""
        if not self._may_launch(then_finals=True):
            return None
        suggestion = self._parts.search.begin(reference.row.config)
        self._launch(self._order_again(suggestion, Purpose.REFERENCE, reference))
        return self._records.get(suggestion.number)

    def _order_again(self, suggestion: Suggestion, purpose: Purpose, candidate: Candidate) -> LaunchOrder:
        """A further launch of a candidate, at its own operating points."""
        points = self._operating_points(candidate)
        return LaunchOrder(
            suggestion=suggestion,
            purpose=purpose,
            levels=tuple(dict.fromkeys(points.values())),
            must_hold=tuple(points) if purpose is Purpose.FINAL else (),
            final_of=candidate.row.number,
        )

    def _launch(self, order: LaunchOrder) -> None:
        started_s = time.monotonic()
        number, config = order.suggestion.number, order.suggestion.config
        row = TrialRow(
            study=self._study.name,
            number=number,
            purpose=order.purpose,
            state=TrialState.RUNNING,
            config=config,
            final_of=order.final_of,
        )
        self._keep(row)
        self._parts.sink(LaunchStarted(number, config, order.purpose))
        try:
            record = self._attempt(order)
        except InfeasibleConfigError as refused:
            self._reject(order.suggestion, order.purpose, str(refused))
            return
        except (StudyCancelledError, DevicesBusyError):
            self._close(interrupted(row))
            raise
        except BenchError as broken:
            self._set_aside(replace(row, total_s=time.monotonic() - started_s), broken)
            return
        self._broken_in_a_row = 0
        self._learn(row, record, started_s)

    def _set_aside(self, row: TrialRow, broken: BenchError) -> None:
        """Record a launch that the bench broke; raises BenchError when it keeps breaking."""
        state = TrialState.BENCH_ERROR
        log = next(iter(self._logs(row.number)), None)
        row = replace(
            row, failure_class="bench", failure_line=str(broken), log_path=str(log) if log else None
        )
        self._close(replace(row, state=state, log_path=str(log) if log else None))
        self._parts.sink(LaunchEnded(row.number, state, {}, str(broken), 0.0, 0.0))
        self._broken_in_a_row += 1
        if self._broken_in_a_row >= BROKEN_IN_A_ROW:
            raise BenchError(
                f"{self._broken_in_a_row} launches in a row broke; the last: {broken}"
            ) from broken

    def _start(self) -> NodeState | None:
        """The node before the study's first launch."""
        records = sorted(self._records.values(), key=lambda record: record.number)
        return next((record.before for record in records if record.before), None)

    def _attempt(self, order: LaunchOrder) -> LaunchRecord:
        for attempt in range(1, ATTEMPTS_PER_TRIAL + 1):
            try:
                return self._parts.launch(replace(order, start=self._start(), known=self._quality_known()))
            except DevicesBusyError:
                raise
            except BenchError as broken:
                if attempt == ATTEMPTS_PER_TRIAL:
                    raise
                self._parts.sink(Notice(f"trial {order.suggestion.number} is tried again: {broken}"))
        raise AssertionError("unreachable")

    def _learn(self, row: TrialRow, record: LaunchRecord, started_s: float) -> None:
        """Archive first, then score, then tell: a crash in between loses no measurement."""
        logs = self._logs(record.number)
        self._parts.archive.save(record, logs)
        measured = any(open_levels(record.curve, name) for name in self._study.workload_names)
        failure = record.failure
        state = TrialState.MEASURED if measured or not failure else STATES[failure.reaction]
        scores = self._scores(record) if state is TrialState.MEASURED else {}
        factor = self._drift.factor(record.node, record.number)
        # What may never be recommended is worth nothing, however fast: the search is not to look there.
        admitted = not (record.quality and self._study.quality.bars(record.quality))
        closed = replace(
            row,
            state=state,
            command=record.command,
            failure_class=failure.failure_class if failure else None,
            failure_line=failure.line if failure else None,
            log_path=str(logs[0]) if logs else None,
            launch_s=record.launch_s,
            load_s=record.load_s,
            objectives={
                name: score.objective * factor if admitted else 0.0 for name, score in scores.items()
            },
            quality=record.quality.state if record.quality else None,
        )
        if state is TrialState.MEASURED:
            self._records[row.number] = record
        self._close(replace(closed, total_s=time.monotonic() - started_s))
        why = f"{failure.failure_class}: {failure.line}" if failure else ""
        self._parts.sink(LaunchEnded(row.number, state, scores, why, record.launch_s, record.load_s))
        if row.final_of is None and admitted:
            self._announce(row, scores)

    def _logs(self, number: int) -> tuple[Path, ...]:
        return tuple(sorted(self._parts.workdir(number).glob("*.log")))

    def _scores(self, record: LaunchRecord) -> dict[str, CurveScore]:
        """A launch's worth to every SLA; what finals measure is an operating point already."""
        study = self._study
        at_operating_points = record.purpose in {Purpose.FINAL, Purpose.REFERENCE}
        headroom = 1.0 if at_operating_points else study.measurement.headroom
        return {
            sla.name: score_curve(record.curve, sla, study.workload_of(sla), headroom=headroom)
            for sla in study.slas
        }

    def _announce(self, row: TrialRow, scores: Mapping[str, CurveScore]) -> None:
        for sla, score in scores.items():
            if score.objective > self._lead.get(sla, 0.0):
                self._lead[sla] = score.objective
                self._parts.sink(Incumbent(sla, row.number, row.config, score))

    def _finals(self) -> None:
        finals = [row for row in self._rows.values() if row.purpose is Purpose.FINAL]
        done = {row.final_of for row in finals if budget.was_judged(row)}
        for candidate in finalists(self._study, self._candidates(), self._drift_factor):
            if candidate.row.number in done or not self._covers(
                budget.finals(tuple(self._rows.values()), self._study, 1)
            ):
                continue
            suggestion = self._parts.search.begin(candidate.row.config)
            self._launch(self._order_again(suggestion, Purpose.FINAL, candidate))

    def _drift_factor(self, candidate: Candidate) -> float:
        """What a candidate's objectives are multiplied by; its final needs none, for it comes last."""
        return self._drift.factor(candidate.launch.node, candidate.launch.number)

    def _operating_points(self, candidate: Candidate) -> dict[str, Level]:
        """The candidate's own operating point for every SLA that it met."""
        points = {}
        for sla in self._study.slas:
            operating = candidate.score(sla, self._study).operating
            if operating is not None:
                points[sla.name] = Level(self._study.workload_of(sla), rate_rps=operating.rate_rps)
        return points

    def _may_launch(self, *, then_finals: bool) -> bool:
        """Whether the budget covers one more launch, and all finals after it."""
        rows = tuple(self._rows.values())
        ahead = budget.next_launch(rows)
        if then_finals:
            count = len(self._study.slas) + len(self._references())
            ahead += budget.finals(rows, self._study, count)
        return self._covers(ahead)

    def _covers(self, ahead: budget.Spend) -> bool:
        spent = budget.spent(tuple(self._rows.values()), self.spent_s)
        return budget.covers(self._study.budget, spent + ahead)

    def _candidates(self) -> Sequence[Candidate]:
        return candidates_of(tuple(self._rows.values()), tuple(self._records.values()))

    def _keep(self, row: TrialRow) -> None:
        self._rows[row.number] = row
        self._parts.catalog.put(row)

    def _close(self, row: TrialRow) -> None:
        self._keep(row)
        self._parts.search.tell(row.number, outcome_of(row, [sla.name for sla in self._study.slas]))


def outcome_of(row: TrialRow, slas: Sequence[str]) -> Outcome:
    """What the search is to learn from a trial that is over."""
    return Outcome(
        objectives=tuple(row.objectives.get(sla, 0.0) for sla in slas),
        feasible=row.state not in {TrialState.INFEASIBLE, TrialState.REJECTED},
        scored=row.state in {TrialState.MEASURED, TrialState.INFEASIBLE, TrialState.REJECTED},
    )


def settle_interrupted(catalog: Catalog, study: str) -> tuple[TrialRow, ...]:
    """Mark trials that a process left running when it was killed; returns every row of the study."""
    for row in catalog.trials(study):
        if row.state is TrialState.RUNNING:
            catalog.put(interrupted(row))
    return catalog.trials(study)


def interrupted(row: TrialRow) -> TrialRow:
    """The row of a launch that the study's end cut short."""
    return replace(
        row,
        state=TrialState.BENCH_ERROR,
        failure_class=FailureClass.INTERRUPTED,
        failure_line="the study was stopped while this launch ran; `autotune resume` launches it again",
    )


def _is_interrupted(row: TrialRow) -> bool:
    return row.failure_class == FailureClass.INTERRUPTED
