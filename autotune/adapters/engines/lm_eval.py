"""Tasks of lm-evaluation-harness, solved by a running engine: the harness as a process of its own.

It lives in an environment of its own (it brings datasets and their libraries), and asks the engine as any
client would. Its log lies beside the launch's as ``lm_eval.txt``.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from autotune.adapters.engines.process import EngineProcess, records_in
from autotune.adapters.runtime_dir import default_runtime_dir
from autotune.domain.basics.errors import BenchError, StudyCancelledError
from autotune.domain.basics.quantities import show_duration
from autotune.domain.judging.quality import TaskScore, TaskSpec
from autotune.domain.launches.endpoint import Endpoint
from autotune.domain.launches.launch import ProcessSpec
from autotune.domain.load.progress import Cancelled

TOGETHER = 8
"""Questions at once."""
POLL_S, GRACE_S = 0.2, 2.0
LOG = "lm_eval.txt"


class LmEval:
    """TaskRunner by the harness's command."""

    def run(
        self, endpoint: Endpoint, tasks: TaskSpec, workdir: Path, cancelled: Cancelled, *, chat: bool
    ) -> tuple[TaskScore, ...]:
        """Solve all tasks; raises BenchError, with where its log lies, and StudyCancelledError."""
        log = workdir / LOG
        with tempfile.TemporaryDirectory(prefix="autotune-tasks-") as scratch:
            results = Path(scratch) / "results"
            spec = ProcessSpec(
                role="lm_eval",
                argv=command(endpoint, tasks, results, chat=chat),
                env=_environment(endpoint),
                devices=(),
                ready_path="",
            )
            _run(spec, log, scratch, tasks.timeout, cancelled)
            found = sorted(results.rglob("results_*.json"))
            if not found:
                raise BenchError(f"lm_eval left no results; log: {log}")
            return scores(json.loads(found[-1].read_text(encoding="utf-8")), tasks.names, log)


def command(endpoint: Endpoint, tasks: TaskSpec, results: Path, *, chat: bool) -> tuple[str, ...]:
    """The harness's command line."""
    at = "chat/completions" if chat else "completions"
    model = {
        "model": endpoint.model,
        "base_url": f"{endpoint.base_url.removesuffix('/v1')}/v1/{at}",
        "num_concurrent": TOGETHER,
        "max_retries": 1,
        # Text goes to the engine as it is: its own tokenizer reads it.
        "tokenizer_backend": None,
        "tokenized_requests": False,
    }
    return (
        tasks.command,
        *("--model", "local-chat-completions" if chat else "local-completions"),
        *("--model_args", ",".join(f"{name}={value}" for name, value in {**model, **tasks.model}.items())),
        *("--tasks", ",".join(tasks.names)),
        *("--output_path", str(results)),
        *(("--include_path", tasks.folder) if tasks.folder else ()),
        *(("--limit", str(tasks.limit)) if tasks.limit else ()),
        *(("--apply_chat_template",) if chat else ()),
    )


def scores(results: Mapping[str, Any], names: tuple[str, ...], log: Path) -> tuple[TaskScore, ...]:
    """The first metric of each task that has a standard error; raises BenchError for a task without one."""
    found = tuple(score for name in names for score in _of_task(results, name))
    if missing := set(names) - {score.task for score in found}:
        told = f"lm_eval told no score with a standard error of {', '.join(sorted(missing))}"
        raise BenchError(f"{told}; log: {log}")
    return found


def _of_task(results: Mapping[str, Any], name: str) -> Iterator[TaskScore]:
    told = results.get("results", {}).get(name, {})
    better = results.get("higher_is_better", {}).get(name, {})
    for key, value in told.items():
        metric, _, kind = key.partition(",")
        error = told.get(f"{metric}_stderr,{kind}")
        if isinstance(value, float) and isinstance(error, float) and math.isfinite(error):
            yield TaskScore(
                task=name, metric=metric, score=value, error=error, higher_is_better=better.get(metric, True)
            )
            return


def _environment(endpoint: Endpoint) -> dict[str, str]:
    token = os.environ.get(endpoint.token_variable, "") if endpoint.token_variable else ""
    return {"OPENAI_API_KEY": token or "none", "TOKENIZERS_PARALLELISM": "false"}


def _run(spec: ProcessSpec, log: Path, scratch: str, timeout_s: float, cancelled: Cancelled) -> None:
    """Run a process to its end; raises BenchError where that is not well, StudyCancelledError."""
    records = records_in(default_runtime_dir())
    until_s = time.monotonic() + timeout_s
    process = EngineProcess(spec, 0, log_path=log, scratch=scratch, records=records, stop_grace_s=GRACE_S)
    try:
        while (code := process.exit_code()) is None:
            if cancelled():
                raise StudyCancelledError("stopped while the engine solved tasks")
            if time.monotonic() > until_s:
                raise BenchError(f"lm_eval took longer than {show_duration(timeout_s)}; log: {log}")
            time.sleep(POLL_S)
    finally:
        process.stop()
    if code:
        lines = log.read_text(errors="replace").strip().splitlines() or ["it says nothing"]
        raise BenchError(f"lm_eval failed with exit code {code}: {lines[-1].strip()[:300]}; log: {log}")
