"""Which configurations priors put first: the best few, each SLA in turn, while launches bear them out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from autotune.domain.configs.config import EngineConfig
from autotune.domain.search.prior import Prediction
from autotune.domain.search.trust import Learned, Observed, combined, learned
from autotune.domain.studies.records import TrialRow, TrialState

MOST = 3
"""Trials that priors may have before the search chooses."""

Predictions = Mapping[str, Prediction]
"""What each prior that covers a configuration says of it, by its name."""

_TEACHING = frozenset({TrialState.MEASURED, TrialState.INFEASIBLE})


@dataclass(frozen=True, slots=True)
class Ranked:
    """A configuration of the space, with what priors say of it."""

    config: EngineConfig
    predictions: Predictions


def next_pick(
    candidates: Sequence[Ranked],
    rows: Collection[TrialRow],
    slas: Sequence[str],
    *,
    turn: int,
    predict: Callable[[EngineConfig], Predictions],
) -> EngineConfig | None:
    """The candidate that priors together put first for the SLA whose turn it is; None where there is none.

    Configurations that no prior can tell from one that was launched are passed over.
    """
    sla = slas[turn % len(slas)]
    told = {row.number: predict(row.config) for row in rows}
    trust = trust_of(rows, told, sla)
    known = {_figures(predictions) for predictions in told.values()}
    best: tuple[float, int, EngineConfig] | None = None
    for candidate in candidates:
        if _figures(candidate.predictions) in known:
            continue
        belief = combined(_at(candidate.predictions, sla), trust)
        if belief is None or belief.log_mean == -inf:
            continue
        rank = (belief.log_mean, -len(candidate.config.words))
        if best is None or rank > best[:2]:
            best = (*rank, candidate.config)
    return best[2] if best else None


def trust_of(rows: Collection[TrialRow], told: Mapping[int, Predictions], sla: str) -> dict[str, Learned]:
    """What the launches so far show of every prior, for one SLA."""
    observed = [
        Observed(row.objectives.get(sla, 0.0), _at(told[row.number], sla))
        for row in rows
        if row.state in _TEACHING and row.final_of is None
    ]
    names = {name for predictions in told.values() for name in predictions}
    relative = {name for said in told.values() for name, prediction in said.items() if prediction.relative}
    return {name: learned(name, observed, relative=name in relative) for name in sorted(names)}


def _at(predictions: Predictions, sla: str) -> dict[str, float]:
    return {name: prediction.objectives[sla] for name, prediction in predictions.items()}


def _figures(predictions: Predictions) -> tuple[str, ...]:
    """What priors say, to two digits: more than that none of them can tell apart."""
    return tuple(
        f"{name} {sla} {value:.2g}"
        for name, prediction in sorted(predictions.items())
        for sla, value in prediction.objectives.items()
    )
