"""Several SLAs at once: each launch is for the SLA with most to gain, and shows all of them their level."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from search_methods import Bench
from search_ours import Autotune
from search_prior import CURVE
from search_replay import CLOSE, Seen, launch


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """Launches until each of ``slas`` SLAs is within 5 %: in one search for all, and in one for each."""

    slas: int
    together: float
    apart: float


def shared_launches(bench: Bench, seeds: int) -> list[Shared]:
    """Every set of two or more SLAs that are sought among the same candidates; means over seeds."""
    groups: dict[str, list[int]] = defaultdict(list)
    for place, problem in enumerate(bench.problems):
        if CURVE in bench.priors[place]:
            groups[problem.name.rpartition(":")[0]].append(place)
    return [
        Shared(
            slas=len(places),
            together=float(np.mean([_launches(bench, places, seed) for seed in range(seeds)])),
            apart=float(
                np.mean([sum(_launches(bench, [one], seed) for one in places) for seed in range(seeds)])
            ),
        )
        for places in groups.values()
        if len(places) > 1
    ]


def _launches(bench: Bench, places: Sequence[int], seed: int) -> int:
    problems = [bench.problems[place] for place in places]
    search = Autotune(problems, [bench.priors[place] for place in places])
    rng = np.random.default_rng((problems[0].seed, seed, 1))
    seen: list[Seen] = []
    while not all(any(p.truth[s.index] >= CLOSE * p.truth.max() for s in seen) for p in problems):
        seen.append(launch(problems[0], search.choose(seen), rng))
    return len(seen)
