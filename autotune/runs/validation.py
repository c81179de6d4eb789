"""Validation: every configuration of a space on paper, with nothing started."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from autotune.domain.config import EngineConfig
from autotune.domain.errors import InfeasibleConfigError
from autotune.domain.feasibility import Setting, why_infeasible
from autotune.domain.launch import LaunchContext
from autotune.domain.ports import Launcher
from autotune.domain.study import StudySpec


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceVerdict:
    """How many configurations were checked and accepted, and why the others were refused, by count."""

    checked: int
    accepted: int
    refusals: tuple[tuple[str, int], ...]
    complete: bool

    def document(self) -> dict[str, Any]:
        """As plain data."""
        refusals = [{"why": why, "configurations": count} for why, count in self.refusals]
        return {
            "checked": self.checked,
            "complete": self.complete,
            "accepted": self.accepted,
            "refused": refusals,
        }

    def describe(self, what: str) -> str:
        """For people, a line per reason."""
        part = "" if self.complete else " (the first of more)"
        lines = [f"{what} is sound; of {self.checked} configurations{part} {self.accepted} can be launched"]
        lines += [f"  {count} refused on paper: {why}" for why, count in self.refusals]
        return "\n".join(lines)


def validate_space(
    study: StudySpec, launcher: Launcher, context: LaunchContext, setting: Setting, *, most: int
) -> SpaceVerdict:
    """Check the defaults and up to ``most`` points by the rules, the launcher and the engine's own flags."""
    base = study.default_config()
    points = iter(study.space.points())
    configs = [base, *(study.space.config_at(base, point) for point in islice(points, most))]
    whys = [_why_refused(config, launcher, context, setting) for config in configs]
    refusals = Counter(why for why in whys if why is not None)
    return SpaceVerdict(
        checked=len(configs),
        accepted=whys.count(None),
        refusals=tuple(refusals.most_common()),
        complete=next(points, None) is None,
    )


def _why_refused(
    config: EngineConfig, launcher: Launcher, context: LaunchContext, setting: Setting
) -> str | None:
    why = why_infeasible(config, setting)
    if why is not None:
        return why
    try:
        launcher.launch_spec(config, replace(context, devices=context.devices[: config.ranks]))
    except InfeasibleConfigError as refused:
        return str(refused)
    return None
