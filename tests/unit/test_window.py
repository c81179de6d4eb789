"""Windows of load levels, over queues simulated in virtual time."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.domain.judging.sla import JointSla
from autotune.domain.judging.window import (
    LONGEST_TAIL_S,
    Finishing,
    Measuring,
    Over,
    Stage,
    Warming,
    WindowRules,
    advance,
    closed_by_force,
)
from autotune.domain.load.progress import EndedRequest, EndedRequests, Progress, Steer
from autotune.domain.measuring.measurement import WindowEnd
from autotune.domain.measuring.power import Window

LOOSE = JointSla.model_validate({"name": "loose", "attainment": 0.9, "slos": {"e2e": "100s"}})
TIGHT = JointSla.model_validate({"name": "tight", "attainment": 0.9, "slos": {"e2e": "1ms"}})


@dataclass(frozen=True)
class Queue:
    """Poisson arrivals at ``rate_rps``; ``servers`` places, each taking about ``service_s`` a request."""

    rate_rps: float
    servers: int = 20
    service_s: float = 1.0
    seed: int = 0

    def run(self, duration_s: float) -> list[EndedRequest]:
        rng = np.random.default_rng(self.seed)
        due_s = np.sort(rng.uniform(0, duration_s, rng.poisson(self.rate_rps * duration_s)))
        free_s = [0.0] * self.servers
        ended = []
        for due in due_s.tolist():
            begin_s = max(due, heapq.heappop(free_s))
            end_s = begin_s + self.service_s * rng.lognormal(0.0, 0.4)
            heapq.heappush(free_s, end_s)
            ended.append(EndedRequest(due, begin_s + 0.05, end_s, end_s, 0.01, 0.01, 32, ok=True))
        return ended


def rules(rate_rps: float | None, **changes: float) -> WindowRules:
    """At most ten minutes in a window, at least ten seconds."""
    parts = {
        "warmup_s": 2.0,
        "longest_warmup_s": 60.0,
        "shortest_s": 10.0,
        "longest_s": 600.0,
        "precision": 0.1,
    }
    return WindowRules(slas=(LOOSE,), rate_rps=rate_rps, dispersion=1.0, **parts | changes)


def progress_at(ended: list[EndedRequest], at_s: float) -> Progress:
    return Seen(ended).at(at_s)


class Seen:
    """What is seen of a run as it goes on."""

    def __init__(self, ended: list[EndedRequest]) -> None:
        self._due_s = np.sort([e.due_s for e in ended])
        in_order = sorted(ended, key=lambda e: e.finished_s)
        self._columns = {f.name: getattr(EndedRequests.of(in_order), f.name) for f in fields(EndedRequests)}

    def at(self, at_s: float) -> Progress:
        count = np.searchsorted(self._columns["finished_s"], at_s)
        return Progress(
            started_s=0.0,
            at_s=at_s,
            due_s=self._due_s[: np.searchsorted(self._due_s, at_s)],
            ended=EndedRequests(**{name: column[:count] for name, column in self._columns.items()}),
        )


def drive(ended: list[EndedRequest], by: WindowRules, duration_s: float) -> list[Stage]:
    """Every stage of a level, one a second."""
    stages: list[Stage] = [Warming()]
    seen = Seen(ended)
    for at_s in np.arange(1.0, duration_s, 1.0).tolist():
        if isinstance(stages[-1], Over):
            break
        stages.append(advance(stages[-1], seen.at(at_s), by))
    return stages


def outcome(queue: Queue, by: WindowRules, duration_s: float = 700.0) -> Over:
    last = drive(queue.run(duration_s), by, duration_s)[-1]
    assert isinstance(last, Over)
    return last


@pytest.mark.parametrize("seed", range(5))
def test_a_load_that_is_carried_is_measured_until_it_is_precise(seed: int) -> None:
    over = outcome(Queue(rate_rps=12.0, seed=seed), rules(12.0))
    assert (over.end, over.steady, over.complete) == (WindowEnd.PRECISE, True, True)
    assert over.steer is Steer.CUT
    assert over.window.start_s >= 2.0


def test_more_precision_takes_a_longer_window() -> None:
    coarse, fine = (outcome(Queue(rate_rps=12.0), rules(12.0, precision=p)) for p in (0.2, 0.06))
    assert fine.window.length_s > 2 * coarse.window.length_s


def test_a_window_ends_with_its_budget_when_precision_does_not_come() -> None:
    over = outcome(Queue(rate_rps=2.0), rules(2.0, longest_s=20.0))
    assert over.end is WindowEnd.BUDGET
    assert over.window.length_s == pytest.approx(20.0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rate_rps", [25.0, 40.0])
def test_a_load_beyond_capacity_is_known_as_such_and_dropped_early(rate_rps: float, seed: int) -> None:
    over = outcome(Queue(rate_rps=rate_rps, seed=seed), rules(rate_rps), 200.0)
    assert over.end is WindowEnd.OVERSATURATED
    assert over.steer is Steer.CUT
    assert over.window.end_s < 90.0
    assert over.window.length_s >= rules(rate_rps).shortest_s / 2  # else it may be a burst


def test_loads_near_capacity_are_seldom_taken_for_loads_beyond_it() -> None:
    ends = [outcome(Queue(rate_rps=15.0, seed=seed), rules(15.0), 300.0).end for seed in range(20)]
    assert ends.count(WindowEnd.OVERSATURATED) <= 1


def test_a_closed_loop_never_over_saturates() -> None:
    stages = drive(Queue(rate_rps=40.0).run(120.0), rules(None, longest_s=30.0), 120.0)
    assert not any(isinstance(s, Over) and s.end is WindowEnd.OVERSATURATED for s in stages)


def test_warming_up_lasts_at_least_for_a_request_and_a_half() -> None:
    """Answers take ten seconds: until the first are out, a queue that fills looks like one that grows."""
    stages = drive(Queue(rate_rps=4.0, servers=100, service_s=10.0).run(120.0), rules(4.0), 120.0)
    began = next(s.start_s for s in stages if isinstance(s, Measuring))
    assert began >= 15.0


def test_a_window_opens_unsteady_when_warming_up_takes_too_long() -> None:
    nothing_ended = [EndedRequest(t, 1e9, 1e9, 1e9, 0.0, 0.0, 0, ok=False) for t in np.arange(0, 30, 0.01)]
    stages = drive(nothing_ended, rules(None, longest_warmup_s=8.0), 30.0)
    began = next(s for s in stages if isinstance(s, Measuring))
    assert (began.start_s, began.steady) == (8.0, False)


def test_a_level_that_misses_every_sla_for_certain_is_not_measured_to_the_last_digit() -> None:
    queue, precise = Queue(rate_rps=12.0), rules(12.0, precision=0.02)
    doomed = WindowRules(
        slas=(TIGHT,), rate_rps=12.0, dispersion=1.0, **{k: getattr(precise, k) for k in NUMBERS}
    )
    assert outcome(queue, doomed).window.length_s < outcome(queue, precise).window.length_s / 3


NUMBERS = ("warmup_s", "longest_warmup_s", "shortest_s", "longest_s", "precision")


def test_load_goes_on_until_the_windows_requests_have_ended() -> None:
    window = Window(10.0, 20.0)
    late = [EndedRequest(19.0, 24.0, 24.5, 24.5, 0.01, 0.01, 5, ok=True)]
    stage: Stage = Finishing(window, WindowEnd.BUDGET, steady=True)
    assert advance(stage, progress_at(late, 24.0), rules(1.0)) is stage
    over = advance(stage, progress_at(late, 25.0), rules(1.0))
    assert over == Over(window, WindowEnd.BUDGET, steady=True, complete=True)


def test_a_request_that_never_ends_is_waited_for_without_load() -> None:
    stage = Finishing(Window(10.0, 20.0), WindowEnd.BUDGET, steady=True)
    stuck = [EndedRequest(19.0, 1e9, 1e9, 1e9, 0.0, 0.0, 0, ok=False)]
    over = advance(stage, progress_at(stuck, 20.1 + LONGEST_TAIL_S), rules(1.0))
    assert isinstance(over, Over)
    assert (over.complete, over.steer) == (False, Steer.DRAIN)


@given(st.floats(0.5, 30.0), st.integers(0, 5))
def test_stages_only_go_forward_and_an_ended_level_stays_ended(rate_rps: float, seed: int) -> None:
    ended = Queue(rate_rps=rate_rps, seed=seed).run(60.0)
    stages = drive(ended, rules(rate_rps, longest_s=15.0), 60.0)
    order = [(Warming, Measuring, Finishing, Over).index(type(stage)) for stage in stages]
    assert order == sorted(order)
    if isinstance(over := stages[-1], Over):
        assert advance(over, progress_at(ended, 61.0), rules(rate_rps)) is over


def test_load_that_ended_by_itself_closes_its_window() -> None:
    now = progress_at([], 20.0)
    assert closed_by_force(Warming(), now) is None
    closed = closed_by_force(Measuring(12.0, steady=True), now)
    assert closed is not None
    assert closed.window == Window(12.0, 20.0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rate_rps", [20.0, 60.0])
def test_long_answers_that_fill_an_engine_without_end_are_no_overload(rate_rps: float, seed: int) -> None:
    """Short answers end first: taken alone, they would say that everybody is through already."""
    rng = np.random.default_rng(seed)
    due_s = np.sort(rng.uniform(0, 200.0, rng.poisson(rate_rps * 200.0)))
    ends_s = due_s + 5.0 * rng.lognormal(0.0, 0.8, len(due_s))
    ended = [
        EndedRequest(due, due + 0.05, end, end, 0.01, 0.01, 32, ok=True)
        for due, end in zip(due_s.tolist(), ends_s.tolist(), strict=True)
    ]
    stages = drive(ended, rules(rate_rps), 200.0)
    assert not any(isinstance(s, Over) and s.end is WindowEnd.OVERSATURATED for s in stages)
    assert any(isinstance(s, Measuring) and s.steady for s in stages)
