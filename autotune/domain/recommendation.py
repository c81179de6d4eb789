"""The recommendation: per SLA the configuration that won, against the defaults on the same workload."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autotune.domain.measurement import LoadCurve
from autotune.domain.records import LaunchRecord, Purpose, TrialRow, TrialState
from autotune.domain.scoring import (
    CurveScore,
    LevelScore,
    SlaVerdict,
    open_levels,
    score_at,
    score_curve,
    score_level,
)
from autotune.domain.sla import Sla
from autotune.domain.study import StudySpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A configuration with all that was measured of it: its search launch and, if any, its final one."""

    row: TrialRow
    curve: LoadCurve
    command: str
    final_curve: LoadCurve = ()

    def score(self, sla: Sla, study: StudySpec) -> CurveScore:
        """Its capacity and operating point for an SLA, from the search launch."""
        return score_curve(self.curve, sla, study.workload_of(sla), headroom=study.measurement.headroom)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A candidate's figures for one SLA: from its final launch where that measured the operating point."""

    candidate: Candidate
    capacity_rps: float
    figures: LevelScore
    confirmed: bool

    @property
    def holds(self) -> bool:
        """Whether the figures keep the SLA, or at least do not show that it is missed."""
        return self.figures.verdict is not SlaVerdict.MISSED


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """The answer for one SLA; ``best`` is None, with a reason, where it is withheld."""

    sla: Sla
    best: Standing | None
    defaults: Standing | None
    baseline: Standing | None
    has_baseline: bool = False
    reason: str = ""


def standing(candidate: Candidate, sla: Sla, study: StudySpec) -> Standing | None:
    """A candidate's figures for an SLA; None where no measured level met it."""
    score = candidate.score(sla, study)
    if score.operating is None or score.capacity_rps is None:
        return None
    again = _confirmation(candidate.final_curve, sla, study.workload_of(sla), score.operating.rate_rps)
    return Standing(
        candidate=candidate,
        capacity_rps=score.capacity_rps,
        figures=again or score.operating,
        confirmed=again is not None,
    )


def _confirmation(curve: LoadCurve, sla: Sla, workload: str, rate_rps: float) -> LevelScore | None:
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
    standings = [s for c in candidates if (s := standing(c, sla, study)) is not None]
    finalists = [s for s in standings if s.confirmed]
    eligible = [s for s in finalists or standings if s.holds]
    # By configuration, not purpose: production may run the defaults.
    defaults = study.default_config()
    best = max(eligible, key=lambda s: s.figures.objective, default=None)
    return Recommendation(
        sla=sla,
        best=best,
        defaults=next((s for s in standings if s.candidate.row.config.key == defaults.key), None),
        baseline=next((s for s in standings if s.candidate.row.purpose is Purpose.BASELINE), None),
        has_baseline=study.baseline is not None,
        reason=_reason(best, candidates, sla, study),
    )


def finalists(study: StudySpec, candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Who is launched again: each SLA's best, and with them the defaults and the production baseline.

    Interleaved, the references between the winners, so that a drift of the machine favours nobody.
    """
    winners: list[Candidate] = []
    for sla in study.slas:
        scored = [(c.score(sla, study).objective, c) for c in candidates]
        best = max(scored, key=lambda pair: pair[0], default=None)
        if best and best[0] > 0 and best[1] not in winners:
            winners.append(best[1])
    references = [
        c
        for c in candidates
        if c.row.purpose in {Purpose.DEFAULTS, Purpose.BASELINE}
        and c not in winners
        and any(c.score(sla, study).operating for sla in study.slas)
    ]
    return (*winners[:1], *references, *winners[1:])


def candidates_of(rows: Sequence[TrialRow], records: Sequence[LaunchRecord]) -> tuple[Candidate, ...]:
    """Put together each measured configuration with its final launch."""
    by_number = {record.number: record for record in records}
    finals = {
        row.final_of: by_number[row.number].curve
        for row in rows
        if row.final_of is not None and row.state is TrialState.MEASURED and row.number in by_number
    }
    return tuple(
        Candidate(
            row=row,
            curve=by_number[row.number].curve,
            command=row.command,
            final_curve=finals.get(row.number, ()),
        )
        for row in rows
        if row.final_of is None and row.state is TrialState.MEASURED and row.number in by_number
    )


def _reason(best: Standing | None, candidates: Sequence[Candidate], sla: Sla, study: StudySpec) -> str:
    if best is None:
        return _why_withheld(candidates, sla, study)
    if not best.confirmed:
        return "measured once: no final launch confirmed it"
    if best.figures.verdict is SlaVerdict.NOT_SHOWN:
        return f"{best.figures.requests} requests do not show that the SLA holds; lengthen the windows"
    return ""


def _why_withheld(candidates: Sequence[Candidate], sla: Sla, study: StudySpec) -> str:
    if not candidates:
        return "no configuration was measured"
    if all(standing(c, sla, study) is None for c in candidates):
        return f"no configuration met {sla.name} at any measured load"
    return f"no configuration kept {sla.name} when it was launched again"
