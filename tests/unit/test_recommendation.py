"""Who is launched again, who wins, and why an answer is withheld."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from fakes import curve, launch_record, study_spec

from autotune.domain.configs.config import EngineConfig
from autotune.domain.hardware.accelerators import AcceleratorTable
from autotune.domain.judging.quality import Precision, QualityState, QualityVerdict
from autotune.domain.judging.scoring import SlaVerdict
from autotune.domain.measuring.measurement import LoadCurve
from autotune.domain.recommending.finals import finalists, interleaved
from autotune.domain.recommending.recommendation import (
    Candidate,
    Recommendation,
    candidates_of,
    ledger_for,
    recommend,
    standing,
)
from autotune.domain.studies.records import Purpose, TrialRow, TrialState
from autotune.domain.studies.study import StudySpec

STUDY = study_spec()
FAST, SLOW = STUDY.slas
"""``fast`` is held at 4 and 5 req/s by the engine below, ``slow`` beyond its capacity too."""
CAPACITY_RPS = 5.0
OPERATING = (4.0,)


def row(number: int, purpose: Purpose = Purpose.SEARCH) -> TrialRow:
    own = EngineConfig(engine="fake", max_num_seqs=number + 1)
    return TrialRow(
        study="small",
        number=number,
        purpose=purpose,
        state=TrialState.MEASURED,
        config=STUDY.default_config() if purpose is Purpose.DEFAULTS else own,
        command=f"serve {number}",
    )


def candidate(
    number: int,
    watts: float,
    *,
    purpose: Purpose = Purpose.SEARCH,
    final_watts: float | None = None,
    final_capacity_rps: float = CAPACITY_RPS,
) -> Candidate:
    """A configuration that held both SLAs at 5 req/s; in its final, if it had one, it drew other watts."""
    final = (
        () if final_watts is None else curve(OPERATING, capacity_rps=final_capacity_rps, watts=final_watts)
    )
    return measured_as(row(number, purpose), curve(watts=watts), final)


def measured_as(of: TrialRow, searched: LoadCurve, final: LoadCurve = (), *, node: str = "n1") -> Candidate:
    return Candidate(
        row=of,
        launch=launch_record(of, searched, node=node),
        final=launch_record(of, final, node=node) if final else None,
    )


def hopeless(number: int, purpose: Purpose = Purpose.SEARCH) -> Candidate:
    """A configuration that is too slow for ``fast`` at every load, and for ``slow`` at none."""
    return measured_as(row(number, purpose), curve(capacity_rps=1.0, watts=100.0))


def numbers(candidates: Sequence[Candidate]) -> list[int]:
    return [candidate.row.number for candidate in candidates]


def winner(recommendation: Recommendation) -> int | None:
    return recommendation.best.candidate.row.number if recommendation.best else None


class TestFinalists:
    def test_the_best_of_each_sla_goes_with_the_references_between_them(self) -> None:
        two_slas = study_spec(
            slas=[
                {"name": "fast", "attainment": 0.9, "slos": {"ttft": "1s"}},
                {"name": "slow", "attainment": 0.9, "slos": {"ttft": "20s"}},
            ]
        )
        frugal_but_slow = measured_as(row(3), curve(capacity_rps=1.0, watts=50.0))
        measured = [
            candidate(0, 200.0, purpose=Purpose.BASELINE),
            candidate(1, 180.0, purpose=Purpose.DEFAULTS),
            candidate(2, 100.0),
            frugal_but_slow,
            candidate(4, 150.0),
        ]
        assert numbers(finalists(two_slas, measured)) == [2, 3, 0, 1]
        assert numbers(interleaved(finalists(two_slas, measured))) == [2, 0, 3, 1]

    def test_one_winner_of_every_sla_is_launched_once(self) -> None:
        measured = [candidate(0, 200.0, purpose=Purpose.DEFAULTS), candidate(1, 100.0)]
        assert numbers(finalists(STUDY, measured)) == [1, 0]

    def test_defaults_that_win_are_launched_once(self) -> None:
        measured = [candidate(0, 90.0, purpose=Purpose.DEFAULTS), candidate(1, 100.0)]
        assert numbers(finalists(STUDY, measured)) == [0]

    def test_references_that_met_no_sla_are_not_launched_again(self) -> None:
        only_fast = study_spec(slas=[{"name": "fast", "attainment": 0.9, "slos": {"ttft": "1s"}}])
        measured = [hopeless(0, Purpose.DEFAULTS), candidate(1, 100.0)]
        assert numbers(finalists(only_fast, measured)) == [1]

    def test_where_nothing_met_anything_there_are_none(self) -> None:
        only_fast = study_spec(slas=[{"name": "fast", "attainment": 0.9, "slos": {"ttft": "1s"}}])
        assert finalists(only_fast, [hopeless(0)]) == ()
        assert finalists(STUDY, []) == ()


class TestStanding:
    def test_without_a_final_the_search_speaks(self) -> None:
        found = standing(candidate(0, 100.0), FAST, STUDY)
        assert found is not None
        assert (found.capacity_rps, found.figures.rate_rps) == (5.0, 4.0)
        assert not found.confirmed
        assert found.figures.mean_power_w == pytest.approx(100.0)

    def test_with_a_final_the_final_speaks(self) -> None:
        found = standing(candidate(0, 100.0, final_watts=140.0), FAST, STUDY)
        assert found is not None
        assert found.confirmed
        assert found.figures.mean_power_w == pytest.approx(140.0)
        assert found.capacity_rps == 5.0

    def test_a_final_at_another_load_confirms_nothing(self) -> None:
        measured = candidate(0, 100.0)
        elsewhere = measured_as(measured.row, measured.curve, curve((3.0,), watts=50.0))
        found = standing(elsewhere, FAST, STUDY)
        assert found is not None
        assert not found.confirmed
        assert found.figures.mean_power_w == pytest.approx(100.0)

    def test_a_final_that_held_at_the_next_lower_load_confirms_that_load(self) -> None:
        measured = candidate(0, 100.0)
        retreated = (*curve(OPERATING, capacity_rps=1.0), *curve((3.2,), watts=90.0))
        found = standing(
            measured_as(measured.row, measured.curve, retreated),
            FAST,
            STUDY,
        )
        assert found is not None
        assert found.confirmed
        assert found.holds
        assert found.figures.rate_rps == 3.2
        assert found.figures.mean_power_w == pytest.approx(90.0)

    def test_where_no_load_met_the_sla_there_is_none(self) -> None:
        assert standing(hopeless(0), FAST, STUDY) is None

    def test_a_final_that_missed_does_not_hold(self) -> None:
        found = standing(candidate(0, 100.0, final_watts=100.0, final_capacity_rps=1.0), FAST, STUDY)
        assert found is not None
        assert found.figures.verdict is SlaVerdict.MISSED
        assert not found.holds


class TestRecommend:
    def test_the_most_good_tokens_per_joule_win(self) -> None:
        measured = [candidate(0, 150.0), candidate(1, 100.0), candidate(2, 120.0)]
        assert winner(recommend(STUDY, FAST, measured)) == 1

    def test_finals_decide_against_a_lucky_search(self) -> None:
        measured = [
            candidate(0, 200.0, purpose=Purpose.DEFAULTS, final_watts=200.0),
            candidate(1, 50.0, final_watts=160.0),
            candidate(2, 120.0, final_watts=120.0),
        ]
        chosen = recommend(STUDY, FAST, measured)
        assert winner(chosen) == 2
        assert chosen.reason == ""

    def test_who_did_not_run_in_the_finals_cannot_win(self) -> None:
        measured = [candidate(0, 50.0), candidate(1, 100.0, final_watts=150.0)]
        assert winner(recommend(STUDY, FAST, measured)) == 1

    def test_a_winner_that_misses_in_its_final_loses(self) -> None:
        measured = [
            candidate(0, 200.0, purpose=Purpose.DEFAULTS, final_watts=200.0),
            candidate(1, 50.0, final_watts=50.0, final_capacity_rps=1.0),
        ]
        assert winner(recommend(STUDY, FAST, measured)) == 0

    def test_each_sla_is_judged_by_itself(self) -> None:
        measured = [candidate(0, 100.0, final_watts=100.0, final_capacity_rps=1.0)]
        assert winner(recommend(STUDY, FAST, measured)) is None
        assert winner(recommend(STUDY, SLOW, measured)) == 0

    def test_without_a_final_the_answer_says_so(self) -> None:
        chosen = recommend(STUDY, FAST, [candidate(0, 100.0)])
        assert winner(chosen) == 0
        assert chosen.reason == "measured once: no final launch confirmed it"

    def test_a_window_too_short_to_show_the_sla_says_so(self) -> None:
        demanding = study_spec(slas=[{"name": "fast", "attainment": 0.999, "slos": {"ttft": "1s"}}])
        chosen = recommend(demanding, demanding.slas[0], [candidate(0, 100.0, final_watts=100.0)])
        assert winner(chosen) == 0
        assert chosen.reason.startswith("120 requests do not show that the SLA holds")

    @pytest.mark.parametrize(
        ("measured", "reason"),
        [
            ([], "no configuration was measured"),
            ([hopeless(0)], "no configuration met fast at any measured load"),
            (
                [candidate(0, 100.0, final_watts=100.0, final_capacity_rps=1.0)],
                "no configuration kept fast when it was launched again",
            ),
        ],
    )
    def test_a_withheld_answer_has_its_reason(self, measured: list[Candidate], reason: str) -> None:
        chosen = recommend(STUDY, FAST, measured)
        assert (chosen.best, chosen.reason) == (None, reason)

    def test_references_stand_beside_the_winner(self) -> None:
        with_baseline = study_spec(baseline="serve")
        measured = [
            candidate(0, 180.0, purpose=Purpose.BASELINE, final_watts=185.0),
            candidate(1, 200.0, purpose=Purpose.DEFAULTS, final_watts=205.0),
            candidate(2, 100.0, final_watts=100.0),
        ]
        chosen = recommend(with_baseline, FAST, measured)
        assert chosen.defaults is not None
        assert chosen.baseline is not None
        assert chosen.has_baseline
        assert chosen.defaults.figures.mean_power_w == pytest.approx(205.0)
        assert chosen.baseline.figures.mean_power_w == pytest.approx(185.0)

    def test_defaults_that_met_nothing_are_missing(self) -> None:
        chosen = recommend(STUDY, FAST, [hopeless(0, Purpose.DEFAULTS), candidate(1, 100.0)])
        assert (chosen.defaults, chosen.baseline, chosen.has_baseline) == (None, None, False)
        assert winner(chosen) == 1

    def test_workloads_are_kept_apart(self) -> None:
        two: StudySpec = study_spec(
            workloads=[
                {"name": "chat", "input_tokens": 8, "output_tokens": 5},
                {"name": "code", "input_tokens": 8, "output_tokens": 5},
            ],
            slas=[{"name": "fast", "workload": "code", "attainment": 0.9, "slos": {"ttft": "1s"}}],
        )
        chosen = recommend(two, two.slas[0], [candidate(0, 100.0)])
        assert chosen.reason == "no configuration met fast at any measured load"


def test_candidates_are_measured_configurations_with_their_finals() -> None:
    def trial(number: int, state: TrialState = TrialState.MEASURED, final_of: int | None = None) -> TrialRow:
        return TrialRow(
            study="small",
            number=number,
            purpose=Purpose.SEARCH if final_of is None else Purpose.FINAL,
            state=state,
            config=EngineConfig(engine="fake"),
            command=f"serve {number}",
            final_of=final_of,
        )

    searched, final = curve(), curve(OPERATING)
    rows = [
        trial(0),
        trial(1, TrialState.INFEASIBLE),
        trial(2),
        trial(3, final_of=0),
        trial(4, TrialState.BENCH_ERROR, final_of=2),
        replace(trial(5, final_of=2), purpose=Purpose.REFERENCE),
    ]
    records = [
        launch_record(rows[0], searched),
        launch_record(rows[2], searched),
        launch_record(rows[3], final),
        launch_record(rows[5], final),
    ]
    first, second = candidates_of(rows, records)
    assert (first.row, first.launch, first.final) == (rows[0], records[0], records[2])
    assert (second.row, second.launch, second.final) == (rows[2], records[1], None)


def test_figures_of_different_nodes_are_not_compared() -> None:
    """The best of all ran elsewhere: where most finals were run, another is best."""
    here = [candidate(0, 100.0, final_watts=100.0), candidate(1, 120.0, final_watts=120.0)]
    elsewhere = measured_as(row(2), curve(watts=10.0), curve(OPERATING, watts=10.0), node="n2")
    assert winner(recommend(STUDY, FAST, [*here, elsewhere])) == 0


def test_the_ledger_of_a_standing_has_its_devices_and_what_they_drew_at_rest() -> None:
    found = standing(candidate(0, 100.0), FAST, STUDY)
    assert found is not None
    ledger = ledger_for(found, STUDY, AcceleratorTable(accelerators=()))
    assert (ledger.devices, ledger.idle_share) == (1, pytest.approx(0.2))


class TestQuality:
    """What failed the gate never wins; what was not judged wins only with the reference's precision."""

    DEFAULTS = candidate(0, 200.0, purpose=Purpose.DEFAULTS, final_watts=200.0)
    DECENT = candidate(1, 150.0, final_watts=150.0)

    @staticmethod
    def frugal(state: QualityState, **words: object) -> Candidate:
        """Far better than all others."""
        found = candidate(2, 50.0, final_watts=50.0)
        config = EngineConfig.model_validate({"engine": "fake", "max_num_seqs": 3, **words})
        verdict = QualityVerdict(
            state=state,
            precision=Precision.of("some/model", config, "fake"),
            judged_in=2,
            reasons=("KL alone: 0.4",),
        )
        return replace(found, launch=replace(found.launch, config=config, quality=verdict))

    @pytest.mark.parametrize(
        ("state", "words", "wins"),
        [
            (QualityState.PASSED, {"kv_cache_dtype": "fp8"}, True),
            (QualityState.FAILED, {"kv_cache_dtype": "fp8"}, False),
            (QualityState.NOT_JUDGED, {"kv_cache_dtype": "fp8"}, False),
            (QualityState.NOT_JUDGED, {}, True),
        ],
    )
    def test_quality_decides_who_may_win(
        self, state: QualityState, words: dict[str, object], wins: bool
    ) -> None:
        candidates = [self.DEFAULTS, self.DECENT, self.frugal(state, **words)]
        found = recommend(STUDY, FAST, candidates)
        assert winner(found) == (2 if wins else 1)
        assert ("trial 2 was passed over" in found.reason) == (not wins)
        assert (2 in numbers(finalists(STUDY, candidates))) == wins

    def test_who_was_passed_over_is_told_with_the_figure(self) -> None:
        found = recommend(STUDY, FAST, [self.DEFAULTS, self.frugal(QualityState.FAILED)])
        assert found.reason == "trial 2 was passed over: failed the quality gate in trial 2: KL alone: 0.4"

    def test_where_nothing_else_met_the_sla_the_answer_is_withheld_with_that_reason(self) -> None:
        found = recommend(STUDY, FAST, [hopeless(0, Purpose.DEFAULTS), self.frugal(QualityState.FAILED)])
        assert winner(found) is None
        assert found.reason.startswith("trial 2 was passed over")

    @pytest.mark.parametrize("gate", ["report", "off"])
    def test_a_gate_that_is_not_required_bars_nobody(self, gate: str) -> None:
        study = study_spec(quality={"gate": gate})
        found = recommend(study, FAST, [self.DEFAULTS, self.DECENT, self.frugal(QualityState.FAILED)])
        assert (winner(found), found.reason) == (2, "")
