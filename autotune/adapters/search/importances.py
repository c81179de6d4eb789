"""What mattered: how much of an objective's best trials each parameter explains, by Optuna's PED-ANOVA."""

from __future__ import annotations

import warnings

import optuna
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.storages import BaseStorage

FEWEST_TRIALS = 4
"""With fewer judged trials than this nothing is said."""


def importances(name: str, storage: BaseStorage, *, objective: int) -> dict[str, float]:
    """Shares by parameter, the greatest first; empty where too few trials were judged or none differ."""
    study = optuna.load_study(study_name=name, storage=storage)
    done = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if len(done) < FEWEST_TRIALS or len({trial.values[objective] for trial in done}) == 1:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            # It explains low values, so the objective's sign is turned.
            found = optuna.importance.get_param_importances(
                study,
                evaluator=PedAnovaImportanceEvaluator(),
                target=lambda trial: -float(trial.values[objective]),
            )
        except (ValueError, RuntimeError):
            # No parameter is in every trial: nothing to compare by.
            return {}
    return {name: float(share) for name, share in found.items()}
