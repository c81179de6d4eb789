"""What a benchmark of searches prints and writes: launches to the best, regret, intervals over problems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from search_replay import Replay

RESAMPLES = 2000
Results = Mapping[str, Sequence[Replay]]
"""Replays of one method, an entry per seed, by the problem's name."""


def summary(results: Results) -> dict[str, Any]:
    """The figures of one method: every problem counts once, by the mean of its seeds."""
    to_5pct, to_1pct, regret = _per_problem(results)
    return {
        "problems": len(results),
        "median_launches_5pct": float(np.median(to_5pct)),
        "mean_launches_5pct": float(to_5pct.mean()),
        "median_launches_1pct": float(np.median(to_1pct)),
        "regret_after": dict(zip(("3", "5", "10"), regret.mean(axis=0).tolist(), strict=True)),
    }


def intervals(results: Results) -> dict[str, tuple[float, float]]:
    """90 % intervals of the means, by bootstrap over problems."""
    to_5pct, _, regret = _per_problem(results)
    draws = np.random.default_rng(0).integers(len(to_5pct), size=(RESAMPLES, len(to_5pct)))
    return {
        "mean_launches_5pct": _middle(to_5pct[draws].mean(axis=1)),
        "regret_after_5": _middle(regret[draws, 1].mean(axis=1)),
    }


def lead(ours: Results, other: Results) -> dict[str, tuple[float, float]]:
    """90 % intervals of how much less ours needs, problem by problem: positive is better."""
    names = list(ours)
    mine, _, my_regret = _per_problem(ours)
    theirs, _, their_regret = _per_problem({name: other[name] for name in names})
    draws = np.random.default_rng(0).integers(len(names), size=(RESAMPLES, len(names)))
    return {
        "mean_launches_5pct": _middle((theirs - mine)[draws].mean(axis=1)),
        "regret_after_5": _middle((their_regret - my_regret)[draws, 1].mean(axis=1)),
    }


def _middle(means: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(means, [0.05, 0.95])
    return float(low), float(high)


def _per_problem(results: Results) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    to_5pct = np.array([np.mean([one.to_5pct for one in seeds]) for seeds in results.values()])
    to_1pct = np.array([np.mean([one.to_1pct for one in seeds]) for seeds in results.values()])
    regret = np.array([np.mean([one.regret for one in seeds], axis=0) for seeds in results.values()])
    return to_5pct, to_1pct, regret
