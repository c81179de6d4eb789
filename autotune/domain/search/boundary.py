"""The load-boundary decision: which level to measure next on a running engine, or that it is enough."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from autotune.domain.judging.scoring import (
    HEADROOM,
    LevelScore,
    SlaVerdict,
    holding,
    open_levels,
    score_level,
)
from autotune.domain.judging.sla import Sla
from autotune.domain.load.level import Level
from autotune.domain.measuring.measurement import LoadCurve, WindowEnd
from autotune.domain.search.capacity import CapacityBelief, Expectation, believed_capacity
from autotune.domain.search.reach import loses_everywhere

CLOSED_LOOP_SHARE, CLOSED_LOOP_SPREAD = 0.8, 0.35
"""Where a capacity is expected of an engine that is known by its closed loop alone."""
EXACT_ENOUGH = 0.55
"""Spread of an expectation from which on a closed loop comes first; two words apart it is 0.73."""
MOST_OVER_CLOSED_LOOP = 1.5
"""No level is looked for above this share of what the closed loop sustained."""
AIM = 0.45
"""Quantile of the believed capacity that is measured: a level just below it is worth more than one above."""
AIM_UP = 0.55
"""The same while no level was lost: steps up are longer, for a level that is lost is a short one."""
AIM_DOWN = 0.3
"""The same while every level was lost: without one that holds there is no figure at all."""
LIKELY = 0.35
"""A rung that capacity reaches with a smaller chance than this need not be measured."""
HOPELESS = 0.05
"""An SLA whose capacity lies with a smaller chance than this within the ladder is given up."""
EVEN = 0.5
"""A rung that was not shown is measured again only where capacity is more likely to reach it than not."""
LOWEST_SHARE = 1 / 64
"""Lowest level, as a share of the closed loop, or of the first level."""
NEAR_RUNGS = 3
"""A level that is lost at most so many rungs above the answer is its other side."""


class Length(StrEnum):
    """How long a level's window lasts.

    Brief until each SLA is shown to be kept or missed; short until figures are precise enough to search by;
    long as in the finals; a soak for as long as the study says.
    """

    BRIEF = "brief"
    SHORT = "short"
    LONG = "long"
    SOAK = "soak"


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundarySettings:
    """How finely, and with how many levels, capacity is searched for."""

    headroom: float = HEADROOM
    tolerance: float = 0.15
    precision: float = 0.1
    most_levels: int = 8
    saturating_concurrency: int = 64

    @property
    def rungs_of_headroom(self) -> int:
        """Rungs from a capacity down to its operating point."""
        if self.headroom >= 1:
            return 0
        return max(1, math.ceil(-math.log(self.headroom) / math.log(1 + self.tolerance) - 1e-9))

    @property
    def step(self) -> float:
        """Ratio of neighbouring rungs: no coarser than the tolerance, and the headroom a whole number."""
        rungs = self.rungs_of_headroom
        return float(self.headroom ** (-1 / rungs)) if rungs else 1 + self.tolerance


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreknowledge:
    """What a launch need not find out: by SLA, where capacity is expected, and the objective to beat."""

    expected: Mapping[str, Expectation] = field(default_factory=dict)
    incumbents: Mapping[str, float] = field(default_factory=dict)


NO_FOREKNOWLEDGE = Foreknowledge()


@dataclass(frozen=True, slots=True)
class Step:
    """A level to measure, and for how long."""

    level: Level
    length: Length = Length.BRIEF


@dataclass(frozen=True, slots=True)
class Stop:
    """No further level: ``reason`` says why; ``lost`` where more could be known and would change nothing."""

    reason: str
    lost: bool = False


def next_level(
    curve: LoadCurve,
    slas: Sequence[Sla],
    workload: str,
    settings: BoundarySettings,
    known: Foreknowledge = NO_FOREKNOWLEDGE,
) -> Step | Stop:
    """Decide from what was measured, for every SLA of one workload, at one set of levels.

    Levels are rungs of one ladder, on which an operating point is a whole number of rungs below a
    capacity: what one SLA needs is then often measured for another. The first rung is where capacity is
    expected, by launches much like this one, or by a closed-loop level where there are none: one that is
    expected far too low takes every level to climb from, and a prior that no launch has tried may flood
    the engine. Each further one is where a capacity is now believed to be, until the next rung up is
    unlikely to hold; then the answer's other side is looked at, and its operating point. Levels are
    brief: only those whose figures count are measured precisely, and a rung that shows neither is
    measured again, for longer, where it would become the answer and could beat the incumbent. No further
    level serves a launch that can beat no incumbent.
    """
    opened = open_levels(curve, workload)
    expected = [known.expected.get(sla.name) for sla in slas]
    if not curve and not all(each is not None and each.spread < EXACT_ENOUGH for each in expected):
        return Step(Level(workload, concurrency=settings.saturating_concurrency))
    if reach := loses_everywhere(curve, [sla.name for sla in slas], known.incumbents):
        return Stop(f"at no load can it beat an incumbent: at most {reach.objective:.4g}", lost=True)
    closed_rps = next((m.sustained_rps for m in curve if m.level.rate_rps is None), None)
    if closed_rps is not None and closed_rps <= 0:
        return Stop("nothing finished in closed loop")
    views = [_view(opened, sla, _expectation(sla, known, closed_rps)) for sla in slas]
    if not opened:
        first_rps = min(view.belief.quantile(AIM) for view in views)
        return Step(Level(workload, rate_rps=first_rps))
    anchor_rps = opened[0].level.rate_rps or 0.0
    most_rps = MOST_OVER_CLOSED_LOOP * closed_rps if closed_rps else math.inf
    least_rps = LOWEST_SHARE * (closed_rps or anchor_rps)
    ladder = _Ladder(anchor_rps, settings, least_rps, most_rps)
    measured = [(m.level.rate_rps or 0.0) for m in curve if m.level.rate_rps is not None]
    return _chosen(views, ladder, _rungs(measured, ladder), workload, known)


def _expectation(sla: Sla, known: Foreknowledge, closed_rps: float | None) -> Expectation:
    """Where capacity is thought to lie, by what is known or by the closed loop, whichever is more exact."""
    known_before = known.expected.get(sla.name)
    if closed_rps is None:
        assert known_before is not None, "without an expectation the closed loop comes first"
        return known_before
    seen = Expectation(rps=CLOSED_LOOP_SHARE * closed_rps, spread=CLOSED_LOOP_SPREAD)
    return min(filter(None, (known_before, seen)), key=lambda each: each.spread)


@dataclass(frozen=True, slots=True)
class _View:
    """What the levels so far say of one SLA."""

    sla: Sla
    belief: CapacityBelief
    scored: tuple[LevelScore, ...]

    @property
    def answer_rps(self) -> float | None:
        return max((s.rate_rps for s in holding(self.scored)), default=None)

    def lost_above(self, rate_rps: float) -> list[float]:
        return [s.rate_rps for s in self.scored if s.rate_rps > rate_rps and not s.may_hold]


@dataclass(frozen=True, slots=True)
class _Ladder:
    """Rates at equal ratios; ``rung`` 0 is the first that was measured."""

    anchor_rps: float
    settings: BoundarySettings
    least_rps: float
    most_rps: float

    def rate(self, rung: int) -> float:
        return float(self.anchor_rps * self.settings.step**rung)

    def rung(self, rate_rps: float) -> int:
        return round(math.log(rate_rps / self.anchor_rps) / math.log(self.settings.step))

    def has(self, rung: int) -> bool:
        return self.least_rps <= self.rate(rung) <= self.most_rps


def _view(opened: LoadCurve, sla: Sla, expected: Expectation) -> _View:
    return _View(sla, believed_capacity(opened, sla, expected), tuple(score_level(m, sla) for m in opened))


def _rungs(measured_rps: Sequence[float], ladder: _Ladder) -> list[int]:
    """The rungs that were measured, one for each time."""
    return [ladder.rung(rate) for rate in measured_rps]


def _chosen(
    views: Sequence[_View], ladder: _Ladder, measured: Sequence[int], workload: str, known: Foreknowledge
) -> Step | Stop:
    spare = ladder.settings.most_levels - len(measured)
    points = [point for view in views if (point := _operating(view, ladder, measured, known)) is not None]
    # An SLA that nothing met so far comes first: without a level of its own it has no figures at all.
    ordered = sorted(views, key=lambda view: view.answer_rps is not None)
    narrowing = [rung for view in ordered if (rung := _narrow(view, ladder, measured)) is not None]
    unsure = [rung for view in views if (rung := _unsure(view, ladder, measured, known)) is not None]
    if not narrowing and not points and not unsure:
        return Stop("every capacity and operating point measured")
    if spare <= 0:
        return Stop("most levels measured")
    # Narrowing a bracket may move its operating point, so it goes first while levels last for both.
    rung, length = narrowing[0] if narrowing else 0, Length.BRIEF
    if points and (not narrowing or spare <= len(points)):
        rung, length = min(points)
    elif not narrowing:
        rung, length = unsure[0], Length.LONG
    return Step(Level(workload, rate_rps=ladder.rate(rung)), length)


def _operating(
    view: _View, ladder: _Ladder, measured: Sequence[int], known: Foreknowledge
) -> tuple[int, Length] | None:
    """The operating point where it is still to be measured, more precisely, or lower; with what length."""
    if view.answer_rps is None:
        return None
    rung = ladder.rung(view.answer_rps) - ladder.settings.rungs_of_headroom
    at = {ladder.rung(score.rate_rps): score for score in view.scored}
    incumbent = known.incumbents.get(view.sla.name, 0.0)
    while (score := at.get(rung)) is not None:
        if score.objective_interval.high < incumbent:
            return None
        if score.may_hold:
            half = (score.objective_interval.high - score.objective_interval.low) / 2
            # Where a repeat falls is wider by the root of two than where the mean lies.
            precise = half <= math.sqrt(2) * ladder.settings.precision * score.objective
            enough = precise or score.ended is WindowEnd.BUDGET or measured.count(rung) > 1
            return None if enough else (rung, Length.SHORT)
        if score.verdict is SlaVerdict.NOT_SHOWN and measured.count(rung) == 1:
            return rung, Length.LONG
        rung -= 1
    return (rung, Length.SHORT) if ladder.has(rung) else None


def _narrow(view: _View, ladder: _Ladder, measured: Sequence[int]) -> int | None:
    """The rung that tells most of an SLA's capacity, None when enough is known or nothing to be hoped."""
    lost = sorted(ladder.rung(rate) for rate in view.lost_above(view.answer_rps or 0.0))
    share = AIM_UP if not lost else AIM_DOWN if view.answer_rps is None else AIM
    aim = ladder.rung(view.belief.quantile(share))
    if view.answer_rps is None:
        if view.belief.chance_of(ladder.least_rps) < HOPELESS:
            return None
        lowest = min(measured)
        downwards = (aim, *range(aim - 1, lowest - 9, -1))
        return next((rung for rung in downwards if rung not in measured and ladder.has(rung)), None)
    answer = ladder.rung(view.answer_rps)
    below_lost = range(answer + 1, lost[0]) if lost else range(answer + 1, max(aim, answer + 1) + 1)
    likely = [
        rung
        for rung in below_lost
        if rung not in measured and ladder.has(rung) and view.belief.chance_of(ladder.rate(rung)) >= LIKELY
    ]
    if likely:
        return min(likely, key=lambda rung: abs(rung - aim))
    if not lost or lost[0] - answer > NEAR_RUNGS:
        above = answer + 2
        return above if above not in measured and ladder.has(above) else None
    return None


def _unsure(view: _View, ladder: _Ladder, measured: Sequence[int], known: Foreknowledge) -> int | None:
    """A rung above the answer whose window was too short to tell, and whose telling could make a winner."""
    unsure = [
        s
        for s in view.scored
        if s.verdict is SlaVerdict.NOT_SHOWN and not s.too_few and s.rate_rps > (view.answer_rps or 0.0)
    ]
    for score in sorted(unsure, key=lambda s: s.rate_rps):
        rung = ladder.rung(score.rate_rps)
        could_win = score.objective_interval.high > known.incumbents.get(view.sla.name, 0.0)
        if measured.count(rung) == 1 and could_win and view.belief.chance_of(score.rate_rps) >= EVEN:
            return rung
    return None
