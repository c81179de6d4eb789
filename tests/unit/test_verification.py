"""Verdicts on a contract: holds, broken with the SLO and the figure, or not to be judged."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from fakes import curve, launch_record, study_spec

from autotune.domain.configs.config import EngineConfig
from autotune.domain.hardware.accelerators import AcceleratorTable
from autotune.domain.hardware.hardware import DeviceKind
from autotune.domain.judging.sla import Metric, Sla
from autotune.domain.launches.deployment import Build, Deployment, deployment_of
from autotune.domain.launches.launch import Failure, FailureClass, LaunchSpec, Phase, ProcessSpec
from autotune.domain.measuring.power import PowerBasis
from autotune.domain.recommending.contract import SlaAnswer
from autotune.domain.recommending.document import Surroundings, recommendation_document
from autotune.domain.recommending.recommendation import Candidate, ledger_for, recommend
from autotune.domain.recommending.verification import (
    Outcome,
    judge,
    not_judged,
    requests_wanted,
    verification_document,
    worst,
)
from autotune.domain.studies.records import LaunchRecord, Purpose, TrialRow, TrialState

STUDY = study_spec()
ROW = TrialRow(
    study="small",
    number=1,
    purpose=Purpose.SEARCH,
    state=TrialState.MEASURED,
    config=EngineConfig(engine="fake", max_num_seqs=2),
)
AT_IT = (4.0,)
"""The operating point of the contract."""


def deployed(_: Candidate) -> Deployment:
    server = ProcessSpec(role="server", argv=("serve",), env={}, devices=())
    spec = LaunchSpec(processes=(server,), serving_role="server", served_model="m")
    return deployment_of(spec, Build(engine="fake", version="1", kind=DeviceKind.CUDA, model="m"))


def answers(**changes: Any) -> tuple[SlaAnswer, ...]:
    study = study_spec(**changes)
    candidate = Candidate(row=ROW, launch=measured(curve()), final=measured(curve(AT_IT)))
    found = [recommend(study, sla, [candidate]) for sla in study.slas]
    table = AcceleratorTable(accelerators=())
    around = Surroundings(ledger=lambda s: ledger_for(s, study, table), deploy=deployed)
    return recommendation_document(study, found, around).slas


def measured(levels: Any, **changes: Any) -> LaunchRecord:
    return replace(launch_record(ROW, levels), versions={"fake": "1"}, **changes)


FAST, SLOW = answers()


def test_what_was_measured_holds() -> None:
    found = judge(FAST, measured(curve(AT_IT)))
    assert (found.outcome, found.reasons, found.remarks) == (Outcome.HOLDS, (), ())
    (slo,) = found.slos
    assert (slo.slo, slo.promised, slo.kept) == ("ttft<=1s", 0.9, 1.0)
    assert slo.value == pytest.approx(0.1)
    assert str(slo) == "ttft<=1s: p90 is 100ms [100ms, 100ms]; kept by 100.0% of requests, promised 0.9"
    assert [each.figure for each in found.figures] == ["goodput_tok_per_s", "tokens_per_joule"]


def bounded(answer: SlaAnswer, **slos: Any) -> SlaAnswer:
    """The contract with other bounds, as someone edits the document."""
    data = answer.model_dump(mode="json")
    data["sla"]["slos"] = slos
    return SlaAnswer.model_validate(data)


def test_a_bound_below_what_was_measured_is_named() -> None:
    found = judge(bounded(FAST, ttft="50ms", e2e="30s"), measured(curve(AT_IT)))
    assert found.outcome is Outcome.BROKEN
    assert len(found.reasons) == 1
    assert found.reasons[0].startswith("ttft<=50ms: p90 is 100ms")
    percentile = judge(bounded(SLOW, ttft={"p50": "50ms"}), measured(curve(AT_IT)))
    assert percentile.reasons[0].startswith("ttft<=50ms: p50 is 100ms")


def test_interactivity_is_read_from_below() -> None:
    found = judge(bounded(FAST, interactivity=1e6), measured(curve(AT_IT)))
    assert found.outcome is Outcome.BROKEN
    assert found.reasons[0].startswith("interactivity>=1e+06tok/s/user: p90 is ")
    assert found.slos[0].unit == "tok/s/user"
    assert Metric.INTERACTIVITY in found.slos[0].slo


def test_a_slower_deployment_is_broken() -> None:
    found = judge(FAST, measured(curve(AT_IT, capacity_rps=1.0)))
    assert found.outcome is Outcome.BROKEN
    assert found.reasons[0].startswith("ttft<=1s: p90 is 3s")
    assert found.figures[0].broken


def test_requests_that_were_never_answered_are_beyond_every_bound() -> None:
    dropped = tuple(
        replace(m, requests=replace(m.requests, error=("timeout",) * len(m.requests))) for m in curve(AT_IT)
    )
    found = judge(FAST, measured(dropped))
    assert found.outcome is Outcome.BROKEN
    assert found.reasons[0].startswith("ttft<=1s: p90 is unanswered [unanswered, unanswered]; kept by 0.0%")
    assert json.dumps(verification_document([found]), allow_nan=False)


def test_one_that_draws_more_is_broken_by_its_joules() -> None:
    found = judge(FAST, measured(curve(AT_IT, watts=300.0)))
    assert found.outcome is Outcome.BROKEN
    assert [reason.partition(":")[0] for reason in found.reasons] == ["tokens_per_joule"]


def test_too_few_requests_are_not_judged() -> None:
    short = tuple(replace(m, window=replace(m.window, end_s=m.window.start_s + 4)) for m in curve(AT_IT))
    found = judge(FAST, measured(short))
    assert found.outcome is Outcome.NOT_JUDGED
    assert "lengthen the window" in found.reasons[0]


def test_other_devices_keep_slos_and_have_no_figures_compared() -> None:
    found = judge(FAST, measured(curve(AT_IT, watts=300.0), device="another", device_count=2))
    assert (found.outcome, found.figures) == (Outcome.HOLDS, ())
    assert (
        found.remarks[0]
        == "figures are not compared: the contract's are of 1 x a device, these of 2 x another"
    )


def test_what_differs_is_told() -> None:
    record = replace(launch_record(ROW, curve(AT_IT), node="n2"), versions={"fake": "2"})
    assert judge(FAST, record).remarks == ("fake: 2, in the contract 1", "node: n2, in the contract n1")


def test_another_power_basis_is_not_compared() -> None:
    unmetered = tuple(
        replace(m, power=replace(m.power, basis=PowerBasis.NONE)) for m in curve(AT_IT, watts=300.0)
    )
    found = judge(FAST, measured(unmetered))
    assert found.outcome is Outcome.HOLDS
    assert [each.figure for each in found.figures] == ["goodput_tok_per_s"]
    assert found.remarks[0].startswith("joules are not compared")


@pytest.mark.parametrize(
    ("failure_class", "outcome"),
    [
        (FailureClass.OUT_OF_MEMORY, Outcome.BROKEN),
        (FailureClass.START_TIMEOUT, Outcome.NOT_JUDGED),
    ],
)
def test_one_that_does_not_serve(failure_class: FailureClass, outcome: Outcome) -> None:
    failure = Failure(failure_class=failure_class, phase=Phase.STARTING, line="the line")
    found = judge(FAST, measured((), failure=failure))
    assert found.outcome is outcome
    assert "the line" in found.reasons[0]


def test_the_worst_decides_and_is_plain_data() -> None:
    holds, broken = judge(FAST, measured(curve(AT_IT))), judge(FAST, measured(curve(AT_IT, watts=300.0)))
    unknown = not_judged(SLOW, "why")
    assert worst([holds]) is Outcome.HOLDS
    assert worst([holds, unknown]) is Outcome.NOT_JUDGED
    assert worst([unknown, broken, holds]) is Outcome.BROKEN
    document = json.loads(json.dumps(verification_document([broken, unknown]), allow_nan=False))
    assert document["outcome"] == "broken"
    assert [sla["sla"] for sla in document["slas"]] == ["fast", "slow"]


def test_windows_are_long_enough_to_show_an_sla() -> None:
    slas: tuple[Sla, ...] = STUDY.slas
    assert [requests_wanted(sla) for sla in slas] == [74, 9]
