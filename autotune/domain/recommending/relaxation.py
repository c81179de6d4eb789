"""An SLA that nothing meets: what came nearest, which SLO is in the way, and what relaxing it would buy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from autotune.domain.judging.scoring import open_levels, worth_of
from autotune.domain.judging.sla import (
    BoundSet,
    Goals,
    Metric,
    Sla,
    good_requests,
    keeping_requests,
    show_slo,
)
from autotune.domain.measuring.digest import LevelDigest
from autotune.domain.measuring.measurement import Bools, Floats
from autotune.domain.recommending.recommendation import Candidate
from autotune.domain.studies.study import StudySpec

MOST_OFFERS = 4
"""Steps shown of what relaxing one SLO buys."""
FEWEST = 20
"""Requests that a level must have had for anything to be said by it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One relaxation and what it buys: the trial and load that would keep it, tok/s, and what ranks."""

    slo: str
    relaxed: str
    trial: int
    rate_rps: float
    goodput_tok_per_s: float
    objective: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Unmet:
    """``shares`` are of requests that kept each SLO by itself, at the level that came nearest."""

    trial: int
    rate_rps: float
    attainment: float
    wanted: float
    binding: str
    shares: dict[str, float]
    offers: tuple[Offer, ...]


@dataclass(frozen=True, slots=True)
class _Level:
    """``most`` is the objective if every request were good: few levels need to be judged on a relaxation."""

    candidate: Candidate
    digest: LevelDigest
    most: float

    def kept(self, bounds: BoundSet) -> float:
        """Share of the requests due in the window that keep some bounds."""
        kept = keeping_requests(self.digest, bounds) & self.digest.due_in_window
        return float(np.count_nonzero(kept) / max(self.digest.requests, 1))


def unmet(study: StudySpec, sla: Sla, candidates: Sequence[Candidate]) -> Unmet | None:
    """Explain an SLA that no measured level met, from archived curves; None where no level tells anything.

    Shares are estimates at one level: what is offered was not confirmed by a launch at its operating point.
    """
    workload = study.workload_of(sla)
    levels = [
        _Level(c, m, worth_of(m, m.ok)[1])
        for c in candidates
        for m in open_levels(c.levels, workload)
        if m.requests >= FEWEST and not m.oversaturated
    ]
    if not levels:
        return None
    goals = sla.goals()
    # The goal that is furthest from being kept decides how near a level came.
    nearest, bounds, share, wanted = max(
        (min(_by_goal(level, goals), key=lambda goal: goal[2] - goal[3]) for level in levels),
        key=lambda goal: goal[2] - goal[3],
    )
    alone = {show_slo(*bound): nearest.kept((bound,)) for goal, _ in goals for bound in goal}
    binding = min(bounds, key=lambda bound: nearest.kept((bound,)))
    offers = [offer for goal, _ in goals for bound in goal for offer in _offers(levels, sla, bound)]
    return Unmet(
        trial=nearest.candidate.row.number,
        rate_rps=nearest.digest.level.rate_rps or 0.0,
        attainment=share,
        wanted=wanted,
        binding=show_slo(*binding),
        shares=alone,
        offers=tuple(offers),
    )


def _by_goal(level: _Level, goals: Goals) -> list[tuple[_Level, BoundSet, float, float]]:
    return [(level, bounds, level.kept(bounds), wanted) for bounds, wanted in goals]


def _offers(levels: Sequence[_Level], sla: Sla, slo: tuple[Metric, float]) -> list[Offer]:
    """What relaxing one SLO alone buys, from the least relaxation on to where more buys no more."""
    found = sorted(_needed(levels, sla.goals(), slo), key=lambda entry: entry[0])
    offers: list[Offer] = []
    best = 0.0
    for _, bound, level in found:
        if level.most <= 1.05 * best:
            continue
        # Good tokens are those within the relaxed bound.
        goodput, objective = worth_of(level.digest, good_requests(level.digest, _relaxed(sla, slo, bound)))
        if objective <= 1.05 * best:
            continue
        best = objective
        offers.append(
            Offer(
                slo=show_slo(*slo),
                relaxed=show_slo(slo[0], bound),
                trial=level.candidate.row.number,
                rate_rps=level.digest.rate_rps,
                goodput_tok_per_s=goodput,
                objective=objective,
            )
        )
    if len(offers) <= MOST_OFFERS:
        return offers
    places = np.linspace(0, len(offers) - 1, MOST_OFFERS).round().astype(int)
    return [offers[place] for place in places.tolist()]


def _needed(
    levels: Sequence[_Level], goals: Goals, slo: tuple[Metric, float]
) -> Iterator[tuple[float, float, _Level]]:
    """Levels that a looser bound would have meet the SLA: (how much looser, the bound, the level)."""
    metric, given = slo
    for level in levels:
        requests, due = level.digest, level.digest.due_in_window
        values, count = metric.of(requests), int(np.count_nonzero(due))
        needs = []
        for bounds, wanted in goals:
            others = tuple(bound for bound in bounds if bound != slo)
            kept = keeping_requests(requests, others) & due
            most_lost = int((1 - wanted) * count + 1e-9)
            if slo not in bounds:
                needs.append(given if count - np.count_nonzero(kept) <= most_lost else None)
                continue
            needs.append(_loosest(metric, values, kept, count - most_lost))
        if any(need is None for need in needs):
            continue
        bound = _rounded(metric, max(filter(None, needs), key=lambda n: _looseness(metric, n, given)))
        if (factor := _looseness(metric, bound, given)) > 1:
            yield factor, bound, level


def _loosest(metric: Metric, values: Floats, kept: Bools, count: int) -> float | None:
    """The bound that so many of the requests that keep all else would keep; None where too few do."""
    mine = values[kept]
    # A token rate that does not exist (one chunk) keeps every bound.
    free = int(np.count_nonzero(np.isnan(mine))) if metric in {Metric.TPOT, Metric.INTERACTIVITY} else 0
    known = np.sort(mine[np.isfinite(mine)])
    known = known[::-1] if metric is Metric.INTERACTIVITY else known
    place = count - free - 1
    if place < 0:
        return float(known[0]) if len(known) else None
    return float(known[place]) if place < len(known) else None


def _looseness(metric: Metric, bound: float, given: float) -> float:
    return given / bound if metric is Metric.INTERACTIVITY else bound / given


def _rounded(metric: Metric, bound: float) -> float:
    """To two digits, to the loose side: promises are round."""
    unit = 10.0 ** (np.floor(np.log10(bound)) - 1)
    side = np.floor if metric is Metric.INTERACTIVITY else np.ceil
    return float(f"{side(bound / unit) * unit:.3g}")


def _relaxed(sla: Sla, slo: tuple[Metric, float], bound: float) -> Sla:
    """The SLA with one of its bounds in place of another."""
    metric, given = slo
    slos = sla.slos.model_copy()
    if sla.contract == "joint":
        return sla.model_copy(update={"slos": slos.model_copy(update={metric.value: bound})})
    shares = {
        share: bound if value == given else value for share, value in getattr(slos, metric.value).items()
    }
    return sla.model_copy(update={"slos": slos.model_copy(update={metric.value: shares})})
