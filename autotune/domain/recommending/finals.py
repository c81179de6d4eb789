"""Finals: who is launched again, in which order, and what a winner soaks at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest

from autotune.domain.judging.scoring import CurveScore
from autotune.domain.judging.sla import Sla
from autotune.domain.load.level import Level
from autotune.domain.recommending.recommendation import Candidate, quality_bars, recommend
from autotune.domain.search.gain import gain_of
from autotune.domain.studies.records import Purpose
from autotune.domain.studies.study import StudySpec

MOST_PER_SLA = 3
"""The best of an SLA, and of those within the noise of it the next ones, that are launched again."""

Factor = Callable[[Candidate], float]
"""What a candidate's objectives are multiplied by, to correct them for drift."""


def finalists(
    study: StudySpec, candidates: Sequence[Candidate], factor: Factor = lambda _: 1.0
) -> tuple[Candidate, ...]:
    """Who is launched again, the most needed first.

    Each SLA's best, then the engine's defaults and the production baseline, then those that the search could
    not tell from the best: as many of them as the budget has left.
    """
    fields = [_field(study, sla, candidates, factor) for sla in study.slas]
    references = [
        c
        for c in candidates
        if c.row.purpose in {Purpose.DEFAULTS, Purpose.BASELINE}
        and any(c.score(sla, study).operating for sla in study.slas)
    ]
    best = [field[0] for field in fields if field]
    tied = [c for place in zip_longest(*(field[1:] for field in fields)) for c in place if c is not None]
    return _unique([*best, *references, *tied])


def interleaved(chosen: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """In the order of launching: references between the others, so that no drift favours either."""
    references = [c for c in chosen if c.row.purpose in {Purpose.DEFAULTS, Purpose.BASELINE}]
    others = [c for c in chosen if c not in references]
    return tuple(c for pair in zip_longest(others, references) for c in pair if c is not None)


def operating_points(study: StudySpec, candidate: Candidate) -> dict[str, Level]:
    """The candidate's own operating point for every SLA that it met, by SLA."""
    return {
        sla.name: Level(study.workload_of(sla), rate_rps=operating.rate_rps)
        for sla in study.slas
        if (operating := candidate.score(sla, study).operating) is not None
    }


def soaks(
    study: StudySpec, candidates: Sequence[Candidate]
) -> tuple[tuple[Candidate, tuple[Level, ...]], ...]:
    """Winners whose final held and that have not soaked, each with the bursty levels it won at."""
    wanted: dict[int, tuple[Candidate, list[Level]]] = {}
    for sla in study.slas:
        best = recommend(study, sla, candidates).best
        if best is not None and best.confirmed and best.candidate.soak is None:
            level = Level(study.workload_of(sla), rate_rps=best.figures.rate_rps, bursty=True)
            _, levels = wanted.setdefault(best.candidate.row.number, (best.candidate, []))
            levels.append(level)
    return tuple((candidate, tuple(dict.fromkeys(levels))) for candidate, levels in wanted.values())


def _field(study: StudySpec, sla: Sla, candidates: Sequence[Candidate], factor: Factor) -> list[Candidate]:
    """An SLA's best by the search, and those within the noise of it, MOST_PER_SLA together."""
    barred = quality_bars(candidates, study)
    scored = [(c.score(sla, study), c) for c in candidates if c.row.number not in barred]
    running = sorted(
        ((score.objective * factor(c), score, c) for score, c in scored if score.objective > 0),
        key=lambda entry: entry[0],
        reverse=True,
    )
    if not running:
        return []
    lead = running[0][1]
    tied = [c for _, score, c in running if not _shown_better(lead, score)]
    return tied[:MOST_PER_SLA]


def _shown_better(one: CurveScore, other: CurveScore) -> bool:
    mine, theirs = one.operating, other.operating
    assert mine is not None
    assert theirs is not None
    return gain_of(mine.objective, mine.objective_interval, theirs.objective, theirs.objective_interval).shown


def _unique(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    return tuple({c.row.number: c for c in candidates}.values())
