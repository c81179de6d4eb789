"""Without any watts known a study is measured all the same, priced by the hour, and ranked by goodput."""

from __future__ import annotations

import pytest
from synthetic_measurements import measurement, request

from autotune.adapters.power.none import NoPowerMeter
from autotune.domain.judging.ledger import Prices, ledger_of
from autotune.domain.judging.scoring import score_level
from autotune.domain.judging.sla import Bounds, JointSla
from autotune.domain.load.level import Level
from autotune.domain.measuring.power import EnergyVerdict, PowerBasis, Window, mean_power_w
from autotune.runs.measure import why_spoiled

WINDOW = Window(0.0, 100.0)
SLA = JointSla(name="chat", attainment=0.9, slos=Bounds(ttft="500ms"))


def test_goodput_ranks_and_tokens_per_joule_are_unknown() -> None:
    with NoPowerMeter().window([]) as recording:
        trace = recording.trace()
    assert mean_power_w(trace) is None
    records = [request(i / 2, tokens=5) for i in range(200)]
    level = measurement(records, level=Level("w", rate_rps=2.0), window=WINDOW, power=trace)
    assert not why_spoiled(level, None)

    score = score_level(level, SLA)
    assert (score.power_basis, score.energy_verdict) == (PowerBasis.NONE, EnergyVerdict.INVALID)
    assert score.tokens_per_joule == 0
    assert score.objective == score.goodput_tok_per_s == pytest.approx(10.0, rel=0.05)

    ledger = ledger_of(score, devices=2, prices=Prices(accelerator_hour=1.8))
    assert ledger.ranking is None
    assert ledger.lines == ()
    assert ledger.rental_per_mtok is not None
    # Two at 1.8 an hour are 0.001 a second, for about ten tokens.
    assert ledger.rental_per_mtok.value == pytest.approx(1e6 * 0.001 / score.goodput_tok_per_s)
