"""The alarm that paces requests, on a real event loop: with the kernel's timer, and without it."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest
import uvloop

from autotune.adapters.load import alarm
from autotune.adapters.load.alarm import Alarm

pytestmark = pytest.mark.alone


@pytest.fixture(params=["timerfd", "event loop"])
def timers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "event loop":
        monkeypatch.setattr(alarm.ctypes, "CDLL", lambda *_, **__: SimpleNamespace())


def rung(*sets_s: float, wait_s: float = 0.2, close: bool = False) -> list[float]:
    """When an alarm rang, seconds after it was set to each of some times from now, in turn."""

    async def run() -> list[float]:
        rings: list[float] = []
        began_s = time.monotonic()
        ringing = Alarm(lambda: rings.append(time.monotonic() - began_s))
        for set_s in sets_s:
            ringing.set(began_s + set_s)
        if close:
            ringing.close()
            ringing.set(began_s + 0.01)
        await asyncio.sleep(wait_s)
        ringing.close()
        return rings

    return uvloop.run(run())


@pytest.mark.usefixtures("timers")
def test_it_rings_once_and_not_before_its_time() -> None:
    (at_s,) = rung(0.05)
    assert at_s > 0.045  # an event loop may count from a moment before now


@pytest.mark.usefixtures("timers")
def test_a_moment_that_is_past_rings_at_once() -> None:
    assert len(rung(-5.0)) == 1


@pytest.mark.usefixtures("timers")
def test_setting_it_anew_takes_the_place_of_the_time_before() -> None:
    (at_s,) = rung(0.01, 0.08)
    assert at_s > 0.075


@pytest.mark.usefixtures("timers")
def test_one_that_was_closed_never_rings() -> None:
    assert rung(0.01, close=True) == []
