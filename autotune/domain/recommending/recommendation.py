"""The recommendation: per SLA the configuration that won, against the defaults on the same workload."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from autotune.domain.configs.config import EngineConfig
from autotune.domain.hardware.accelerators import AcceleratorTable
from autotune.domain.judging.ledger import Ledger, SideReadings, ledger_of
from autotune.domain.judging.quality import Precision, QualityState, QualityVerdict, objection
from autotune.domain.judging.scoring import (
    CurveScore,
    LevelScore,
    SlaVerdict,
    open_levels,
    score_at,
    score_curve,
    score_level,
)
from autotune.domain.judging.sla import Sla
from autotune.domain.measuring.digest import LevelDigest, digest
from autotune.domain.measuring.measurement import LoadCurve
from autotune.domain.measuring.power import PowerScope
from autotune.domain.recommending.soak import soak_trouble
from autotune.domain.search.gain import Gain, gain_of
from autotune.domain.studies.records import LaunchRecord, Purpose, TrialRow, TrialState
from autotune.domain.studies.study import StudySpec


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A configuration with all that was measured of it: its search launch and, if any, its final and soak.

    Without slots: what scoring needs of its levels is kept once it was asked for.
    """

    row: TrialRow
    launch: LaunchRecord
    final: LaunchRecord | None = None
    soak: LaunchRecord | None = None

    @property
    def launches(self) -> tuple[tuple[LaunchRecord, tuple[LevelDigest, ...]], ...]:
        """Its search launch, its final and its soak with their levels, as far as there are."""
        levels = (self.levels, self.final_levels, self.soak_levels)
        pairs = zip((self.launch, self.final, self.soak), levels, strict=True)
        return tuple((record, of) for record, of in pairs if record)

    @property
    def curve(self) -> LoadCurve:
        """Levels of the search launch."""
        return self.launch.curve

    @cached_property
    def levels(self) -> tuple[LevelDigest, ...]:
        """What scoring needs of the search launch."""
        return tuple(map(digest, self.curve))

    @cached_property
    def final_levels(self) -> tuple[LevelDigest, ...]:
        """What scoring needs of the final launch."""
        return tuple(map(digest, self.final.curve)) if self.final else ()

    @cached_property
    def soak_levels(self) -> tuple[LevelDigest, ...]:
        """What is read of the soak, but for its trend."""
        return tuple(map(digest, self.soak.curve)) if self.soak else ()

    def digested(self) -> Candidate:
        """The same for scoring alone: raw requests and traces are let go."""
        lean = replace(
            self,
            launch=replace(self.launch, curve=()),
            final=replace(self.final, curve=()) if self.final else None,
        )
        lean.__dict__.update(levels=self.levels, final_levels=self.final_levels, soak_levels=self.soak_levels)
        return lean

    def score(self, sla: Sla, study: StudySpec) -> CurveScore:
        """Its capacity and operating point for an SLA, from the search launch."""
        return score_curve(self.levels, sla, study.workload_of(sla), headroom=study.measurement.headroom)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A candidate's figures for one SLA: from its final launch where that measured the operating point."""

    candidate: Candidate
    capacity_rps: float
    figures: LevelScore
    confirmed: bool

    @property
    def launch(self) -> LaunchRecord:
        """The launch that the figures are of."""
        return (self.candidate.final if self.confirmed else None) or self.candidate.launch

    @property
    def levels(self) -> tuple[LevelDigest, ...]:
        """Levels of that launch."""
        return self.candidate.final_levels if self.confirmed else self.candidate.levels

    @property
    def holds(self) -> bool:
        """Whether the figures keep the SLA, or at least do not show that it is missed."""
        return self.figures.verdict is not SlaVerdict.MISSED

    @property
    def may_win(self) -> bool:
        """Whether it can be recommended: what ranks must have been measured, and validly."""
        return self.holds and self.figures.objective > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """The answer for one SLA; ``best`` is None, with a reason, where it is withheld.

    ``shown`` is false where nothing was shown to beat the engine's defaults; they are the best then.
    """

    sla: Sla
    best: Standing | None
    defaults: Standing | None
    baseline: Standing | None
    has_baseline: bool = False
    reason: str = ""
    runner_up: Standing | None = None
    shown: bool = True
    met_by_none: bool = False

    @property
    def over_defaults(self) -> Gain | None:
        """By how much the best beats the engine's defaults; None where one is missing, or both are one."""
        return gain_between(self.best, self.defaults)

    @property
    def over_runner_up(self) -> Gain | None:
        """By how much it beats the next best."""
        return gain_between(self.best, self.runner_up)


def standing(candidate: Candidate, sla: Sla, study: StudySpec) -> Standing | None:
    """A candidate's figures for an SLA; None where no measured level met it."""
    score = candidate.score(sla, study)
    if score.operating is None or score.capacity_rps is None:
        return None
    again = _confirmation(candidate.final_levels, sla, study.workload_of(sla), score.operating.rate_rps)
    return Standing(
        candidate=candidate,
        capacity_rps=score.capacity_rps,
        figures=again or score.operating,
        confirmed=again is not None,
    )


def ledger_for(standing: Standing, study: StudySpec, accelerators: AcceleratorTable) -> Ledger:
    """Watts and money of a standing on every power basis known."""
    figures, launch = standing.figures, standing.launch
    return ledger_of(
        figures,
        devices=launch.device_count,
        prices=study.power.prices,
        accelerator=accelerators.find(launch.device),
        beside=SideReadings(
            idle_w=launch.before.idle_power_w if launch.before else None,
            cpu_memory_w=figures.beside_w.get(PowerScope.PACKAGE),
            node_w=figures.beside_w.get(PowerScope.NODE),
        ),
    )


def _confirmation(
    curve: Sequence[LevelDigest], sla: Sla, workload: str, rate_rps: float
) -> LevelScore | None:
    """What a final launch shows at an operating point: there or, where it did not hold, at the next below."""
    at_it = score_at(curve, sla, workload, rate_rps)
    if at_it is None or at_it.may_hold:
        return at_it
    lower = [m for m in open_levels(curve, workload) if (m.level.rate_rps or 0.0) < rate_rps]
    held = [score for m in lower if (score := score_level(m, sla)).may_hold]
    return max(held, key=lambda score: score.rate_rps, default=at_it)


def recommend(study: StudySpec, sla: Sla, candidates: Sequence[Candidate]) -> Recommendation:
    """Choose the best candidate for an SLA.

    Where finals were run only those who ran in them can win, on the figures of their final launch: the
    search's own favour whoever was lucky.
    """
    standings = _on_one_node([s for c in candidates if (s := standing(c, sla, study)) is not None])
    finalists = [s for s in standings if s.confirmed]
    barred = quality_bars(candidates, study)
    proven = [s for s in standings if s.candidate.row.number not in barred]
    eligible = ranked(
        [s for s in finalists or proven if s.may_win and s.candidate.row.number not in barred], study
    )
    best = eligible[0] if eligible else None
    # Of the winner's engine, and by configuration, not purpose: production may run the defaults.
    engine = study.engine(best.candidate.row.config.engine) if best else None
    defaults = study.default_config(engine)
    others = sorted(eligible[1:], key=_lower_bound, reverse=True)
    runner_up = next((s for s in others if s.candidate.row.config.key != defaults.key), None)
    passed_over = _passed_over(best, standings, barred)
    unshown = _nothing_shown(best, runner_up, defaults) if finalists else ""
    why = _reason(best, proven or standings, candidates, sla) if proven or not passed_over else ""
    if best and (trouble := _trouble_in_soak(best, sla, study)):
        best, why, unshown = None, trouble, ""
    return Recommendation(
        sla=sla,
        best=best,
        defaults=next((s for s in standings if s.candidate.row.config.key == defaults.key), None),
        baseline=next((s for s in standings if s.candidate.row.purpose is Purpose.BASELINE), None),
        has_baseline=study.baseline is not None,
        reason="; ".join(filter(None, [why, unshown, passed_over])),
        runner_up=runner_up if best else None,
        shown=not unshown,
        met_by_none=not standings,
    )


def ranked(standings: Sequence[Standing], study: StudySpec) -> tuple[Standing, ...]:
    """Best first, by the lower end of the objective's interval.

    Of those within the noise of the first: fewer devices first, then fewer departures from the defaults.
    """
    by_bound = sorted(standings, key=_lower_bound, reverse=True)
    if not by_bound:
        return ()
    lead = by_bound[0]
    beaten = [s is not lead and _beats(lead, s) for s in by_bound]
    tied = [s for s, is_beaten in zip(by_bound, beaten, strict=True) if not is_beaten]
    usual = {engine.name: study.default_config(engine).words for engine in study.engines}

    def simplicity(standing: Standing) -> tuple[int, int]:
        config = standing.candidate.row.config
        return config.devices, departures(config.words, usual[config.engine])

    tied.sort(key=simplicity)
    return (*tied, *(s for s, is_beaten in zip(by_bound, beaten, strict=True) if is_beaten))


def departures(own: Mapping[str, Any], usual: Mapping[str, Any]) -> int:
    """In how many words a configuration departs from its engine's defaults."""
    return sum(own.get(word) != usual.get(word) for word in own.keys() | usual.keys())


def _lower_bound(standing: Standing) -> float:
    return standing.figures.objective_interval.low


def gain_between(one: Standing | None, other: Standing | None) -> Gain | None:
    """The ratio of two standings' objectives; None where one is missing or worth nothing, or both are one."""
    if one is None or other is None or one.candidate.row.number == other.candidate.row.number:
        return None
    mine, theirs = one.figures, other.figures
    if mine.power_basis is not theirs.power_basis or min(mine.objective, theirs.objective) <= 0:
        return None
    return gain_of(mine.objective, mine.objective_interval, theirs.objective, theirs.objective_interval)


def _beats(one: Standing, other: Standing) -> bool:
    gain = gain_between(one, other)
    return gain is not None and gain.shown


def _nothing_shown(best: Standing | None, rival: Standing | None, defaults: EngineConfig) -> str:
    """Says that the defaults stand because nothing was shown to beat them; empty where they won, or lost."""
    if best is None or rival is None or best.candidate.row.config.key != defaults.key or _beats(best, rival):
        return ""
    gain = gain_between(rival, best)
    ahead = f" its figure against theirs: {gain.describe()};" if gain else ""
    return (
        f"no configuration was shown to beat the engine's defaults, so they stand; trial "
        f"{rival.candidate.row.number} came nearest,{ahead} longer final windows may tell"
    )


def _trouble_in_soak(best: Standing, sla: Sla, study: StudySpec) -> str:
    record = best.candidate.soak
    if record is None:
        return ""
    failed = record.failure.line if record.failure else ""
    if trouble := failed or soak_trouble(record.curve, sla, study.workload_of(sla)):
        return f"trial {best.candidate.row.number} won, and did not bear its soak: {trouble}"
    return ""


def quality_of(record: LaunchRecord) -> QualityVerdict:
    """The verdict on a launch's precision."""
    return record.quality or QualityVerdict(
        state=QualityState.NOT_JUDGED,
        precision=record.precision,
        judged_in=record.number,
        reasons=("it was never asked",),
    )


def quality_bars(candidates: Sequence[Candidate], study: StudySpec) -> dict[int, str]:
    """Why quality keeps candidates from being recommended, by number; those that it does not are left out."""
    answered = next((c.launch.answers.precision for c in candidates if c.launch.answers), None)
    defaults = study.default_config()
    bars: dict[int, str] = {}
    for candidate in candidates:
        verdict = quality_of(candidate.launch)
        # Where no reference has answered, its precision is known all the same.
        wanted = answered or Precision.of(study.model, defaults, verdict.precision.build)
        if why := objection(verdict, wanted, study.quality):
            bars[candidate.row.number] = why
    return bars


def _passed_over(best: Standing | None, standings: Sequence[Standing], barred: Mapping[int, str]) -> str:
    """The standing that would have won but for its quality."""
    least = best.figures.objective if best else 0.0
    better = [
        s for s in standings if s.candidate.row.number in barred and s.holds and s.figures.objective > least
    ]
    if not better:
        return ""
    number = max(better, key=lambda s: s.figures.objective).candidate.row.number
    return f"trial {number} was passed over: {barred[number]}"


def _on_one_node(standings: Sequence[Standing]) -> Sequence[Standing]:
    """Those of the node with most finals: two machines of one kind differ by more than configurations do."""
    if not standings:
        return ()
    nodes = Counter({s.launch.node: 0 for s in standings})
    nodes.update(s.launch.node for s in standings if s.confirmed)
    return [s for s in standings if s.launch.node == nodes.most_common(1)[0][0]]


def candidates_of(rows: Sequence[TrialRow], records: Sequence[LaunchRecord]) -> tuple[Candidate, ...]:
    """Put together each measured configuration with its final launch."""
    by_number = {record.number: record for record in records}
    finals, soaks = (
        {
            row.final_of: by_number[row.number]
            for row in rows
            if row.purpose is purpose and row.state is TrialState.MEASURED and row.number in by_number
        }
        for purpose in (Purpose.FINAL, Purpose.SOAK)
    )
    return tuple(
        Candidate(
            row=row,
            launch=by_number[row.number],
            final=finals.get(row.number),
            soak=soaks.get(row.number),
        )
        for row in rows
        if row.final_of is None and row.state is TrialState.MEASURED and row.number in by_number
    )


def _reason(
    best: Standing | None, standings: Sequence[Standing], candidates: Sequence[Candidate], sla: Sla
) -> str:
    if best is None:
        return _why_withheld(standings, candidates, sla)
    if not best.confirmed:
        return "measured once: no final launch confirmed it"
    if best.figures.verdict is SlaVerdict.NOT_SHOWN:
        return f"{best.figures.requests} requests do not show that the SLA holds; lengthen the windows"
    return ""


def _why_withheld(standings: Sequence[Standing], candidates: Sequence[Candidate], sla: Sla) -> str:
    if not candidates:
        return "no configuration was measured"
    if not standings:
        return f"no configuration met {sla.name} at any measured load"
    invalid = [s for s in standings if s.holds and not s.may_win]
    if invalid:
        reasons = ", ".join(invalid[0].figures.energy_reasons)
        return f"no configuration kept {sla.name} in a window whose energy is valid: {reasons}"
    return f"no configuration kept {sla.name} when it was launched again"
