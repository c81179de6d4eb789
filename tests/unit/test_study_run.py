"""The study loop: what is launched, in which order, within which budget, and what becomes of failures."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import optuna
import pytest
from fakes import (
    NODE,
    Events,
    FakeArchive,
    FakeCatalog,
    FakeClock,
    FakeSearch,
    curve,
    hardware,
    never,
    study_spec,
)
from optuna.samplers import BaseSampler

from autotune.adapters.search.sampler import SurrogateSampler
from autotune.adapters.search.study import OptunaSearch, baseline_sampler, open_study
from autotune.domain.basics.errors import (
    BenchError,
    DevicesBusyError,
    InfeasibleConfigError,
    StudyCancelledError,
)
from autotune.domain.configs.config import EngineConfig
from autotune.domain.judging.quality import (
    Interview,
    QualityState,
    QualityVerdict,
    ReferenceAnswers,
)
from autotune.domain.launches.launch import Failure, FailureClass, Phase
from autotune.domain.measuring.measurement import LoadCurve, WindowEnd
from autotune.domain.search.prior import Prediction
from autotune.domain.studies.events import Drifted, Incumbent, LaunchEnded, LaunchStarted, Notice, Rejected
from autotune.domain.studies.feasibility import Setting
from autotune.domain.studies.records import LaunchRecord, Purpose, TrialRow, TrialState
from autotune.domain.studies.study import StudySpec
from autotune.runs import launching
from autotune.runs import study as study_module
from autotune.runs.launching import LaunchOrder
from autotune.runs.priors import Priors
from autotune.runs.study import StudyParts, StudyRun
from autotune.runs.trials import settle_interrupted
from autotune.wiring.studies import sampler_for

LAUNCH_S = 60.0
Launch = Callable[[LaunchOrder], LaunchRecord]


def record(
    order: LaunchOrder, *, measured: LoadCurve | None = None, failure: Failure | None = None
) -> LaunchRecord:
    """A launch that held 5 req/s; configurations that decode more requests together draw fewer watts."""
    config = order.suggestion.config
    watts = 200.0 - 5 * (config.max_num_seqs or 0)
    rates = tuple(level.rate_rps or 0.0 for level in order.levels) if order.levels else (4.0, 5.0)
    return LaunchRecord(
        study="small",
        number=order.suggestion.number,
        purpose=order.purpose,
        config=config,
        model="some/model",
        command=f"serve {config.label()}",
        curve=curve(rates, watts=watts) if measured is None else measured,
        versions={},
        launch_s=1.0,
        load_s=2.0,
        failure=failure,
    )


def failed(failure_class: FailureClass, phase: Phase = Phase.STARTING) -> Failure:
    return Failure(failure_class=failure_class, phase=phase, line="the telling line", exit_code=1)


class Bench:
    """A study run on fakes; ``launch`` decides what each order yields."""

    def __init__(
        self,
        study: StudySpec,
        tmp_path: Path,
        launch: Launch = record,
        *,
        baseline: EngineConfig | None = None,
        clock: FakeClock | None = None,
        priors: Priors | None = None,
    ) -> None:
        self.study, self.launch, self.baseline = study, launch, baseline
        self.priors = priors or Priors({}, [sla.name for sla in study.slas])
        self.clock = clock or FakeClock()
        self.catalog, self.archive, self.events = FakeCatalog(), FakeArchive(), Events()
        self.search = FakeSearch(study.branches)
        self.orders: list[LaunchOrder] = []
        self.tmp_path = tmp_path

    @property
    def setting(self) -> Setting:
        return Setting(
            hardware=hardware(2), model=None, requirements=self.study.requirements, longest_request_tokens=13
        )

    def run(self, *, spent_s: float = 0.0) -> None:
        parts = StudyParts(
            study=self.study,
            setting=self.setting,
            baseline=self.baseline,
            search=self.search,
            archive=self.archive,
            catalog=self.catalog,
            launch=self._launch,
            workdir=self._workdir,
            sink=self.events,
            cancelled=never,
            priors=self.priors,
        )
        StudyRun(parts, spent_s=spent_s).run()

    def resume(self) -> None:
        """Go on in another process, of which only catalog and archive know the past."""
        rows = settle_interrupted(self.catalog, self.study.name)
        # As many numbers as rows are taken; the search knows every configuration that was judged.
        tried = [row.config for row in rows]
        self.search = FakeSearch(self.study.branches, tried)
        self.orders = []
        self.run()

    def _launch(self, order: LaunchOrder) -> LaunchRecord:
        self.orders.append(order)
        self.clock.now_s += LAUNCH_S
        return self.launch(order)

    def _workdir(self, number: int) -> Path:
        return self.tmp_path / str(number)

    @property
    def rows(self) -> tuple[TrialRow, ...]:
        return self.catalog.trials(self.study.name)

    def row(self, **words: object) -> TrialRow:
        """The first row of a configuration."""
        return next(row for row in self.rows if row.config.words == words)

    @property
    def launched(self) -> list[tuple[str, str]]:
        return [(order.purpose.value, order.suggestion.config.label()) for order in self.orders]


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    fake = FakeClock()
    for module in (study_module, launching):
        monkeypatch.setattr(module, "time", fake)
    return fake


ONE_DIMENSION = {"dimensions": {"max_num_seqs": ["default", 4, 8, 16]}}
PRODUCTION = EngineConfig(engine="fake", max_num_seqs=2)


def test_baseline_then_defaults_then_recipes_then_the_search_then_finals(tmp_path: Path) -> None:
    study = study_spec(
        space=ONE_DIMENSION, try_first=[{"max_num_seqs": 16}], baseline="serve", budget={"launches": 20}
    )
    bench = Bench(study, tmp_path, baseline=PRODUCTION)
    bench.run()
    assert bench.launched == [
        ("baseline", "max_num_seqs=2"),
        ("defaults", "engine defaults"),
        ("search", "max_num_seqs=16"),
        ("search", "max_num_seqs=4"),
        ("search", "max_num_seqs=8"),
        ("final", "max_num_seqs=16"),
        ("final", "max_num_seqs=2"),
        ("final", "engine defaults"),
    ]


def by_optuna(study: StudySpec, sampler: BaseSampler) -> OptunaSearch:
    storage, slas = optuna.storages.InMemoryStorage(), [sla.name for sla in study.slas]
    return OptunaSearch(open_study(study.name, storage, slas=slas, sampler=sampler), study.branches, known={})


class Foresight:
    """A prior that thinks the more of a configuration, the more requests it decodes together."""

    def predict(self, config: EngineConfig) -> Prediction:
        return Prediction(
            source="foresight", objectives={"fast": 0.02 + (config.max_num_seqs or 0), "slow": 0.01}
        )


def test_what_a_prior_foresees_best_is_launched_first_and_shows_what_was_predicted(tmp_path: Path) -> None:
    study = study_spec()
    priors = Priors({"foresight": Foresight()}, [sla.name for sla in study.slas])
    bench = Bench(study, tmp_path, priors=priors)
    sampler = sampler_for(study, bench.setting, priors)
    bench.search = by_optuna(study, sampler)  # type: ignore[assignment]
    bench.run()
    rows = bench.catalog.trials("small")
    assert [row.config.max_num_seqs for row in rows[:2]] == [None, 16]
    assert [row.purpose for row in rows[:2]] == [Purpose.DEFAULTS, Purpose.SEARCH]
    assert rows[1].predicted == {"fast": 16.02, "slow": 0.01}
    assert any("prior foresight, fast: off by" in event.text for event in bench.events.of(Notice))
    bench.resume()
    assert bench.orders == []


def test_a_recipe_may_leave_a_word_to_the_engine(tmp_path: Path) -> None:
    study = study_spec(
        space=ONE_DIMENSION,
        try_first=[{"max_num_seqs": "default", "eager": True}],
        budget={"launches": 5},
    )
    bench = Bench(study, tmp_path)
    bench.run()
    assert ("search", "eager") in bench.launched


def test_finals_measure_the_candidates_own_operating_points(tmp_path: Path) -> None:
    bench = Bench(study_spec(space=ONE_DIMENSION), tmp_path)
    bench.run()
    finals = [order for order in bench.orders if order.purpose is Purpose.FINAL]
    # Both SLAs are held at 5 req/s, and operate at 0.8 of it: one level for both.
    assert {tuple(level.rate_rps for level in order.levels or ()) for order in finals} == {(4.0,)}
    assert {order.final_of for order in finals} == {
        bench.row(max_num_seqs=16).number,
        bench.row().number,
    }
    assert all(order.suggestion.number != order.final_of for order in finals)
    assert {order.must_hold for order in finals} == {("fast", "slow")}


@pytest.mark.parametrize("launches", range(1, 9))
def test_a_budget_of_launches_is_never_passed_and_pays_for_the_finals(tmp_path: Path, launches: int) -> None:
    bench = Bench(study_spec(space=ONE_DIMENSION, budget={"launches": launches}), tmp_path)
    bench.run()
    purposes = [purpose for purpose, _ in bench.launched]
    # Three finals may be needed, a winner for each SLA and the defaults; two are, or one of the defaults.
    searched = min(max(launches - 4, 0), 3)
    finals = min(launches - 1, 2 if searched else 1)
    assert purposes == ["defaults"] + ["search"] * searched + ["final"] * finals
    assert len(purposes) <= launches


def test_a_budget_for_nothing_but_one_launch_goes_to_the_defaults(tmp_path: Path) -> None:
    bench = Bench(study_spec(budget={"launches": 1}), tmp_path)
    bench.run()
    assert bench.launched == [("defaults", "engine defaults")]


def test_wall_time_is_kept_with_the_finals_in_it(tmp_path: Path, clock: FakeClock) -> None:
    study = study_spec(budget={"wall_time": "6m30s"}, measurement={"final_window": "30s"})
    bench = Bench(study, tmp_path, clock=clock)
    bench.run()
    # Each launch takes a minute, and three minutes are kept for the finals, of which there are two.
    assert [purpose for purpose, _ in bench.launched] == ["defaults", "search", "search", "final", "final"]


def test_wall_time_spent_before_an_interruption_counts(tmp_path: Path, clock: FakeClock) -> None:
    bench = Bench(study_spec(budget={"wall_time": "10m"}), tmp_path, clock=clock)
    bench.run(spent_s=601.0)
    assert bench.orders == []


def test_accelerator_hours_count_every_device(tmp_path: Path, clock: FakeClock) -> None:
    spans_two = {"dimensions": {"max_num_seqs": [4, 8, 16]}}
    study = study_spec(
        engines=[{"name": "fake", "fixed": {"tensor_parallel": 2}}],
        space=spans_two,
        budget={"accelerator_hours": 10 / 60},
        measurement={"warmup": "1s", "final_window": "9s"},
    )
    bench = Bench(study, tmp_path, clock=clock)
    bench.run()
    # Ten device-minutes are five launches of a minute on two devices.
    held_h = sum(order.suggestion.config.devices for order in bench.orders) * LAUNCH_S / 3600
    assert held_h <= 10 / 60
    assert [purpose for purpose, _ in bench.launched] == ["defaults", "search", "search", "final", "final"]


def test_what_is_impossible_on_paper_costs_no_launch(tmp_path: Path) -> None:
    study = study_spec(space={"dimensions": {"tensor_parallel": ["default", 4]}})
    bench = Bench(study, tmp_path)
    bench.run()
    row = bench.row(tensor_parallel=4)
    assert row.state is TrialState.REJECTED
    assert row.failure_line is not None
    assert "4 devices" in row.failure_line
    assert all(order.suggestion.config.tensor_parallel != 4 for order in bench.orders)
    assert not bench.search.told[row.number].feasible
    assert [event.config for event in bench.events.of(Rejected)] == [row.config]


def test_what_the_launcher_refuses_is_rejected_too(tmp_path: Path) -> None:
    def launch(order: LaunchOrder) -> LaunchRecord:
        if order.suggestion.config.max_num_seqs == 8:
            raise InfeasibleConfigError("no such word")
        return record(order)

    bench = Bench(study_spec(space=ONE_DIMENSION), tmp_path, launch)
    bench.run()
    row = bench.row(max_num_seqs=8)
    assert (row.state, row.failure_line) == (TrialState.REJECTED, "no such word")
    assert bench.launched[-1][0] == "final"


def fails_for(seqs: int, *failures: BaseException) -> Launch:
    """A bench that raises ``failures`` in turn at one configuration's search launches."""
    left = list(failures)

    def launch(order: LaunchOrder) -> LaunchRecord:
        if order.suggestion.config.max_num_seqs == seqs and order.purpose is Purpose.SEARCH and left:
            raise left.pop(0)
        return record(order)

    return launch


def test_a_broken_bench_is_tried_once_more(tmp_path: Path) -> None:
    bench = Bench(study_spec(space=ONE_DIMENSION), tmp_path, fails_for(8, BenchError("port taken")))
    bench.run()
    assert bench.row(max_num_seqs=8).state is TrialState.MEASURED
    assert bench.launched.count(("search", "max_num_seqs=8")) == 2
    assert ["port taken" in notice.text for notice in bench.events.of(Notice)] == [True]


def test_a_bench_broken_twice_is_recorded_and_not_scored(tmp_path: Path) -> None:
    twice = fails_for(8, BenchError("port taken"), BenchError("port taken again"))
    bench = Bench(study_spec(space=ONE_DIMENSION), tmp_path, twice)
    bench.run()
    row = bench.row(max_num_seqs=8)
    assert (row.state, row.failure_line) == (TrialState.BENCH_ERROR, "port taken again")
    assert not bench.search.told[row.number].scored
    assert bench.launched[-1][0] == "final"


def test_a_reference_that_the_bench_broke_is_launched_again_before_the_finals(tmp_path: Path) -> None:
    broken = [BenchError("client late"), BenchError("client late")]

    def launch(order: LaunchOrder) -> LaunchRecord:
        if order.purpose is Purpose.DEFAULTS and broken:
            raise broken.pop()
        return record(order)

    bench = Bench(study_spec(space=ONE_DIMENSION), tmp_path, launch)
    bench.run()
    assert [purpose for purpose, _ in bench.launched][:2] == ["defaults", "defaults"]
    again = [row for row in bench.rows if row.purpose is Purpose.DEFAULTS]
    assert [row.state for row in again] == [TrialState.BENCH_ERROR, TrialState.MEASURED]
    assert again[1].number < min(row.number for row in bench.rows if row.final_of is not None)


def test_a_bench_that_keeps_breaking_stops_the_study(tmp_path: Path) -> None:
    def launch(order: LaunchOrder) -> LaunchRecord:
        raise BenchError("meter gone")

    bench = Bench(study_spec(), tmp_path, launch)
    with pytest.raises(BenchError, match="3 launches in a row broke; the last: meter gone"):
        bench.run()
    assert [row.state for row in bench.rows] == [TrialState.BENCH_ERROR] * 3
    assert len(bench.orders) == 6
    assert not bench.search.open


def test_a_good_launch_between_broken_ones_lets_the_study_go_on(tmp_path: Path) -> None:
    def launch(order: LaunchOrder) -> LaunchRecord:
        if order.suggestion.number % 2 == 0 and order.purpose is not Purpose.FINAL:
            raise BenchError("now and then")
        return record(order)

    bench = Bench(study_spec(budget={"launches": 20}), tmp_path, launch)
    bench.run()
    assert sum(row.state is TrialState.BENCH_ERROR for row in bench.rows) >= 3


def test_infeasible_is_recorded_with_class_line_and_log(tmp_path: Path) -> None:
    def launch(order: LaunchOrder) -> LaunchRecord:
        if order.suggestion.config.max_num_seqs != 8:
            return record(order)
        workdir = tmp_path / str(order.suggestion.number)
        workdir.mkdir()
        (workdir / "engine.log").write_text("the telling line")
        return record(order, measured=(), failure=failed(FailureClass.OUT_OF_MEMORY))

    bench = Bench(study_spec(space=ONE_DIMENSION), tmp_path, launch)
    bench.run()
    row = bench.row(max_num_seqs=8)
    log = tmp_path / str(row.number) / "engine.log"
    assert row.state is TrialState.INFEASIBLE
    assert (row.failure_class, row.failure_line) == ("out of memory", "the telling line")
    assert row.log_path == str(log)
    assert bench.archive.logs[row.number] == (log,)
    told = bench.search.told[row.number]
    assert (told.objectives, told.feasible, told.scored) == ((0.0, 0.0), False, True)
    (ended,) = [e for e in bench.events.of(LaunchEnded) if e.number == row.number]
    assert ended.why == "out of memory: the telling line"


def test_a_start_that_timed_out_is_censored_and_not_scored(tmp_path: Path) -> None:
    def launch(order: LaunchOrder) -> LaunchRecord:
        slow = order.suggestion.config.max_num_seqs == 8
        timed_out = failed(FailureClass.START_TIMEOUT)
        return record(order, measured=(), failure=timed_out) if slow else record(order)

    bench = Bench(study_spec(space=ONE_DIMENSION), tmp_path, launch)
    bench.run()
    row = bench.row(max_num_seqs=8)
    assert row.state is TrialState.CENSORED
    assert bench.search.told[row.number].feasible
    assert not bench.search.told[row.number].scored


def test_death_under_load_keeps_what_was_measured(tmp_path: Path) -> None:
    def launch(order: LaunchOrder) -> LaunchRecord:
        dies = order.suggestion.config.max_num_seqs == 8 and order.purpose is Purpose.SEARCH
        return record(order, failure=failed(FailureClass.DIED_UNDER_LOAD, Phase.LOADING) if dies else None)

    bench = Bench(study_spec(space=ONE_DIMENSION), tmp_path, launch)
    bench.run()
    row = bench.row(max_num_seqs=8)
    assert (row.state, row.failure_class) == (TrialState.MEASURED, "died under load")
    assert row.objectives["fast"] > 0


def test_objectives_are_good_tokens_per_joule_by_sla(tmp_path: Path) -> None:
    bench = Bench(study_spec(space=ONE_DIMENSION), tmp_path)
    bench.run()
    row = bench.row(max_num_seqs=16)
    # 4 req/s of 5 tokens at 200 - 5 x 16 W.
    assert row.objectives == {
        "fast": pytest.approx(20 / 120, rel=0.01),
        "slow": pytest.approx(20 / 120, rel=0.01),
    }
    assert bench.search.told[row.number].objectives == tuple(row.objectives.values())
    # A final measures the operating point alone, and is judged there.
    final = next(final for final in bench.rows if final.final_of == row.number)
    assert final.objectives == pytest.approx(row.objectives)


def test_every_new_leader_is_announced_once(tmp_path: Path) -> None:
    bench = Bench(study_spec(space=ONE_DIMENSION), tmp_path)
    bench.run()
    leaders = [event.config.max_num_seqs for event in bench.events.of(Incumbent) if event.sla == "fast"]
    assert leaders == [None, 4, 8, 16]


@pytest.mark.parametrize("stop", [StudyCancelledError("stopped"), DevicesBusyError("held by another")])
def test_a_stopped_study_marks_its_launch_interrupted(tmp_path: Path, stop: Exception) -> None:
    bench = Bench(study_spec(space=ONE_DIMENSION), tmp_path, fails_for(8, stop))
    with pytest.raises(type(stop)):
        bench.run()
    row = bench.row(max_num_seqs=8)
    assert (row.state, row.failure_class) == (TrialState.BENCH_ERROR, FailureClass.INTERRUPTED)
    assert bench.launched.count(("search", "max_num_seqs=8")) == 1
    assert not bench.search.told[row.number].scored
    assert not bench.search.open


def test_resume_launches_the_interrupted_again_and_nothing_twice(tmp_path: Path) -> None:
    bench = Bench(study_spec(space=ONE_DIMENSION), tmp_path, fails_for(8, StudyCancelledError("stopped")))
    with pytest.raises(StudyCancelledError):
        bench.run()
    assert bench.launched[:2] == [("defaults", "engine defaults"), ("search", "max_num_seqs=4")]
    bench.resume()
    assert bench.launched == [
        ("search", "max_num_seqs=8"),
        ("search", "max_num_seqs=16"),
        ("final", "max_num_seqs=16"),
        ("final", "engine defaults"),
    ]
    bench.resume()
    assert bench.launched == []


def test_resume_keeps_an_interrupted_references_purpose(tmp_path: Path) -> None:
    stops = [StudyCancelledError("stopped")]

    def launch(order: LaunchOrder) -> LaunchRecord:
        if stops:
            raise stops.pop()
        return record(order)

    bench = Bench(study_spec(space=ONE_DIMENSION), tmp_path, launch)
    with pytest.raises(StudyCancelledError):
        bench.run()
    bench.resume()
    assert bench.launched[0] == ("defaults", "engine defaults")


def test_resume_repeats_an_interrupted_final_but_no_finished_one(tmp_path: Path) -> None:
    finals: list[int] = []

    def launch(order: LaunchOrder) -> LaunchRecord:
        if order.purpose is Purpose.FINAL:
            finals.append(order.suggestion.number)
            if len(finals) == 2:
                raise StudyCancelledError("stopped")
        return record(order)

    bench = Bench(study_spec(space=ONE_DIMENSION), tmp_path, launch)
    with pytest.raises(StudyCancelledError):
        bench.run()
    bench.resume()
    assert bench.launched == [("final", "engine defaults")]


def test_a_launch_cut_short_by_a_kill_is_found_and_launched_again(tmp_path: Path) -> None:
    bench = Bench(study_spec(space=ONE_DIMENSION, budget={"launches": 20}), tmp_path)
    bench.run()
    killed = replace(bench.row(max_num_seqs=4), state=TrialState.RUNNING, objectives={})
    bench.catalog.put(killed)
    bench.resume()
    assert bench.launched[:1] == [("search", "max_num_seqs=4")]
    assert all(row.state is not TrialState.RUNNING for row in bench.rows)


def test_every_launch_is_announced_before_it_is_made(tmp_path: Path) -> None:
    seen: list[int] = []

    def launch(order: LaunchOrder) -> LaunchRecord:
        seen.append(len(bench.events.of(LaunchStarted)))
        assert bench.rows[-1].state is TrialState.RUNNING
        return record(order)

    bench = Bench(study_spec(), tmp_path, launch)
    bench.run()
    assert seen == list(range(1, len(seen) + 1))
    assert_in_order([event.number for event in bench.events.of(LaunchEnded)])


def assert_in_order(numbers: Sequence[int]) -> None:
    assert list(numbers) == sorted(numbers)


def drifting(lost: Sequence[float]) -> Launch:
    """A machine on which each launch of the defaults after the first draws more watts, by these shares."""
    left = iter([0.0, *lost])

    def launch(order: LaunchOrder) -> LaunchRecord:
        made = record(order)
        if order.purpose in {Purpose.DEFAULTS, Purpose.REFERENCE}:
            rates = tuple(m.level.rate_rps or 0.0 for m in made.curve)
            made = replace(made, curve=curve(rates, watts=200.0 / (1 - next(left))))
        return replace(made, before=NODE)

    return launch


def watched(tmp_path: Path, lost: Sequence[float], **drift: object) -> Bench:
    study = study_spec(drift={"every": 2, **drift}, budget={"launches": 12})
    return Bench(study, tmp_path, drifting(lost))


def test_the_reference_is_measured_again_every_so_many_launches(tmp_path: Path) -> None:
    bench = watched(tmp_path, [0.0, 0.0])
    bench.run()
    purposes = [purpose for purpose, _ in bench.launched]
    assert purposes[:7] == ["defaults", "search", "search", "reference", "search", "search", "reference"]
    assert purposes.count("reference") == 2
    assert purposes[-2:] == ["final", "final"]
    assert [event.drift.beyond_noise for event in bench.events.of(Drifted)] == [False, False]


def test_a_drift_is_told_and_by_default_nothing_else(tmp_path: Path) -> None:
    bench = watched(tmp_path, [0.3, 0.3])
    bench.run()
    first = bench.events.of(Drifted)[0]
    assert first.drift.change == pytest.approx(-0.3)
    assert first.drift.beyond_noise
    assert Purpose.FINAL in [purpose for purpose, _ in bench.launched]


def test_a_drift_that_a_second_reference_shows_too_stops_the_study(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"the machine drifted: the reference lost 30\.0 %"):
        watched(tmp_path, [0.3, 0.3], action="stop").run()


def test_one_reference_out_of_line_stops_nothing(tmp_path: Path) -> None:
    bench = watched(tmp_path, [0.3, 0.0, 0.0, 0.0], action="stop")
    bench.run()
    assert [event.drift.beyond_noise for event in bench.events.of(Drifted)][:2] == [True, False]


def test_what_the_search_learns_is_corrected_for_drift(tmp_path: Path) -> None:
    told, corrected = (
        watched(tmp_path / action, [0.5, 0.5], action=action) for action in ("report", "correct")
    )
    told.run()
    corrected.run()
    after = [number for number, (purpose, _) in enumerate(told.launched) if purpose == "search"][2]
    plain, mended = (b.rows[after].objectives["fast"] for b in (told, corrected))
    assert mended == pytest.approx(2 * plain, rel=0.01)


# --- quality

PRECISIONS = {"dimensions": {"max_num_seqs": ["default", 4], "kv_cache_dtype": ["default", "fp8"]}}


def judged(order: LaunchOrder) -> LaunchRecord:
    """fp8 draws least and fails the gate; the defaults are what it is judged by."""
    config = order.suggestion.config
    done = record(order, measured=curve((4.0, 5.0), watts=50.0) if config.kv_cache_dtype else None)
    failed_before = [v for v in order.known.verdicts if v.precision == done.precision]
    verdict = QualityVerdict(
        state=QualityState.FAILED if config.kv_cache_dtype else QualityState.PASSED,
        precision=done.precision,
        judged_in=failed_before[0].judged_in if failed_before else order.suggestion.number,
        reasons=("KL alone: 0.4",) if config.kv_cache_dtype else (),
    )
    answers = None
    if order.purpose is Purpose.DEFAULTS and order.known.reference is None:
        answers = ReferenceAnswers(
            number=order.suggestion.number, precision=done.precision, questions=(), answers=Interview()
        )
    return replace(done, quality=verdict, answers=answers)


def test_launches_know_the_references_answers_and_the_verdicts_so_far(tmp_path: Path) -> None:
    bench = Bench(study_spec(space=PRECISIONS, budget={"launches": 20}), tmp_path, judged)
    bench.run()
    first, *later = bench.orders
    assert (first.known.reference, first.known.verdicts) == (None, ())
    assert {order.known.reference.number for order in later if order.known.reference} == {0}
    assert all(order.known.reference for order in later)
    last = {v.precision.kv_cache: v.state for v in later[-1].known.verdicts}
    assert last == {"auto": QualityState.PASSED, "fp8": QualityState.FAILED}


def test_what_failed_the_gate_is_worth_nothing_and_its_precision_is_not_launched_again(
    tmp_path: Path,
) -> None:
    bench = Bench(study_spec(space=PRECISIONS, budget={"launches": 20}), tmp_path, judged)
    bench.run()
    first = bench.row(kv_cache_dtype="fp8")
    assert (first.state, first.quality) == (TrialState.MEASURED, "failed")
    assert dict(first.objectives) == {"fast": 0.0, "slow": 0.0}
    assert bench.search.told[first.number].feasible
    second = bench.row(max_num_seqs=4, kv_cache_dtype="fp8")
    assert second.state is TrialState.REJECTED
    assert (
        second.failure_line == f"its precision failed the quality gate in trial {first.number}: KL alone: 0.4"
    )
    assert not any(event.config.kv_cache_dtype for event in bench.events.of(Incumbent))
    finals = [order.suggestion.config for order in bench.orders if order.purpose is Purpose.FINAL]
    assert finals
    assert not any(config.kv_cache_dtype for config in finals)


def test_where_the_gate_only_reports_everything_is_launched_and_counts(tmp_path: Path) -> None:
    study = study_spec(space=PRECISIONS, budget={"launches": 20}, quality={"gate": "report"})
    bench = Bench(study, tmp_path, judged)
    bench.run()
    assert bench.row(kv_cache_dtype="fp8").objectives["fast"] > 0
    assert bench.row(max_num_seqs=4, kv_cache_dtype="fp8").state is TrialState.MEASURED


def test_resume_goes_on_with_the_same_reference_and_verdicts(tmp_path: Path) -> None:
    bench = Bench(study_spec(space=PRECISIONS, budget={"launches": 3}), tmp_path, judged)
    bench.run()
    bench.study = study_spec(space=PRECISIONS, budget={"launches": 20})
    bench.resume()
    assert bench.orders[0].known.reference == bench.archive.records["small", 0].answers
    assert bench.orders[0].known.reference is not None
    assert bench.orders[0].known.verdicts[0].judged_in == 0


# --- settings of the devices


LIMITS = {"dimensions": {"max_num_seqs": [8, 16], "power_limit_w": ["default", 500, 300]}}


def with_variants(order: LaunchOrder) -> LaunchRecord:
    """Measures the settings as well, each in 20 s."""
    own = record(order)
    variants = tuple(
        replace(own, number=own.number + 1 + k, config=config, launch_s=0.0, load_s=20.0)
        for k, config in enumerate(order.variants)
    )
    return replace(own, variants=variants)


def test_power_limits_are_searched_on_the_running_engine(tmp_path: Path) -> None:
    study = study_spec(space=LIMITS, hardware={"allow": ["power_limit"]}, budget={"launches": 20})
    bench = Bench(study, tmp_path, with_variants)
    bench.run()
    searched = [o for o in bench.orders if o.purpose in {Purpose.SEARCH, Purpose.DEFAULTS}]
    starts = [(o.suggestion.config.max_num_seqs, o.suggestion.config.power_limit_w) for o in searched]
    # The defaults' own two limits come with them.
    assert starts == [(None, None), (8, None), (16, None)]
    measured = {(r.config.max_num_seqs, r.config.power_limit_w): r for r in bench.rows if r.final_of is None}
    assert set(measured) == {(n, w) for n in (None, 8, 16) for w in (None, 500, 300)}
    assert measured[8, 300].total_s == 20.0
    assert measured[8, 300].on_running_engine
    assert not measured[8, None].on_running_engine


# --- several launches at once


class Overlap:
    """Launches that wait for each other, and note how many ran at once and on how many devices."""

    def __init__(self, meet: int) -> None:
        self._meet, self._lock = meet, threading.Lock()
        self._running: list[LaunchOrder] = []
        self.most, self.most_devices = 0, 0

    def __call__(self, order: LaunchOrder) -> LaunchRecord:
        with self._lock:
            self._running.append(order)
            self.most = max(self.most, len(self._running))
            devices = sum(o.suggestion.config.devices for o in self._running)
            self.most_devices = max(self.most_devices, devices)
        # Long enough for those that start together to meet, no matter how the threads are scheduled.
        until_s = time.monotonic() + (2.0 if order.purpose is Purpose.SEARCH else 0.0)
        while self.most < self._meet and time.monotonic() < until_s:
            time.sleep(0.001)
        with self._lock:
            self._running.remove(order)
        return record(order)


def test_small_launches_of_the_search_run_side_by_side_and_finals_alone(tmp_path: Path) -> None:
    overlap = Overlap(2)
    study = study_spec(space=ONE_DIMENSION, at_once=3, budget={"launches": 20})
    bench = Bench(study, tmp_path, overlap)
    bench.run()
    assert (overlap.most, overlap.most_devices) == (2, 2), "of three that may, two find devices"
    assert {row.state for row in bench.rows} == {TrialState.MEASURED}
    assert any(row.purpose is Purpose.FINAL for row in bench.rows)
    assert bench.search.open == set()


def test_what_finds_no_device_waits_for_the_next_round(tmp_path: Path) -> None:
    space = {"dimensions": {"tensor_parallel": [1, 2], "max_num_seqs": [8, 16]}}
    overlap = Overlap(9)
    study = study_spec(space=space, at_once=2, budget={"launches": 20})
    Bench(study, tmp_path, overlap).run()
    assert overlap.most_devices == 2


def test_launches_at_once_stay_within_the_budget(tmp_path: Path) -> None:
    study = study_spec(space=ONE_DIMENSION, at_once=2, budget={"launches": 4})
    bench = Bench(study, tmp_path, Overlap(1))
    bench.run()
    assert len(bench.orders) <= 4
    assert bench.search.open == set()


def test_a_launch_that_breaks_beside_another_loses_nothing_of_it(tmp_path: Path) -> None:
    def launch(order: LaunchOrder) -> LaunchRecord:
        if order.suggestion.config.max_num_seqs == 8:
            raise BenchError("the client died")
        return record(order)

    study = study_spec(space=ONE_DIMENSION, at_once=2, budget={"launches": 20})
    bench = Bench(study, tmp_path, launch)
    bench.run()
    states = {row.config.max_num_seqs: row.state for row in bench.rows if row.purpose is Purpose.SEARCH}
    assert states[8] is TrialState.BENCH_ERROR
    assert states[16] is TrialState.MEASURED


# --- the search's own economy


def replayed(
    tmp_path: Path, seed: int, sampler: Callable[[int], BaseSampler]
) -> list[tuple[str, str, int | None]]:
    """A study by Optuna on recorded launches: a configuration reveals what was recorded of it."""
    study = study_spec(seed=seed, budget={"launches": 9}, soak="10s")
    bench = Bench(study, tmp_path)
    bench.search = by_optuna(study, sampler(seed))  # type: ignore[assignment]
    bench.run()
    return [(row.purpose, row.config.label(), row.final_of) for row in bench.rows]


@pytest.mark.parametrize(
    "sampler", [partial(baseline_sampler, "tpe"), lambda seed: SurrogateSampler(seed=seed)]
)
def test_the_same_seed_on_recorded_launches_gives_the_same_study(
    tmp_path: Path, sampler: Callable[[int], BaseSampler]
) -> None:
    first, second = (replayed(tmp_path / str(n), seed=3, sampler=sampler) for n in range(2))
    assert first == second
    assert len(first) <= 9
    assert {replayed(tmp_path / f"s{seed}", seed, sampler)[2] for seed in range(4)} != {first[2]}


def test_launches_know_where_capacity_is_expected_and_what_to_beat(tmp_path: Path) -> None:
    bench = Bench(study_spec(space=ONE_DIMENSION), tmp_path)
    bench.run()
    first, second, third, *_ = bench.orders
    assert (dict(first.foreknown.expected), dict(first.foreknown.incumbents)) == ({}, {})
    assert second.foreknown.expected["fast"].rps == pytest.approx(5.0)
    assert second.foreknown.incumbents["fast"] == pytest.approx(20 / 200, rel=0.01)
    assert third.foreknown.incumbents["fast"] == pytest.approx(20 / 180, rel=0.01)
    assert third.foreknown.expected["fast"].spread < second.foreknown.expected["fast"].spread


def test_a_launch_cut_short_is_told_at_its_bound_and_not_at_nothing(tmp_path: Path) -> None:
    def launch(order: LaunchOrder) -> LaunchRecord:
        if order.suggestion.config.max_num_seqs != 8 or order.purpose is not Purpose.SEARCH:
            return record(order)
        lost = tuple(
            replace(m, ended=WindowEnd.OVERSATURATED) for m in curve((4.0,), capacity_rps=1.0, watts=400.0)
        )
        return record(order, measured=lost)

    bench = Bench(study_spec(space=ONE_DIMENSION), tmp_path, launch)
    bench.run()
    row = bench.row(max_num_seqs=8)
    # 20 tok/s at most, at 400 W.
    assert row.objectives["fast"] == pytest.approx(20 / 400, rel=0.1)
    assert not any(e.number == row.number for e in bench.events.of(Incumbent))


def test_a_launch_of_the_search_may_last_until_the_finals_time_begins(
    tmp_path: Path, clock: FakeClock
) -> None:
    study = study_spec(budget={"wall_time": "10m"}, measurement={"final_window": "30s"})
    bench = Bench(study, tmp_path, clock=clock)
    bench.run()
    defaults, first, *_ = bench.orders
    assert defaults.time_left_s == 600.0
    # Three finals of a second's start and two SLAs' windows of 32 s.
    assert first.time_left_s == pytest.approx(600.0 - LAUNCH_S - 3 * 65.0)


def test_the_search_stops_where_another_launch_would_not_pay_and_says_so(
    tmp_path: Path, clock: FakeClock
) -> None:
    small = study_spec(deployment={"accelerators": 1, "days": 0.001}, budget={"launches": 20})
    bench = Bench(small, tmp_path, clock=clock)
    bench.run()
    purposes = [purpose for purpose, _ in bench.launched]
    assert purposes == ["defaults", "final"]
    assert any("the search stops: another launch costs" in n.text for n in bench.events.of(Notice))
    large = study_spec(deployment={"accelerators": 100, "days": 365}, budget={"launches": 20})
    paying = Bench(large, tmp_path, clock=clock)
    paying.run()
    assert len(paying.launched) > len(purposes)
    assert not paying.events.of(Notice)


def test_the_winner_soaks_last_and_where_the_budget_does_not_cover_it_that_is_said(tmp_path: Path) -> None:
    bench = Bench(study_spec(space=ONE_DIMENSION, soak="10s", budget={"launches": 20}), tmp_path)
    bench.run()
    assert bench.launched[-1] == ("soak", "max_num_seqs=16")
    soak = bench.orders[-1]
    assert soak.levels is not None
    assert [(level.rate_rps, level.bursty) for level in soak.levels] == [(4.0, True)]
    bench.resume()
    assert bench.launched == []
    poor = Bench(study_spec(space=ONE_DIMENSION, soak="10s", budget={"launches": 2}), tmp_path)
    poor.run()
    assert [purpose for purpose, _ in poor.launched] == ["defaults", "final"]
    assert any("its soak of 10s is beyond the budget" in n.text for n in poor.events.of(Notice))


def test_a_soak_is_unasked_where_it_is_a_small_part_of_the_budget() -> None:
    def soak_s(**budget: object) -> float:
        return study_spec(soak=None, budget=budget).soak_s

    assert soak_s(launches=20) == 300.0
    assert soak_s(launches=19) == 0.0
    assert soak_s(wall_time="6h") == 300.0
    assert soak_s(launches=30, wall_time="1h") == 0.0
    assert study_spec(soak="1m", budget={"launches": 3}).soak_s == 60.0
