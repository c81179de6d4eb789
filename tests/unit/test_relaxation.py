"""An SLA that nothing meets: the nearest configuration, the SLO in the way, and what relaxing it buys."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import launch_record, study_spec
from synthetic_measurements import measurement, request

from autotune.domain.configs.config import EngineConfig
from autotune.domain.judging.scoring import score_curve
from autotune.domain.judging.sla import Bounds, JointSla, PercentileSla, Sla
from autotune.domain.load.level import Level
from autotune.domain.measuring.measurement import LoadCurve
from autotune.domain.measuring.power import Window
from autotune.domain.recommending.recommendation import Candidate
from autotune.domain.recommending.relaxation import unmet
from autotune.domain.studies.records import Purpose, TrialRow, TrialState

STUDY = study_spec()
WINDOW = Window(0.0, 60.0)


def candidate(number: int, ttft_s: float, tpot_s: float) -> Candidate:
    """TTFT grows with load from ``ttft_s`` at 1 req/s; TPOT is the same at every load."""
    row = TrialRow(
        study="small",
        number=number,
        purpose=Purpose.SEARCH,
        state=TrialState.MEASURED,
        config=EngineConfig(engine="fake", max_num_seqs=number + 1),
    )
    return Candidate(row=row, launch=launch_record(row, levels(ttft_s, tpot_s)))


def levels(ttft_s: float, tpot_s: float) -> LoadCurve:
    return tuple(
        measurement(
            [
                request(due_s, ttft_s=ttft_s * rate * (1 + 0.001 * (i % 10)), tpot_s=tpot_s, tokens=20)
                for i, due_s in enumerate(np.arange(0, WINDOW.end_s, 1 / rate).tolist())
            ],
            level=Level("chat", rate_rps=rate),
            window=WINDOW,
        )
        for rate in (1.0, 2.0, 4.0)
    )


QUICK_TO_START = candidate(0, 0.05, 0.0295)
QUICK_TO_STREAM = candidate(1, 0.4, 0.01)
BOUNDS: dict[str, object] = {"ttft": "100ms", "tpot": "15ms"}
STRICT = JointSla(name="strict", attainment=0.9, slos=Bounds.model_validate(BOUNDS))
BY_PERCENTILE = PercentileSla.model_validate(
    {"name": "p", "contract": "percentile", "slos": {name: {"p90": bound} for name, bound in BOUNDS.items()}}
)


def test_each_relaxation_says_who_would_keep_it_and_with_how_much_goodput() -> None:
    why = unmet(STUDY, STRICT, [QUICK_TO_START, QUICK_TO_STREAM])
    assert why is not None
    assert (why.attainment, why.wanted) == (0.0, 0.9)
    bought = {(o.relaxed, o.trial, o.rate_rps) for o in why.offers}
    # A slower stream lets the first serve where 100 ms of TTFT are kept; a longer wait the second, anywhere.
    assert ("tpot<=30ms", 0, 1.0) in bought
    assert {rate for _, trial, rate in bought if trial == 1} == {1.0, 2.0, 4.0}
    by_slo = [o for o in why.offers if o.slo.startswith("ttft")]
    assert [o.goodput_tok_per_s for o in by_slo] == sorted(o.goodput_tok_per_s for o in by_slo)


@pytest.mark.parametrize("sla", [STRICT, BY_PERCENTILE])
def test_what_is_offered_holds(sla: Sla) -> None:
    """Every offer's bound, put into the SLA, is kept by the level that it names."""
    why = unmet(STUDY, sla, [QUICK_TO_START, QUICK_TO_STREAM])
    assert why is not None
    assert why.offers
    for offer in why.offers:
        metric, bound = offer.relaxed.split("<=")
        slos: dict[str, object] = {**BOUNDS, metric: bound}
        if sla.contract == "percentile":
            slos = {name: {"p90": value} for name, value in slos.items()}
        relaxed = type(sla).model_validate(
            {**sla.model_dump(), "slos": slos}
            if sla.contract == "joint"
            else {"name": "p", "contract": "percentile", "slos": slos}
        )
        source = QUICK_TO_START if offer.trial == 0 else QUICK_TO_STREAM
        at = tuple(m for m in source.curve if m.level.rate_rps == offer.rate_rps)
        assert score_curve(at, relaxed, "chat").capacity_rps == offer.rate_rps


def test_the_binding_slo_is_the_one_that_fewest_requests_keep() -> None:
    why = unmet(STUDY, STRICT, [QUICK_TO_STREAM])
    assert why is not None
    assert why.binding == "ttft<=100ms"
    assert why.shares == {"ttft<=100ms": 0.0, "tpot<=15ms": 1.0}


def test_without_a_level_nothing_is_said() -> None:
    assert unmet(STUDY, STRICT, []) is None
