"""What pipelines read: every key is always there, and null only with a reason."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from fakes import curve, launch_record, study_spec

from autotune.domain.accelerators import AcceleratorTable
from autotune.domain.config import EngineConfig
from autotune.domain.document import recommendation_document, studies_document, trials_document
from autotune.domain.power import PowerBasis
from autotune.domain.quality import (
    Measure,
    Precision,
    QualityFigure,
    QualityState,
    QualityVerdict,
    Setting,
)
from autotune.domain.recommendation import Candidate, ledger_for, recommend
from autotune.domain.records import Purpose, StudyRow, StudyStatus, TrialRow, TrialState
from autotune.domain.study import StudySpec

FIGURES = {
    "goodput_tok_per_s",
    "mean_power_w",
    "power_basis",
    "tokens_per_joule",
    "tokens_per_joule_interval",
    "attainment",
    "attainment_interval",
}
"""The figures that the contract with pipelines names."""
STUDY = study_spec()
TABLE = AcceleratorTable(accelerators=())


def candidate(number: int, purpose: Purpose = Purpose.SEARCH, *, watts: float = 100.0) -> Candidate:
    own = EngineConfig(engine="fake", max_num_seqs=number + 1)
    row = TrialRow(
        study="small",
        number=number,
        purpose=purpose,
        state=TrialState.MEASURED,
        config=STUDY.default_config() if purpose is Purpose.DEFAULTS else own,
    )
    return Candidate(
        row=replace(row, command=f"serve {number}"),
        launch=launch_record(row, curve(watts=watts)),
        final=launch_record(row, curve((4.0,), watts=watts)),
    )


def slas(candidates: list[Candidate], study: StudySpec = STUDY) -> list[dict[str, Any]]:
    """The document's SLAs, as a pipeline reads them back."""
    found = [recommend(study, sla, candidates) for sla in study.slas]
    document = recommendation_document(study.name, found, lambda s: ledger_for(s, study, TABLE))
    read = json.loads(json.dumps(document, allow_nan=False))
    assert set(read) == {"study", "slas"}
    assert read["study"] == study.name
    return list(read["slas"])


ALL = [candidate(0, Purpose.DEFAULTS, watts=200.0), candidate(1)]


def test_an_answer_has_its_configuration_its_command_and_its_figures() -> None:
    fast, slow = slas(ALL)
    assert [fast["name"], slow["name"]] == ["fast", "slow"]
    assert fast["configuration"] == {"max_num_seqs": 2}
    assert fast["command"] == "serve 1"
    assert fast["trial"] == 1
    assert fast["reason"] is None
    assert fast["goodput_tok_per_s"] == pytest.approx(20, rel=0.01)
    assert fast["mean_power_w"] == pytest.approx(100)
    assert fast["power_basis"] == "gpu"
    assert fast["tokens_per_joule"] == pytest.approx(0.2, rel=0.01)
    low, high = fast["tokens_per_joule_interval"]
    assert low <= fast["tokens_per_joule"] + 1e-9
    assert fast["tokens_per_joule"] <= high + 1e-9
    assert fast["attainment"] == 1.0
    assert fast["attainment_interval"][1] == pytest.approx(1.0)
    assert fast["launches"] == 2
    assert fast["quality"]["state"] == "not judged"
    assert fast["quality"]["precision"]["weights"] == "as stored"


def test_the_defaults_stand_beside_it_with_the_same_figures() -> None:
    for sla in slas(ALL):
        assert set(sla["baseline"]) >= FIGURES | {"configuration", "command", "reason"}
        assert sla["baseline"]["mean_power_w"] == pytest.approx(200)
        assert sla["baseline"]["command"] == "serve 0"
        assert sla["baseline"]["reason"] is None


def nothing_met() -> list[Candidate]:
    slow = [replace(c, launch=replace(c.launch, curve=curve(capacity_rps=1.0)), final=None) for c in ALL]
    return [replace(c, launch=replace(c.launch, curve=())) for c in slow]


def test_a_withheld_answer_is_null_with_a_reason() -> None:
    for sla in slas(nothing_met()):
        assert all(sla[key] is None for key in FIGURES | {"configuration", "command", "trial"})
        assert sla["reason"] == f"no configuration met {sla['name']} at any measured load"
        assert all(sla["baseline"][key] is None for key in FIGURES | {"configuration", "command"})
        assert sla["baseline"]["reason"] == f"the engine's defaults met {sla['name']} at no measured load"


@pytest.mark.parametrize("candidates", [ALL, nothing_met(), []])
def test_the_contracts_keys_are_always_there(candidates: list[Candidate]) -> None:
    keys = FIGURES | {"name", "configuration", "command", "baseline", "reason"}
    for sla in slas(candidates):
        assert keys <= set(sla)
        assert set(sla["baseline"]) >= FIGURES | {"reason"}
        # A null is explained: by the reason of the same object.
        for part in (sla, sla["baseline"]):
            assert part["reason"] or all(part[key] is not None for key in FIGURES)


def test_answered_and_withheld_have_the_same_keys() -> None:
    (answered, _), (withheld, _) = slas(ALL), slas(nothing_met())
    assert set(answered) == set(withheld)
    assert set(answered["baseline"]) == set(withheld["baseline"])


def test_production_appears_where_the_study_has_it() -> None:
    study = study_spec(baseline="serve")
    (without, _), (with_it, _) = slas(ALL), slas([*ALL, candidate(2, Purpose.BASELINE, watts=150.0)], study)
    assert without["production"] is None
    assert with_it["production"]["mean_power_w"] == pytest.approx(150)
    (missing, _) = slas(ALL, study)
    assert missing["production"]["reason"] == "production's configuration met fast at no measured load"


def test_energy_that_was_not_measured_is_null_and_not_zero() -> None:
    def gapped(of: Candidate) -> Candidate:
        broken = tuple(
            replace(m, power=replace(m.power, basis=PowerBasis.ESTIMATED, period_s=1e-6))
            for m in (of.final or of.launch).curve
        )
        return replace(of, final=replace(of.final or of.launch, curve=broken))

    fast, _ = slas([gapped(c) for c in ALL])
    assert (fast["mean_power_w"], fast["tokens_per_joule"], fast["tokens_per_joule_interval"]) == (
        None,
        None,
        None,
    )
    assert fast["energy_verdict"] == "invalid"
    assert fast["energy_reasons"] == ["gap:gpu-0"]
    assert fast["goodput_tok_per_s"] > 0


def test_the_verdict_on_quality_stands_beside_the_figures() -> None:
    verdict = QualityVerdict(
        state=QualityState.PASSED,
        precision=Precision.of("some/model", EngineConfig(engine="fake", quantization="int8"), "fake 1"),
        judged_in=1,
        reference=0,
        figures=(
            QualityFigure(setting=Setting.ALONE, measure=Measure.MEAN, value=0.02, own=0.001, threshold=0.05),
            QualityFigure(setting=Setting.LONG, measure=Measure.HIGH, value=math.inf, own=0.0, threshold=0.5),
        ),
        known="4 of 4 known prompts",
    )
    fast, _ = slas([ALL[0], replace(ALL[1], launch=replace(ALL[1].launch, quality=verdict))])
    assert fast["quality"]["state"] == "passed"
    assert (fast["quality"]["judged_in"], fast["quality"]["reference"]) == (1, 0)
    assert fast["quality"]["precision"]["weights"] == "int8"
    assert fast["quality"]["known_prompts"] == "4 of 4 known prompts"
    assert fast["quality"]["figures"][0] == {
        "setting": "alone",
        "measure": "mean log-probability difference",
        "unit": "nats",
        "value": 0.02,
        "reference_against_itself": 0.001,
        "at_most": 0.05,
        "passed": True,
    }
    assert (fast["quality"]["figures"][1]["value"], fast["quality"]["figures"][1]["passed"]) == (None, False)


def test_trials_tell_what_became_of_each() -> None:
    rows = [
        TrialRow(
            study="small",
            number=3,
            purpose=Purpose.FINAL,
            state=TrialState.INFEASIBLE,
            config=EngineConfig(engine="fake", eager=True),
            final_of=1,
            failure_class="out of memory",
            failure_line="the line",
            log_path="/logs/engine.log",
            quality="passed",
        )
    ]
    document = json.loads(json.dumps(trials_document("small", rows)))
    assert document == {
        "study": "small",
        "trials": [
            {
                "number": 3,
                "purpose": "final",
                "final_of": 1,
                "state": "infeasible",
                "configuration": {"eager": True},
                "command": None,
                "failure_class": "out of memory",
                "failure_line": "the line",
                "log": "/logs/engine.log",
                "launch_s": 0.0,
                "load_s": 0.0,
                "total_s": 0.0,
                "objectives": {},
                "quality": "passed",
            }
        ],
    }


def test_studies_are_listed() -> None:
    row = StudyRow(
        name="one",
        spec="{}",
        status=StudyStatus.FINISHED,
        owner="host 1 2",
        spent_s=5.0,
        started_at="2026-01-01",
    )
    assert json.loads(json.dumps(studies_document([row]))) == {
        "studies": [{"study": "one", "status": "finished", "started_at": "2026-01-01", "spent_s": 5.0}]
    }
