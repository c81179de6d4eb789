"""The search, on Optuna's ask and tell: one Optuna trial per launch, one objective per SLA."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from autotune.domain.config import EngineConfig, Value
from autotune.domain.ports import Outcome, Suggestion
from autotune.domain.space import IntRange, SearchSpace

CONFIG_ATTR = "configuration"
FEASIBILITY = "runs"
"""Name of the constraint: 1 for a configuration that cannot run, -1 for one that can."""
REPEATS_BEFORE_GIVEN = 10
"""After so many suggestions that were tried before, the first point left of the space is given instead."""
_NOT_JUDGED = Outcome(objectives=(), scored=False)


class OptunaSearch:
    """Asks an Optuna study for points of the space, and never gives out one twice."""

    def __init__(
        self,
        study: optuna.Study,
        space: SearchSpace,
        base: EngineConfig,
        *,
        known: Mapping[int, Outcome],
    ) -> None:
        """Go on with ``study``; ``base`` holds the words that no dimension decides.

        Trials that an earlier process left open are closed: with their outcome where it is ``known``.
        """
        self._study, self._space, self._base = study, space, base
        self._open: dict[int, Trial] = {}
        self._settle(known)
        self._tried = {
            self._config(json.loads(t.user_attrs[CONFIG_ATTR])).key
            for t in study.get_trials(deepcopy=False)
            if CONFIG_ATTR in t.user_attrs and t.state is not TrialState.FAIL
        }

    def ask(self) -> Suggestion | None:
        """Suggest a configuration that no trial had before; None when the space is exhausted."""
        left = self._first_left()
        if left is None:
            return None
        for _ in range(REPEATS_BEFORE_GIVEN):
            trial = self._study.ask()
            point: dict[str, Value] = {}
            for name in self._space.dimensions:
                if self._space.applies(name, point):
                    point[name] = _suggest(trial, self._space, name)
            config = self._space.config_at(self._base, point)
            if config.key not in self._tried:
                return self._opened(trial, config)
            self._study.tell(trial, state=TrialState.FAIL)
        return self.begin(left)

    def begin(self, config: EngineConfig) -> Suggestion:
        """Open a trial for a given configuration; samplers learn from it as far as it lies in the space."""
        point = self._space.point_of(config, self._base)
        self._study.enqueue_trial(point)
        trial = self._study.ask()
        for name in point:
            _suggest(trial, self._space, name)
        return self._opened(trial, config)

    def tell(self, number: int, outcome: Outcome) -> None:
        """Close a trial: infeasible as a violated constraint, not judged as FAIL, which samplers skip."""
        trial = self._open.pop(number)
        if not outcome.scored:
            self._study.tell(trial, state=TrialState.FAIL)
            return
        trial.set_constraint(FEASIBILITY, -1.0 if outcome.feasible else 1.0)
        self._study.tell(trial, list(outcome.objectives))

    def _first_left(self) -> EngineConfig | None:
        """The first point that no trial had; quick, as hardly more points come before it than were tried."""
        configs = (self._space.config_at(self._base, point) for point in self._space.points())
        return next((config for config in configs if config.key not in self._tried), None)

    def _opened(self, trial: Trial, config: EngineConfig) -> Suggestion:
        trial.set_user_attr(CONFIG_ATTR, json.dumps(config.words))
        self._open[trial.number] = trial
        self._tried.add(config.key)
        return Suggestion(trial.number, config)

    def _settle(self, known: Mapping[int, Outcome]) -> None:
        for frozen in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self._open[frozen.number] = Trial(self._study, frozen._trial_id)  # noqa: SLF001 - no public name
            self.tell(frozen.number, known.get(frozen.number, _NOT_JUDGED))
        while self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            self._study.tell(self._study.ask(), state=TrialState.FAIL)

    def _config(self, words: dict[str, Value]) -> EngineConfig:
        return EngineConfig.model_validate({"engine": self._base.engine, **words})


def open_study(name: str, storage: BaseStorage, *, slas: Sequence[str], seed: int) -> optuna.Study:
    """Create or load the Optuna study: an objective per SLA, each to be maximised."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # ``group`` and metric names are marked experimental; pinned below the next major release.
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    # group: trials of the defaults have few of the space's parameters, or none.
    sampler = optuna.samplers.TPESampler(multivariate=True, group=True, n_startup_trials=5, seed=seed)
    study = optuna.create_study(
        study_name=name,
        storage=storage,
        sampler=sampler,
        directions=["maximize"] * len(slas),
        load_if_exists=True,
    )
    study.set_metric_names(list(slas))
    return study


def frozen_trial(study: optuna.Study, number: int) -> FrozenTrial:
    """A trial as stored; Optuna numbers trials from 0 in the order they are listed."""
    return study.get_trials(deepcopy=False)[number]


def _suggest(trial: Trial, space: SearchSpace, name: str) -> Value:
    dimension = space.dimensions[name]
    if isinstance(dimension, IntRange) and not dimension.log:
        return trial.suggest_int(name, dimension.low, _last(dimension), step=dimension.step)
    value = trial.suggest_categorical(name, list(space.choices(name)))
    assert value is not None
    return value


def _last(dimension: IntRange) -> int:
    """Optuna wants a range that its step divides."""
    return dimension.high - (dimension.high - dimension.low) % dimension.step
