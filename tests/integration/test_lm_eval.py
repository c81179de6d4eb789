"""Tasks through lm-evaluation-harness: its command line, its results, and its end, with a stand-in for it."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from autotune.adapters.engines.lm_eval import LOG, LmEval
from autotune.domain.basics.errors import BenchError, StudyCancelledError
from autotune.domain.judging.quality import TaskScore, TaskSpec
from autotune.domain.launches.endpoint import Endpoint

ENDPOINT = Endpoint("http://127.0.0.1:8000", "tiny", token_variable="TOKEN_OF_TEST")
RESULTS = {
    "results": {
        "sums": {"alias": "sums", "exact_match,none": 0.75, "exact_match_stderr,none": 0.05},
        "wiki": {"word_perplexity,none": 9.5, "word_perplexity_stderr,none": "N/A", "bits,none": 1.5,
                 "bits_stderr,none": 0.1},
        "bare": {"acc,none": 0.5, "acc_stderr,none": "N/A"},
    },
    "higher_is_better": {"sums": {"exact_match": True}, "wiki": {"bits": False}},
}  # fmt: skip
HARNESS = """#!{python}
import json, os, pathlib, sys, time
asked = dict(zip(sys.argv[1::2], sys.argv[2::2]))
print("asked of", os.environ["OPENAI_API_KEY"], json.dumps(sys.argv[1:]), flush=True)
{does}
folder = pathlib.Path(asked["--output_path"]) / "tiny"
folder.mkdir(parents=True)
(folder / "results_2026.json").write_text({results!r})
"""


def never() -> bool:
    return False


@pytest.fixture
def harness(tmp_path: Path) -> Callable[..., TaskSpec]:
    """Makes a stand-in that does something before it writes its results."""

    def make(does: str = "", **spec: Any) -> TaskSpec:
        path = tmp_path / "lm_eval"
        path.write_text(HARNESS.format(python=sys.executable, does=does, results=json.dumps(RESULTS)))
        path.chmod(0o755)
        return TaskSpec.model_validate({"names": ["sums"], "command": str(path), **spec})

    return make


def test_scores_are_those_that_the_harness_tells(
    harness: Callable[..., TaskSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN_OF_TEST", "secret")
    spec = harness(names=["sums", "wiki"], limit=20, folder="/own", model={"tokenizer": "/some/model"})
    found = LmEval().run(ENDPOINT, spec, tmp_path, never, chat=False)
    assert found == (
        TaskScore(task="sums", metric="exact_match", score=0.75, error=0.05),
        TaskScore(task="wiki", metric="bits", score=1.5, error=0.1, higher_is_better=False),
    )
    told = (tmp_path / LOG).read_text()
    assert told.startswith("asked of secret")
    for part in ("local-completions", "base_url=http://127.0.0.1:8000/v1/completions", "sums,wiki"):
        assert part in told
    for part in ("tokenizer=/some/model", '"--limit", "20"', '"--include_path", "/own"'):
        assert part in told


def test_an_engine_that_knows_chats_alone_is_asked_so(
    harness: Callable[..., TaskSpec], tmp_path: Path
) -> None:
    LmEval().run(ENDPOINT, harness(), tmp_path, never, chat=True)
    told = (tmp_path / LOG).read_text()
    assert "local-chat-completions" in told
    assert "/v1/chat/completions" in told
    assert "--apply_chat_template" in told


@pytest.mark.parametrize(
    ("does", "spec", "why"),
    [
        ("sys.exit('no dataset here')", {}, "exit code 1: no dataset here; log:"),
        ("sys.exit(0)", {}, "left no results"),
        ("", {"names": ["sums", "bare"]}, "no score with a standard error of bare"),
        ("time.sleep(60)", {"timeout": "1s"}, "took longer than 1s"),
    ],
)
def test_what_goes_wrong_is_told(
    harness: Callable[..., TaskSpec], tmp_path: Path, does: str, spec: dict[str, Any], why: str
) -> None:
    with pytest.raises(BenchError, match=why):
        LmEval().run(ENDPOINT, harness(does, **spec), tmp_path, never, chat=False)


def test_a_study_that_stops_ends_the_harness_and_what_it_started(
    harness: Callable[..., TaskSpec], tmp_path: Path
) -> None:
    does = "import subprocess; subprocess.Popen(['sleep', '61']); time.sleep(60)"
    stop = threading.Event()
    threading.Timer(2.0, stop.set).start()
    with pytest.raises(StudyCancelledError):
        LmEval().run(ENDPOINT, harness(does), tmp_path, stop.is_set, chat=False)
    time.sleep(0.2)
    assert not [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "61"]]
