"""The study: what to launch next, within the budget, until the finals and the soak are run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from autotune.domain.basics.quantities import show_duration
from autotune.domain.configs.config import EngineConfig
from autotune.domain.load.level import Level
from autotune.domain.load.progress import Cancelled
from autotune.domain.recommending.finals import finalists, interleaved, operating_points, soaks
from autotune.domain.recommending.recommendation import Candidate
from autotune.domain.search.stopping import why_stop
from autotune.domain.studies import budget
from autotune.domain.studies.events import Notice
from autotune.domain.studies.feasibility import Setting, calibrated_by, probability_it_runs, why_infeasible
from autotune.domain.studies.ports import NOT_JUDGED, Archive, Catalog, EventSink, Search, Suggestion
from autotune.domain.studies.records import LaunchRecord, Purpose, TrialState
from autotune.domain.studies.study import StudySpec
from autotune.runs.drift_watch import DriftWatch
from autotune.runs.launching import Launching, LaunchOrder, LaunchParts
from autotune.runs.priors import Priors
from autotune.runs.trials import Trials, is_interrupted

UNLIKELY = 0.5
"""Chance of running below which a launch is announced as one that may not fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyParts:
    """What a study run needs beside its file."""

    study: StudySpec
    setting: Setting
    baseline: EngineConfig | None
    search: Search
    archive: Archive
    catalog: Catalog
    launch: Callable[[LaunchOrder], LaunchRecord]
    workdir: Callable[[int], Path]
    sink: EventSink
    cancelled: Cancelled
    priors: Priors


class StudyRun:
    """Carries a study out; everything it must know after an interruption is in catalog and archive."""

    def __init__(self, parts: StudyParts, *, spent_s: float = 0.0) -> None:
        self._parts = parts
        self._study = parts.study
        self._started_s = time.monotonic() - spent_s
        self._trials = Trials(parts.study, parts.catalog, parts.archive, parts.priors.rates)
        self._waiting: LaunchOrder | None = None
        self._drift = DriftWatch(self._study, self._reference_again, parts.sink)
        self._launching = Launching(
            self._study,
            self._trials,
            LaunchParts(
                search=parts.search,
                archive=parts.archive,
                launch=parts.launch,
                workdir=parts.workdir,
                sink=parts.sink,
                factor=self._drift.factor,
                predicted=parts.priors.predicted,
            ),
        )
        if (reference := self._trials.reference) is not None:
            self._drift.learn(reference, self._trials.references_again)

    @property
    def spent_s(self) -> float:
        """Wall time of this run and of those before it, seconds."""
        return time.monotonic() - self._started_s

    def run(self) -> None:
        """Search, then run the finals and the soak; raises StudyCancelledError, BenchError."""
        self._launch_given(self._first())
        self._search()
        self._parts.priors.report(self._trials.rows, self._parts.sink)
        self._launch_given(self._references_without_verdict())
        self._finals()
        self._soak()

    def _search(self) -> None:
        try:
            while orders := self._together():
                self._launching.launch_all(orders)
                if any(budget.was_judged(self._trials.row(o.suggestion.number)) for o in orders):
                    self._drift.after_launch(self._trials.reference, self._trials.references_again)
        finally:
            if self._waiting is not None:
                # The budget was spent before there was room for it.
                self._parts.search.tell(self._waiting.suggestion.number, NOT_JUDGED)
                self._waiting = None

    def _together(self) -> list[LaunchOrder]:
        """The next launches of the search: as many as may be at once and find devices, none at its end."""
        orders: list[LaunchOrder] = []
        held = 0
        while len(orders) < self._study.at_once and (order := self._next_order(len(orders))) is not None:
            held += self._study.devices_held(order.suggestion.config)
            if orders and held > self._parts.setting.hardware.count:
                self._waiting = order
                break
            orders.append(order)
        return orders

    def _next_order(self, under_way: int) -> LaunchOrder | None:
        """The next launch that nothing refuses on paper; None when the search is over."""
        while self._may_launch(then_finals=True, under_way=under_way):
            if self._waiting is not None:
                waited, self._waiting = self._waiting, None
                return waited
            if why := self._why_stop():
                self._parts.sink(Notice(f"the search stops: {why}"))
                return None
            if (suggestion := self._parts.search.ask()) is None:
                return None
            if (order := self._order(suggestion, Purpose.SEARCH)) is not None:
                return order
        return None

    def _why_stop(self) -> str:
        """Why another launch would not pay; empty where it may, or where nobody said what it is for."""
        if self._study.deployment is None:
            return ""
        ahead = budget.next_launch(self._trials.rows, self._study)
        return why_stop(self._study.deployment, self._trials.history(), ahead.device_s)

    def _launch_given(self, given: Sequence[tuple[Purpose, EngineConfig]]) -> None:
        for purpose, config in given:
            # References come before finals: a small budget buys the figures of what runs today.
            if self._may_launch(then_finals=purpose is Purpose.SEARCH):
                self._try(self._parts.search.begin(config), purpose)

    def _references(self) -> list[tuple[Purpose, EngineConfig]]:
        """Production's configuration and each engine's defaults."""
        production = self._parts.baseline
        defaults = [(Purpose.DEFAULTS, branch.base) for branch in self._study.branches]
        return [(Purpose.BASELINE, production), *defaults] if production else defaults

    def _first(self) -> list[tuple[Purpose, EngineConfig]]:
        """The references, the recipes, what was interrupted; those that no trial had."""
        rows = self._trials.rows
        first = self._references()
        points, branches = self._study.try_first, self._study.branches
        first += [(Purpose.SEARCH, branch.config_at(point)) for point in points for branch in branches]
        # A final that was cut short is found out by the finals.
        first += [(Purpose.SEARCH, row.config) for row in rows if is_interrupted(row)]
        seen = {row.config.key for row in rows if not is_interrupted(row)}
        fresh = []
        for purpose, config in first:
            if config.key not in seen:
                seen.add(config.key)
                fresh.append((purpose, config))
        return fresh

    def _references_without_verdict(self) -> list[tuple[Purpose, EngineConfig]]:
        """References whose launch the bench broke: nothing can be compared without them."""
        rows = self._trials.rows
        without = [row.config.key for row in rows if row.state is TrialState.BENCH_ERROR]
        judged = {row.config.key for row in rows if budget.was_judged(row)}
        return [(p, c) for p, c in self._references() if c.key in without and c.key not in judged]

    def _try(self, suggestion: Suggestion, purpose: Purpose) -> None:
        if (order := self._order(suggestion, purpose)) is not None:
            self._launching.launch(order)

    def _order(self, suggestion: Suggestion, purpose: Purpose) -> LaunchOrder | None:
        """The launch of a suggestion; None for one that is rejected on paper."""
        setting = self._setting()
        why = why_infeasible(suggestion.config, setting)
        if why is None and purpose is Purpose.SEARCH:
            why = self._trials.why_below_quality(suggestion.config) or None
        if why is not None:
            self._launching.reject(suggestion, purpose, why)
            return None
        if (chance := probability_it_runs(suggestion.config, setting)) < UNLIKELY:
            what = f"trial {suggestion.number} may not fit: by the memory model it runs with a chance of"
            self._parts.sink(Notice(f"{what} {chance:.0%}"))
        spend = budget.spent(self._trials.rows, self._study, self.spent_s)
        if purpose is Purpose.SEARCH:
            spend += self._set_aside()
        devices = self._study.devices_held(suggestion.config)
        left_s = budget.time_left_s(self._study.budget, spend, devices)
        return LaunchOrder(
            suggestion=suggestion,
            purpose=purpose,
            time_left_s=left_s,
            variants=self._variants(suggestion.config),
        )

    def _variants(self, config: EngineConfig) -> tuple[EngineConfig, ...]:
        """The configuration under other settings of the devices, those that no trial had."""
        tried = {row.config.key for row in self._trials.rows} | {config.key}
        (branch,) = (b for b in self._study.branches if b.base.engine == config.engine)
        found = {variant.key: variant for variant in branch.under_other_settings(config)}
        setting = self._setting()
        return tuple(v for k, v in found.items() if k not in tried and why_infeasible(v, setting) is None)

    def _setting(self) -> Setting:
        """What configurations must fit into, the memory model corrected by what launches so far logged."""
        return calibrated_by(self._parts.setting, self._trials.kv_tokens)

    def _reference_again(self, reference: Candidate) -> LaunchRecord | None:
        """Launch the reference at its operating points; None where budget or bench did not let it."""
        if not self._may_launch(then_finals=True):
            return None
        return self._trials.record(self._again(Purpose.REFERENCE, reference))

    def _finals(self) -> None:
        """Launch the finalists again: those that matter most where the budget does not cover all."""
        chosen = finalists(self._study, self._trials.candidates, self._drift_factor)
        ahead = [c for c in chosen if c.row.number not in self._launched_again(Purpose.FINAL)]
        while ahead and not self._covers(budget.finals(self._trials.rows, self._study, len(ahead))):
            ahead.pop()
        for candidate in interleaved(ahead):
            if self._covers(budget.finals(self._trials.rows, self._study, 1)):
                self._again(Purpose.FINAL, candidate)

    def _soak(self) -> None:
        """Drive the winners for long, in bursts."""
        if not self._study.soak_s:
            return
        for candidate, levels in soaks(self._study, self._trials.candidates):
            if candidate.row.number in self._launched_again(Purpose.SOAK):
                continue
            if not self._covers(budget.soak(self._trials.rows, self._study, len(levels))):
                length = show_duration(self._study.soak_s)
                self._parts.sink(
                    Notice(f"trial {candidate.row.number} won; its soak of {length} is beyond the budget")
                )
                continue
            self._again(Purpose.SOAK, candidate, levels)

    def _launched_again(self, purpose: Purpose) -> set[int | None]:
        return {
            row.final_of for row in self._trials.rows if row.purpose is purpose and budget.was_judged(row)
        }

    def _again(self, purpose: Purpose, candidate: Candidate, levels: tuple[Level, ...] = ()) -> int:
        """Launch a candidate once more, at its own operating points if no levels are given."""
        points = operating_points(self._study, candidate)
        suggestion = self._parts.search.begin(candidate.row.config)
        self._launching.launch(
            LaunchOrder(
                suggestion=suggestion,
                purpose=purpose,
                levels=levels or tuple(dict.fromkeys(points.values())),
                must_hold=tuple(points) if purpose is Purpose.FINAL else (),
                final_of=candidate.row.number,
            )
        )
        return suggestion.number

    def _drift_factor(self, candidate: Candidate) -> float:
        """What a candidate's objectives are multiplied by; its final needs none, for it comes last."""
        return self._drift.factor(candidate.launch.node, candidate.launch.number)

    def _may_launch(self, *, then_finals: bool, under_way: int = 0) -> bool:
        """Whether the budget covers a launch beside those under way, and all finals and soaks after it."""
        ahead = budget.at_once(budget.next_launch(self._trials.rows, self._study), 1 + under_way)
        return self._covers(ahead + self._set_aside() if then_finals else ahead)

    def _set_aside(self) -> budget.Spend:
        """What finals and soaks will take: one for each SLA, and one for each reference."""
        rows, study = self._trials.rows, self._study
        aside = budget.finals(rows, study, len(study.slas) + len(self._references()))
        if study.soak_s:
            for _ in study.slas:
                aside += budget.soak(rows, study, 1)
        return aside

    def _covers(self, ahead: budget.Spend) -> bool:
        spent = budget.spent(self._trials.rows, self._study, self.spent_s)
        return budget.covers(self._study.budget, spent + ahead)
