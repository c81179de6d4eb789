"""What pipelines read: every key is always there, and null only with a reason."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
from fakes import curve, launch_record, study_spec

from autotune.domain.basics.errors import InfeasibleConfigError
from autotune.domain.configs.config import EngineConfig
from autotune.domain.hardware.accelerators import AcceleratorTable
from autotune.domain.hardware.hardware import DeviceKind
from autotune.domain.judging.quality import (
    Measure,
    Precision,
    QualityFigure,
    QualityState,
    QualityVerdict,
    Setting,
)
from autotune.domain.launches.deployment import Build, Deployment, deployment_of
from autotune.domain.launches.launch import LaunchSpec, ProcessSpec
from autotune.domain.measuring.power import PowerBasis
from autotune.domain.recommending.contract import RecommendationDocument, recommendation_schema
from autotune.domain.recommending.document import (
    Surroundings,
    recommendation_document,
    studies_document,
    trials_document,
)
from autotune.domain.recommending.fleet import Demand
from autotune.domain.recommending.recommendation import Candidate, ledger_for, recommend
from autotune.domain.studies.records import Purpose, StudyRow, StudyStatus, TrialRow, TrialState
from autotune.domain.studies.study import StudySpec

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


def deployed(of: Candidate) -> Deployment:
    argv = ("serve", str(of.row.number), "--host", "{host:server}", "--port", "{port:server}")
    server = ProcessSpec(role="server", argv=argv, env={}, devices=())
    spec = LaunchSpec(processes=(server,), serving_role="server", served_model="some/model")
    return deployment_of(spec, Build(engine="fake", version="1", kind=DeviceKind.CUDA, model="some/model"))


def documented(candidates: list[Candidate], study: StudySpec = STUDY, **more: Any) -> RecommendationDocument:
    found = [recommend(study, sla, candidates) for sla in study.slas]
    around = Surroundings(
        ledger=lambda s: ledger_for(s, study, TABLE),
        deploy=deployed,
        candidates=candidates,
        measured_at="2026-01-01T00:00:00+00:00",
        **more,
    )
    return recommendation_document(study, found, around)


def slas(candidates: list[Candidate], study: StudySpec = STUDY, **more: Any) -> list[dict[str, Any]]:
    """The document's SLAs, as a pipeline reads them back."""
    document = documented(candidates, study, **more)
    read = json.loads(document.model_dump_json())
    jsonschema.validate(read, recommendation_schema(), jsonschema.Draft202012Validator)
    assert RecommendationDocument.model_validate(read) == document
    assert read["schema_version"] == "1"
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
        "task": None,
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
                "predicted": {},
                "quality": "passed",
            }
        ],
    }


def test_the_rest_of_the_contract_is_told() -> None:
    fast, _ = slas([*ALL, candidate(2, watts=125.0)])
    assert fast["evidence"] == "ran"
    assert fast["load"] == {
        "capacity_rps": 5.0,
        "operating_rps": 4.0,
        "headroom": 0.8,
        "operating_rps_per_device": 4.0,
        "devices_per_replica": 1,
        "concurrency": None,
    }
    beaten = {each["who"]: each for each in fast["beats"]}
    assert set(beaten) == {"engine defaults", "runner-up"}
    assert beaten["engine defaults"]["ratio"] == pytest.approx(2.0)
    assert beaten["engine defaults"]["measure"] == "tokens_per_joule"
    low, high = beaten["engine defaults"]["ratio_interval"]
    assert low <= 2.0 <= high
    assert beaten["engine defaults"]["shown"] == (low > 1)
    assert (beaten["runner-up"]["trial"], beaten["runner-up"]["ratio"]) == (2, pytest.approx(1.25))
    assert fast["fingerprint"]["model"] == "some/model"
    assert fast["fingerprint"]["model_revision"] is None
    assert fast["expires"]["at"] == "2026-04-01T00:00:00+00:00"
    assert fast["withheld"] == [
        "fleet: no demand was given: say --peak-rate, and --daily-curve",
        "model_revision: the study pins none",
    ]


def test_the_defaults_beat_nobody_when_they_win() -> None:
    fast, _ = slas([candidate(0, Purpose.DEFAULTS), candidate(1, watts=200.0)])
    assert fast["trial"] == 0
    assert [each["who"] for each in fast["beats"]] == ["runner-up"]


def test_a_demand_is_answered_by_a_fleet() -> None:
    fast, _ = slas(ALL, demand=Demand(peak_rps=10.0, daily_curve=(0.0, 1.0)))
    fleet = fast["fleet"]
    assert (fleet["replicas"], fleet["replicas_n_plus_1"], fleet["replicas_by_step"]) == (3, 4, [0, 3])
    # Nobody asks for half a day, which 4 replicas at rest spend at 20 W, and the other half at 2.5 req/s.
    busy_w = 20 + (100 - 20) * 2.5 / 4
    assert fleet["always_on"]["joules_per_day"] == pytest.approx(4 * 43_200 * (20 + busy_w))
    assert fleet["always_on"]["idle_joules_per_day"] == pytest.approx(4 * 43_200 * 20)


def test_a_deployment_that_cannot_be_written_is_withheld_with_its_reason() -> None:
    def refuse(of: Candidate) -> Deployment:
        raise InfeasibleConfigError("no flag says it")

    found = [recommend(STUDY, sla, ALL) for sla in STUDY.slas]
    around = Surroundings(ledger=lambda s: ledger_for(s, STUDY, TABLE), deploy=refuse)
    fast = recommendation_document(STUDY, found, around).slas[0]
    assert (fast.deployment, fast.command, fast.deployment_reason) == (None, None, "no flag says it")
    assert "deployment: no flag says it" in fast.withheld
    assert fast.goodput_tok_per_s


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


def test_an_sla_that_nothing_met_says_what_is_in_the_way_and_what_relaxing_it_buys() -> None:
    slow = [replace(c, launch=replace(c.launch, curve=curve(capacity_rps=1.0)), final=None) for c in ALL]
    fast, _ = slas(slow)
    assert fast["trial"] is None
    why = fast["unmet"]
    assert why["binding"] == "ttft<=1s"
    assert why["attainment"] == 0.0
    assert why["offers"][0]["relaxed"] in {"ttft<=3s", "ttft<=3.1s"}
    assert slas(ALL)[0]["unmet"] is None
