"""Tables of a trial: its words against the defaults, its load levels with what each SLA says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autotune.domain.configs.config import EngineConfig
from autotune.domain.judging.scoring import LevelScore, score_level
from autotune.domain.judging.sla import Sla
from autotune.domain.measuring.digest import LevelDigest, digest
from autotune.domain.measuring.measurement import LoadCurve
from autotune.domain.studies.study import StudySpec


@dataclass(frozen=True, slots=True)
class Word:
    """A word of the vocabulary, here and in the engine's defaults; None: left to the engine."""

    name: str
    value: Any
    default: Any

    @property
    def differs(self) -> bool:
        """Whether it sets the configuration apart."""
        return bool(self.value != self.default)


@dataclass(frozen=True, slots=True)
class LevelRow:
    """One level, and its scores by SLA; none for one on which no SLA is judged."""

    digest: LevelDigest
    scores: dict[str, LevelScore]
    lag_p99_s: float


def words_table(study: StudySpec, config: EngineConfig) -> list[Word]:
    """Every word that is set here or in the defaults."""
    engines = {engine.name: engine for engine in study.engines}
    defaults = study.default_config(engines.get(config.engine)).words
    own = config.words
    return [Word(name, own.get(name), defaults.get(name)) for name in dict.fromkeys([*own, *defaults])]


def level_rows(curve: LoadCurve, slas: Sequence[Sla], study: StudySpec) -> list[LevelRow]:
    """Every level in the order of measuring."""
    rows = []
    for measurement in curve:
        level, found = measurement.level, digest(measurement)
        judged = [s for s in slas if level.rate_rps is not None and study.workload_of(s) == level.workload]
        scores = {sla.name: score_level(found, sla) for sla in judged}
        rows.append(LevelRow(found, scores, measurement.health.lag_p99_s))
    return rows
