"""Whether a budget covers what is still to come."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from autotune.domain.configs.config import EngineConfig
from autotune.domain.studies.records import Purpose, TrialRow, TrialState
from autotune.domain.studies.study import Budget, StudySpec


@dataclass(frozen=True, slots=True)
class Spend:
    """Launches, wall seconds, and device-seconds: spent, or ahead."""

    launches: int
    wall_s: float
    device_s: float

    def __add__(self, other: Spend) -> Spend:
        return Spend(
            self.launches + other.launches, self.wall_s + other.wall_s, self.device_s + other.device_s
        )


def covers(budget: Budget, spend: Spend) -> bool:
    """Whether every bound of the budget holds for a spend."""
    return (
        (budget.launches is None or spend.launches <= budget.launches)
        and (budget.wall_time is None or spend.wall_s <= budget.wall_time)
        and (budget.accelerator_hours is None or spend.device_s <= budget.accelerator_hours * 3600)
    )


def time_left_s(budget: Budget, spend: Spend, devices: int) -> float:
    """How long one launch on so many devices may last, after what is spent and set aside."""
    left_s = [math.inf]
    if budget.wall_time is not None:
        left_s.append(budget.wall_time - spend.wall_s)
    if budget.accelerator_hours is not None:
        left_s.append((budget.accelerator_hours * 3600 - spend.device_s) / devices)
    return min(left_s)


def spent(rows: Sequence[TrialRow], study: StudySpec, wall_s: float) -> Spend:
    """What a study's trials cost so far; bench failures cost time, but are no launches of the budget."""
    return Spend(
        launches=sum(was_launched(row) for row in rows),
        wall_s=wall_s,
        device_s=sum(row.total_s * _devices(row.config, row.purpose, study) for row in rows),
    )


def was_judged(row: TrialRow) -> bool:
    """Whether the configuration of a trial was judged by an engine that ran, or tried to."""
    return row.state in {TrialState.MEASURED, TrialState.INFEASIBLE, TrialState.CENSORED}


def was_launched(row: TrialRow) -> bool:
    """Whether an engine was started for it, and not only set otherwise."""
    return was_judged(row) and not row.on_running_engine


def next_launch(rows: Sequence[TrialRow], study: StudySpec) -> Spend:
    """What one more launch of the search will likely cost, the settings measured on its engine too."""
    launched = [row for row in rows if was_launched(row)]
    variants = [row for row in rows if row.on_running_engine]

    def likely_s(cost_s: Callable[[TrialRow], float]) -> float:
        own_s = median([cost_s(row) for row in launched] or [0.0])
        return own_s + sum(map(cost_s, variants)) / max(len(launched), 1)

    return Spend(
        launches=1,
        wall_s=likely_s(lambda row: row.total_s),
        device_s=likely_s(lambda row: row.total_s * study.devices_held(row.config)),
    )


def at_once(launch: Spend, count: int) -> Spend:
    """What so many launches alike cost that run side by side."""
    return Spend(launch.launches * count, launch.wall_s, launch.device_s * count)


def finals(rows: Sequence[TrialRow], study: StudySpec, count: int) -> Spend:
    """What ``count`` finals will likely cost: a start each, and a window for every SLA."""
    load_s = len(study.slas) * (study.measurement.warmup + study.measurement.final_window)
    wall_s = count * (_start_s(rows) + load_s)
    return Spend(launches=count, wall_s=wall_s, device_s=wall_s * _most_devices(rows, study, Purpose.FINAL))


def soak(rows: Sequence[TrialRow], study: StudySpec, levels: int) -> Spend:
    """What one launch that soaks at so many levels will likely cost."""
    wall_s = _start_s(rows) + levels * (study.measurement.warmup + study.soak_s)
    return Spend(launches=1, wall_s=wall_s, device_s=wall_s * _most_devices(rows, study, Purpose.SOAK))


def _start_s(rows: Sequence[TrialRow]) -> float:
    return median([row.launch_s for row in rows if was_launched(row)] or [0.0])


def _most_devices(rows: Sequence[TrialRow], study: StudySpec, purpose: Purpose) -> int:
    return max((_devices(row.config, purpose, study) for row in rows if was_judged(row)), default=1)


def _devices(config: EngineConfig, purpose: Purpose, study: StudySpec) -> int:
    """Devices that a launch holds, those of copies beside it included."""
    return study.devices_held(config) * study.copies(config, purpose)
