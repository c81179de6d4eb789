"""Load clients that tests share: their workers are started once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from autotune.adapters.load_clients import LoadClients


@pytest.fixture(scope="session")
def clients() -> Iterator[LoadClients]:
    """One worker, which can import the tests' own prompts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        with LoadClients(processes=1) as started:
            yield started
