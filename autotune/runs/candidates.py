"""The configurations that a search chooses among: those of its spaces that nothing refuses on paper."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from autotune.domain.configs.config import EngineConfig, Value
from autotune.domain.configs.space import Branch
from autotune.domain.studies.feasibility import Setting, why_infeasible
from autotune.domain.studies.study import StudySpec

MOST = 1000
"""Of a larger space not all are looked at: each distinct one costs some milliseconds to forecast."""


class Candidates:
    """All of a small space; of a large one what is near the defaults or the best so far, and some drawn."""

    def __init__(self, study: StudySpec, setting: Setting) -> None:
        self._setting = setting
        self._branches = {branch.base.engine: branch for branch in study.branches}
        share = MOST // len(self._branches)
        self._known: dict[str, bool] = {}
        self._always: dict[str, EngineConfig] = {}
        self._all = True
        for branch in self._branches.values():
            points = list(itertools.islice(branch.space.points(), share + 1))
            if len(points) > share:
                self._all = False
                points = list(itertools.islice(_some(branch, study.seed), share))
            self._always |= self._feasible(branch, points)

    def around(self, best: Sequence[EngineConfig]) -> tuple[EngineConfig, ...]:
        """What to choose among, given the best so far."""
        found = dict(self._always)
        for config in () if self._all else best:
            branch = self._branches[config.engine]
            found |= self._feasible(branch, branch.space.neighbours(_point(branch, config)))
        return tuple(found.values())

    def _feasible(self, branch: Branch, points: Iterable[Mapping[str, Value]]) -> dict[str, EngineConfig]:
        configs = {config.key: config for config in map(branch.config_at, points)}
        for key in configs.keys() - self._known.keys():
            self._known[key] = why_infeasible(configs[key], self._setting) is None
        return {key: config for key, config in configs.items() if self._known[key]}


def _some(branch: Branch, seed: int) -> Iterator[dict[str, Value]]:
    """Points that differ from the defaults in one dimension or in two, then drawn ones, without end."""
    defaults = _point(branch, branch.base)
    near = list(branch.space.neighbours(defaults))
    yield from near
    choose: Callable[[Sequence[Any]], Any] = random.Random(seed).choice  # noqa: S311 - no secret
    for _ in range(MOST // 2):
        yield choose(list(branch.space.neighbours(choose(near))))
    while True:
        yield branch.space.draw(choose)


def _point(branch: Branch, config: EngineConfig) -> dict[str, Value]:
    """The point of a configuration; where its value lies outside the space the dimension's first."""
    return branch.space.completed(branch.space.point_of(config, branch.base))
