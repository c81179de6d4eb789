"""What tests share: load clients, whose workers are started once, and a study that was run once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_environment import make_fake_environment
from small_study import make_folder, runner

from autotune.adapters.load.clients import LoadClients


@pytest.fixture(scope="session")
def clients() -> Iterator[LoadClients]:
    """One worker, which can import the tests' own prompts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        with LoadClients(processes=1) as started:
            yield started


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment of the mock engine."""
    return make_fake_environment(tmp_path_factory.mktemp("engine"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, engine: Path) -> Path:
    """A folder in which a whole study was run; tests only read it."""
    folder = make_folder(tmp_path_factory.mktemp("finished"))
    done = runner(folder)("tune", "small.yaml", "--engine", f"vllm={engine}")
    (folder / "printed.txt").write_text(done.stdout)
    return folder
