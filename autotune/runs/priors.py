"""The priors of a study: what they say of configurations, and how far they turned out to be off."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from autotune.domain.configs.config import EngineConfig
from autotune.domain.search.choosing import ByObjective, Foresight
from autotune.domain.search.prior import Prediction
from autotune.domain.studies.events import Notice
from autotune.domain.studies.ports import CurvePrior, EventSink, Prior
from autotune.domain.studies.prior_errors import Predictions, prior_errors
from autotune.domain.studies.records import TrialRow


class Priors:
    """All priors of a study, by name; ``slas`` are its SLAs' names."""

    def __init__(self, priors: Mapping[str, Prior], slas: Sequence[str]) -> None:
        self._priors, self._slas = priors, tuple(slas)

    def foresee(self, configs: Sequence[EngineConfig]) -> list[dict[str, Foresight]]:
        """What each prior says of configurations, for every SLA."""
        return [
            {name: _foresight(prior, configs, sla) for name, prior in self._priors.items()}
            for sla in self._slas
        ]

    def predicted(self, config: EngineConfig) -> dict[str, float]:
        """Objective per SLA as the first prior says that knows more than an order; empty where none does."""
        absolute = (p for p in self._predictions(config).values() if not p.relative)
        return next((dict(prediction.objectives) for prediction in absolute), {})

    def rates(self, config: EngineConfig) -> dict[str, float]:
        """Capacity per SLA, requests per second, as the first prior says that can tell it."""
        told = (p.expected for p in self._predictions(config).values() if not p.relative)
        return {sla: at.rate_rps for sla, at in next(told, {}).items()}

    def report(self, rows: Collection[TrialRow], sink: EventSink) -> None:
        """Say how far each prior was off, as soon as there are launches to say it by."""
        told = {row.number: self._predictions(row.config) for row in rows}
        for sla in self._slas:
            for name, shown in prior_errors(rows, told, sla).items():
                if shown.error is not None:
                    believed = (
                        "" if shown.believed else "; it ranks no better than chance, and is not followed"
                    )
                    sink(
                        Notice(
                            f"prior {name}, {sla}: off by a factor of {shown.error:.3g} in the median of "
                            f"{shown.launches} launches, agreement of ranks {shown.agreement:+.2f}{believed}"
                        )
                    )

    def _predictions(self, config: EngineConfig) -> Predictions:
        said = {name: prior.predict(config) for name, prior in self._priors.items()}
        return {name: prediction for name, prediction in said.items() if isinstance(prediction, Prediction)}


def _foresight(prior: Prior, configs: Sequence[EngineConfig], sla: str) -> Foresight:
    """Whole load curves where the prior forecasts them, else objectives."""
    if isinstance(prior, CurvePrior):
        return prior.curves(configs, sla)
    said = [prior.predict(config) for config in configs]
    told = [p.objectives[sla] if isinstance(p, Prediction) else np.nan for p in said]
    relative = any(p.relative for p in said if isinstance(p, Prediction))
    with np.errstate(divide="ignore"):
        return ByObjective(np.log(told), relative=relative)
