"""Live progress of a study: a panel on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.text import Text

from autotune.domain.basics.quantities import show_duration
from autotune.domain.configs.config import EngineConfig
from autotune.domain.judging.scoring import CurveScore
from autotune.domain.studies.events import (
    Drifted,
    Event,
    Incumbent,
    LaunchEnded,
    LaunchStarted,
    LevelMeasured,
    LevelProgress,
    LevelStarted,
    Notice,
    PhaseChanged,
    Rejected,
    StudyStarted,
)
from autotune.domain.studies.ports import EventSink


@contextmanager
def progress(console: Console, defaults: EngineConfig, *, spent_s: float = 0.0) -> Iterator[EventSink]:
    """Show events as they come for the length of a ``with`` block."""
    if not console.is_terminal:
        yield _Lines(console, defaults)
        return
    view = _View(started_s=time.monotonic() - spent_s)
    lines = _Lines(console, defaults)
    # Four frames a second: seen as live, and no burden to a client that shares the machine.
    with Live(console=console, refresh_per_second=4, get_renderable=view.render) as live:

        def sink(event: Event) -> None:
            view.take(event)
            if isinstance(event, PhaseChanged | LevelStarted | LevelProgress | LevelMeasured):
                return
            lines(event)
            live.refresh()

        yield sink


class _Lines:
    """One line per event, with the time since the start."""

    def __init__(self, console: Console, defaults: EngineConfig) -> None:
        self._console, self._defaults, self._started_s = console, defaults, time.monotonic()

    def __call__(self, event: Event) -> None:
        text = self._text(event)
        if text:
            at = Text(f"{show_duration(time.monotonic() - self._started_s):>7}  ", style="dim")
            self._console.print(at + Text.from_markup(text), soft_wrap=True)

    def _text(self, event: Event) -> str:
        match event:
            case StudyStarted():
                budget = _budget(event)
                return (
                    f"study [bold]{event.study}[/]: {event.engine} on {escape(event.hardware)}, "
                    f"power {event.power}, {budget}"
                )
            case LaunchStarted():
                return f"trial {event.number} ({event.purpose}): {escape(event.config.label(self._defaults))}"
            case PhaseChanged():
                return f"trial {event.number}: {event.phase}"
            case LevelStarted() | LevelProgress():
                return ""
            case LevelMeasured():
                ttft = show_duration(event.ttft_p99_s)
                return (
                    f"trial {event.number}: {event.level.label}: "
                    f"{event.throughput_tok_per_s:.4g} tok/s, p99 TTFT {ttft} "
                    f"({event.ended} after {show_duration(event.window_s)})"
                )
            case LaunchEnded():
                return _ended(event)
            case Incumbent():
                return f"trial {event.number} leads for [bold]{event.sla}[/]: {_worth(event.score)}"
            case Rejected() | Drifted() | Notice():
                return _remark(event)


def _remark(event: Rejected | Drifted | Notice) -> str:
    match event:
        case Rejected():
            return f"trial {event.number} [yellow]rejected on paper[/]: {escape(event.why)}"
        case Drifted():
            style = "yellow" if event.drift.beyond_noise else "dim"
            return f"trial {event.number}: [{style}]{escape(event.drift.describe())}[/]"
        case Notice():
            return f"[yellow]{escape(event.text)}[/]"


@dataclass
class _View:
    """What the panel shows between two events."""

    started_s: float
    budget: StudyStarted | None = None
    launches: int = 0
    now: dict[int, tuple[str, float]] = field(default_factory=dict)
    """What each trial under way is doing, and since when; there may be several at once."""
    incumbents: dict[str, str] = field(default_factory=dict)

    def take(self, event: Event) -> None:
        match event:
            case StudyStarted():
                self.budget, self.launches = event, event.launches_done
            case LaunchStarted():
                self.launches += 1
                self._note(event.number, f"trial {event.number} ({event.purpose})")
            case PhaseChanged():
                self._note(event.number, f"trial {event.number}: {event.phase}")
            case LevelStarted():
                most = show_duration(event.duration_s)
                self._note(event.number, f"trial {event.number}: {event.level.label}, at most {most}")
            case LevelProgress():
                self._note(event.number, f"trial {event.number}: {event.level.label}, {event.stage}")
            case LaunchEnded() | Rejected():
                self.now.pop(event.number, None)
            case Incumbent():
                self.incumbents[event.sla] = f"trial {event.number}, {_worth(event.score)}"
            case _:
                pass

    def _note(self, number: int, what: str) -> None:
        self.now[number] = what, time.monotonic()

    def render(self) -> RenderableType:
        lines: list[RenderableType] = [
            Spinner("dots", Text(f"{what}  {show_duration(time.monotonic() - since_s)}"))
            for _, (what, since_s) in sorted(self.now.items())
        ]
        lines = lines or [Spinner("dots", Text("between launches"))]
        lines += [Text(f"  {sla}: {text}") for sla, text in self.incumbents.items()]
        lines.append(Text(f"  {self._left()}", style="dim"))
        return Group(*lines)

    def _left(self) -> str:
        spent_s = time.monotonic() - self.started_s
        text = f"{self.launches} launches, {show_duration(spent_s)}"
        if self.budget and self.budget.most_launches:
            text += f"; {max(self.budget.most_launches - self.launches, 0)} launches left"
        if self.budget and self.budget.wall_time_s:
            text += f"; {show_duration(max(self.budget.wall_time_s - spent_s, 0))} left"
        return text


def _budget(event: StudyStarted) -> str:
    parts = []
    if event.most_launches:
        parts.append(f"{event.most_launches} launches")
    if event.wall_time_s:
        parts.append(show_duration(event.wall_time_s))
    done = f", {event.launches_done} done" if event.launches_done else ""
    return "budget " + (" and ".join(parts) or "accelerator-hours") + done


def _ended(event: LaunchEnded) -> str:
    times = f"launch {show_duration(event.launch_s)}, load {show_duration(event.load_s)}"
    if not event.scores:
        return f"trial {event.number} [red]{event.state}[/]: {escape(event.why)} ({times})"
    scores = ", ".join(f"{sla} {_worth(score)}" for sla, score in event.scores.items())
    return f"trial {event.number} [green]{event.state}[/]: {scores} ({times})"


def _worth(score: CurveScore) -> str:
    if score.operating is None:
        return "met at no load"
    figures = score.operating
    if figures.power_basis.ranks:
        return f"{figures.tokens_per_joule:.4g} good tokens/J at {figures.rate_rps:.3g} req/s"
    return f"{figures.goodput_tok_per_s:.4g} good tok/s at {figures.rate_rps:.3g} req/s"
