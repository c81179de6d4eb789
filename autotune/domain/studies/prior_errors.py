"""How far each prior was off, by the launches of a study so far."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from autotune.domain.search.prior import Prediction
from autotune.domain.search.trust import Learned, Observed, learned
from autotune.domain.studies.records import TrialRow, TrialState

Predictions = Mapping[str, Prediction]
"""What each prior that covers a configuration says of it, by its name."""

_TEACHING = frozenset({TrialState.MEASURED, TrialState.INFEASIBLE})


def prior_errors(rows: Collection[TrialRow], told: Mapping[int, Predictions], sla: str) -> dict[str, Learned]:
    """What launches show of every prior, for one SLA; ``told`` is what they had said, by trial number."""
    observed = [
        Observed(
            row.objectives.get(sla, 0.0),
            {name: prediction.objectives[sla] for name, prediction in told[row.number].items()},
        )
        for row in rows
        if row.state in _TEACHING and row.final_of is None
    ]
    names = {name for predictions in told.values() for name in predictions}
    relative = {name for said in told.values() for name, prediction in said.items() if prediction.relative}
    return {name: learned(name, observed, relative=name in relative) for name in sorted(names)}
