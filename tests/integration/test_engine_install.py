"""Engines that can be installed here: what their locks say, and what is made of each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from autotune.adapters.commands import CommandResult
from autotune.adapters.engines import install as engine_install
from autotune.adapters.engines.environments import EngineEnvironments
from autotune.adapters.engines.install import Installer

ENGINES = sorted(
    path.name.removesuffix("-cpu.txt")
    for path in Path(engine_install.__file__).with_name("locks").glob("*-cpu.txt")
)


@pytest.fixture
def _able_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_install, "missing_packages", lambda: ())
    monkeypatch.setattr(engine_install, "_FREE_BYTES", 0)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")


def no_pip(command: Sequence[str], _timeout_s: float) -> CommandResult:
    """Stands in for venv and pip."""
    if "venv" in command:
        Path(command[-1], "lib/python3.11/site-packages").mkdir(parents=True)
    return CommandResult(0, "")


@pytest.mark.usefixtures("_able_machine")
@pytest.mark.parametrize("engine", ENGINES)
def test_every_lock_pins_all_that_it_names_and_the_engine_itself(engine: str, tmp_path: Path) -> None:
    path = Installer(home=tmp_path, echo=lambda _: None, run=no_pip).install(engine)
    (installed,) = EngineEnvironments(tmp_path, tmp_path / "cache").installed()
    assert (installed.engine, installed.path) == (engine, path)
    lines = (path / "requirements.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.+]+", pin) for pin in pins)
    names = [pin.partition("==")[0].lower() for pin in pins]
    assert len(names) == len(set(names))
    # Torch comes before, from where its CPU build is.
    assert "torch" not in names
    assert installed.version in {p.partition("==")[2] for p in pins if re.match(rf"{engine}(-cpu)?==", p)}


@pytest.mark.usefixtures("_able_machine")
@pytest.mark.parametrize(("engine", "named"), [("vllm", True), ("transformers", False)])
def test_an_engine_is_found_by_its_own_name(engine: str, named: bool, tmp_path: Path) -> None:
    path = Installer(home=tmp_path, echo=lambda _: None, run=no_pip).install(engine)
    assert bool(list(path.glob(f"lib/python3.11/site-packages/{engine}-*.dist-info/METADATA"))) is named
