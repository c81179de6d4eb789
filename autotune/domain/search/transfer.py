"""Earlier studies as a prior: configurations near one are thought to stand to the others as those did.

Another model or another GPU moves every objective; the order of configurations moves less. So an earlier
study counts by its logarithms about their median: each known configuration votes with its own, by how near
it is (a kernel on the words that differ, Nadaraya-Watson), and each study by what it shares with this one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import exp, log
from statistics import median
from typing import Any

from autotune.domain.configs.config import EngineConfig
from autotune.domain.search.likeness import alike
from autotune.domain.search.prior import NotCovered, Prediction

SOURCE = "transfer"
WIDTH = 0.5
"""Distance at which a vote counts by 1/e."""
FAR = 2.0
"""Distance beyond which nothing is said."""
MISSED = 0.1
"""What a configuration that missed or could not run counts as, of its study's median."""
FEWEST = 3
"""Measured trials that make an earlier study worth asking."""

_KIN = {"engine": 0.5, "model": 0.6, "device": 0.7}
"""By what a study's vote is multiplied for each of these that is not the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a study was about, as far as two studies can have it in common; "" where not known."""

    model: str
    device: str


@dataclass(frozen=True, slots=True)
class Trial:
    """An earlier trial: its objective, one number over its SLAs; 0 where it missed all or could not run."""

    config: EngineConfig
    objective: float


@dataclass(frozen=True, slots=True)
class Earlier:
    """An earlier study."""

    task: Task
    trials: tuple[Trial, ...]


class TransferPrior:
    """Predicts from earlier studies, up to a common factor."""

    def __init__(self, here: Task, earlier: Sequence[Earlier], slas: Sequence[str]) -> None:
        self._here, self._slas = here, tuple(slas)
        self._known = [(study.task, *vote) for study in earlier for vote in _votes(study)]

    def predict(self, config: EngineConfig) -> Prediction | NotCovered:
        """Kernel mean of the votes; not covered where no earlier configuration is near."""
        weight = total = 0.0
        for task, other, vote in self._known:
            far = distance(config, other)
            if far < FAR:
                counts = exp(-far / WIDTH) * _kinship(self._here, task, config.engine == other.engine)
                weight, total = weight + counts, total + counts * vote
        if not weight:
            return NotCovered("no earlier study has a configuration near this one")
        objective = exp(total / weight)
        return Prediction(source=SOURCE, objectives=dict.fromkeys(self._slas, objective), relative=True)


def _votes(study: Earlier) -> list[tuple[EngineConfig, float]]:
    met = [trial.objective for trial in study.trials if trial.objective > 0]
    if len(met) < FEWEST:
        return []
    middle = median(met)
    return [
        (trial.config, log(max(trial.objective / middle, MISSED)) if trial.objective else log(MISSED))
        for trial in study.trials
    ]


def _kinship(here: Task, there: Task, same_engine: bool) -> float:
    same = {"engine": same_engine, "model": here.model == there.model, "device": here.device == there.device}
    kinship = 1.0
    for part, is_same in same.items():
        kinship *= 1.0 if is_same else _KIN[part]
    return kinship


def distance(one: EngineConfig, other: EngineConfig) -> float:
    """How far two configurations are apart: 1 for each word that differs, less for numbers that are near."""
    words, others = _words(one), _words(other)
    return sum(1 - alike(words.get(word), others.get(word)) for word in words.keys() | others.keys())


@lru_cache(maxsize=10_000)
def _words(config: EngineConfig) -> Mapping[str, Any]:
    return config.words
