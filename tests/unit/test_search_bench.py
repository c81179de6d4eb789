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
from search_features import resemblance  # noqa: E402
from search_forecasts import Shapes, excess_of, forecasts, seen_levels  # noqa: E402
from search_methods import Bench  # noqa: E402
from search_ours import Autotune  # noqa: E402
from search_prior import CURVE, Library  # noqa: E402
from search_replay import replay  # noqa: E402
from search_several import shared_launches  # noqa: E402
from search_tables import Levels, energy_problems, read_tables, throughput_problems  # noqa: E402

from autotune.domain.search.choosing import ByCurve, ByObjective  # noqa: E402


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
    assert np.ptp(library.priors(problems[0])["earlier"].expected) == 0
    assert np.ptp(library.transfer(problems[0])) == 0


def test_every_replay_ends_at_the_best_and_repeats_itself(tmp_path: Path) -> None:
    problem = throughput_problems(read_tables(write(tmp_path, models=("one",))), pooled=True)[0]
    best = int(np.argmax(problem.truth))
    first = [best, *(k for k in range(14) if k != best)]
    assert replay(problem, Given(first), 0).to_1pct == 1
    assert replay(problem, Given(first[::-1]), 0).to_1pct == 14
    flat = ByObjective(np.zeros(14), relative=True)
    for make in (lambda: Autotune([problem], [{"flat": flat}]), lambda: ForestWithImprovement(problem, 0)):
        assert replay(problem, make(), 0) == replay(problem, make(), 0)
    alike = resemblance(problem)
    assert (alike.diagonal() == 1).all()
    assert (alike == alike.T).all()


def llama() -> dict[str, object]:
    return {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "torch_dtype": "bfloat16",
    }


def test_levels_that_are_as_forecast_show_no_error_and_faster_ones_how_much(tmp_path: Path) -> None:
    problem = throughput_problems(read_tables(write(tmp_path, models=("one",))), pooled=True)[0]
    known = forecasts(problem, Shapes({"one": llama()}))
    assert known is not None
    at = np.array([1.0, 16.0, 64.0])
    tpot, value = np.exp(known.figures[:, 3, [0, 4, 6]])  # of CONCURRENCIES
    as_forecast = Levels(concurrency=at, interactivity=1 / tpot, values=value)
    assert known.error(3, seen_levels(as_forecast), excess_of(50.0)) == pytest.approx([0, 0])
    faster = Levels(concurrency=at, interactivity=1.2 / tpot, values=0.7 * value)
    assert known.error(3, seen_levels(faster), excess_of(50.0)) == pytest.approx(np.log([1 / 1.2, 0.7]))


def test_a_slower_curve_is_worth_less_at_an_sla_and_falls_steeply_where_it_misses(tmp_path: Path) -> None:
    problem = throughput_problems(read_tables(write(tmp_path, models=("one",))), pooled=True)[0]
    known = forecasts(problem, Shapes({"one": llama()}))
    assert known is not None
    none = np.zeros((14, 2))
    slower = np.tile([0.5, 0.0], (14, 1))
    fastest = float(np.exp(-known.figures[0, :, 0].min()))

    def best(sla: float, errors: np.ndarray = none) -> np.ndarray:
        return known.best_at(excess_of(sla), errors)

    assert (best(0.3 * fastest, slower) < best(0.3 * fastest)).any()
    assert (best(1.0) >= best(fastest)).all()
    assert (best(2 * fastest) < best(1.5 * fastest)).all()


def test_a_search_with_forecasts_of_a_known_model_ends_at_the_best(tmp_path: Path) -> None:
    problems = throughput_problems(read_tables(write(tmp_path, models=("one", "two"))), pooled=True)
    library = Library(Shapes({"one": llama(), "two": llama()}), problems)
    for problem in problems:
        priors = library.priors(problem)
        assert isinstance(priors[CURVE], ByCurve)
        found = replay(problem, Autotune([problem], [priors]), 0)
        assert found.to_5pct <= found.to_1pct <= len(problem.candidates)


def test_one_search_for_several_slas_launches_no_more_than_one_search_for_each(tmp_path: Path) -> None:
    problems = throughput_problems(read_tables(write(tmp_path, models=("one",))), pooled=True)
    bench = Bench.prepared(problems, [], {"one": llama()})
    (shared,) = shared_launches(bench, seeds=2)
    assert shared.slas == len(problems) > 1
    assert 1 <= shared.together <= shared.apart
