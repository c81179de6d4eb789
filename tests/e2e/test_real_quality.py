"""The quality gate on a real vLLM: the reference against itself, honest verdicts, and a ruined checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from real_engine import examined, tiny_study

from autotune.domain.judging.quality import Measure, QualityState, QualityVerdict, ReferenceAnswers, Setting
from autotune.domain.studies.records import LaunchRecord
from autotune.domain.studies.study import StudySpec
from autotune.runs.quality import QualityKnown

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.engine, pytest.mark.timeout(900)]


def verdict_of(record: LaunchRecord) -> QualityVerdict:
    assert record.failure is None, record.failure
    assert record.quality is not None
    for line in (record.quality.state, record.quality.known, *map(str, record.quality.figures)):
        print(line)
    return record.quality


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudySpec:
    return tiny_study(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def reference(study: StudySpec, tmp_path_factory: pytest.TempPathFactory) -> ReferenceAnswers:
    record = examined(tmp_path_factory.mktemp("reference"), study)
    assert verdict_of(record).state is QualityState.PASSED
    assert record.answers is not None
    return record.answers


def test_the_reference_tells_all_that_the_gate_asks(reference: ReferenceAnswers) -> None:
    assert all(len(answer.steps) == 32 for answer in reference.answers.alone)
    assert all(len(answer.steps) == 32 for answer in reference.answers.scored_alone)
    # What is scored is what was answered: the same tokens, by another way through the engine.
    for answer, scored in zip(reference.answers.alone, reference.answers.scored_alone, strict=True):
        assert [s.token for s in answer.steps] == [s.token for s in scored.steps]
        told = [s.logprob for s in answer.steps]
        assert np.allclose(told, [s.logprob for s in scored.steps], atol=0.1)
    assert len(reference.long_questions[0].ids) == 2048 - 32 - 64
    assert {reading.setting for reading in reference.own} == set(Setting) - {Setting.TASKS}
    assert Measure.TEXT not in {reading.measure for reading in reference.own}


def test_another_launch_of_the_reference_passes_by_its_figures(
    tmp_path: Path, study: StudySpec, reference: ReferenceAnswers
) -> None:
    # Named outright, the same precision has another name, and is judged.
    record = examined(tmp_path, study, number=1, known=QualityKnown(reference=reference), dtype="bfloat16")
    verdict = verdict_of(record)
    assert verdict.state is QualityState.PASSED
    assert verdict.figures
    assert verdict.known == "4 of 4 known prompts as by trial 0, within 0.5 nats"


MEANS = ((Setting.ALONE, Measure.MEAN), (Setting.TOGETHER, Measure.MEAN))


@pytest.mark.skipif(
    "avx512" not in Path("/proc/cpuinfo").read_text(), reason="vLLM's fp8 KV cache on a CPU needs AVX-512"
)
def test_an_fp8_kv_cache_gets_the_verdict_that_its_figures_bear_out(
    tmp_path: Path, study: StudySpec, reference: ReferenceAnswers
) -> None:
    known = QualityKnown(reference=reference)
    verdict = verdict_of(examined(tmp_path, study, number=2, known=known, kv_cache_dtype="fp8"))
    assert (verdict.state is QualityState.PASSED) == all(f.passed for f in verdict.figures)
    # It computes otherwise, and it shows: more than the reference differs from itself when asked again.
    assert all(f.value > f.own for f in verdict.figures if (f.setting, f.measure) in MEANS)


def test_a_quantisation_that_the_engine_does_not_carry_out_is_found_out(
    tmp_path: Path, study: StudySpec, reference: ReferenceAnswers
) -> None:
    """vLLM 0.32 takes this word for experts alone: of a dense model it quantises nothing, and says so low."""
    known = QualityKnown(reference=reference)
    record = examined(tmp_path, study, number=2, known=known, quantization="int8_per_channel_weight_only")
    verdict = verdict_of(record)
    assert verdict.state is QualityState.PASSED
    assert verdict.reasons[-1].endswith("this precision changed nothing")
    (log,) = (tmp_path / "logs-2").glob("*.log")
    assert "Quantizing 0 layers" in log.read_text()


def ruined(model: Path, folder: Path) -> Path:
    """A copy of a model whose linear layers were rounded to two bits."""
    copy = shutil.copytree(model, folder / "ruined")
    file = copy / "model.safetensors"
    content = bytearray(file.read_bytes())
    length = int.from_bytes(content[:8], "little")
    for name, tensor in json.loads(content[8 : 8 + length]).items():
        if not name.endswith("_proj.weight"):
            continue
        start, end = (8 + length + offset for offset in tensor["data_offsets"])
        bits = np.frombuffer(content[start:end], "<u2").astype(np.uint32) << 16
        values = bits.view(np.float32)
        scale = np.abs(values).max() / 1.5
        rounded = np.clip(np.round(values / scale), -2, 1).astype(np.float32) * scale
        content[start:end] = (rounded.view(np.uint32) >> 16).astype("<u2").tobytes()
    file.write_bytes(content)
    return copy


def test_a_ruined_checkpoint_fails(tmp_path: Path, study: StudySpec, reference: ReferenceAnswers) -> None:
    model = ruined(Path(study.model), tmp_path)
    # Known prompts alone would already stop it; here they let everything pass, so that the gate is seen to.
    lenient = study.quality.model_copy(update={"differing": 0.99, "known": 16})
    other = study.model_copy(update={"model": str(model), "quality": lenient})
    known = QualityKnown(reference=reference)
    record = examined(tmp_path, study.model_copy(update={"model": str(model)}), number=3, known=known)
    print(record.failure or record.quality)
    assert record.failure is not None
    assert record.failure.failure_class == "wrong output"
    verdict = verdict_of(examined(tmp_path, other, number=4, known=known))
    assert verdict.state is QualityState.FAILED
    assert any("mean log-probability difference" in reason for reason in verdict.reasons)
