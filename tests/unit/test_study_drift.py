"""Drift between studies: what changed, and whether to tune again."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from fakes import curve, launch_record, study_spec

from autotune.domain.configs.config import EngineConfig
from autotune.domain.recommending.recommendation import Candidate
from autotune.domain.recommending.study_drift import Change, Studied, drift_document, study_drift
from autotune.domain.studies.records import Purpose, TrialRow, TrialState

STUDY = study_spec()


def candidate(
    number: int, *, watts: float = 100.0, capacity_rps: float = 5.0, version: str = "1"
) -> Candidate:
    row = TrialRow(
        study="small",
        number=number,
        purpose=Purpose.SEARCH,
        state=TrialState.MEASURED,
        config=EngineConfig(engine="fake", max_num_seqs=number + 1),
    )
    record = replace(
        launch_record(row, curve(watts=watts, capacity_rps=capacity_rps)), versions={"fake": version}
    )
    return Candidate(row=row, launch=record)


def studied(*candidates: Candidate, rows: tuple[TrialRow, ...] = (), **changes: object) -> Studied:
    return Studied(study=study_spec(**changes), rows=rows, candidates=candidates)


BEFORE = studied(candidate(1), candidate(2, watts=150.0))


def test_nothing_changed() -> None:
    found = study_drift(BEFORE, studied(candidate(1), candidate(2, watts=150.0)))
    assert [each.change for each in found.slas] == [Change.SAME, Change.SAME]
    assert (found.tune_again, found.judged, found.different) == (False, True, ())
    assert json.loads(json.dumps(drift_document(found)))["tune_again"] is False


def test_a_new_version_that_is_better_all_round_needs_no_tuning() -> None:
    after = studied(candidate(1, watts=80.0, version="2"), candidate(2, watts=120.0, version="2"))
    found = study_drift(BEFORE, after)
    assert found.different == ("fake: 1 -> 2",)
    assert found.slas[0].change is Change.BETTER
    assert found.slas[0].reasons == ("the best's tokens_per_joule is 1.25 [1.25, 1.25] times what it was",)
    assert not found.tune_again


def test_another_winner_is_a_reason_to_tune_again() -> None:
    found = study_drift(BEFORE, studied(candidate(1), candidate(2, watts=50.0)))
    assert found.tune_again
    assert "another configuration is now 2 times as good as the first's" in found.slas[0].reasons


def test_a_worse_version_and_a_lost_sla_are_told() -> None:
    worse = study_drift(BEFORE, studied(candidate(1, watts=200.0)))
    assert (worse.slas[0].change, worse.tune_again) == (Change.WORSE, True)
    lost = study_drift(BEFORE, studied(candidate(1, capacity_rps=1.0)))
    assert lost.slas[0].change is Change.LOST
    assert "nothing meets it any more" in lost.slas[0].reasons
    gained = study_drift(studied(candidate(1, capacity_rps=1.0)), BEFORE)
    assert (gained.slas[0].change, gained.slas[0].tune_again) == (Change.GAINED, False)


def test_a_configuration_that_does_not_run_any_more_is_told_with_its_line() -> None:
    gone = TrialRow(
        study="small",
        number=9,
        purpose=Purpose.SEARCH,
        state=TrialState.INFEASIBLE,
        config=EngineConfig(engine="fake", max_num_seqs=2),
        failure_line="no such flag",
    )
    found = study_drift(BEFORE, studied(candidate(2, watts=90.0), rows=(gone,)))
    assert found.tune_again
    assert "the first's configuration does not run now: no such flag" in found.slas[0].reasons
    missing = study_drift(BEFORE, studied(candidate(2, watts=90.0)))
    assert "put it into `try_first`" in missing.slas[0].reasons[-1]


@pytest.mark.parametrize(
    ("after", "why"),
    [
        (studied(candidate(1), model="other/model"), "models differ: some/model, other/model"),
        (studied(), "study small measured nothing"),
        (
            studied(candidate(1), workloads=[{"name": "chat", "input_tokens": 9, "output_tokens": 5}]),
            "its workloads differ",
        ),
        (
            studied(candidate(1), slas=[{"name": "fast", "attainment": 0.9, "slos": {"ttft": "2s"}}]),
            "its bounds differ: 90% of requests: ttft<=1s; 90% of requests: ttft<=2s",
        ),
    ],
)
def test_what_is_another_question_is_not_compared(after: Studied, why: str) -> None:
    found = study_drift(BEFORE, after)
    assert found.slas[0].change is Change.NOT_COMPARED
    assert found.slas[0].reasons == (why,)
    assert not found.tune_again
