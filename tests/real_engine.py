"""What tests on a real vLLM share: where it is, a study of the tiny models, and one launch of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from autotune import wiring
from autotune.adapters.files.synthetic_model import make_tiny_model
from autotune.domain.configs.config import EngineConfig
from autotune.domain.load.level import Level
from autotune.domain.studies.ports import EventSink
from autotune.domain.studies.records import LaunchRecord, Purpose
from autotune.domain.studies.study import StudySpec
from autotune.runs.launch import LaunchTask, run_launch
from autotune.runs.quality import QualityKnown

WORKLOAD = {"name": "chat", "input_tokens": 64, "output_tokens": 32}
SLA = {"name": "any", "attainment": 0.5, "slos": {"e2e": "30s"}}
MEASUREMENT = {"warmup": "1s", "window": "4s", "longest_window": "4s", "start_timeout": "4m"}


def tiny_study(folder: Path, *, moe: bool = False, **changes: Any) -> StudySpec:
    """A study of a tiny model, made in ``folder``; raises InputError where no vLLM is installed."""
    make_tiny_model(folder / "model", moe=moe)
    study = StudySpec.model_validate(
        {
            "name": "real",
            "model": str(folder / "model"),
            "engines": [{"name": "vllm", "fixed": {"context_length": 2048, "eager": True}}],
            "workloads": [WORKLOAD],
            "slas": [SLA],
            "space": {"dimensions": {"max_num_seqs": ["default"]}},
            "budget": {"launches": 1},
            "measurement": MEASUREMENT,
            **changes,
        }
    )
    wiring.environment_for(study.engines[0])
    return study


def launch(
    folder: Path,
    study: StudySpec,
    words: Mapping[str, Any] | None = None,
    *levels: Level,
    parser_asked: bool = True,
    sink: EventSink = lambda _event: None,
) -> LaunchRecord:
    """Launch the study's defaults with other ``words`` and measure ``levels``.

    ``parser_asked`` false lets through to the engine what its parser is known to refuse.
    """
    config: EngineConfig = study.default_config().replaced(words or {})
    task = LaunchTask(
        study=study,
        number=0,
        purpose=Purpose.SEARCH,
        config=config,
        workdir=folder / "logs",
        levels=levels,
    )
    with wiring.benches_for(study) as benches:
        bench = benches["vllm"]
        unasked = replace(bench, environment=replace(bench.environment, flags={}))
        return run_launch(task, bench if parser_asked else unasked, sink, lambda: False)


def examined(
    folder: Path,
    study: StudySpec,
    *,
    number: int = 0,
    known: QualityKnown | None = None,
    **words: Any,
) -> LaunchRecord:
    """Start an engine and have it examined, without load; it is the reference if nothing is ``known``."""
    task = LaunchTask(
        study=study,
        number=number,
        purpose=Purpose.DEFAULTS if known is None else Purpose.SEARCH,
        config=study.default_config().replaced(words),
        workdir=folder / f"logs-{number}",
        levels=(),
        known=known or QualityKnown(),
    )
    with wiring.benches_for(study) as benches:
        return run_launch(task, benches["vllm"], lambda _event: None, lambda: False)
