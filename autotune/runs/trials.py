"""What a study knows of its trials: their rows, their records, and what follows for the next launch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from autotune.domain.configs.config import EngineConfig
from autotune.domain.hardware.node import NodeState
from autotune.domain.judging.scoring import CurveScore, score_curve
from autotune.domain.launches.launch import FailureClass
from autotune.domain.recommending.recommendation import Candidate, candidates_of
from autotune.domain.search.boundary import Foreknowledge
from autotune.domain.search.expectation import expected_capacity
from autotune.domain.search.reach import loses_everywhere
from autotune.domain.search.seen import seen_levels
from autotune.domain.studies import budget
from autotune.domain.studies.ports import Archive, Catalog, Outcome
from autotune.domain.studies.records import LaunchRecord, Purpose, TrialRow, TrialState
from autotune.domain.studies.study import StudySpec
from autotune.runs.quality import QualityKnown

PredictRates = Callable[[EngineConfig], Mapping[str, float]]
"""A prior: the capacity of a configuration for each SLA that it can tell of, requests per second."""

AT_OPERATING_POINTS = frozenset({Purpose.FINAL, Purpose.REFERENCE, Purpose.SOAK})
"""Launches whose levels are operating points already."""


def no_prior(_: EngineConfig) -> Mapping[str, float]:
    """Predicts nothing."""
    return {}


class Trials:
    """The trials of one study; catalog and archive hold all of it, so that an interruption loses nothing."""

    def __init__(
        self, study: StudySpec, catalog: Catalog, archive: Archive, predict: PredictRates = no_prior
    ) -> None:
        self._study, self._catalog, self._predict = study, catalog, predict
        self._rows: dict[int, TrialRow] = {row.number: row for row in catalog.trials(study.name)}
        self._records: dict[int, LaunchRecord] = {
            row.number: archive.load(row.study, row.number)
            for row in self._rows.values()
            if row.state is TrialState.MEASURED
        }
        self._scores: dict[int, Mapping[str, CurveScore]] = {}

    @property
    def rows(self) -> tuple[TrialRow, ...]:
        """Every trial's row."""
        return tuple(self._rows.values())

    def row(self, number: int) -> TrialRow:
        """One trial's row."""
        return self._rows[number]

    def record(self, number: int) -> LaunchRecord | None:
        """What a measured trial left behind."""
        return self._records.get(number)

    def keep(self, row: TrialRow) -> None:
        """Note a row, in the catalog too."""
        self._rows[row.number] = row
        self._catalog.put(row)

    def measured(self, record: LaunchRecord) -> None:
        """Note what a launch measured."""
        self._records[record.number] = record

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """Every measured configuration."""
        return candidates_of(self.rows, tuple(self._records.values()))

    @property
    def start(self) -> NodeState | None:
        """The node before the study's first launch."""
        return next((record.before for record in self._in_order() if record.before), None)

    @property
    def kv_tokens(self) -> tuple[tuple[EngineConfig, int], ...]:
        """What KV caches held, as engines logged it, by configuration."""
        return tuple((r.config, r.kv_tokens) for r in self._in_order() if r.kv_tokens)

    @property
    def reference(self) -> Candidate | None:
        """The configuration that drift is watched by: the first engine's defaults, once measured."""
        key = self._study.default_config().key
        return next((c for c in self.candidates if c.row.config.key == key), None)

    @property
    def references_again(self) -> dict[int, LaunchRecord]:
        """Its further launches."""
        return {n: record for n, record in self._records.items() if record.purpose is Purpose.REFERENCE}

    @property
    def quality_known(self) -> QualityKnown:
        """The references' answers, and the verdicts so far."""
        records = self._in_order()
        answered = [record.answers for record in records if record.answers is not None]
        return QualityKnown(
            reference=next(iter(answered), None),
            others=tuple(answered[1:]),
            verdicts=tuple(
                r.quality for r in records if r.quality is not None and r.quality.judged_in == r.number
            ),
        )

    def why_below_quality(self, config: EngineConfig) -> str:
        """Why a launch would be in vain: its precision failed the gate that a recommendation requires."""
        barred = (v for v in self.quality_known.verdicts if self._study.quality.bars(v))
        verdict = next((v for v in barred if v.precision.is_of(self._study.model, config)), None)
        if verdict is None:
            return ""
        return f"its precision failed the quality gate in trial {verdict.judged_in}: {verdict.reasons[0]}"

    def scores(self, record: LaunchRecord) -> Mapping[str, CurveScore]:
        """A launch's worth to every SLA; what finals measure is an operating point already."""
        if record.number not in self._scores:
            study = self._study
            headroom = 1.0 if record.purpose in AT_OPERATING_POINTS else study.measurement.headroom
            self._scores[record.number] = {
                sla.name: score_curve(record.curve, sla, study.workload_of(sla), headroom=headroom)
                for sla in study.slas
            }
        return self._scores[record.number]

    def incumbents(self) -> dict[str, float]:
        """The best objective so far, by SLA."""
        searched = [row for row in self.rows if row.final_of is None]
        return {
            sla.name: max((row.objectives.get(sla.name, 0.0) for row in searched), default=0.0)
            for sla in self._study.slas
        }

    def history(self) -> dict[str, list[float]]:
        """The objectives of the configurations judged so far, in order, by SLA."""
        judged = [row for row in self.rows if row.final_of is None and budget.was_judged(row)]
        return {sla.name: [r.objectives.get(sla.name, 0.0) for r in judged] for sla in self._study.slas}

    def foreknowledge(self, config: EngineConfig, purpose: Purpose) -> Foreknowledge:
        """What a launch need not find out. References are measured in full: others are compared with them."""
        searched = [r for r in self._in_order() if r.purpose not in AT_OPERATING_POINTS]
        capacities = [
            (r.config, {s: score.capacity_rps for s, score in self.scores(r).items() if score.capacity_rps})
            for r in searched
        ]
        predicted, prediction = [self._predict(r.config) for r in searched], self._predict(config)
        expected = {
            sla.name: found
            for sla in self._study.slas
            if (found := expected_capacity(config, sla.name, capacities, predicted, prediction)) is not None
        }
        incumbents = self.incumbents() if purpose is Purpose.SEARCH else {}
        return Foreknowledge(expected=expected, incumbents=incumbents)

    def objectives(self, record: LaunchRecord, factor: float) -> dict[str, float]:
        """What the search is told of a measured launch, by SLA.

        A launch cut short counts, for an SLA that it has no figure for, as the most it could have been:
        0 would have the search avoid what is only not the best.
        """
        incumbents = self.incumbents() if record.purpose is Purpose.SEARCH else {}
        told = {name: score.objective * factor for name, score in self.scores(record).items()}
        for workload in self._study.workload_names:
            names = [sla.name for sla in self._study.slas_on(workload)]
            curve = tuple(m for m in record.curve if m.level.workload == workload)
            if (reach := loses_everywhere(curve, names, incumbents)) is not None:
                told |= {name: reach.objective * factor for name in names if not told[name]}
        return told

    def _in_order(self) -> Sequence[LaunchRecord]:
        return sorted(self._records.values(), key=lambda record: record.number)


def outcome_of(row: TrialRow, study: StudySpec, record: LaunchRecord | None = None) -> Outcome:
    """What the search is to learn from a trial that is over, and from the levels that it left behind."""
    seen = {name: seen_levels(record.curve, name) for name in study.workload_names} if record else {}
    levels = {place: seen.get(study.workload_of(sla)) for place, sla in enumerate(study.slas)}
    return Outcome(
        objectives=tuple(row.objectives.get(sla.name, 0.0) for sla in study.slas),
        feasible=row.state not in {TrialState.INFEASIBLE, TrialState.REJECTED},
        scored=row.state in {TrialState.MEASURED, TrialState.INFEASIBLE, TrialState.REJECTED},
        seconds=row.total_s or None,
        levels={place: each for place, each in levels.items() if each is not None},
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


def is_interrupted(row: TrialRow) -> bool:
    """Whether the study's end cut the trial short."""
    return row.failure_class == FailureClass.INTERRUPTED
