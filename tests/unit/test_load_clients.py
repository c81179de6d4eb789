"""How many client processes a plan gets, and how messages between them are framed."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.adapters.load import clients as load_clients
from autotune.adapters.load.clients import client_cores, processes_for
from autotune.adapters.load.messages import Failed, Unframer, framed
from autotune.domain.load.load_plan import LoadPlan, PlannedRequest
from autotune.domain.load.prompts import RandomTokens, Segment


def plan(
    rate_rps: float, *, output_tokens: int, prompt_tokens: int = 100, concurrency: int | None = None
) -> LoadPlan:
    requests = tuple(
        PlannedRequest(i / rate_rps, (Segment(i, prompt_tokens),), output_tokens)
        for i in range(int(rate_rps * 10))
    )
    return LoadPlan(
        requests=requests, prompts=RandomTokens(5000, 1), duration_s=10.0, concurrency=concurrency
    )


@pytest.fixture(autouse=True)
def _many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(9)))


def test_a_usual_load_is_one_process_and_a_great_one_is_several_up_to_the_cores() -> None:
    assert processes_for(plan(20, output_tokens=128)) == 1
    assert processes_for(plan(300, output_tokens=1000)) == 5
    assert processes_for(plan(1000, output_tokens=10_000)) == 8


def test_a_machine_of_one_core_has_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert processes_for(plan(1000, output_tokens=1000)) == 1


def test_prompts_and_requests_are_work_too() -> None:
    short = client_cores(plan(50, output_tokens=1, prompt_tokens=1))
    assert short == pytest.approx(50 * load_clients.REQUEST_CPU_S, rel=0.1)
    long = client_cores(plan(50, output_tokens=1, prompt_tokens=10_001))
    assert long - short == pytest.approx(50 * 10_000 * load_clients.PROMPT_TOKEN_CPU_S)


def test_a_closed_loop_counts_by_its_users_not_by_the_requests_that_it_holds_ready() -> None:
    few = plan(50, output_tokens=100, concurrency=64)
    many = plan(500, output_tokens=100, concurrency=64)
    assert client_cores(few) == pytest.approx(client_cores(many))
    assert processes_for(few) == 1
    assert processes_for(plan(50, output_tokens=100, concurrency=1024)) > 1


@given(st.lists(st.text(max_size=50)), st.integers(1, 100))
def test_messages_are_found_however_the_bytes_are_cut(reasons: list[str], size: int) -> None:
    data = b"".join(framed(Failed(reason)) for reason in reasons)
    unframer = Unframer()
    found = [r for i in range(0, len(data), size) for r in unframer.feed(data[i : i + size])]
    assert found == [Failed(reason) for reason in reasons]
