"""Which point of a search space to launch next.

What priors foresee is corrected by launches (a Gaussian process on their errors), and while that promises
more than was reached, the point that is most likely best is next: on the steep side of an SLA a wide guess
would make each doubtful one look like the winner. When it promises no more, or nothing is foreseen, the point
with the most expected improvement is next: of words that no prior knows launches alone can tell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from autotune.domain.configs.space import DEFAULT
from autotune.domain.search.culprits import chances_to_run
from autotune.domain.search.curves import Curves, Excess, SeenLevels
from autotune.domain.search.likeness import Likeness, Point, likeness
from autotune.domain.search.surrogate import Beliefs, condition
from autotune.domain.search.trust import Learned, Observed, learned

Floats = NDArray[np.float64]

_erf = np.vectorize(math.erf, otypes=[np.float64])

COLD = Beliefs(offset=1.0, spread=1.0, own=0.1, noise=0.05)
"""Of the logarithms of objectives, about the median of those seen: a word may well change them by half."""
OFF = Beliefs(offset=0.6, spread=0.4, own=0.15, noise=0.05)
"""Of the errors of priors, of their curves or of the objective that they foresee."""
RELATIVE = Beliefs(offset=20.0, spread=0.6, own=0.1, noise=0.05)
"""Of those that know it only up to a factor, whatever that is."""
SECONDS = Beliefs(offset=0.1, spread=0.5, own=0.1, noise=0.2)
"""Of the logarithms of the seconds that launches took, about their median."""
MISS, MISS_NOISE = 0.7, 0.7
"""How far below what was foreseen, or below the least seen, a launch counts that missed its SLA."""
UNMET_GAIN = 2.0
"""What meeting an SLA at all is worth, as a logarithm, divided by the launches that have missed it."""
DEPARTURE = 0.01
"""What each word that is not left to the engine must earn, as a logarithm."""
SHARPER = 1.5
"""By which power of likeness neighbours speak of whether a point runs."""
LIKELY = 0.5
"""Chance of running below which a point is left for last: then a launch of it is more likely in vain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A launch of the point at ``index``: an objective for each SLA (0: missed), and what its levels showed.

    ``levels`` are by the SLA's place, without those of which no level was seen; ``seconds`` is what it took.
    """

    index: int
    objectives: tuple[float, ...]
    runs: bool = True
    seconds: float | None = None
    levels: Mapping[int, SeenLevels] = field(default_factory=dict)


class Foresight(Protocol):
    """What one prior says of all points for one SLA, in logarithms of the objective."""

    @property
    def relative(self) -> bool:
        """Whether it knows objectives only up to a common factor."""

    @property
    def expected(self) -> Floats:
        """Before any launch, [points]; minus infinity for a miss foreseen, NaN where nothing is said."""

    def corrected(self, launches: Sequence[Launch], sla: int, alike: Floats) -> Floats:
        """After launches, [points]."""


@dataclass(frozen=True, slots=True)
class ByObjective:
    """A prior that foresees an objective for each point."""

    expected: Floats
    relative: bool = False

    def corrected(self, launches: Sequence[Launch], sla: int, alike: Floats) -> Floats:
        """Correct it by the factors that launches were off by, for them and for what is like them."""
        told = [one for one in launches if one.runs and np.isfinite(self.expected[one.index])]
        at = np.array([one.index for one in told], dtype=np.int64)
        measured = np.array([one.objectives[sla] for one in told])
        met = measured > 0
        off = np.where(met, np.log(np.where(met, measured, 1.0)) - self.expected[at], -MISS)
        beliefs, zeros = RELATIVE if self.relative else OFF, np.zeros(len(self.expected))
        noise = np.where(met, beliefs.noise, MISS_NOISE)
        return self.expected + condition(zeros, beliefs.covariance(alike), at, off, noise).mean


@dataclass(frozen=True, slots=True)
class ByCurve:
    """A prior that forecasts each point's load curve; ``errors`` [points, kinds + 1] are expected of it."""

    curves: Curves
    excess: Excess
    errors: Floats
    relative: bool = False

    @property
    def expected(self) -> Floats:
        """The best value within the SLA."""
        return self.curves.best_at(self.excess, self.errors)

    def corrected(self, launches: Sequence[Launch], sla: int, alike: Floats) -> Floats:
        """Move every curve by the errors that launches showed of it, and of what is like it."""
        told = [
            (one.index, levels)
            for one in launches
            if (levels := one.levels.get(sla)) is not None and self.curves.says_of(one.index)
        ]
        at = np.array([index for index, _ in told], dtype=np.int64)
        off = [self.curves.error(index, levels, self.excess) for index, levels in told]
        noise = np.full(len(told), OFF.noise)
        covariance = OFF.covariance(alike)
        seen = np.array(off).reshape(len(told), self.errors.shape[1])
        return self.curves.best_at(self.excess, condition(self.errors, covariance, at, seen, noise).mean)


def next_point(
    points: Sequence[Point],
    launches: Sequence[Launch],
    foresights: Sequence[Mapping[str, Foresight]],
    *,
    among: Sequence[int],
    alike: Likeness | None = None,
    costs: Floats | None = None,
) -> int:
    """The point ``among`` some, by index, to launch next; ``foresights`` are those of each SLA, by name.

    It is of the SLA with the most to gain for the seconds that its launch will likely take, and for what a
    second costs where there are ``costs`` [points]. ``alike`` is how alike points are, if not by their
    words. Raises ValueError if there is nothing to choose.
    """
    alike, left = alike or likeness(points), np.array(among, dtype=np.int64)
    ran, failed = ([one.index for one in launches if one.runs is runs] for runs in (True, False))
    chances = chances_to_run(points, ran, failed, alike.together**SHARPER)
    likely = left[chances[left] >= LIKELY]
    if not len(likely):
        return int(left[np.argmax(chances[left])])
    departures = np.array([sum(value != DEFAULT for value in point.values()) for point in points])
    merits = np.log(np.maximum(chances, 1e-9)) - DEPARTURE * departures
    prices = likely_seconds(launches, alike.whole) * (1.0 if costs is None else costs)
    choice = _Choice(likely, merits, prices)
    picks = [_pick(launches, sla, known, alike.whole, choice) for sla, known in enumerate(foresights)]
    _, chosen = max(picks, key=lambda pick: pick[0] / prices[pick[1]])
    return chosen


def likely_seconds(launches: Sequence[Launch], alike: Floats) -> Floats:
    """How long a launch of each point will likely take, [points], by those that ran; 1 where none tells."""
    told = [(one.index, math.log(one.seconds)) for one in launches if one.runs and one.seconds]
    at, seconds = np.array([index for index, _ in told], dtype=np.int64), np.array([s for _, s in told])
    usual = float(np.median(seconds)) if told else 0.0
    zeros, noise = np.zeros(len(alike)), np.full(len(told), SECONDS.noise)
    off = condition(zeros, SECONDS.covariance(alike), at, seconds - usual, noise).mean
    likely: Floats = np.exp(usual + off)
    return likely


@dataclass(frozen=True, slots=True)
class _Choice:
    """Which points there are to choose among; of all, what is added to values, and what a launch costs."""

    left: NDArray[np.int64]
    merits: Floats
    prices: Floats


def _pick(
    launches: Sequence[Launch],
    sla: int,
    foresights: Mapping[str, Foresight],
    alike: Floats,
    choice: _Choice,
) -> tuple[float, int]:
    """The point for one SLA, and the gain expected of it, as a logarithm.

    Prices decide between points to explore; the one that is foreseen to be best is worth its launch.
    """
    left, merits = choice.left, choice.merits
    best = max((one.objectives[sla] for one in launches), default=0.0)
    unmet_gain = UNMET_GAIN / (1 + sum(one.runs for one in launches))
    known = foreseen(launches, sla, foresights, alike)
    if known is not None:
        expected = known[left] + merits[left]
        place = int(np.argmax(expected))
        gain = expected[place] - math.log(best) if best else unmet_gain
        if np.isfinite(expected[place]) and gain > 0:
            return float(gain), int(left[place])
    improvement = (_improvement(launches, sla, known if best else None, alike) * np.exp(merits))[left]
    place = int(np.argmax(improvement / choice.prices[left]))
    return float(improvement[place]) if best else unmet_gain, int(left[place])


def foreseen(
    launches: Sequence[Launch], sla: int, foresights: Mapping[str, Foresight], alike: Floats
) -> Floats | None:
    """What priors that may be followed say together, corrected by launches; None where there is none."""
    values, weights = [], []
    for name, prior in foresights.items():
        trust = _trust(name, prior, launches, sla)
        if not trust.believed:
            continue
        corrected = prior.corrected(launches, sla, alike)
        known = corrected[np.isfinite(corrected)]
        if len(known):
            # A point that a prior says nothing of stands in the middle of those it knows.
            values.append(np.where(np.isnan(corrected), np.median(known), corrected))
            weights.append(trust.weight)
    return np.average(values, axis=0, weights=weights) if values else None


def _trust(name: str, prior: Foresight, launches: Sequence[Launch], sla: int) -> Learned:
    expected = prior.expected
    observed = [
        Observed(one.objectives[sla], {name: math.exp(expected[one.index])})
        for one in launches
        if one.runs and not math.isnan(expected[one.index])
    ]
    return learned(name, observed, relative=prior.relative)


def _improvement(launches: Sequence[Launch], sla: int, known: Floats | None, alike: Floats) -> Floats:
    """Expected improvement over the best so far, in logarithms.

    Expected is what is foreseen, else what launches alone tell; they say too how far it may be off.
    """
    told = [one for one in launches if one.runs]
    at = np.array([one.index for one in told], dtype=np.int64)
    measured = np.array([one.objectives[sla] for one in told])
    met = measured > 0
    values = np.log(np.where(met, measured, 1.0))
    centre, least = (float(np.median(values[met])), values[met].min()) if met.any() else (0.0, 0.0)
    values = np.where(met, values, least - MISS) - centre
    zeros = np.zeros(len(alike))
    beliefs = COLD if known is None else OFF
    covariance = beliefs.covariance(alike)
    after = condition(zeros, covariance, at, values, np.where(met, beliefs.noise, MISS_NOISE))
    spread = np.sqrt(np.maximum(after.variance, 1e-12))
    mean = after.mean if known is None else np.nan_to_num(known, neginf=-1e3) - centre
    return expected_improvement(mean, spread, float(values[met].max(initial=0.0)))


def expected_improvement(mean: Floats, spread: Floats, best: float) -> Floats:
    """Expected improvement over ``best`` of normally distributed values (Jones et al. 1998)."""
    z = (mean - best) / spread
    density = np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    improvement: Floats = spread * (z * 0.5 * (1 + _erf(z / math.sqrt(2))) + density)
    return improvement
