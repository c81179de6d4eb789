"""The arithmetic of bench/load.py: what the engine's log says, and how far an account of it is off."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def truth(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCH)
    return importlib.import_module("load_truth")


def served(truth: ModuleType, number: int, **changed: Any) -> Any:
    """Received at ``number`` s, first token 0.02 s and last token 0.33 s later."""
    row = {
        "id": f"cmpl-{number}",
        "prompt": f"p{number}",
        "received_s": float(number),
        "first_due_s": number + 0.019,
        "first_token_s": number + 0.02,
        "last_token_s": number + 0.33,
        "tokens": 32,
    }
    return truth.Served(**row | changed)


def test_an_account_is_off_by_what_the_client_added(truth: ModuleType) -> None:
    rows = [served(truth, n) for n in range(100)]
    # One in a hundred is 50 ms late, the rest 1 ms; half are known by id, half by prompt.
    claims = tuple(
        truth.Claim(
            key=f"cmpl-{n}" if n % 2 else f"p{n}", ttft_s=0.07 if n == 0 else 0.021, tpot_s=0.31 / 31 + 0.0005
        )
        for n in range(100)
    )
    found = truth.errors(truth.Account(claims, failed=3), rows)
    assert (found.requests, found.failed) == (100, 3)
    assert found.ttft_median == pytest.approx(1.0)
    # Between the 99th of 100 values and the 100th, a hundredth of the way.
    assert found.ttft_each_p99 == pytest.approx(1.0 + 0.01 * 49)
    assert found.ttft_p99 == pytest.approx(found.ttft_each_p99)
    assert (found.tpot_median, found.tpot_p99, found.tpot_each_p99) == pytest.approx((0.5, 0.5, 0.5))
    assert found.engine_late_p99 == pytest.approx(1.0)


def test_errors_that_cancel_in_percentiles_show_in_single_requests(truth: ModuleType) -> None:
    rows = [served(truth, 0, first_token_s=0.01), served(truth, 1, first_token_s=1.03)]
    swapped = (
        truth.Claim(key="p0", ttft_s=0.03, tpot_s=0.01),
        truth.Claim(key="p1", ttft_s=0.01, tpot_s=0.01),
    )
    found = truth.errors(truth.Account(swapped), rows)
    assert found.ttft_median == pytest.approx(0.0)
    assert found.ttft_each_p99 == pytest.approx(20.0)


@pytest.mark.parametrize("keys", [[], ["cmpl-0", "cmpl-7"]])
def test_an_account_of_other_requests_is_refused(truth: ModuleType, keys: list[str]) -> None:
    claims = tuple(truth.Claim(key=key, ttft_s=0.02, tpot_s=0.01) for key in keys)
    with pytest.raises(truth.ToolError, match="are in the engine's log"):
        truth.errors(truth.Account(claims), [served(truth, 0)])


def test_a_ceiling_counts_only_what_the_client_is_done_with(truth: ModuleType) -> None:
    rows = [served(truth, n) for n in range(10)]
    assert truth.steady_part(rows, 4) == (0.0, 9.0, 6 * 32)
    with pytest.raises(truth.ToolError, match="too few"):
        truth.steady_part(rows, 6)


def test_reads_the_log_in_order_of_arrival(truth: ModuleType, tmp_path: Path) -> None:
    log = tmp_path / "truth.jsonl"
    row = {
        "id": "cmpl-b",
        "prompt": "p",
        "received_s": 2.0,
        "first_due_s": None,  # a flood's tokens are never due
        "token_s": [2.5, 2.6, 2.7],
        "output_tokens": 3,
    }
    earlier = row | {"id": "cmpl-a", "received_s": 1.0}
    without_tokens = row | {"id": "cmpl-c", "token_s": [], "output_tokens": 0}
    log.write_text("\n".join(json.dumps(r) for r in (row, earlier, without_tokens)))
    rows = truth.read_log(log)
    assert [s.id for s in rows] == ["cmpl-a", "cmpl-b"]
    assert rows[1].ttft_s == pytest.approx(0.5)
    assert rows[1].late_s == 0
    assert rows[1].tpot_s == pytest.approx(0.1)
    assert truth.load_duration_s(rows) == pytest.approx(1.7)
