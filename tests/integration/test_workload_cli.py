"""``autotune workload from-logs``: from real log files to a file that a study replays."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner, Result

from autotune.adapters.files.synthetic_model import make_tiny_model
from autotune.adapters.files.traffic_files import load_traffic, resolved_paths
from autotune.cli.app import app
from autotune.domain.basics.errors import InputError
from autotune.domain.load.level import Level
from autotune.domain.load.planning import plan_load, planned_prefix_share
from autotune.domain.load.prompts import RandomTokens
from autotune.domain.load.workload import Workload

SYSTEM = "You are the keeper of a lighthouse and answer in the manner of one. " * 20
SECRETS = [f"my account number is {number} and my name is Ada" for number in range(7000, 7040)]


def logged(folder: Path) -> Path:
    """Twenty conversations of two turns; all share a system prompt."""
    rng = np.random.default_rng(0)
    lines, at_s = [], 1752570000.0
    for number in range(20):
        system, first, second = (
            {"role": "system", "content": SYSTEM},
            SECRETS[2 * number],
            SECRETS[2 * number + 1],
        )
        turns = [[system, {"role": "user", "content": first}]]
        answer = {"role": "assistant", "content": f"the sea was calm on day {number}"}
        turns.append([*turns[0], answer, {"role": "user", "content": second}])
        for messages in turns:
            at_s += float(rng.exponential(2.0))
            size = len(json.dumps(messages)) // 4
            lines.append(
                {"startTime": at_s, "prompt_tokens": size, "completion_tokens": 20, "messages": messages}
            )
    file = folder / "gateway.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"cut off\n')
    return file


def run(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "160"}).invoke(app, ["workload", "from-logs", *map(str, arguments)])


def test_logs_become_a_workload_that_replays(tmp_path: Path) -> None:
    output = tmp_path / "own.parquet"
    done = run(logged(tmp_path), "-o", output)
    assert done.exit_code == 0, done.output
    for told in (
        r"requests\s+40",
        r"left out\s+1 malformed lines",
        r"rate\s+0\.\d+ req/s",
        r"burstiness\s+[01]\.\d+",
        r"prompt tokens\s+p50 \d+, p95 \d+, p99 \d+",
        r"shared prefixes\s+[89]\d\.\d% of prompt tokens",
        r"turns\s+20 conversations of 2\.0 turns, at most 2",
    ):
        assert re.search(told, done.stdout), (told, done.stdout)
    written = done.stdout[done.stdout.index("workloads:") :]
    (described,) = YAML(typ="safe").load(written)["workloads"]
    workload = resolved_paths(Workload.model_validate(described), tmp_path)
    traffic = load_traffic(workload)
    assert traffic is not None
    assert len(traffic) == 40
    assert traffic.left_out == 0
    plan = plan_load(
        workload,
        Level("own", rate_rps=10.0),
        duration_s=4.0,
        seed=1,
        prompts=RandomTokens(5000, 1),
        traffic=traffic,
    )
    assert len(plan.requests) == 40
    assert planned_prefix_share(plan, block_tokens=16) > 0.7
    assert sum(request.after is not None for request in plan.requests) >= 18


@pytest.mark.parametrize("with_tokenizer", [False, True])
def test_no_word_of_the_prompts_is_in_the_file(tmp_path: Path, with_tokenizer: bool) -> None:
    make_tiny_model(tmp_path / "model")
    output = tmp_path / "own.parquet"
    done = run(
        logged(tmp_path), "-o", output, *(["--tokenizer", tmp_path / "model"] if with_tokenizer else [])
    )
    assert done.exit_code == 0, done.output
    for shown in (output.read_bytes(), done.output.encode()):
        for text in (SYSTEM, *SECRETS, "the sea was calm"):
            pieces = {text[at : at + 8] for at in range(0, len(text) - 8, 4)}
            assert not [piece for piece in pieces if piece.encode() in shown]


def test_fields_are_named_on_the_command_line(tmp_path: Path) -> None:
    log = tmp_path / "own.jsonl"
    log.write_text("".join(f'{{"req": {{"ts": {t}, "n": 5}}, "m": 3}}\n' for t in (1000, 1001, 1003)))
    named = ["start=req.ts", "input_tokens=req.n", "output_tokens=m"]
    done = run(log, "-o", tmp_path / "w.parquet", *(part for name in named for part in ("--field", name)))
    assert done.exit_code == 0, done.output
    assert re.search(r"rate\s+0\.667 req/s", done.stdout)
    assert re.search(r"shared prefixes\s+not known", done.stdout)
    assert re.search(r"turns\s+none seen", done.stdout)


@pytest.mark.parametrize("field", ["start", "begin=ts", "start="])
def test_a_field_that_is_not_understood_is_refused(tmp_path: Path, field: str) -> None:
    done = run(logged(tmp_path), "-o", tmp_path / "w.parquet", "--field", field)
    assert isinstance(done.exception, InputError)
    assert "input_tokens" in str(done.exception)


def test_what_cannot_be_written_or_read_is_named(tmp_path: Path) -> None:
    done = run(logged(tmp_path), "-o", tmp_path / "nowhere" / "w.parquet")
    assert isinstance(done.exception, InputError)
    assert "cannot be written" in str(done.exception)
    done = run(tmp_path / "no.jsonl", "-o", tmp_path / "w.parquet")
    assert isinstance(done.exception, InputError)
    assert "cannot be read" in str(done.exception)
    done = run(logged(tmp_path), "-o", tmp_path / "w.parquet", "--tokenizer", tmp_path)
    assert isinstance(done.exception, InputError)
    assert "tokenizer.json" in str(done.exception)


def test_help_shows_examples() -> None:
    done = run("--help")
    assert done.exit_code == 0
    assert "autotune workload from-logs" in done.stdout
    assert "--format otel" in done.stdout
