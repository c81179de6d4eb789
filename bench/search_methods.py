"""The methods of the benchmark by name, and what they are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import optuna
from numpy.typing import NDArray
from rich.console import Console
from search_baselines import ForestWithImprovement, Given, Sampled, find_torch
from search_forecasts import Shapes
from search_ours import Autotune
from search_prior import LeaveOut, Library
from search_replay import Chooser, Replay, replay
from search_tables import Problem

from autotune.domain.search.choosing import Foresight, foreseen

Floats = NDArray[np.float64]

SEEDS, SEEDS_OF_DEAR = 10, 3
DEAR = frozenset({"gp", "forest_ei", "tpe"})
MOST_LAUNCHES_OF_DEAR = 40
"""Beyond that many launches a dear method goes on at random: its time would grow without end."""
LAUNCHES_OF_GP = 2500
"""So many has the GP over all problems, at a quarter of a second each; then it goes on at random."""
METHODS = ("random", "tpe", "gp", "forest_ei", "transfer", "prior", "autotune")
"""``transfer`` ranks by a forest, ``prior`` by ours before any launch; neither learns from its launches."""


@dataclass(frozen=True, slots=True)
class Bench:
    """Problems with what earlier tables say of each."""

    problems: Sequence[Problem]
    priors: Sequence[Mapping[str, Foresight]]
    transfers: Sequence[Floats]

    @classmethod
    def prepared(
        cls,
        problems: Sequence[Problem],
        known: Sequence[Problem],
        configs: Mapping[str, Mapping[str, Any]],
        leave_out: LeaveOut = LeaveOut.MODEL,
    ) -> Self:
        """Learn from ``known``, for each problem from other models, or accelerators, than its own."""
        shapes = Shapes(configs)
        library: dict[tuple[str, str], Library] = {}
        for kind in {(p.track, p.family) for p in problems}:
            library[kind] = Library(shapes, [p for p in known if (p.track, p.family) == kind], leave_out)
        of = [library[p.track, p.family] for p in problems]
        return cls(
            problems,
            [own.priors(p) for own, p in zip(of, problems, strict=True)],
            [own.transfer(p) for own, p in zip(of, problems, strict=True)],
        )


def available(method: str, console: Console) -> bool:
    """Whether a method can run here; says why not."""
    if method != "gp" or find_torch():
        return True
    console.print(
        "gp is left out: Optuna's GP needs torch; pip install torch, or autotune engines install vllm"
    )
    return False


def play(bench: Bench, method: str, place: int, seed: int) -> Replay:
    """One replay of a method on a problem."""
    most = MOST_LAUNCHES_OF_DEAR if method in DEAR else None
    if method == "gp":
        most = min(MOST_LAUNCHES_OF_DEAR, LAUNCHES_OF_GP // len(bench.problems))
    return replay(bench.problems[place], _chooser(bench, method, place, seed), seed, most=most)


def _chooser(bench: Bench, method: str, place: int, seed: int) -> Chooser:
    problem = bench.problems[place]
    own_seed = (problem.seed + seed) % 2**32
    match method:
        case "random":
            return Given(np.random.default_rng(own_seed).permutation(len(problem.candidates)).tolist())
        case "tpe":
            return Sampled(
                problem, optuna.samplers.TPESampler(seed=own_seed, multivariate=True, n_startup_trials=5)
            )
        case "gp":
            find_torch()
            return Sampled(problem, optuna.samplers.GPSampler(seed=own_seed, n_startup_trials=5))
        case "forest_ei":
            return ForestWithImprovement(problem, own_seed)
        case "transfer":
            return Given(_ranking(bench.transfers[place], own_seed))
        case "prior":
            alike = np.eye(len(problem.candidates))
            expected = foreseen([], 0, bench.priors[place], alike)
            assert expected is not None
            return Given(_ranking(expected, own_seed))
    return Autotune([problem], [bench.priors[place]])


def _ranking(expected: Floats, seed: int) -> list[int]:
    """The best first; ties at random."""
    ties = np.random.default_rng(seed).random(len(expected))
    return np.lexsort((ties, -expected)).tolist()
