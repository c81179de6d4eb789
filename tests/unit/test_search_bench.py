"""The benchmark of searches on a small made-up table: problems as defined, no answer in its own prior."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest

BENCH = Path(__file__).parents[2] / "bench"
sys.path.insert(0, str(BENCH))

from search_baselines import ForestWithImprovement, Given  # noqa: E402
from search_features import Shapes, resemblance  # noqa: E402
from search_ours import Autotune  # noqa: E402
from search_prior import Library  # noqa: E402
from search_replay import replay  # noqa: E402
from search_tables import energy_problems, read_tables, throughput_problems  # noqa: E402


def write(folder: Path, *, models: tuple[str, ...]) -> Path:
    rows = []
    for m, model in enumerate(models):
        for k in range(14):
            tp = (1, 2, 4, 8)[k % 4]
            for conc in (1, 16):
                speed = 30.0 * tp / (1 + conc / 32)
                rows.append(
                    {
                        "config_id": 100 * m + k,
                        "hardware": "h200" if k < 13 else "b200",
                        "framework": "vllm",
                        "model": model,
                        "precision": "fp8" if k % 2 else "fp4",
                        "spec_method": "none",
                        "disagg": 0,
                        "decode_tp": tp,
                        "n_gpus": tp,
                        "isl": 1024.0,
                        "osl": 1024.0,
                        "conc": conc,
                        "interactivity_tok_s_user": speed,
                        "out_tok_s_per_allin_MW": 1000.0 * conc * (k + 1) / tp,
                        "energy_measured": k < 9,
                        "joules_per_output_token": 1.0 + k,
                    }
                )
    with (folder / "any_name.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def test_problems_are_those_with_enough_candidates(tmp_path: Path) -> None:
    tables = read_tables(write(tmp_path, models=("one", "two")))
    own, pooled = (throughput_problems(tables, pooled=pooled) for pooled in (False, True))
    assert {p.hardware for p in own} == {"h200"}
    assert [len(p.candidates) for p in pooled] == [14] * len(pooled)
    assert {p.sla for p in own} == {20.0, 50.0, 100.0}
    assert all(np.count_nonzero(p.truth) >= 3 for p in own + pooled)
    assert [len(p.candidates) for p in energy_problems(tables, pooled=False)] == [9] * 6


def test_a_folder_without_tables_is_told(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no table with the columns"):
        read_tables(tmp_path)


def test_a_prior_never_sees_its_own_model(tmp_path: Path) -> None:
    problems = throughput_problems(read_tables(write(tmp_path, models=("one",))), pooled=False)
    library = Library(Shapes({}), problems)
    assert np.ptp(library.prior(problems[0])) == 0
    assert np.ptp(library.transfer(problems[0])) == 0


def test_every_replay_ends_at_the_best_and_repeats_itself(tmp_path: Path) -> None:
    problem = throughput_problems(read_tables(write(tmp_path, models=("one",))), pooled=True)[0]
    best = int(np.argmax(problem.truth))
    first = [best, *(k for k in range(14) if k != best)]
    assert replay(problem, Given(first), 0).to_1pct == 1
    assert replay(problem, Given(first[::-1]), 0).to_1pct == 14
    flat = np.zeros(14)
    for make in (lambda: Autotune(problem, flat), lambda: ForestWithImprovement(problem, 0)):
        assert replay(problem, make(), 0) == replay(problem, make(), 0)
    assert resemblance(problem)[0].shape[1] == len(resemblance(problem)[1])
