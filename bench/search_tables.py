"""Tables of recorded measurements, read into problems that a search can be replayed on.

A folder may hold any number of CSV files; each is known by its columns, not by its name. A *candidate* is a
configuration that was recorded, with every load level it was recorded at; a *problem* is a set of candidates
among which the best for one SLA is sought.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv as arrow_csv
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Row = Mapping[str, Any]
Knobs = dict[str, float | str]

SLAS_TOK_S_USER = (20.0, 50.0, 100.0)
FEWEST_CANDIDATES, FEWEST_MEETING, FEWEST_WITH_ENERGY = 12, 3, 8


class Track(StrEnum):
    """What is sought: output tok/s per all-in MW at an SLA, or tokens per measured joule."""

    THROUGHPUT = "throughput"
    ENERGY = "energy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """What is known of a configuration by load level: recorded, or revealed by a launch.

    ``interactivity`` is in tok/s/user.
    """

    concurrency: Floats
    interactivity: Floats
    values: Floats

    def best_at(self, sla: float) -> float:
        """The best value among levels that meet the SLA; 0 where none does."""
        return float(max(self.values[self.interactivity >= sla], default=0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate(Levels):
    """One recorded configuration."""

    id: str
    knobs: Knobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Find the best of ``candidates`` for an SLA; ``hardware`` is empty where it is pooled over."""

    track: Track
    family: str
    model: str
    hardware: str
    workload: str
    sla: float
    candidates: tuple[Candidate, ...]
    truth: Floats = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "truth", np.array([c.best_at(self.sla) for c in self.candidates]))

    @property
    def pooled(self) -> bool:
        """Whether accelerators compete in it."""
        return not self.hardware

    @property
    def name(self) -> str:
        """A name that no other problem of the same tables has."""
        where = self.hardware or "pooled"
        return f"{self.track}:{self.family}:{self.model}:{where}:{self.workload}:{self.sla:g}"

    @property
    def seed(self) -> int:
        """A number of the problem's own, the same in every process."""
        return int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:4], "little")


@dataclass(frozen=True, slots=True)
class Tables:
    """What a folder holds: rows by kind of table."""

    curves: tuple[Row, ...]
    saturated: tuple[Row, ...]
    failures: tuple[Row, ...]
    digest: str


_KINDS = {
    "curves": {"config_id", "conc", "interactivity_tok_s_user", "out_tok_s_per_allin_MW"},
    "saturated": {"energy_per_token_joules", "max_num_seqs", "gpu_model"},
    "failures": {"oom", "users", "gpu", "out_tok_s_per_gpu"},
}
_CURVE_KNOBS = [
    "hardware",
    "framework",
    "precision",
    "spec_method",
    "disagg",
    "is_multinode",
    "prefill_tp",
    "prefill_ep",
    "prefill_dp_attention",
    "prefill_num_workers",
    "num_prefill_gpu",
    "decode_tp",
    "decode_ep",
    "decode_dp_attention",
    "decode_num_workers",
    "n_gpus",
]
_SATURATED_KNOBS = {
    "gpu_model": "hardware",
    "weight_precision": "precision",
    "num_gpus": "n_gpus",
    "tensor_parallel": "decode_tp",
    "expert_parallel": "decode_ep",
    "data_parallel": "data_parallel",
    "max_num_seqs": "max_num_seqs",
}


def read_tables(folder: Path) -> Tables:
    """Read every CSV file of a folder whose columns are known; raises SystemExit where there is none."""
    rows: dict[str, list[Row]] = defaultdict(list)
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.csv")):
        table = arrow_csv.read_csv(path)
        kind = next((kind for kind, needed in _KINDS.items() if needed <= set(table.column_names)), None)
        if kind:
            rows[kind] += table.to_pylist()
            digest.update(path.read_bytes())
    if not rows["curves"] and not rows["saturated"]:
        raise SystemExit(
            f"{folder}: no table with the columns {', '.join(sorted(_KINDS['curves']))}; "
            "give the folder that holds one as TABLES=folder"
        )
    return Tables(
        tuple(rows["curves"]), tuple(rows["saturated"]), tuple(rows["failures"]), digest.hexdigest()
    )


def throughput_problems(tables: Tables, *, pooled: bool) -> list[Problem]:
    """Problems of output tok/s per all-in MW, an SLA each; in the order of their names."""
    return [
        problem
        for key, rows in _grouped(tables.curves, pooled=pooled)
        if len(candidates := _curve_candidates(rows, "out_tok_s_per_allin_MW")) >= FEWEST_CANDIDATES
        for problem in _at_each_sla(Track.THROUGHPUT, key, candidates)
    ]


def energy_problems(tables: Tables, *, pooled: bool) -> list[Problem]:
    """Problems of output tokens per measured joule: of curves where enough have it, and of saturated runs."""
    measured = [r for r in tables.curves if r["energy_measured"] and _positive(r["joules_per_output_token"])]
    problems = [
        problem
        for key, rows in _grouped(measured, pooled=pooled)
        if len(candidates := _curve_candidates(rows, "joules_per_output_token")) >= FEWEST_WITH_ENERGY
        for problem in _at_each_sla(Track.ENERGY, key, candidates)
    ]
    return problems + (_saturated_problems(tables.saturated) if pooled else [])


def _positive(number: float | None) -> bool:
    return number is not None and math.isfinite(number) and number > 0


def _grouped(rows: Iterable[Row], *, pooled: bool) -> Iterator[tuple[tuple[str, str, str], list[Row]]]:
    groups: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        where = "" if pooled else str(row["hardware"])
        groups[row["model"], where, f"{row['isl']:.0f}/{row['osl']:.0f}"].append(row)
    yield from sorted(groups.items())


def _curve_candidates(rows: Iterable[Row], column: str) -> tuple[Candidate, ...]:
    by_id: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if _positive(row[column]) and _positive(row["interactivity_tok_s_user"]):
            by_id[str(row["config_id"])].append(row)
    inverted = column.startswith("joules")
    candidates = []
    for identity, levels in sorted(by_id.items()):
        levels.sort(key=lambda row: row["conc"])
        values = np.array([row[column] for row in levels], dtype=float)
        candidates.append(
            Candidate(
                id=identity,
                knobs={name: _knob(levels[0].get(name)) for name in _CURVE_KNOBS},
                concurrency=np.array([row["conc"] for row in levels], dtype=float),
                interactivity=np.array([row["interactivity_tok_s_user"] for row in levels], dtype=float),
                values=1 / values if inverted else values,
            )
        )
    return tuple(candidates)


def _knob(value: Any) -> float | str:
    if value is None:
        return 0.0
    return value if isinstance(value, str) else float(value)


def _at_each_sla(
    track: Track, key: tuple[str, str, str], candidates: tuple[Candidate, ...]
) -> Iterator[Problem]:
    model, hardware, workload = key
    for sla in SLAS_TOK_S_USER:
        problem = Problem(
            track=track,
            family="curves",
            model=model,
            hardware=hardware,
            workload=workload,
            sla=sla,
            candidates=candidates,
        )
        if np.count_nonzero(problem.truth) >= FEWEST_MEETING:
            yield problem


def _saturated_problems(rows: Iterable[Row]) -> list[Problem]:
    """One problem per task and model; a run at one saturated level meets no SLA, so that all compete."""
    groups: dict[tuple[str, str], list[Candidate]] = defaultdict(list)
    for number, row in enumerate(rows):
        if _positive(row["energy_per_token_joules"]):
            knobs = {ours: _knob(row[theirs]) for theirs, ours in _SATURATED_KNOBS.items()}
            shape = {
                name: _knob(row[name]) for name in ("total_params_billions", "activated_params_billions")
            }
            groups[row["task"], row["model_id"]].append(
                Candidate(
                    id=str(number),
                    knobs=knobs | shape,
                    concurrency=np.array([math.nan]),
                    interactivity=np.array([math.inf]),
                    values=np.array([1 / row["energy_per_token_joules"]]),
                )
            )
    return [
        Problem(
            track=Track.ENERGY,
            family="saturated",
            model=model,
            hardware="",
            workload=task,
            sla=0.0,
            candidates=tuple(candidates),
        )
        for (task, model), candidates in sorted(groups.items())
        if len(candidates) >= FEWEST_WITH_ENERGY
    ]


def read_models(folder: Path | None) -> dict[str, Mapping[str, Any]]:
    """Every ``NAME.json`` of a folder (a model's ``config.json``) by name; empty without a folder."""
    if folder is None:
        return {}
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
