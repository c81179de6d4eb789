"""A search replayed on a problem: a launch reveals a candidate's recorded levels, with the recorded noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from search_tables import Levels, Problem

Floats = NDArray[np.float64]

LATENCY_CV, THROUGHPUT_CV = 0.012, 0.012
"""Between the median and the third quartile of what repeats of a configuration showed (0.8 %, 1.9 %)."""
OUTLIER_CHANCE, OUTLIER_SHARE = 0.005, 0.25
FEWEST_LAUNCHES = 10
"""A replay goes on at least so far: regret is told after up to ten."""
CLOSE, CLOSEST = 0.95, 0.99


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen(Levels):
    """One launch: which candidate, and what it revealed."""

    index: int


class Chooser(Protocol):
    """One method on one problem: which candidate is launched next."""

    def choose(self, seen: Sequence[Seen], /) -> int:
        """The index of a candidate that was not launched yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """How a search went: launches to within 5 % and 1 % of the best, shares lost after 3, 5, 10 launches."""

    to_5pct: int
    to_1pct: int
    regret: tuple[float, float, float]


def launch(problem: Problem, index: int, rng: np.random.Generator) -> Seen:
    """What a launch of a candidate reveals."""
    candidate = problem.candidates[index]
    levels = len(candidate.values)
    noisy = candidate.values * np.exp(THROUGHPUT_CV * rng.standard_normal(levels))
    outlying = rng.random(levels) < OUTLIER_CHANCE
    noisy = np.where(outlying, noisy * (1 - OUTLIER_SHARE), noisy)
    speeds = candidate.interactivity * np.exp(LATENCY_CV * rng.standard_normal(levels))
    return Seen(index=index, concurrency=candidate.concurrency, interactivity=speeds, values=noisy)


def replay(problem: Problem, chooser: Chooser, seed: int, *, most: int | None = None) -> Replay:
    """Launch what a method chooses until the best is found; beyond ``most`` launches at random."""
    rng = np.random.default_rng((problem.seed, seed, 1))
    size, goal = len(problem.candidates), CLOSEST * problem.truth.max()
    seen: list[Seen] = []
    shares: list[float] = []
    while len(seen) < size and (len(seen) < FEWEST_LAUNCHES or max(shares) * problem.truth.max() < goal):
        if most is not None and len(seen) >= most:
            index = int(rng.choice(np.setdiff1d(np.arange(size), [one.index for one in seen])))
        else:
            index = chooser.choose(seen)
        if any(one.index == index for one in seen):
            raise AssertionError(f"{problem.name}: candidate {index} was launched before")
        seen.append(launch(problem, index, rng))
        shares.append(float(problem.truth[index] / problem.truth.max()))
    best = np.maximum.accumulate(shares)
    return Replay(
        to_5pct=int(np.argmax(best >= CLOSE)) + 1,
        to_1pct=int(np.argmax(best >= CLOSEST)) + 1,
        regret=tuple(float(1 - best[min(k, len(best)) - 1]) for k in (3, 5, 10)),  # type: ignore[arg-type]
    )
