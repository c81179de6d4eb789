"""Tasks of the real lm-evaluation-harness, solved by a real vLLM: the reference, and another precision."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from real_engine import examined, tiny_study

from autotune.domain.judging.quality import QualityState, Setting
from autotune.runs.quality import QualityKnown

HARNESS = os.environ.get("AUTOTUNE_LM_EVAL", "")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.long,
    pytest.mark.engine,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not HARNESS, reason="AUTOTUNE_LM_EVAL names no lm_eval"),
]

QUESTIONS = 60
TASK = """
task: yes_or_no
dataset_path: json
dataset_kwargs: {{ data_files: {{ test: "{questions}" }} }}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: [" yes", " no"]
doc_to_target: label
metric_list: [{{ metric: acc, aggregation: mean, higher_is_better: true }}]
"""


def test_tasks_are_solved_by_the_reference_and_by_another_precision(tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    questions = folder / "questions.jsonl"
    questions.write_text(
        "".join(json.dumps({"question": f"Is {k} even?", "label": k % 2}) + "\n" for k in range(QUESTIONS))
    )
    (folder / "yes_or_no.yaml").write_text(TASK.format(questions=questions))
    study = tiny_study(tmp_path)
    # Likelihoods of choices are asked of tokens, which the harness must know.
    model = {"tokenizer": study.model, "tokenizer_backend": "huggingface"}
    tasks = {"names": ["yes_or_no"], "folder": str(folder), "command": HARNESS, "model": model}
    study = tiny_study(tmp_path / "again", quality={"tasks": tasks})

    reference = examined(tmp_path / "reference", study)
    assert reference.failure is None, reference.failure
    assert reference.answers is not None
    (score,) = reference.answers.answers.tasks
    print(score)
    assert (score.task, score.metric) == ("yes_or_no", "acc")
    assert 0 < score.error < 0.1

    known = QualityKnown(reference=reference.answers)
    other = examined(tmp_path / "other", study, number=1, known=known, dtype="float32")
    assert other.quality is not None
    (figure,) = (f for f in other.quality.figures if f.setting is Setting.TASKS)
    print(figure)
    # The same weights, less rounding: it answers the same but for near ties.
    assert figure.passed
    assert other.quality.state is QualityState.PASSED
