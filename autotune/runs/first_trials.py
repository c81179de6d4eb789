"""The trials that priors ask for: after the given ones, before the search chooses."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from autotune.domain.configs.config import EngineConfig
from autotune.domain.search.prior import Prediction
from autotune.domain.studies.events import Notice
from autotune.domain.studies.first_trials import MOST, Predictions, Ranked, next_pick, trust_of
from autotune.domain.studies.ports import EventSink, Prior
from autotune.domain.studies.records import Purpose, TrialRow


class FirstTrials:
    """Picks configurations by priors; ``candidates`` are asked for when the first pick is."""

    def __init__(
        self,
        priors: Mapping[str, Prior],
        candidates: Callable[[], Sequence[EngineConfig]],
        slas: Sequence[str],
    ) -> None:
        self._priors, self._candidates, self._slas = priors, candidates, tuple(slas)
        self._ranked: list[Ranked] | None = None

    def predicted(self, config: EngineConfig) -> dict[str, float]:
        """Objective per SLA as the first prior says that knows more than an order; empty where none does."""
        absolute = (p for p in self._predictions(config).values() if not p.relative)
        return next((dict(prediction.objectives) for prediction in absolute), {})

    def rates(self, config: EngineConfig) -> dict[str, float]:
        """Capacity per SLA, requests per second, as the first prior says that can tell it."""
        told = (p.expected for p in self._predictions(config).values() if not p.relative)
        return {sla: at.rate_rps for sla, at in next(told, {}).items()}

    def next(self, rows: Collection[TrialRow], given: Collection[EngineConfig]) -> EngineConfig | None:
        """The next configuration to launch; None once the search is to choose.

        ``given`` are those that the study file asked for, which are no picks of a prior.
        """
        keys = {config.key for config in given}
        picks = sum(row.purpose is Purpose.SEARCH and row.config.key not in keys for row in rows)
        if not self._priors or picks >= MOST:
            return None
        if self._ranked is None:
            ranked = (Ranked(config, self._predictions(config)) for config in self._candidates())
            self._ranked = [candidate for candidate in ranked if candidate.predictions]
        return next_pick(self._ranked, rows, self._slas, turn=picks, predict=self._predictions)

    def report(self, rows: Collection[TrialRow], sink: EventSink) -> None:
        """Say how far each prior was off, as soon as there are launches to say it by."""
        told = {row.number: self._predictions(row.config) for row in rows}
        for sla in self._slas:
            for name, shown in trust_of(rows, told, sla).items():
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


NO_PRIOR = FirstTrials({}, tuple, ("",))
"""Picks nothing and says nothing."""
