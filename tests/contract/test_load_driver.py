"""What every LoadDriver promises, the fake of the unit tests included."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest
from fakes import FakeDriver
from load_harness import closed_plan, open_plan, three_tokens
from scripted_server import serving

from autotune.adapters.load.clients import LoadClients
from autotune.domain.launches.endpoint import Endpoint
from autotune.domain.load.load_plan import LoadPlan
from autotune.domain.load.progress import Progress, Steer, Steering, to_the_end
from autotune.domain.measuring.measurement import LoadResult
from autotune.domain.studies.ports import LoadDriver


class Bench:
    """A driver and an engine to drive at."""

    def __init__(self, driver: LoadDriver, endpoint: Endpoint) -> None:
        self._driver, self._endpoint = driver, endpoint

    def drive(self, plan: LoadPlan, steer: Steering = to_the_end) -> LoadResult:
        return self._driver.drive(
            self._endpoint, plan, alive=lambda: True, cancelled=lambda: False, steer=steer
        )


@pytest.fixture(scope="module", params=["one process", "two processes", "fake"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        if request.param == "fake":
            yield Bench(FakeDriver(), Endpoint("http://127.0.0.1:1", "tiny"))
            return
        # The workers, too, import the tests' prompts.
        patch.setenv("PYTHONPATH", str(request.config.rootpath / "tests" / "integration"))
        server = stack.enter_context(serving(three_tokens))
        processes = 1 if request.param == "one process" else 2
        yield Bench(stack.enter_context(LoadClients(processes=processes)), server.endpoint)


def test_open_loop_sends_every_request_when_it_is_due(bench: Bench) -> None:
    due_s = [0.02 * i for i in range(20)]
    result = bench.drive(open_plan(*due_s))
    assert list(result.requests.due_s) == pytest.approx([result.started_s + due for due in due_s])
    assert result.requests.ok.all()
    assert (result.requests.ttft_s > 0).all()
    assert not result.engine_died


def test_closed_loop_starts_with_its_concurrency_and_sends_nothing_after_its_duration(bench: Bench) -> None:
    requests = bench.drive(closed_plan(500, 4, 0.5)).requests
    started_s = requests.due_s[0]
    assert sum(requests.due_s == started_s) == 4
    assert (requests.due_s <= started_s + 0.5).all()
    assert (np.diff(requests.due_s) >= 0).all()
    assert (requests.due_s[4:] >= min(requests.finished_s)).all()


def test_closed_loop_ends_when_the_requests_run_out(bench: Bench) -> None:
    assert len(bench.drive(closed_plan(7, 3, 60.0)).requests) == 7


@pytest.mark.parametrize("steer", [Steer.DRAIN, Steer.CUT])
def test_steering_sees_what_happened_and_ends_the_drive(bench: Bench, steer: Steer) -> None:
    seen: list[Progress] = []

    def look(progress: Progress) -> Steer:
        seen.append(progress)
        return Steer.GO_ON if len(seen) < 2 else steer

    # None is due at the very moment of a look.
    plan = open_plan(*(0.05 * i + 0.02 for i in range(200)))
    result = bench.drive(plan, look)
    assert len(seen) == 2
    assert seen[0].started_s == seen[1].started_s == result.started_s
    assert seen[0].at_s < seen[1].at_s
    for progress in seen:
        known = result.requests.due_s[result.requests.due_s < progress.at_s]
        assert list(progress.due_s) == pytest.approx(list(known))
        assert 0 < len(progress.ended.due_s) <= len(progress.due_s)
    assert len(seen[1].due_s) <= len(result.requests) < 200
