"""Watches a study's machine for drift, by its reference configuration launched again and again."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from autotune.domain.basics.errors import BenchError
from autotune.domain.judging.drift import Drift, DriftAction, Reference, correction, drifts
from autotune.domain.judging.scoring import LevelScore, score_at, score_curve
from autotune.domain.measuring.stats import Interval
from autotune.domain.recommending.recommendation import Candidate
from autotune.domain.studies.events import Drifted, Notice
from autotune.domain.studies.ports import EventSink
from autotune.domain.studies.records import LaunchRecord
from autotune.domain.studies.study import StudySpec

STOP_AFTER = 2
"""A study is stopped for a drift that so many references in a row show: one in ten is mere noise."""


class DriftWatch:
    """Launches the engine's defaults again every so many launches, and acts on what they lost or gained."""

    def __init__(
        self,
        study: StudySpec,
        launch_again: Callable[[Candidate], LaunchRecord | None],
        sink: EventSink,
    ) -> None:
        self._study, self._launch_again, self._sink = study, launch_again, sink
        self._since = 0
        self._references: dict[int, Reference] = {}

    def after_launch(self, reference: Candidate | None, later: Mapping[int, LaunchRecord]) -> None:
        """Count a launch, and measure the reference again when it is due.

        ``later`` are the reference's further launches so far. Raises BenchError where the study is to stop
        for drift.
        """
        every = self._study.drift.every
        self._since += 1
        if every is None or reference is None or self._since < every:
            return
        self._since = 0
        self.learn(reference, later)
        if not self._references:
            self._sink(Notice("drift is not watched: the defaults have no operating point to measure again"))
            return
        seen = self._again(reference)
        if self._study.drift.action is not DriftAction.STOP:
            return
        for _ in range(STOP_AFTER - 1):
            if seen is None or not seen.beyond_noise:
                return
            seen = self._again(reference)
        if seen is not None and seen.beyond_noise:
            raise BenchError(
                f"the machine drifted: {seen.describe()}; find out why (heat, clocks, other work), then go "
                f"on with `autotune resume {self._study.name}`, or write `drift: {{action: correct}}`"
            )

    def factor(self, node: str, number: int) -> float:
        """What a launch's objectives are multiplied by; 1 unless drift is to be corrected."""
        if self._study.drift.action is not DriftAction.CORRECT:
            return 1.0
        return correction(tuple(self._references.values()), node, number)

    def learn(self, reference: Candidate, later: Mapping[int, LaunchRecord]) -> None:
        """Take up what was measured of the reference before."""
        for record in (reference.launch, *later.values()):
            figures = self._figures(reference, record)
            if figures is not None and figures.objective > 0:
                self._references[record.number] = _reference(record, figures)

    def _again(self, reference: Candidate) -> Drift | None:
        record = self._launch_again(reference)
        if record is None:
            return None
        self.learn(reference, {record.number: record})
        found = [d for d in drifts(tuple(self._references.values())) if d.later == record.number]
        for drift in found:
            self._sink(Drifted(record.number, drift))
        return found[0] if found else None

    def _figures(self, reference: Candidate, record: LaunchRecord) -> LevelScore | None:
        """What a launch shows at the reference's operating point for the first SLA that has one."""
        study = self._study
        for sla in study.slas:
            workload = study.workload_of(sla)
            operating = score_curve(
                reference.launch.curve, sla, workload, headroom=study.measurement.headroom
            ).operating
            if operating is not None:
                return score_at(record.curve, sla, workload, operating.rate_rps)
        return None


def _reference(record: LaunchRecord, figures: LevelScore) -> Reference:
    value, interval = figures.objective, figures.objective_interval
    return Reference(
        index=record.number,
        node=record.node,
        value=value,
        interval=Interval(min(interval.low, value), max(interval.high, value)),
    )
