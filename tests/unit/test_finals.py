"""Who is launched again, who wins within the noise, and what a soak withholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from fakes import curve, launch_record, study_spec
from synthetic_measurements import measurement, request

from autotune.domain.configs.config import EngineConfig
from autotune.domain.load.level import Level
from autotune.domain.measuring.counters import CounterTrace
from autotune.domain.measuring.measurement import LoadCurve
from autotune.domain.measuring.power import Window
from autotune.domain.recommending.finals import finalists, interleaved, soaks
from autotune.domain.recommending.recommendation import Candidate, recommend
from autotune.domain.recommending.soak import soak_trouble
from autotune.domain.studies.records import Purpose, TrialRow, TrialState

STUDY = study_spec()
FAST, SLOW = STUDY.slas
SHORT, LONG = Window(0.0, 40.0), Window(0.0, 300.0)


def noisy(rates_rps: Sequence[float], seed: int, window: Window = SHORT) -> LoadCurve:
    """Poisson arrivals that are all served well, with lengths that scatter."""
    rng = np.random.default_rng(seed)
    levels = []
    for rate in rates_rps:
        due_s = np.sort(rng.uniform(0, window.end_s, rng.poisson(rate * window.end_s)))
        tokens = rng.geometric(0.1, len(due_s)).tolist()
        records = [request(d, tokens=n) for d, n in zip(due_s.tolist(), tokens, strict=True)]
        levels.append(measurement(records, level=Level("chat", rate_rps=rate), window=window))
    return tuple(levels)


def candidate(
    number: int,
    searched: LoadCurve,
    final: LoadCurve = (),
    *,
    words: Mapping[str, object] | None = None,
    soak: LoadCurve = (),
) -> Candidate:
    given = {"max_num_seqs": number + 1} if words is None else words
    row = TrialRow(
        study="small",
        number=number,
        purpose=Purpose.DEFAULTS if words == {} else Purpose.SEARCH,
        state=TrialState.MEASURED,
        config=EngineConfig.model_validate({"engine": "fake", **given}),
        command="serve",
    )
    return Candidate(
        row=row,
        launch=launch_record(row, searched),
        final=launch_record(row, final) if final else None,
        soak=launch_record(row, soak) if soak else None,
    )


def equals(count: int, *, finals: bool = True) -> list[Candidate]:
    """The defaults and others that differ by nothing but chance."""
    return [
        candidate(
            n, noisy((4.0, 5.0), n), noisy((4.0,), 100 + n) if finals else (), words={} if n == 0 else None
        )
        for n in range(count)
    ]


def numbers(candidates: Sequence[Candidate]) -> list[int]:
    return [c.row.number for c in candidates]


def test_those_within_the_noise_of_the_best_are_launched_again_three_of_an_sla_at_most() -> None:
    measured = equals(6, finals=False)
    chosen = finalists(STUDY, measured)
    assert 0 in numbers(chosen)
    assert 3 <= len(chosen) <= 1 + 2 * 3
    worse = candidate(9, curve(watts=300.0))
    assert 9 not in numbers(finalists(STUDY, [*measured, worse]))


def test_references_run_between_the_others() -> None:
    measured = equals(4, finals=False)
    order = interleaved([measured[1], measured[0], measured[2], measured[3]])
    assert numbers(order) == [1, 0, 2, 3]


def test_among_equals_the_defaults_stand_and_that_is_said() -> None:
    for start in range(3):
        measured = equals(5)
        found = recommend(STUDY, STUDY.slas[start % 2], measured)
        assert found.best is not None
        assert found.best.candidate.row.number == 0
        assert not found.shown
        assert found.reason.startswith("no configuration was shown to beat the engine's defaults")
        assert found.over_defaults is None


def test_within_the_noise_fewer_devices_win_then_fewer_departures() -> None:
    wide = candidate(1, noisy((4.0, 5.0), 1), noisy((4.0,), 11), words={"tensor_parallel": 2})
    two_words = candidate(
        2, noisy((4.0, 5.0), 2), noisy((4.0,), 12), words={"max_num_seqs": 8, "eager": True}
    )
    one_word = candidate(3, noisy((4.0, 5.0), 3), noisy((4.0,), 13), words={"max_num_seqs": 8})
    found = recommend(STUDY, FAST, [wide, two_words, one_word])
    assert found.best is not None
    assert found.best.candidate is one_word
    assert found.runner_up is not None
    assert found.runner_up.candidate in (wide, two_words)


def test_a_winner_says_by_how_much_it_wins() -> None:
    defaults = candidate(0, curve(watts=200.0), curve((4.0,), watts=200.0), words={})
    second = candidate(1, curve(watts=125.0), curve((4.0,), watts=125.0))
    best = candidate(2, curve(watts=100.0), curve((4.0,), watts=100.0))
    found = recommend(STUDY, FAST, [defaults, second, best])
    assert found.best is not None
    assert found.best.candidate is best
    assert found.shown
    assert found.over_defaults is not None
    assert found.over_runner_up is not None
    assert round(found.over_defaults.ratio, 2) == 2.0
    assert found.over_defaults.interval.low <= 2.0 <= found.over_defaults.interval.high
    assert round(found.over_runner_up.ratio, 2) == 1.25


def soaked(
    *, slower_from_s: float | None = None, preempted: Sequence[float] = (), window: Window = LONG
) -> LoadCurve:
    due_s = np.arange(0.0, window.end_s, 0.25)
    records = [
        request(d, ttft_s=3.0 if slower_from_s and d > slower_from_s and i % 3 else 0.1)
        for i, d in enumerate(due_s.tolist())
    ]
    level = Level("chat", rate_rps=4.0, bursty=True)
    made = measurement(records, level=level, window=window)
    if preempted:
        at_s = np.linspace(0.0, window.end_s, len(preempted))
        made = replace(
            made, counters=CounterTrace(time_s=at_s, values={"preemptions_total": np.array(preempted)})
        )
    return (made,)


def test_a_soak_tells_growing_preemption_and_drifting_slos() -> None:
    steadily = [float(n) for n in range(301)]
    growing = [float(n * n) / 100 for n in range(301)]
    assert soak_trouble(soaked(), FAST, "chat") == ""
    assert soak_trouble(soaked(preempted=steadily), FAST, "chat") == ""
    assert soak_trouble(soaked(preempted=growing), FAST, "chat").startswith("preemption grew, 22")
    assert soak_trouble(soaked(slower_from_s=150.0), FAST, "chat").startswith("ttft drifted")


def test_a_winner_soaks_at_what_it_won_and_trouble_withholds_it() -> None:
    best = candidate(1, curve(watts=100.0), curve((4.0,), watts=100.0))
    ((chosen, levels),) = soaks(STUDY, [best])
    assert chosen is best
    assert levels == (Level("chat", rate_rps=4.0, bursty=True),)
    well = candidate(1, curve(watts=100.0), curve((4.0,), watts=100.0), soak=soaked())
    assert soaks(STUDY, [well]) == ()
    assert recommend(STUDY, FAST, [well]).best is not None
    badly = candidate(1, curve(watts=100.0), curve((4.0,), watts=100.0), soak=soaked(slower_from_s=150.0))
    found = recommend(STUDY, FAST, [badly])
    assert found.best is None
    assert found.reason.startswith("trial 1 won, and did not bear its soak: ttft drifted")
