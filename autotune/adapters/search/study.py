"""The search, on Optuna's ask and tell: one Optuna trial per launch, one objective per SLA."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, Self

import optuna
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from autotune.adapters.search.sampler import LEVELS_ATTR, SECONDS_ATTR, levels_as_json
from autotune.domain.configs.config import EngineConfig, Value
from autotune.domain.configs.space import Branch, IntRange
from autotune.domain.studies.ports import NOT_JUDGED, Outcome, Suggestion

CONFIG_ATTR = "configuration"
ENGINE = "engine"
"""Name of the parameter that chooses between engines, where a study has several."""
FEASIBILITY = "runs"
"""Name of the constraint: 1 for a configuration that cannot run, -1 for one that can."""
REPEATS_BEFORE_GIVEN = 10
"""After so many suggestions that were tried before, the first point left of the space is given instead."""


@dataclass(frozen=True, slots=True)
class Naming:
    """Names of Optuna's parameters for the dimensions of each engine's space.

    With several engines the engine is the first parameter, and each engine's dimensions are parameters of
    their own, ``vllm/max_num_seqs``: what one engine makes of a word tells little of another.
    """

    branches: Mapping[str, Branch]

    @classmethod
    def of(cls, branches: Sequence[Branch]) -> Self:
        """The names for the spaces of some engines."""
        return cls({branch.base.engine: branch for branch in branches})

    @property
    def several(self) -> bool:
        """Whether there is a choice between engines."""
        return len(self.branches) > 1

    def parameter(self, engine: str, word: str) -> str:
        """The parameter that decides a word of an engine."""
        return f"{engine}/{word}" if self.several else word

    def branch(self, params: Mapping[str, Any]) -> Branch:
        """The branch that parameters lie in."""
        return self.branches[params[ENGINE]] if self.several else next(iter(self.branches.values()))

    def word(self, parameter: str) -> str:
        """The word that a parameter decides."""
        return parameter.rpartition("/")[2]

    def params_of(self, config: EngineConfig) -> dict[str, Value]:
        """Parameters of a configuration, as far as it lies in its engine's space."""
        branch = self.branches[config.engine]
        point = branch.space.point_of(config, branch.base)
        own = {self.parameter(config.engine, word): value for word, value in point.items()}
        return {ENGINE: config.engine, **own} if self.several else own

    def config_of(self, params: Mapping[str, Any]) -> EngineConfig:
        """The configuration at some parameters; what they do not decide is as in the engine's base."""
        return self.branch(params).config_at({self.word(n): v for n, v in params.items() if n != ENGINE})


class OptunaSearch:
    """Asks an Optuna study for points of the spaces, and never gives out one twice."""

    def __init__(
        self, study: optuna.Study, branches: Sequence[Branch], *, known: Mapping[int, Outcome]
    ) -> None:
        """Go on with ``study``.

        Trials that an earlier process left open are closed: with their outcome where it is ``known``.
        """
        self._study = study
        self._naming = Naming.of(branches)
        self._open: dict[int, Trial] = {}
        self._settle(known)
        self._tried = {
            EngineConfig.model_validate(json.loads(t.user_attrs[CONFIG_ATTR])).key
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
            branch = self._naming.branches[self._engine(trial)]
            point: dict[str, Value] = {}
            for name in branch.space.dimensions:
                if branch.space.applies(name, point):
                    point[name] = self._suggest(trial, branch, name)
            config = branch.config_at(point)
            if config.key not in self._tried:
                return self._opened(trial, config)
            self._study.tell(trial, state=TrialState.FAIL)
        return self.begin(left)

    def begin(self, config: EngineConfig) -> Suggestion:
        """Open a trial for a given configuration; samplers learn from it as far as it lies in the space."""
        given = self._naming.params_of(config)
        self._study.enqueue_trial(given)
        trial = self._study.ask()
        branch = self._naming.branches[self._engine(trial)]
        for name in given:
            if name != ENGINE:
                self._suggest(trial, branch, self._naming.word(name))
        return self._opened(trial, config)

    def tell(self, number: int, outcome: Outcome) -> None:
        """Close a trial: infeasible as a violated constraint, not judged as FAIL, which samplers skip."""
        trial = self._open.pop(number)
        if not outcome.scored:
            self._study.tell(trial, state=TrialState.FAIL)
            return
        trial.set_constraint(FEASIBILITY, -1.0 if outcome.feasible else 1.0)
        if outcome.seconds is not None:
            trial.set_user_attr(SECONDS_ATTR, outcome.seconds)
        if outcome.levels:
            trial.set_user_attr(LEVELS_ATTR, levels_as_json(outcome.levels))
        self._study.tell(trial, list(outcome.objectives))

    def _first_left(self) -> EngineConfig | None:
        """The first point that no trial had; quick, as hardly more points come before it than were tried."""
        configs = chain.from_iterable(branch.configs() for branch in self._naming.branches.values())
        return next((config for config in configs if config.key not in self._tried), None)

    def _engine(self, trial: Trial) -> str:
        """The engine of a trial: a parameter where there is a choice."""
        names = list(self._naming.branches)
        return str(trial.suggest_categorical(ENGINE, names)) if self._naming.several else names[0]

    def _suggest(self, trial: Trial, branch: Branch, name: str) -> Value:
        dimension = branch.space.dimensions[name]
        parameter = self._naming.parameter(branch.base.engine, name)
        if isinstance(dimension, IntRange) and not dimension.log:
            return trial.suggest_int(parameter, dimension.low, _last(dimension), step=dimension.step)
        value = trial.suggest_categorical(parameter, list(branch.space.choices(name)))
        assert value is not None
        return value

    def _opened(self, trial: Trial, config: EngineConfig) -> Suggestion:
        trial.set_user_attr(CONFIG_ATTR, json.dumps({"engine": config.engine, **config.words}))
        self._open[trial.number] = trial
        self._tried.add(config.key)
        return Suggestion(trial.number, config)

    def _settle(self, known: Mapping[int, Outcome]) -> None:
        for frozen in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self._open[frozen.number] = Trial(self._study, frozen._trial_id)  # noqa: SLF001 - no public name
            self.tell(frozen.number, known.get(frozen.number, NOT_JUDGED))
        while self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            self._study.tell(self._study.ask(), state=TrialState.FAIL)


def baseline_sampler(kind: Literal["tpe", "random"], seed: int) -> BaseSampler:
    """What suggests the next point in studies that ours is to be compared with."""
    _hush()
    if kind == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    # group: trials of the defaults have few of the space's parameters, or none.
    return optuna.samplers.TPESampler(multivariate=True, group=True, n_startup_trials=5, seed=seed)


def open_study(name: str, storage: BaseStorage, *, slas: Sequence[str], sampler: BaseSampler) -> optuna.Study:
    """Create or load the Optuna study: an objective per SLA, each to be maximised."""
    _hush()
    study = optuna.create_study(
        study_name=name,
        storage=storage,
        sampler=sampler,
        directions=["maximize"] * len(slas),
        load_if_exists=True,
    )
    study.set_metric_names(list(slas))
    return study


def _hush() -> None:
    """Keep Optuna's remarks from users: it says what it does, and that what we use is new."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # ``group`` and metric names are marked experimental; pinned below the next major release.
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)


def frozen_trial(study: optuna.Study, number: int) -> FrozenTrial:
    """A trial as stored, without a look at the others; raises LookupError where there is none."""
    storage = study._storage  # noqa: SLF001 - no public name
    return storage.get_trial(
        storage.get_trial_id_from_study_id_trial_number(study._study_id, number)  # noqa: SLF001
    )


def _last(dimension: IntRange) -> int:
    """Optuna wants a range that its step divides."""
    return dimension.high - (dimension.high - dimension.low) % dimension.step
