"""What a load curve is worth to one SLA: capacity, operating point, goodput, good tokens per joule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

import numpy as np

from autotune.domain.judging.sla import Goals, Sla, good_requests, keeping_requests
from autotune.domain.measuring.digest import LevelDigest, digest
from autotune.domain.measuring.measurement import Bools, Measurement, WindowEnd
from autotune.domain.measuring.power import EnergyVerdict, PowerBasis, PowerScope
from autotune.domain.measuring.stats import (
    BLOCKS,
    Interval,
    proportion_interval,
    repeat_interval,
    requests_to_show,
)

Measured = TypeVar("Measured", Measurement, LevelDigest)
"""A level as it was measured, or what scoring needs of it."""

HEADROOM = 0.8
"""Operating point as a share of capacity, unless the study says otherwise."""
SAME_RATE = 0.02
"""Offered rates that differ by no more than this share are the same operating point."""
VERDICTS_KEPT = 32
"""Verdicts that a level remembers: an SLA's sliders stop at many places."""


class SlaVerdict(StrEnum):
    """What a level shows of an SLA: its lower bound keeps it, its estimate breaks it, or neither."""

    MET = "met"
    MISSED = "missed"
    NOT_SHOWN = "not shown"


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelScore:
    """One level against one SLA; tok/s, watts, joules; percentiles of all requests that got a first token.

    Intervals of goodput and of tokens per joule are where a repeat of the same length would fall, that of
    attainment where its true value lies. ``beside_w`` are mean watts by meters that do not rank.
    """

    rate_rps: float
    verdict: SlaVerdict
    requests: int
    attainment: float
    attainment_interval: Interval
    goodput_tok_per_s: float
    goodput_interval: Interval
    throughput_tok_per_s: float
    mean_power_w: float
    power_basis: PowerBasis
    power_source: str
    energy_verdict: EnergyVerdict
    energy_reasons: tuple[str, ...]
    tokens_per_joule: float
    tokens_per_joule_interval: Interval
    ttft_s: dict[int, float]
    tpot_s: dict[int, float]
    window_s: float
    ended: WindowEnd
    steady: bool
    oversaturated: bool
    too_few: bool
    beside_w: dict[PowerScope, float] = field(default_factory=dict)

    @property
    def may_hold(self) -> bool:
        """Whether the level counts for capacity: met, or kept by requests too few to ever show it."""
        return self.verdict is SlaVerdict.MET or (self.verdict is SlaVerdict.NOT_SHOWN and self.too_few)

    @property
    def tok_per_s_per_mw(self) -> float:
        """Good tokens per second that a megawatt would carry."""
        return self.tokens_per_joule * 1e6

    @property
    def objective(self) -> float:
        """What ranks: good tokens per joule where watts were measured, else goodput."""
        return self.tokens_per_joule if self.power_basis.ranks else self.goodput_tok_per_s

    @property
    def objective_interval(self) -> Interval:
        """The interval of the objective."""
        return self.tokens_per_joule_interval if self.power_basis.ranks else self.goodput_interval


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveScore:
    """A whole curve against one SLA; without an operating point nothing measured met it: objective 0."""

    sla: str
    capacity_rps: float | None
    operating: LevelScore | None

    @property
    def objective(self) -> float:
        """What the search maximises for this SLA."""
        return self.operating.objective if self.operating else 0.0


def score_level(measured: Measurement | LevelDigest, sla: Sla) -> LevelScore:
    """Judge one level over its window; tokens and joules are of the same window."""
    level = measured if isinstance(measured, LevelDigest) else digest(measured)
    goals, good = sla.goals(), good_requests(level, sla)
    tokens_by_due = level.by_block(good, level.output_tokens)
    block_good, block_due = level.by_block(good), level.offered
    length_s = level.window.length_s
    seconds = np.full(BLOCKS, length_s / BLOCKS)
    goodput, per_joule = _yields(level, good)
    return LevelScore(
        rate_rps=level.rate_rps,
        verdict=verdict_of(level, goals),
        requests=level.requests,
        attainment=float(block_good.sum() / max(block_due.sum(), 1)),
        attainment_interval=proportion_interval(block_good, block_due),
        goodput_tok_per_s=goodput,
        goodput_interval=repeat_interval(goodput, tokens_by_due, seconds),
        throughput_tok_per_s=level.throughput_tok_per_s,
        mean_power_w=level.energy.mean_w,
        power_basis=level.power_basis,
        power_source=level.power_source,
        energy_verdict=level.energy.verdict,
        energy_reasons=level.energy.reasons,
        tokens_per_joule=per_joule or 0.0,
        tokens_per_joule_interval=repeat_interval(per_joule, tokens_by_due, level.block_j)
        if per_joule is not None
        else Interval(0.0, 0.0),
        ttft_s=level.ttft_percentiles_s,
        tpot_s=level.tpot_percentiles_s,
        window_s=length_s,
        ended=level.ended,
        steady=level.steady,
        oversaturated=level.oversaturated,
        beside_w=level.beside_w,
        too_few=_too_few(level, goals),
    )


def worth_of(level: LevelDigest, good: Bools) -> tuple[float, float]:
    """Goodput, tok/s, and objective of a level's good requests, without the intervals of ``score_level``."""
    goodput, per_joule = _yields(level, good)
    return goodput, (per_joule or 0.0) if level.power_basis.ranks else goodput


def _yields(level: LevelDigest, good: Bools) -> tuple[float, float | None]:
    """Good tokens per second, and per joule where joules were measured."""
    tokens, joules = float(level.window_tokens[good].sum()), level.energy.joules
    measurable = joules > 0 and level.energy.verdict is not EnergyVerdict.INVALID
    return tokens / level.window.length_s, tokens / joules if measurable else None


def score_curve(
    curve: Sequence[Measured], sla: Sla, workload: str, *, headroom: float = HEADROOM
) -> CurveScore:
    """Find the SLA's capacity on a workload and its operating point, both from measured levels alone.

    Capacity is the highest offered rate whose level met the SLA; where none did, the highest that was kept by
    requests too few to show it. The operating point is the level nearest below ``headroom`` x capacity that
    held.
    """
    levels = [m if isinstance(m, LevelDigest) else digest(m) for m in open_levels(curve, workload)]
    # Verdicts first: only the operating point needs all of its figures.
    goals = sla.goals()
    verdicts = [verdict_of(level, goals) for level in levels]
    met = [level for level, verdict in zip(levels, verdicts, strict=True) if verdict is SlaVerdict.MET]
    may_hold = [
        level
        for level, verdict in zip(levels, verdicts, strict=True)
        if verdict is SlaVerdict.MET or (verdict is SlaVerdict.NOT_SHOWN and _too_few(level, goals))
    ]
    capacity_rps = max((level.rate_rps for level in met or may_hold), default=None)
    limit_rps = headroom * (capacity_rps or 0.0) * (1 + SAME_RATE)
    below = [level for level in may_hold if level.rate_rps <= limit_rps]
    operating = max(below, key=lambda level: level.rate_rps, default=None)
    return CurveScore(
        sla=sla.name,
        capacity_rps=capacity_rps,
        operating=score_level(operating, sla) if operating else None,
    )


def _too_few(level: LevelDigest, goals: Goals) -> bool:
    return level.requests < max(requests_to_show(share) for _, share in goals)


def holding(scored: Sequence[LevelScore]) -> tuple[LevelScore, ...]:
    """Levels that count for capacity: those that met the SLA, else those with too few requests to tell."""
    met = tuple(s for s in scored if s.verdict is SlaVerdict.MET)
    return met or tuple(s for s in scored if s.may_hold)


def score_at(curve: Sequence[Measured], sla: Sla, workload: str, rate_rps: float) -> LevelScore | None:
    """Judge the level measured at a given rate; None where there is none."""
    at = (m for m in open_levels(curve, workload) if is_same_rate(m.level.rate_rps or 0.0, rate_rps))
    return next((score_level(m, sla) for m in at), None)


def open_levels(curve: Sequence[Measured], workload: str) -> tuple[Measured, ...]:
    """Levels of one workload on which SLAs are judged: the open-loop ones.

    One that was measured again, for longer, counts as it was the last time: of two tries to count the better
    one would be luck.
    """
    judged = {
        m.level.rate_rps: m for m in curve if m.level.rate_rps is not None and m.level.workload == workload
    }
    return tuple(judged.values())


def is_same_rate(one_rps: float, other_rps: float) -> bool:
    """Whether two offered rates are one operating point."""
    return abs(one_rps - other_rps) <= SAME_RATE * other_rps


def verdict_of(level: LevelDigest, goals: Goals) -> SlaVerdict:
    """MET where every lower bound reaches its share, MISSED where an estimate does not, else NOT_SHOWN."""
    judged = level.judged
    if goals not in judged:
        if len(judged) >= VERDICTS_KEPT:
            judged.clear()
        judged[goals] = _verdict(level, goals)
    return SlaVerdict(judged[goals])


def _verdict(level: LevelDigest, goals: Goals) -> SlaVerdict:
    if level.oversaturated:
        return SlaVerdict.MISSED
    total = level.offered.sum()
    verdict = SlaVerdict.MET if total else SlaVerdict.NOT_SHOWN
    for bounds, share in goals:
        keeps = keeping_requests(level, bounds)
        # Counted before it is sorted into blocks: most levels that miss an SLA miss it by far.
        if np.count_nonzero(keeps & level.due_in_window) < share * total:
            return SlaVerdict.MISSED
        if proportion_interval(level.by_block(keeps), level.offered).low < share:
            verdict = SlaVerdict.NOT_SHOWN
    return verdict
