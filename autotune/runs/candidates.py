"""The configurations that a search chooses among: those of its spaces that nothing refuses on paper."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence

from autotune.domain.configs.config import EngineConfig, Value
from autotune.domain.configs.space import DEFAULT, Branch
from autotune.domain.studies.feasibility import Setting, why_infeasible
from autotune.domain.studies.study import StudySpec

MOST = 1000
"""Of a larger space not all are looked at: each distinct one costs some milliseconds to forecast."""
MOST_DRAWN = 5000
LEFT_ALONE = 0.6
"""Chance of a drawn dimension to be left to the engine: what departs in everything is worth little."""


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
            is_small = len(points) <= share
            self._all &= is_small
            feasible = self._feasible(branch, points if is_small else _some(branch, study.seed))
            self._always |= dict(itertools.islice(feasible, share))

    def around(self, best: Sequence[EngineConfig]) -> tuple[EngineConfig, ...]:
        """What to choose among, given the best so far."""
        found = dict(self._always)
        for config in () if self._all else best:
            branch = self._branches[config.engine]
            found |= self._feasible(branch, branch.space.neighbours(_point(branch, config)))
        return tuple(found.values())

    def _feasible(
        self, branch: Branch, points: Iterable[Mapping[str, Value]]
    ) -> Iterator[tuple[str, EngineConfig]]:
        """Configurations by key, each once."""
        seen = set()
        for config in map(branch.config_at, points):
            key = config.key
            if key not in self._known:
                self._known[key] = why_infeasible(config, self._setting) is None
            if self._known[key] and key not in seen:
                seen.add(key)
                yield key, config


def _some(branch: Branch, seed: int) -> Iterator[Mapping[str, Value]]:
    """Points that differ from the defaults in one dimension, then drawn ones."""
    yield from branch.space.neighbours(_point(branch, branch.base))
    rng = random.Random(seed)  # noqa: S311 - no secret

    def value(choices: Sequence[Value]) -> Value:
        return DEFAULT if DEFAULT in choices and rng.random() < LEFT_ALONE else rng.choice(choices)

    for _ in range(MOST_DRAWN):
        yield branch.space.draw(value)


def _point(branch: Branch, config: EngineConfig) -> dict[str, Value]:
    """The point of a configuration; where its value lies outside the space the dimension's first."""
    return branch.space.completed(branch.space.point_of(config, branch.base))
