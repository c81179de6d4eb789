"""Replays of baselines, kept by all that they depend on: tables, and the code that reads and plays them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from search_replay import Replay

KEPT = frozenset({"random", "tpe", "gp", "forest_ei"})
_CODE = ("search_tables.py", "search_replay.py", "search_baselines.py", "search_methods.py")


class Cache:
    """One file per method; a key of another table or code finds nothing.

    Nor does one of another number of problems, by which the GP's launches go.
    """

    def __init__(self, folder: Path, tables: Path, problems: int) -> None:
        depends_on = f"{version('optuna')} {version('scikit-learn')} {problems}"
        digest = hashlib.sha256(depends_on.encode())
        here = Path(__file__).parent
        files = [here / name for name in _CODE]
        for file in [*files, *sorted(tables.glob("*.csv"))]:
            digest.update(file.read_bytes())
        self._folder = folder / digest.hexdigest()[:16]
        self._kept: dict[str, dict[str, list[Replay]]] = {method: self._read(method) for method in KEPT}

    def get(self, method: str, problem: str) -> list[Replay] | None:
        """The replays of a method on a problem, if they are kept."""
        return self._kept.get(method, {}).get(problem)

    def put(self, method: str, problem: str, replays: list[Replay]) -> None:
        """Keep replays of a baseline; others are played every time."""
        if method not in KEPT:
            return
        self._kept[method][problem] = replays
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._path(method).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps([problem, [asdict(one) for one in replays]]) + "\n")

    def _path(self, method: str) -> Path:
        return self._folder / f"{method}.jsonl"

    def _read(self, method: str) -> dict[str, list[Replay]]:
        if not self._path(method).is_file():
            return {}
        kept = {}
        for line in self._path(method).read_text(encoding="utf-8").splitlines():
            try:
                problem, replays = json.loads(line)
            except ValueError:
                continue  # a run that was killed while it wrote
            kept[problem] = [Replay(**{**one, "regret": tuple(one["regret"])}) for one in replays]
        return kept
