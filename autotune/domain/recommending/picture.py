"""The picture of this field: what each configuration yields against how fast each user reads along.

A point is a level of a launch: interactivity (1 / median TPOT) across, and up what all of its tokens make of
a megawatt, of a device, of money. Unlike goodput these need no SLA, so one picture serves all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autotune.domain.hardware.accelerators import AcceleratorTable
from autotune.domain.judging.ledger import JOULES_PER_KWH, SECONDS_PER_HOUR, WATTS_PER_MW
from autotune.domain.judging.scoring import SlaVerdict, verdict_of
from autotune.domain.judging.sla import Goals, Metric, Sla
from autotune.domain.measuring.digest import LevelDigest
from autotune.domain.measuring.stats import Figure
from autotune.domain.recommending.recommendation import Candidate
from autotune.domain.studies.study import StudySpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One level of one launch.

    ``interactivity`` is tok/s/user, with the interval of its median; ``per_mw`` output tok/s per megawatt,
    ``per_device`` output tok/s per accelerator, ``cost`` money per million output tokens; None where watts or
    prices are not known. ``verdicts`` are by SLA of the level's workload. ``final`` if it is of a final.
    """

    trial: int
    load: str
    rate_rps: float
    open_loop: bool
    final: bool
    workload: str
    requests: int
    interactivity: Figure
    throughput: Figure
    per_device: Figure
    per_mw: Figure | None
    cost: Figure | None
    ttft_p95_s: float | None
    verdicts: Mapping[str, SlaVerdict]
    oversaturated: bool


@dataclass(frozen=True, slots=True)
class Region:
    """Where an SLA lies on the picture: to the right of ``least`` tok/s/user, 0 if it bounds none."""

    sla: str
    contract: str
    least: float


def points_of(
    candidate: Candidate, study: StudySpec, accelerators: AcceleratorTable, slas: Sequence[Sla] | None = None
) -> tuple[Point, ...]:
    """Every level of a candidate's launches that has token rates, lowest load first."""
    points = []
    judged: dict[str, dict[str, Goals]] = {}
    for sla in slas if slas is not None else study.slas:
        judged.setdefault(study.workload_of(sla), {})[sla.name] = sla.goals()
    for launch, levels in ((candidate.launch, candidate.levels), (candidate.final, candidate.final_levels)):
        if launch is None:
            continue
        price = _Price.of(study, accelerators, launch.device, launch.device_count)
        for level in sorted(levels, key=lambda each: each.rate_rps):
            if level.interactivity is not None and level.throughput_tok_per_s > 0:
                final = launch is not candidate.launch
                goals = judged.get(level.level.workload, {})
                points.append(
                    _point(candidate.row.number, level, level.interactivity, price, goals, final=final)
                )
    return tuple(points)


def regions(slas: Iterable[Sla]) -> tuple[Region, ...]:
    """Each SLA's place: its tightest bound on TPOT or interactivity."""
    return tuple(Region(sla.name, sla.describe(), _least_interactivity(sla)) for sla in slas)


def pareto_front(points: Sequence[tuple[float, float]], *, lower_is_better: bool = False) -> tuple[int, ...]:
    """Indices of the points (x, y) that none beats in both, by x; x is better the higher."""
    sign = -1.0 if lower_is_better else 1.0
    best, front = -math.inf, []
    for index in sorted(range(len(points)), key=lambda i: (-points[i][0], -sign * points[i][1])):
        if sign * points[index][1] > best:
            best = sign * points[index][1]
            front.append(index)
    return tuple(reversed(front))


def goldilocks(front: Sequence[tuple[float, float]], *, lower_is_better: bool = False) -> int | None:
    """The front's point, neither end, with the largest x times y (x / y where lower is better).

    None where the front has no point between its ends.
    """
    if len(front) < 3:  # noqa: PLR2004 - two ends
        return None
    worth = [x / y if lower_is_better else x * y for x, y in front[1:-1]]
    return 1 + int(np.argmax(worth))


@dataclass(frozen=True, slots=True)
class _Price:
    devices: int
    per_s: float | None
    per_j: float | None

    @classmethod
    def of(cls, study: StudySpec, accelerators: AcceleratorTable, device: str, devices: int) -> _Price:
        prices = study.power.prices
        known = accelerators.find(device)
        hour = prices.accelerator_hour
        if prices.market is not None:
            at = known.usd_per_hour.get(prices.market) if known else None
            hour = at.usd if at else None
        energy = prices.electricity_per_kwh
        return cls(
            devices,
            hour * devices / SECONDS_PER_HOUR if hour else None,
            energy * prices.pue / JOULES_PER_KWH if energy else None,
        )


def _point(
    trial: int,
    level: LevelDigest,
    interactivity: Figure,
    price: _Price,
    judged: Mapping[str, Goals],
    *,
    final: bool,
) -> Point:
    throughput, per_joule = level.throughput, level.throughput_per_joule
    if price.per_s:
        cost = throughput.inverse().times(price.per_s * 1e6)
    elif price.per_j and per_joule:
        cost = per_joule.inverse().times(price.per_j * 1e6)
    else:
        cost = None
    return Point(
        trial=trial,
        load=level.level.label,
        rate_rps=level.rate_rps,
        open_loop=level.level.rate_rps is not None,
        final=final,
        workload=level.level.workload,
        requests=level.requests,
        interactivity=interactivity,
        throughput=throughput,
        per_device=throughput.times(1 / price.devices),
        per_mw=per_joule.times(WATTS_PER_MW) if per_joule else None,
        cost=cost,
        ttft_p95_s=level.ttft_percentiles_s.get(95),
        verdicts={name: verdict_of(level, goals) for name, goals in judged.items()},
        oversaturated=level.oversaturated,
    )


def _least_interactivity(sla: Sla) -> float:
    least = 0.0
    for bounds, _ in sla.goals():
        for metric, bound in bounds:
            if metric is Metric.TPOT:
                least = max(least, 1 / bound)
            elif metric is Metric.INTERACTIVITY:
                least = max(least, bound)
    return least
