"""Validation: every configuration of a space on paper, and by the engine's own parser; nothing is started."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from math import ceil
from typing import Any, Protocol

from autotune.domain.basics.errors import InfeasibleConfigError
from autotune.domain.configs.config import EngineConfig
from autotune.domain.launches.launch import LaunchContext, LaunchSpec, ProcessSpec
from autotune.domain.studies.feasibility import Setting, why_infeasible
from autotune.domain.studies.ports import Launcher
from autotune.domain.studies.study import StudySpec

_PLACE = re.compile(r"\{(?P<what>host|port):[^{}]*\}")

Counts = tuple[tuple[str, int], ...]


class AskEngine(Protocol):
    """Asks an engine's own parser and validation about the argv of processes, ``env`` set for each."""

    def __call__(
        self, engine: str, commands: Sequence[Sequence[str]], env: Mapping[str, str]
    ) -> Sequence[str | None]:
        """Say for each why it is refused; None: it is not, or there is nothing to ask."""


@dataclass(frozen=True, slots=True)
class Asking:
    """How to ask engines, and about how many configurations at most."""

    ask: AskEngine
    most: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineVerdict:
    """What engines themselves refuse, by reason and count, of the configurations that they were asked about.

    What an engine takes here may still fail at its start or at its first request: only a launch tells.
    """

    asked: int
    of: int
    refusals: Counts

    @property
    def refused(self) -> int:
        """Configurations refused."""
        return sum(count for _, count in self.refusals)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceVerdict:
    """How many configurations were checked and accepted, and why the others were refused, by count.

    ``refusals`` are those on paper; ``engine`` is None where no engine was asked.
    """

    checked: int
    accepted: int
    refusals: Counts
    complete: bool
    engine: EngineVerdict | None = None

    def document(self) -> dict[str, Any]:
        """As plain data."""
        engine = self.engine and {
            "asked": self.engine.asked,
            "complete": self.engine.asked == self.engine.of,
            "refused": _listed(self.engine.refusals),
        }
        return {
            "checked": self.checked,
            "complete": self.complete,
            "accepted": self.accepted,
            "refused": _listed(self.refusals),
            "engine": engine,
        }

    def describe(self, what: str) -> str:
        """For people, a line per reason."""
        part = "" if self.complete else " (the first of more)"
        lines = [f"{what} is sound; of {self.checked} configurations{part} {self.accepted} can be launched"]
        lines += [f"  {count} refused on paper: {why}" for why, count in self.refusals]
        if self.engine:
            spread = f", spread over the {self.engine.of}" if self.engine.asked < self.engine.of else ""
            about = f"asked the engine itself about {self.engine.asked}{spread}"
            lines.append(
                f"  {about}: it refuses {self.engine.refused}; what it takes may still fail when launched"
            )
            lines += [f"  {count} refused by {why}" for why, count in self.engine.refusals]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class _Checked:
    """A configuration, and either what would be launched or why not."""

    config: EngineConfig
    launch: LaunchSpec | None
    why: str = ""


def validate_space(
    study: StudySpec,
    launchers: Mapping[str, Launcher],
    contexts: Mapping[str, LaunchContext],
    setting: Setting,
    *,
    most: int,
    asking: Asking | None = None,
) -> SpaceVerdict:
    """Check the defaults and up to ``most`` points of each engine by the rules, its launcher and its flags.

    Engines are asked about those that pass, or about some of them, spread evenly.
    """
    checked: list[_Checked] = []
    complete = True
    for branch in study.branches:
        engine, points = branch.base.engine, branch.configs()
        configs = (branch.base, *islice(points, most))
        checked += [_check(config, launchers[engine], contexts[engine], setting) for config in configs]
        complete = complete and next(points, None) is None
    sound = [each for each in checked if each.launch is not None]
    verdict = _by_engines(sound, contexts, asking) if asking and asking.most > 0 and sound else None
    return SpaceVerdict(
        checked=len(checked),
        accepted=len(sound) - (verdict.refused if verdict else 0),
        refusals=_counted(each.why for each in checked if each.launch is None),
        complete=complete,
        engine=verdict,
    )


def _check(config: EngineConfig, launcher: Launcher, context: LaunchContext, setting: Setting) -> _Checked:
    if why := why_infeasible(config, setting):
        return _Checked(config, None, why)
    try:
        devices = context.devices[: config.devices]
        return _Checked(config, launcher.launch_spec(config, replace(context, devices=devices).of(config)))
    except InfeasibleConfigError as refused:
        return _Checked(config, None, str(refused))


def _by_engines(
    sound: Sequence[_Checked], contexts: Mapping[str, LaunchContext], asking: Asking
) -> EngineVerdict:
    """Ask about the engine's processes of each launch; a configuration falls with the first refused."""
    asked = sound[:: ceil(len(sound) / asking.most)]
    whys: dict[str, str] = {}
    questions = [question for each in asked for question in _questions(each, contexts)]
    for (engine, env), group in groupby(sorted(questions), key=lambda question: question[:2]):
        several = list(group)
        answers = asking.ask(engine, [command for *_, command, _ in several], dict(env))
        for (*_, key), why in zip(several, answers, strict=True):
            if why is not None:
                whys.setdefault(key, f"{engine} {contexts[engine].environment.version} itself: {why}")
    return EngineVerdict(asked=len(asked), of=len(sound), refusals=_counted(whys.values()))


_Question = tuple[str, tuple[tuple[str, str], ...], tuple[str, ...], str]


def _questions(checked: _Checked, contexts: Mapping[str, LaunchContext]) -> list[_Question]:
    """Engine, environment, argv and configuration of each process that is the engine: a router is not."""
    config, launch = checked.config, checked.launch
    executable = str(contexts[config.engine].environment.executable)
    return [
        (config.engine, _filled_env(process), tuple(map(_filled, process.argv)), config.key)
        for process in (launch.processes if launch else ())
        if process.argv[0] == executable
    ]


def _filled_env(process: ProcessSpec) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, _filled(value)) for name, value in process.env.items()))


def _filled(text: str) -> str:
    """Text with some host and port in the places for them: nothing will listen there."""
    return _PLACE.sub(lambda found: "127.0.0.1" if found["what"] == "host" else "8000", text)


def _counted(whys: Iterable[str]) -> Counts:
    return tuple(Counter(whys).most_common())


def _listed(counts: Counts) -> list[dict[str, Any]]:
    return [{"why": why, "configurations": count} for why, count in counts]
