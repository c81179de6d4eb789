"""One launch, on fakes of engine, load and meter: what is measured, and what its failures become."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import (
    ENVIRONMENT,
    NODE,
    Events,
    FakeDriver,
    FakeHost,
    FakeInventory,
    FakeLauncher,
    FakeMeter,
    FakePreflight,
    FakeProbe,
    FakeSettings,
    FakeTasks,
    never,
    planner,
    study_spec,
)

from autotune.domain.basics.errors import BenchError, DevicesBusyError, StudyCancelledError
from autotune.domain.configs.config import EngineConfig
from autotune.domain.hardware.node import DeviceHealth, NodeState
from autotune.domain.judging.answers import NoAnswerError
from autotune.domain.judging.quality import QualityState, ReferenceAnswers
from autotune.domain.launches.launch import EngineDiedError, Evidence, FailureClass, Phase
from autotune.domain.load.level import Level
from autotune.domain.measuring.counters import CounterTrace
from autotune.domain.measuring.measurement import WindowEnd
from autotune.domain.studies.events import LevelMeasured, LevelStarted, Notice, PhaseChanged
from autotune.domain.studies.records import LaunchRecord, Purpose
from autotune.domain.studies.study import StudySpec
from autotune.runs import measure
from autotune.runs.launch import Bench, LaunchTask, run_launch
from autotune.runs.quality import NOTHING_KNOWN, QualityKnown

QUICK = {
    "warmup": "1s",
    "window": "2s",
    "longest_window": "4s",
    "final_window": "6s",
    "longest_warmup": "2s",
    "most_levels": 3,
    "saturating_concurrency": 2,
}
DEAD_AT_START = EngineDiedError(
    Evidence(phase=Phase.STARTING, exit_code=1, log="out of memory"), Path("engine.log")
)


class Parts:
    """The fakes of one launch, to look at afterwards."""

    def __init__(
        self,
        *,
        driver: FakeDriver | None = None,
        failure_class: FailureClass = FailureClass.UNRECOGNISED,
        error: Exception | None = None,
        busy: bool = False,
        counted: CounterTrace | None = None,
        preflight: FakePreflight | None = None,
        probe: FakeProbe | None = None,
        tasks: FakeTasks | None = None,
    ) -> None:
        self.probe, self.tasks = probe or FakeProbe(), tasks or FakeTasks()
        self.preflight, self.settings = preflight or FakePreflight(), FakeSettings()
        self.driver, self.host = driver or FakeDriver(), FakeHost(error, counted=counted)
        self.inventory, self.launcher = FakeInventory(busy=busy), FakeLauncher(failure_class)
        self.events = Events()

    def run(
        self,
        tmp_path: Path,
        *,
        levels: tuple[Level, ...] | None = None,
        must_hold: tuple[str, ...] = (),
        study: StudySpec | None = None,
        start: NodeState | None = None,
        purpose: Purpose = Purpose.SEARCH,
        known: QualityKnown = NOTHING_KNOWN,
        time_left_s: float = math.inf,
        variants: tuple[EngineConfig, ...] = (),
        beside: Sequence[Parts] = (),
        **words: object,
    ) -> LaunchRecord:
        study = study or study_spec(measurement=QUICK)
        task = LaunchTask(
            study=study,
            number=7,
            purpose=Purpose.FINAL if levels else purpose,
            config=EngineConfig.model_validate({"engine": "fake", "tensor_parallel": 2, **words}),
            workdir=tmp_path,
            levels=levels,
            must_hold=must_hold,
            start=start,
            known=known,
            time_left_s=time_left_s,
            variants=variants,
        )
        try:
            return run_launch(
                task, self.bench(study), self.events, never, [other.bench(study) for other in beside]
            )
        finally:
            for each in (self, *beside):
                left = (each.host.running, each.inventory.leased, each.settings.held)
                assert left == (0, 0, 0), "something was left running or held"

    def bench(self, study: StudySpec) -> Bench:
        return Bench(
            launcher=self.launcher,
            environment=ENVIRONMENT,
            hardware=self.inventory.devices(),
            inventory=self.inventory,
            host=self.host,
            driver=self.driver,
            probe=self.probe,
            tasks=self.tasks,
            meter=FakeMeter(),
            beside=(),
            preflight=self.preflight,
            settings=self.settings,
            plan=planner(study),
            versions={"fake": "1"},
        )

    @property
    def phases(self) -> list[Phase]:
        return [event.phase for event in self.events.of(PhaseChanged)]


def test_settings_of_the_gpus_are_held_for_the_launch_as_far_as_the_study_allows(tmp_path: Path) -> None:
    parts = Parts()
    study = study_spec(measurement=QUICK, hardware={"allow": ["power_limit"]})
    assert parts.run(tmp_path, study=study, power_limit_w=400).failure is None
    assert parts.settings.asked == [(("power_limit",), 400, None)]


def limited(watts: int | None) -> EngineConfig:
    words = {"engine": "fake", "tensor_parallel": 2} | ({"power_limit_w": watts} if watts else {})
    return EngineConfig.model_validate(words)


def test_other_settings_are_measured_on_the_running_engine(tmp_path: Path) -> None:
    parts = Parts()
    study = study_spec(measurement=QUICK, hardware={"allow": ["power_limit"]})
    record = parts.run(tmp_path, study=study, variants=(limited(500), limited(300)))
    assert len(parts.host.launches) == 1
    assert [watts for _, watts, _ in parts.settings.asked] == [None, 500, 300]
    assert [v.config.power_limit_w for v in record.variants] == [500, 300]
    assert [v.number for v in record.variants] == [8, 9]
    assert all(v.curve and v.launch_s == 0 and v.load_s > 0 and v.failure is None for v in record.variants)
    prompts = [
        tuple(plan.prompts.token_ids(r.prompt)) for plan in parts.driver.plans for r in plan.requests[:20]
    ]
    assert len(set(prompts)) == len(prompts)


def test_a_setting_that_cannot_be_leaves_the_others_measured(tmp_path: Path) -> None:
    parts = Parts()
    parts.settings.refuses = 500
    record = parts.run(tmp_path, variants=(limited(500), limited(300)))
    assert record.failure is None
    assert [v.config.power_limit_w for v in record.variants] == [300]


def test_an_engine_that_dies_under_another_setting_has_measured_the_first(tmp_path: Path) -> None:
    whole = len(Parts().run(tmp_path).curve)
    parts = Parts(driver=FakeDriver(dies_at_drive=whole + 2), failure_class=FailureClass.DIED_UNDER_LOAD)
    record = parts.run(tmp_path, variants=(limited(500), limited(300)))
    assert (record.failure, len(record.curve)) == (None, whole)
    (variant,) = record.variants
    assert variant.failure is not None
    assert variant.failure.failure_class is FailureClass.DIED_UNDER_LOAD


def test_what_the_pools_of_a_launch_took_is_read_from_their_logs(tmp_path: Path) -> None:
    (tmp_path / "decode-0.log").write_text("The Mooncake Transfer Engine is using tcp as its protocol.\n")
    parts = Parts()
    words = {"tensor_parallel": 1, "prefill.workers": 1, "decode.workers": 1}
    record = parts.run(tmp_path, **words)
    assert record.transport is not None
    assert record.transport.kind == "tcp"
    assert [notice for notice in parts.events.of(Notice) if "TCP" in notice.text]
    assert Parts().run(tmp_path).transport is None


def test_a_sound_launch_is_measured_closed_loop_first_then_at_offered_rates(tmp_path: Path) -> None:
    parts = Parts()
    record = parts.run(tmp_path)
    assert record.failure is None
    assert record.curve[0].level == Level("chat", concurrency=2)
    assert len(record.curve) == 4
    assert all(m.level.rate_rps for m in record.curve[1:])
    assert parts.phases == [
        Phase.PREFLIGHT,
        Phase.STARTING,
        Phase.FIRST_REQUEST,
        Phase.EXAMINING,
        Phase.LOADING,
        Phase.STOPPING,
    ]
    assert record.command == "serve some/model --port 8000"
    assert (record.study, record.number, record.versions) == ("small", 7, {"fake": "1"})


def test_every_device_of_the_configuration_is_leased_and_metered(tmp_path: Path) -> None:
    parts = Parts()
    record = parts.run(tmp_path)
    assert [d.uid for d in record.curve[0].power.devices] == ["gpu-0", "gpu-1"]
    assert len(parts.host.launches[0].processes[0].devices) == 2


def test_levels_are_announced_and_told(tmp_path: Path) -> None:
    parts = Parts()
    record = parts.run(tmp_path)
    levels = [m.level for m in record.curve]
    assert [event.level for event in parts.events.of(LevelStarted)] == levels
    assert [event.level for event in parts.events.of(LevelMeasured)] == levels


def test_a_window_opens_after_the_warmup_and_ends_with_the_levels_budget(tmp_path: Path) -> None:
    study = study_spec(measurement=QUICK | {"precision": 0.001, "final_precision": 0.001})
    searched = Parts().run(tmp_path, study=study).curve[1]
    assert searched.window.start_s >= 1.0
    assert (searched.window.length_s, searched.ended) == (4.0, WindowEnd.BUDGET)
    (final,) = Parts().run(tmp_path, study=study, levels=(Level("chat", rate_rps=16.0),)).curve
    assert (final.window.length_s, final.ended) == (6.0, WindowEnd.BUDGET)


def test_a_window_ends_when_it_is_precise_enough(tmp_path: Path) -> None:
    study = study_spec(measurement=QUICK | {"final_window": "5m", "final_precision": 0.3})
    (final,) = Parts().run(tmp_path, study=study, levels=(Level("chat", rate_rps=50.0),)).curve
    assert final.ended is WindowEnd.PRECISE
    assert 2.0 <= final.window.length_s < 60.0


def counted(hits: float, queries: float = 100.0) -> CounterTrace:
    """Counters that rise by so much a second."""
    time_s = np.arange(-10.0, 400.0)
    return CounterTrace(
        time_s=time_s,
        values={"prefix_cache_queries_total": queries * time_s, "prefix_cache_hits_total": hits * time_s},
    )


def test_counters_are_kept_with_the_level(tmp_path: Path) -> None:
    record = Parts(counted=counted(0.0)).run(tmp_path)
    assert record.curve[0].counters.prefix_hit_rate(record.curve[0].window) == 0.0


def test_a_cache_that_serves_what_no_prompt_shares_invalidates_the_run(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"served 40.0% of the prompt tokens .* promises 0.0%"):
        Parts(counted=counted(40.0)).run(tmp_path)


@pytest.mark.parametrize(("hits", "is_kept"), [(20.0, False), (45.0, True), (70.0, False)])
def test_a_declared_hit_rate_is_kept_on_both_sides(tmp_path: Path, hits: float, is_kept: bool) -> None:
    workload = {"name": "chat", "input_tokens": 8, "output_tokens": 5, "prefix_hits": {"expected": 0.5}}
    study = study_spec(measurement=QUICK, workloads=[workload])
    parts = Parts(counted=counted(hits))
    if is_kept:
        assert parts.run(tmp_path, study=study).curve
    else:
        with pytest.raises(BenchError, match="promises 50"):
            parts.run(tmp_path, study=study)


def test_the_node_is_looked_over_before_and_after_and_what_it_draws_at_rest(tmp_path: Path) -> None:
    record = Parts(preflight=FakePreflight(NODE, replace(NODE, load_1min=3.0))).run(tmp_path)
    assert record.before == replace(NODE, idle_power_w=200.0)
    assert record.after == replace(NODE, load_1min=3.0)
    assert (record.node, record.device) == ("n1", "a device")


FAULTY = replace(NODE, devices=(DeviceHealth(uid="gpu-0", ecc_uncorrected=2),))


def test_nothing_is_launched_on_a_node_at_fault(tmp_path: Path) -> None:
    parts = Parts(preflight=FakePreflight(FAULTY))
    with pytest.raises(BenchError, match="the node is at fault: ecc-uncorrected:gpu-0"):
        parts.run(tmp_path)
    assert parts.host.launches == []


@pytest.mark.parametrize("error", [None, DEAD_AT_START])
def test_a_fault_that_came_with_the_launch_is_the_nodes(tmp_path: Path, error: Exception | None) -> None:
    sound = replace(NODE, devices=(DeviceHealth(uid="gpu-0", ecc_uncorrected=0),))
    with pytest.raises(BenchError, match="the node failed during the launch: ecc-uncorrected:gpu-0: 2 new"):
        Parts(preflight=FakePreflight(sound, FAULTY), error=error).run(tmp_path)


def test_devices_cool_down_to_where_the_study_began(tmp_path: Path) -> None:
    parts = Parts(preflight=FakePreflight(warm=("gpu-0 is at 61 °C",)))
    parts.run(tmp_path)
    assert parts.preflight.waited_for == []
    parts.run(tmp_path, start=NODE)
    assert parts.preflight.waited_for == [NODE]
    assert [n.text for n in parts.events.of(Notice)] == ["trial 7: gpu-0 is at 61 °C"]


def test_finals_measure_exactly_the_given_levels(tmp_path: Path) -> None:
    levels = (Level("chat", rate_rps=9.0), Level("chat", rate_rps=3.0))
    record = Parts().run(tmp_path, levels=levels)
    assert tuple(m.level for m in record.curve) == levels


@pytest.mark.parametrize(
    ("slow_drives", "must_hold", "rates_rps"),
    [
        ((), ("fast",), [20.0]),
        ((1,), ("fast",), [20.0, 16.0]),
        (range(1, 9), ("fast",), [20.0, 16.0, 12.8]),
        ((1,), (), [20.0]),
    ],
)
def test_a_final_that_does_not_hold_retreats_twice_at_most(
    tmp_path: Path, slow_drives: Sequence[int], must_hold: tuple[str, ...], rates_rps: list[float]
) -> None:
    parts = Parts(driver=FakeDriver(slow_drives=slow_drives))
    record = parts.run(tmp_path, levels=(Level("chat", rate_rps=20.0),), must_hold=must_hold)
    assert [m.level.rate_rps for m in record.curve] == pytest.approx(rates_rps)


def test_no_level_is_begun_that_the_budget_has_no_time_for_but_the_first(tmp_path: Path) -> None:
    parts = Parts()
    in_full, in_haste = parts.run(tmp_path), parts.run(tmp_path, time_left_s=0.0)
    assert sum(m.level.rate_rps is not None for m in in_haste.curve) == 1
    assert len(in_full.curve) > len(in_haste.curve)
    assert [n.text for n in parts.events.of(Notice)] == ["trial 7 is cut short: the budget's time is up"]


def test_finals_of_two_workloads_drive_each_level_with_its_own(tmp_path: Path) -> None:
    study = study_spec(
        measurement=QUICK,
        workloads=[
            {"name": "chat", "input_tokens": 8, "output_tokens": 5},
            {"name": "code", "input_tokens": 4, "output_tokens": 3},
        ],
    )
    levels = (Level("code", rate_rps=9.0), Level("chat", rate_rps=3.0))
    parts = Parts()
    record = parts.run(tmp_path, levels=levels, study=study)
    assert {m.level for m in record.curve} == set(levels)
    lengths = {plan.requests[0].output_tokens for plan in parts.driver.plans[1:]}
    assert lengths == {3, 5}


@pytest.mark.parametrize("levels", [None, (Level("chat", rate_rps=8.0),) * 2], ids=["searched", "one twice"])
def test_no_prompt_is_sent_twice_to_an_engine(tmp_path: Path, levels: tuple[Level, ...] | None) -> None:
    parts = Parts(driver=FakeDriver(lag_s=[0.0, 1.0]))
    parts.run(tmp_path, levels=levels)
    prompts = [
        tuple(plan.prompts.token_ids(r.prompt)) for plan in parts.driver.plans for r in plan.requests[:20]
    ]
    assert len(set(prompts)) == len(prompts)


def test_the_studys_deadline_holds_for_every_request(tmp_path: Path) -> None:
    parts = Parts()
    parts.run(tmp_path, study=study_spec(measurement=QUICK | {"request_timeout": "7s"}))
    assert {plan.request_timeout_s for plan in parts.driver.plans} == {7.0}


def test_an_engine_that_dies_of_its_first_request_is_classified_as_such(tmp_path: Path) -> None:
    parts = Parts(
        driver=FakeDriver(first_error="stream ended early"), failure_class=FailureClass.DIED_AT_FIRST_REQUEST
    )
    record = parts.run(tmp_path)
    assert record.failure is not None
    assert record.failure.phase is Phase.FIRST_REQUEST
    assert record.failure.line == "stream ended early"
    assert record.curve == ()
    assert record.load_s == 0
    assert Phase.LOADING not in parts.phases


def test_an_engine_that_never_starts_leaves_a_record_with_its_command(tmp_path: Path) -> None:
    parts = Parts(error=DEAD_AT_START, failure_class=FailureClass.OUT_OF_MEMORY)
    record = parts.run(tmp_path)
    assert record.failure is not None
    assert (record.failure.failure_class, record.failure.line) == ("out of memory", "out of memory")
    assert record.command == "serve some/model --port 8000"
    assert parts.driver.plans == []


def test_death_under_load_keeps_the_curve_so_far(tmp_path: Path) -> None:
    # Drives: the first request, the closed loop, an open-loop level, and the one that kills.
    parts = Parts(driver=FakeDriver(dies_at_drive=3), failure_class=FailureClass.DIED_UNDER_LOAD)
    record = parts.run(tmp_path)
    assert len(record.curve) == 2
    assert record.failure is not None
    assert record.failure.phase is Phase.LOADING
    dying = parts.events.of(LevelStarted)[-1].level.label
    assert parts.launcher.seen[0].stream_error == dying


def test_a_level_in_which_the_client_was_late_is_driven_once_more(tmp_path: Path) -> None:
    parts = Parts(driver=FakeDriver(lag_s=[0.0, 1.0]))
    record = parts.run(tmp_path)
    assert record.curve[0].health.lag_p99_s == 0.0
    assert [event.level.concurrency for event in parts.events.of(LevelStarted)][:2] == [2, 2]
    assert [event.level.concurrency for event in parts.events.of(LevelMeasured)].count(2) == 1


def test_a_client_that_is_late_again_broke_the_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "PAUSES_S", (0.0, 0.0, 0.0))
    parts = Parts(driver=FakeDriver(lag_s=[0.0, 1.0, 1.0, 0.5]))
    with pytest.raises(BenchError, match=r"2 concurrent: the load client was the limit.*500 ms"):
        parts.run(tmp_path)


@pytest.mark.parametrize("failure_class", [FailureClass.PORT_TAKEN, FailureClass.NODE_FAULT])
def test_a_failure_of_the_bench_is_no_record_of_the_configuration(
    tmp_path: Path, failure_class: FailureClass
) -> None:
    with pytest.raises(BenchError, match=f"{failure_class} while starting: out of memory"):
        Parts(error=DEAD_AT_START, failure_class=failure_class).run(tmp_path)


def test_a_timeout_at_the_start_is_recorded(tmp_path: Path) -> None:
    record = Parts(error=DEAD_AT_START, failure_class=FailureClass.START_TIMEOUT).run(tmp_path)
    assert record.failure is not None
    assert record.failure.reaction == "censored"


def test_devices_held_by_another_stop_the_launch_before_it_starts(tmp_path: Path) -> None:
    parts = Parts(busy=True)
    with pytest.raises(DevicesBusyError, match="study small, trial 7"):
        parts.run(tmp_path)
    assert parts.host.launches == []


def test_a_wish_to_stop_passes_through(tmp_path: Path) -> None:
    with pytest.raises(StudyCancelledError):
        Parts(error=StudyCancelledError("stopped")).run(tmp_path)


# --- quality

GATED = {"context_length": 4096}
"""Room for a long prompt."""


def gated(gate: str = "required") -> StudySpec:
    return study_spec(measurement=QUICK, requirements=GATED, quality={"gate": gate})


def learned(tmp_path: Path) -> ReferenceAnswers:
    """What the launch of the defaults leaves for others to be judged by."""
    record = Parts().run(tmp_path, study=gated(), purpose=Purpose.DEFAULTS)
    assert record.answers is not None
    return record.answers


def test_every_launch_answers_known_prompts_before_it_is_measured(tmp_path: Path) -> None:
    parts = Parts()
    record = parts.run(tmp_path)
    assert parts.probe.asked == [(4, 4, False)]
    assert record.quality is not None
    assert record.quality.state is QualityState.NOT_JUDGED
    assert record.quality.reasons == ("no reference has answered",)
    assert record.quality.known.startswith("4 known prompts answered")
    assert record.curve


def test_the_first_reference_is_asked_everything_twice_and_its_answers_are_kept(tmp_path: Path) -> None:
    parts = Parts()
    record = parts.run(tmp_path, study=gated(), purpose=Purpose.DEFAULTS)
    once, together = [(16, 1, False), (16, 1, True), (1, 1, False)], [(16, 16, False), (16, 16, True)]
    assert parts.probe.asked[0] == (4, 4, False)
    assert sorted(parts.probe.asked[1:]) == sorted(2 * once + together)
    assert record.answers is not None
    assert (record.answers.number, len(record.answers.questions)) == (7, 16)
    assert record.answers.long_questions[0].ids > ()
    assert record.quality is not None
    assert record.quality.state is QualityState.PASSED
    assert record.quality.figures


def test_configurations_of_the_references_precision_pass_and_still_answer(tmp_path: Path) -> None:
    parts = Parts()
    record = parts.run(tmp_path, study=gated(), known=QualityKnown(reference=learned(tmp_path)))
    assert parts.probe.asked == [(4, 4, False)]
    assert record.answers is None
    assert record.quality is not None
    assert record.quality.state is QualityState.PASSED
    assert record.quality.known == "4 of 4 known prompts as by trial 7, within 0.5 nats"


def test_each_engine_is_held_against_itself(tmp_path: Path) -> None:
    """Another engine's defaults become its own reference where the precision is the same."""
    first = learned(tmp_path)
    elsewhere = replace(first, number=3, precision=replace(first.precision, build="other 1"))
    known, far = QualityKnown(reference=elsewhere), FakeProbe(off_nats=0.2)
    record = Parts(probe=far).run(tmp_path, study=gated(), purpose=Purpose.DEFAULTS, known=known)
    assert record.quality is not None
    assert record.quality.state is QualityState.PASSED
    assert record.quality.known == "4 of 4 known prompts as by trial 3, within 0.5 nats"
    assert record.answers is not None

    known = replace(known, others=(record.answers,))
    fp8 = Parts(probe=far).run(tmp_path, study=gated(), known=known, kv_cache_dtype="fp8").quality
    assert fp8 is not None
    assert (fp8.state, fp8.reference) == (QualityState.PASSED, record.number)
    quantised = Parts().run(
        tmp_path,
        study=gated(),
        purpose=Purpose.DEFAULTS,
        known=QualityKnown(reference=elsewhere),
        dtype="half",
    )
    assert quantised.answers is None, "of another precision it is no reference"


@pytest.mark.parametrize(("off_nats", "state"), [(0.01, QualityState.PASSED), (0.2, QualityState.FAILED)])
def test_another_precision_is_judged_once_and_the_verdict_kept(
    tmp_path: Path, off_nats: float, state: QualityState
) -> None:
    known = QualityKnown(reference=learned(tmp_path))
    parts = Parts(probe=FakeProbe(off_nats=off_nats))
    record = parts.run(tmp_path, study=gated(), known=known, kv_cache_dtype="fp8")
    assert len(parts.probe.asked) == 6
    assert record.quality is not None
    assert record.quality.state is state
    assert record.curve, "a failed gate says what it would have brought"

    again = Parts(probe=FakeProbe(off_nats=off_nats))
    later = again.run(
        tmp_path,
        study=gated(),
        known=replace(known, verdicts=(record.quality,)),
        kv_cache_dtype="fp8",
        max_num_seqs=4,
    )
    assert again.probe.asked == [(4, 4, False)]
    assert later.quality == record.quality


TASKS = {"names": ["sums"], "loss": 0.02}


def with_tasks() -> StudySpec:
    return study_spec(measurement=QUICK, quality={"tasks": TASKS})


@pytest.mark.parametrize(
    ("score", "error", "state", "why"),
    [
        (0.79, 0.001, QualityState.PASSED, ""),
        (0.70, 0.01, QualityState.FAILED, "score lost in sums (acc): 0.1, at most 0.0233"),
        (0.78, 0.04, QualityState.PASSED, ""),
        (0.60, 0.20, QualityState.NOT_JUDGED, "too few questions"),
    ],
)
def test_a_precision_that_solves_tasks_worse_than_the_reference_fails(
    tmp_path: Path, score: float, error: float, state: QualityState, why: str
) -> None:
    own = Parts()
    reference = own.run(tmp_path, study=with_tasks(), purpose=Purpose.DEFAULTS).answers
    assert reference is not None
    assert own.tasks.solved == [("sums",)]
    other = Parts(tasks=FakeTasks(score, error))
    verdict = other.run(
        tmp_path, study=with_tasks(), known=QualityKnown(reference=reference), kv_cache_dtype="fp8"
    ).quality
    assert verdict is not None
    assert verdict.state is state
    assert why in " ".join(verdict.reasons)


def test_tasks_are_solved_once_for_a_precision(tmp_path: Path) -> None:
    reference = Parts().run(tmp_path, study=with_tasks(), purpose=Purpose.DEFAULTS).answers
    parts = Parts()
    parts.run(tmp_path, study=with_tasks(), known=QualityKnown(reference=reference), max_num_seqs=4)
    assert parts.tasks.solved == []


def test_tasks_that_the_harness_cannot_run_are_the_benchs_fault(tmp_path: Path) -> None:
    parts = Parts(tasks=FakeTasks(fails=BenchError("lm_eval failed with exit code 1: no dataset")))
    with pytest.raises(BenchError, match="no dataset"):
        parts.run(tmp_path, study=with_tasks(), purpose=Purpose.DEFAULTS)


def test_with_the_gate_off_known_prompts_alone_are_asked(tmp_path: Path) -> None:
    parts = Parts()
    record = parts.run(tmp_path, study=gated("off"), purpose=Purpose.DEFAULTS)
    assert parts.probe.asked == [(4, 4, False), (4, 1, False), (4, 1, False), (4, 16, False)]
    known = QualityKnown(reference=record.answers)
    parts = Parts()
    other = parts.run(tmp_path, study=gated("off"), known=known, kv_cache_dtype="fp8")
    assert parts.probe.asked == [(4, 4, False)]
    assert other.quality is not None
    assert (other.quality.state, other.quality.reasons) == (QualityState.NOT_JUDGED, ("the gate is off",))


def test_garbage_is_a_failure_of_the_configuration_and_is_not_measured(tmp_path: Path) -> None:
    known = QualityKnown(reference=learned(tmp_path))
    parts = Parts(probe=FakeProbe(garbage=True))
    record = parts.run(tmp_path, study=gated(), known=known)
    assert record.failure is not None
    assert record.failure.failure_class is FailureClass.WRONG_OUTPUT
    assert record.failure.reaction == "infeasible"
    assert "4 of 4 known prompts are answered otherwise than by trial 7" in record.failure.line
    assert record.curve == ()
    assert record.command
    assert parts.events.of(LevelStarted) == []


def test_an_endpoint_without_log_probabilities_is_judged_by_text(tmp_path: Path) -> None:
    mute = Parts(probe=FakeProbe(mute=True)).run(tmp_path, study=gated(), purpose=Purpose.DEFAULTS)
    known = QualityKnown(reference=mute.answers)
    same = Parts(probe=FakeProbe(mute=True)).run(tmp_path, study=gated(), known=known, dtype="float16")
    assert same.quality is not None
    assert same.quality.state is QualityState.PASSED
    assert "compared by text alone" in same.quality.reasons[-1]
    assert "by text alone" in same.quality.known
    other = Parts(probe=FakeProbe(mute=True, garbage=True)).run(tmp_path, study=gated(), known=known)
    assert other.failure is not None
    assert other.failure.failure_class is FailureClass.WRONG_OUTPUT


def test_an_engine_that_stops_answering_is_classified_by_its_launcher(tmp_path: Path) -> None:
    parts = Parts(
        probe=FakeProbe(error=NoAnswerError("/v1/completions: timed out")), failure_class=FailureClass.STALLED
    )
    record = parts.run(tmp_path)
    assert record.failure is not None
    assert record.failure.failure_class is FailureClass.STALLED
    assert parts.launcher.seen[0].stream_error == "/v1/completions: timed out"


def test_known_prompts_are_the_same_for_every_launch_of_a_study_and_no_others(tmp_path: Path) -> None:
    first, second = learned(tmp_path), learned(tmp_path)
    assert first.questions == second.questions
    assert len({q.ids for q in first.questions}) == 16
    assert {len(q.ids) for q in first.questions} == {128}
    assert len(first.long_questions[0].ids) == 4096 - 32 - 64
    other = Parts().run(tmp_path, study=gated().model_copy(update={"seed": 1}), purpose=Purpose.DEFAULTS)
    assert other.answers is not None
    assert other.answers.questions != first.questions


def test_copies_serve_beside_the_measured_engine_under_its_load(tmp_path: Path) -> None:
    parts, others = Parts(), [Parts(), Parts()]
    level = Level("chat", rate_rps=2.0)
    record = parts.run(tmp_path, levels=(level,), beside=others)
    assert record.copies == 3
    assert [m.level for m in record.curve] == [level]
    for other in others:
        assert len(other.host.launches) == 1
        # The first request and every level, each the very same requests.
        assert other.driver.plans == parts.driver.plans
    assert (tmp_path / "copy-2").is_dir()


def test_a_copy_that_does_not_come_up_is_the_benchs_fault(tmp_path: Path) -> None:
    parts, other = Parts(), Parts(error=DEAD_AT_START)
    with pytest.raises(BenchError, match="the node was not full, a copy beside it did not come up"):
        parts.run(tmp_path, levels=(Level("chat", rate_rps=2.0),), beside=[other])


def test_an_engine_that_dies_is_blamed_although_copies_serve(tmp_path: Path) -> None:
    parts, other = Parts(error=DEAD_AT_START, failure_class=FailureClass.OUT_OF_MEMORY), Parts()
    record = parts.run(tmp_path, levels=(Level("chat", rate_rps=2.0),), beside=[other])
    assert record.failure is not None
    assert record.failure.failure_class is FailureClass.OUT_OF_MEMORY
    assert record.curve == ()
