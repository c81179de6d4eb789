"""Ours: a prior of roofline and earlier tables, corrected as launches come in, as a study does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from search_features import resemblance
from search_forecasts import seen_levels
from search_replay import Seen
from search_tables import Problem

from autotune.domain.search.choosing import Foresight, Launch, next_point
from autotune.domain.search.likeness import Likeness


class Autotune:
    """One search for one or more problems that differ in their SLA alone."""

    def __init__(self, problems: Sequence[Problem], foresights: Sequence[Mapping[str, Foresight]]) -> None:
        self._problems, self._foresights = problems, foresights
        alike = resemblance(problems[0])
        self._alike = Likeness(alike, alike)

    def choose(self, seen: Sequence[Seen]) -> int:
        launches = [
            Launch(
                index=one.index,
                objectives=tuple(one.best_at(problem.sla) for problem in self._problems),
                levels=dict.fromkeys(range(len(self._problems)), seen_levels(one)),
            )
            for one in seen
        ]
        candidates = self._problems[0].candidates
        left = np.setdiff1d(np.arange(len(candidates)), [one.index for one in seen])
        points = [candidate.knobs for candidate in candidates]
        return next_point(points, launches, self._foresights, among=left.tolist(), alike=self._alike)
