"""What the live panel shows while launches run, alone or side by side."""

from __future__ import annotations

import io

from rich.console import Console

from autotune.cli.progress import _View
from autotune.domain.configs.config import EngineConfig
from autotune.domain.launches.launch import Phase
from autotune.domain.studies.events import Event, LaunchEnded, LaunchStarted, PhaseChanged, Rejected

CONFIG = EngineConfig(engine="fake")


def shown(*events: Event) -> str:
    view = _View(started_s=0.0)
    for event in events:
        view.take(event)
    console = Console(file=io.StringIO(), width=100)
    console.print(view.render())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_each_launch_under_way_has_a_line_of_its_own() -> None:
    both = LaunchStarted(3, CONFIG, "search"), LaunchStarted(4, CONFIG, "search")
    text = shown(*both, PhaseChanged(3, Phase.LOADING))
    assert "trial 3: loading" in text
    assert "trial 4 (search)" in text
    text = shown(*both, LaunchEnded(3, "measured", {}, "", 1.0, 1.0))
    assert "trial 3" not in text
    assert "trial 4" in text
    assert "2 launches" in text


def test_between_launches_it_says_so() -> None:
    assert "between launches" in shown()
    assert "between launches" in shown(LaunchStarted(3, CONFIG, "search"), Rejected(3, CONFIG, "too large"))
