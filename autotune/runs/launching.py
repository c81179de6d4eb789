"""One launch of a study: tried again where the bench broke, archived, scored, told to the search."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from autotune.domain.basics.errors import (
    BenchError,
    DevicesBusyError,
    InfeasibleConfigError,
    StudyCancelledError,
)
from autotune.domain.configs.config import EngineConfig
from autotune.domain.hardware.node import NodeState
from autotune.domain.judging.scoring import CurveScore, open_levels
from autotune.domain.launches.launch import Reaction
from autotune.domain.load.level import Level
from autotune.domain.search.boundary import NO_FOREKNOWLEDGE, Foreknowledge
from autotune.domain.studies.events import Incumbent, LaunchEnded, LaunchStarted, Notice, Rejected
from autotune.domain.studies.ports import Archive, EventSink, Search, Suggestion
from autotune.domain.studies.records import LaunchRecord, Purpose, TrialRow, TrialState
from autotune.domain.studies.study import StudySpec
from autotune.runs.quality import NOTHING_KNOWN, QualityKnown
from autotune.runs.trials import Trials, interrupted, no_prior, outcome_of

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
class LaunchOrder:
    """One launch to carry out; ``levels`` and what follows as in LaunchTask.

    ``variants`` are measured on its engine too.
    """

    suggestion: Suggestion
    purpose: Purpose
    levels: tuple[Level, ...] | None = None
    must_hold: tuple[str, ...] = ()
    final_of: int | None = None
    start: NodeState | None = None
    known: QualityKnown = NOTHING_KNOWN
    foreknown: Foreknowledge = NO_FOREKNOWLEDGE
    time_left_s: float = math.inf
    variants: tuple[EngineConfig, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchParts:
    """What launches of a study need of the outside; ``factor`` corrects (node, trial number) for drift.

    ``predicted`` is what a prior says of a configuration's objectives.
    """

    search: Search
    archive: Archive
    launch: Callable[[LaunchOrder], LaunchRecord]
    workdir: Callable[[int], Path]
    sink: EventSink
    factor: Callable[[str, int], float]
    predicted: Callable[[EngineConfig], Mapping[str, float]] = no_prior


class Launching:
    """Carries out launches, and sees to it that catalog, archive and search learn what became of them.

    Several may run at once, each in a thread of its own; what they share is touched by one at a time.
    """

    def __init__(self, study: StudySpec, trials: Trials, parts: LaunchParts) -> None:
        self._study, self._trials, self._parts = study, trials, parts
        self._lead: dict[str, float] = {}
        self._broken_in_a_row = 0
        self._one = threading.Lock()

    def launch_all(self, orders: Sequence[LaunchOrder]) -> None:
        """Launch all at once, and wait for all; raises as ``launch``, for the first that did."""
        if len(orders) == 1:
            self.launch(orders[0])
            return
        with ThreadPoolExecutor(len(orders), thread_name_prefix="launch") as threads:
            launches = [threads.submit(self.launch, order) for order in orders]
        for launch in launches:
            launch.result()

    def launch(self, order: LaunchOrder) -> None:
        """Launch once; raises StudyCancelledError, DevicesBusyError, BenchError where it keeps breaking."""
        started_s = time.monotonic()
        number, config = order.suggestion.number, order.suggestion.config
        row = self._row(order.suggestion, order.purpose, order.final_of)
        with self._one:
            self._trials.keep(row)
        self._parts.sink(LaunchStarted(number, config, order.purpose))
        try:
            record = self._attempt(order)
        except InfeasibleConfigError as refused:
            with self._one:
                self.reject(order.suggestion, order.purpose, str(refused))
        except (StudyCancelledError, DevicesBusyError):
            with self._one:
                self._close(interrupted(row))
            raise
        except BenchError as broken:
            with self._one:
                self._set_aside(replace(row, total_s=time.monotonic() - started_s), broken)
        else:
            with self._one:
                self._learn_all(row, record, started_s)

    def _learn_all(self, row: TrialRow, record: LaunchRecord, started_s: float) -> None:
        """Learn of a launch, and of the variants that were measured on its engine."""
        self._broken_in_a_row = 0
        variants_s = sum(variant.load_s for variant in record.variants)
        self._learn(row, record, time.monotonic() - started_s - variants_s)
        for variant in record.variants:
            suggestion = self._parts.search.begin(variant.config)
            own = replace(variant, number=suggestion.number)
            self._learn(self._row(suggestion, Purpose.SEARCH), own, variant.load_s)

    def reject(self, suggestion: Suggestion, purpose: Purpose, why: str) -> None:
        """Close a trial for which no engine is started."""
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

    def _attempt(self, order: LaunchOrder) -> LaunchRecord:
        for attempt in range(1, ATTEMPTS_PER_TRIAL + 1):
            with self._one:
                informed = replace(
                    order,
                    start=self._trials.start,
                    known=self._trials.quality_known,
                    foreknown=self._trials.foreknowledge(order.suggestion.config, order.purpose),
                )
            try:
                return self._parts.launch(informed)
            except DevicesBusyError:
                raise
            except BenchError as broken:
                if attempt == ATTEMPTS_PER_TRIAL:
                    raise
                self._parts.sink(Notice(f"trial {order.suggestion.number} is tried again: {broken}"))
        raise AssertionError("unreachable")

    def _set_aside(self, row: TrialRow, broken: BenchError) -> None:
        """Record a launch that the bench broke; raises BenchError when it keeps breaking."""
        log = next(iter(self._logs(row.number)), None)
        row = replace(
            row,
            state=TrialState.BENCH_ERROR,
            failure_class="bench",
            failure_line=str(broken),
            log_path=str(log) if log else None,
        )
        self._close(row)
        self._parts.sink(LaunchEnded(row.number, row.state, {}, str(broken), 0.0, 0.0))
        self._broken_in_a_row += 1
        if self._broken_in_a_row >= BROKEN_IN_A_ROW:
            raise BenchError(
                f"{self._broken_in_a_row} launches in a row broke; the last: {broken}"
            ) from broken

    def _row(self, suggestion: Suggestion, purpose: Purpose, final_of: int | None = None) -> TrialRow:
        return TrialRow(
            study=self._study.name,
            number=suggestion.number,
            purpose=purpose,
            state=TrialState.RUNNING,
            config=suggestion.config,
            final_of=final_of,
            predicted=self._parts.predicted(suggestion.config),
        )

    def _learn(self, row: TrialRow, record: LaunchRecord, total_s: float) -> None:
        """Archive first, then score, then tell: a crash in between loses no measurement."""
        logs = self._logs(record.number)
        self._parts.archive.save(record, logs)
        measured = any(open_levels(record.curve, name) for name in self._study.workload_names)
        failure = record.failure
        state = TrialState.MEASURED if measured or not failure else STATES[failure.reaction]
        scores: Mapping[str, CurveScore] = {}
        objectives: dict[str, float] = {}
        # What may never be recommended is worth nothing, however fast: the search is not to look there.
        admitted = not (record.quality and self._study.quality.bars(record.quality))
        if state is TrialState.MEASURED:
            scores = self._trials.scores(record)
            objectives = self._trials.objectives(record, self._parts.factor(record.node, record.number))
            self._trials.measured(record)
        closed = replace(
            row,
            state=state,
            command=record.command,
            failure_class=failure.failure_class if failure else None,
            failure_line=failure.line if failure else None,
            log_path=str(logs[0]) if logs else None,
            launch_s=record.launch_s,
            load_s=record.load_s,
            objectives=objectives if admitted else dict.fromkeys(objectives, 0.0),
            quality=record.quality.state if record.quality else None,
        )
        self._close(replace(closed, total_s=total_s), record)
        why = f"{failure.failure_class}: {failure.line}" if failure else ""
        self._parts.sink(LaunchEnded(row.number, state, scores, why, record.launch_s, record.load_s))
        if row.final_of is None and admitted:
            self._announce(row, scores)

    def _announce(self, row: TrialRow, scores: Mapping[str, CurveScore]) -> None:
        for sla, score in scores.items():
            if score.objective > self._lead.get(sla, 0.0):
                self._lead[sla] = score.objective
                self._parts.sink(Incumbent(sla, row.number, row.config, score))

    def _logs(self, number: int) -> tuple[Path, ...]:
        return tuple(sorted(self._parts.workdir(number).glob("*.log")))

    def _close(self, row: TrialRow, record: LaunchRecord | None = None) -> None:
        self._trials.keep(row)
        self._parts.search.tell(row.number, outcome_of(row, self._study, record))
