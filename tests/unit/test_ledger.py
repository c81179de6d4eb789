"""The ledger: watts and money of a level on each basis, each figure by hand, and none that is not known."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from synthetic_measurements import measurement, request, steady_power

from autotune.adapters.devices.accelerators import read_accelerators
from autotune.domain.hardware.accelerators import Market
from autotune.domain.judging.ledger import NODE, Ledger, Prices, SideReadings, ledger_of
from autotune.domain.judging.scoring import LevelScore, score_level
from autotune.domain.judging.sla import Bounds, JointSla
from autotune.domain.load.level import Level
from autotune.domain.measuring.power import EnergyVerdict, PowerBasis, Window
from autotune.domain.measuring.stats import Figure, Interval

WINDOW = Window(0.0, 100.0)
H200 = read_accelerators().find("NVIDIA H200")
BESIDE = SideReadings(idle_w=160.0, cpu_memory_w=300.0, node_w=1500.0)


def scored(*, watts: float = 400.0, devices: int = 2, basis: PowerBasis = PowerBasis.GPU) -> LevelScore:
    """Ten tokens a second, all good; each device draws ``watts``."""
    records = [request(i / 2, tokens=5) for i in range(200)]
    power = steady_power(WINDOW, watts=watts, devices=devices, basis=basis)
    level = measurement(records, level=Level("w", rate_rps=2.0), window=WINDOW, power=power)
    return score_level(level, JointSla(name="chat", attainment=0.9, slos=Bounds(ttft="500ms")))


SCORED = scored()
"""For the many examples of a property: scoring is not what varies in them."""


def known(figure: Figure | None) -> Figure:
    assert figure is not None
    return figure


def figures(ledger: Ledger) -> dict[str, float]:
    return {line.basis: line.tok_per_s_per_mw.value for line in ledger.lines}


def test_each_basis_divides_the_same_goodput_by_its_own_watts() -> None:
    level = replace(scored(), goodput_tok_per_s=10.0, tokens_per_joule=10.0 / 800.0)
    ledger = ledger_of(level, devices=2, prices=Prices(), accelerator=H200, beside=BESIDE)
    assert {line.basis: line.power_w for line in ledger.lines} == pytest.approx(
        {"gpu": 800.0, "host": 1100.0, "node": 1500.0, "provisioned": 2740.0}
    )
    assert figures(ledger) == pytest.approx(
        {"gpu": 1e7 / 800, "host": 1e7 / 1100, "node": 1e7 / 1500, "provisioned": 1e7 / 2740}
    )
    assert ledger.idle_share == pytest.approx(0.2)
    assert ledger.ranking is PowerBasis.GPU


def test_the_ranking_line_is_the_objective_with_its_own_interval() -> None:
    level = replace(
        scored(), goodput_interval=Interval(5.0, 15.0), tokens_per_joule_interval=Interval(0.01, 0.02)
    )
    line = ledger_of(level, devices=2, prices=Prices(), beside=BESIDE).line(PowerBasis.GPU)
    assert line is not None
    assert line.tok_per_s_per_mw.value == pytest.approx(level.tok_per_s_per_mw)
    assert line.tok_per_s_per_mw.interval == Interval(1e4, 2e4)


def test_other_lines_carry_the_interval_of_goodput() -> None:
    level = replace(scored(), goodput_tok_per_s=10.0, goodput_interval=Interval(9.0, 12.0))
    line = ledger_of(level, devices=2, prices=Prices(), beside=BESIDE).line(NODE)
    assert line is not None
    assert line.tok_per_s_per_mw.interval.low == pytest.approx(9.0 / 1500 * 1e6)
    assert line.tok_per_s_per_mw.interval.high == pytest.approx(12.0 / 1500 * 1e6)


def test_a_million_tokens_cost_their_energy_at_the_facility_and_the_accelerators_hours() -> None:
    level = replace(scored(), goodput_tok_per_s=10.0, goodput_interval=Interval(8.0, 12.5))
    prices = Prices(pue=1.2, electricity_per_kwh=0.1, accelerator_hour=1.8, currency="EUR")
    ledger = ledger_of(level, devices=2, prices=prices, accelerator=H200, beside=BESIDE)
    line = ledger.line(NODE)
    assert line is not None
    assert line.facility_w == pytest.approx(1800.0)
    assert line.tok_per_s_per_facility_mw.value == pytest.approx(10.0 / 1800 * 1e6)
    # 1e5 s at 1.8 kW are 50 kWh; two accelerators for as long are 55.6 hours.
    energy, rental = known(line.energy_per_mtok), known(ledger.rental_per_mtok)
    assert energy.value == pytest.approx(5.0)
    assert (energy.interval.low, energy.interval.high) == pytest.approx((5.0 * 0.8, 5.0 * 1.25))
    assert rental.value == pytest.approx(100.0)
    assert (rental.interval.low, rental.interval.high) == pytest.approx((80.0, 125.0))
    assert (ledger.currency, ledger.pue, ledger.accelerator_hour) == ("EUR", 1.2, 1.8)


def test_without_a_price_there_is_no_money() -> None:
    ledger = ledger_of(scored(), devices=2, prices=Prices(), accelerator=H200)
    assert ledger.rental_per_mtok is None
    assert ledger.accelerator_hour is None
    assert [line.energy_per_mtok for line in ledger.lines] == [None, None]


def test_without_readings_or_constants_there_are_no_lines_of_them() -> None:
    ledger = ledger_of(scored(), devices=2, prices=Prices())
    assert [line.basis for line in ledger.lines] == ["gpu"]
    assert ledger.idle_share is None
    assert "provisioned watts unknown: the accelerator is not in the table" in ledger.remarks


def test_an_invalid_window_leaves_only_what_does_not_rest_on_it() -> None:
    level = replace(scored(), energy_verdict=EnergyVerdict.INVALID, tokens_per_joule=0.0)
    ledger = ledger_of(level, devices=2, prices=Prices(), accelerator=H200, beside=BESIDE)
    assert [line.basis for line in ledger.lines] == ["node", "provisioned"]
    assert ledger.idle_share is None


def test_modelled_watts_are_a_line_but_do_not_rank() -> None:
    level = scored(basis=PowerBasis.ESTIMATED)
    ledger = ledger_of(level, devices=2, prices=Prices(), beside=BESIDE)
    assert [line.basis for line in ledger.lines] == ["node", "estimated"]
    assert ledger.ranking is None


def test_watts_of_the_host_are_not_counted_twice() -> None:
    ledger = ledger_of(scored(basis=PowerBasis.HOST), devices=2, prices=Prices(), beside=BESIDE)
    line = ledger.line(PowerBasis.HOST)
    assert line is not None
    assert line.power_w == pytest.approx(800.0)
    assert ledger.line(PowerBasis.GPU) is None


def test_goodput_that_may_be_nothing_may_cost_anything() -> None:
    prices = Prices(electricity_per_kwh=0.1, accelerator_hour=2.0)
    unsure = replace(scored(), goodput_tok_per_s=10.0, goodput_interval=Interval(0.0, 20.0))
    rental = known(ledger_of(unsure, devices=1, prices=prices).rental_per_mtok)
    assert rental.interval.high == math.inf
    assert rental.interval.low == pytest.approx(rental.value / 2)
    nothing = replace(
        unsure, goodput_tok_per_s=0.0, tokens_per_joule=0.0, tokens_per_joule_interval=Interval(0.0, 0.0)
    )
    ledger = ledger_of(nothing, devices=1, prices=prices, accelerator=H200)
    assert ledger.rental_per_mtok is None
    assert [line.energy_per_mtok for line in ledger.lines] == [None, None]
    assert set(figures(ledger).values()) == {0.0}


def test_a_market_gives_the_shipped_price_and_its_source() -> None:
    ledger = ledger_of(scored(), devices=2, prices=Prices(market=Market.RENTAL), accelerator=H200)
    assert ledger.accelerator_hour == 2.9
    said = [remark for remark in ledger.remarks if remark.startswith("rental price of H200 SXM: $2.9")]
    assert "2026-09-08" in said[0]
    unknown = ledger_of(scored(), devices=2, prices=Prices(market=Market.RENTAL))
    assert unknown.accelerator_hour is None
    assert "no rental price: the accelerator is not in the table" in unknown.remarks


def test_pue_of_1_is_said_to_leave_something_out() -> None:
    assert ledger_of(scored(), devices=2, prices=Prices()).remarks[0].startswith("PUE 1: cooling")
    told = ledger_of(scored(), devices=2, prices=Prices(pue=1.3)).remarks
    assert not any("PUE" in remark for remark in told)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"pue": 0.9}, "greater than or equal to 1"),
        ({"electricity_per_kwh": 0}, "greater than 0"),
        ({"market": "bazaar"}, "'hyperscaler', 'neocloud' or 'rental'"),
        ({"market": "rental", "accelerator_hour": 2.0}, "give one of them"),
        ({"market": "rental", "currency": "EUR"}, "give accelerator_hour in EUR"),
        ({"currency": "euro"}, "match pattern"),
    ],
)
def test_prices_that_make_no_sense_are_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Prices.model_validate(wrong)


@given(
    st.floats(0.1, 1e5),
    st.floats(0.0, 1.0),
    st.floats(1.0, 2.0),
    st.floats(1.0, 1e5),
    st.floats(1.0, 2.0),
)
def test_money_holds_its_interval_and_grows_with_watts(
    goodput: float, below: float, above: float, node_w: float, pue: float
) -> None:
    level = replace(
        SCORED,
        goodput_tok_per_s=goodput,
        goodput_interval=Interval(goodput * below, goodput * above),
    )
    prices = Prices(pue=pue, electricity_per_kwh=0.12, accelerator_hour=2.0)

    def energy(power_w: float) -> Figure:
        line = ledger_of(level, devices=3, prices=prices, beside=SideReadings(node_w=power_w)).line(NODE)
        assert line is not None
        return known(line.energy_per_mtok)

    cost = energy(node_w)
    assert cost.interval.low <= cost.value * (1 + 1e-9)
    assert cost.interval.high >= cost.value * (1 - 1e-9)
    assert energy(2 * node_w).value == pytest.approx(2 * cost.value)
    joules = 1e6 / goodput * node_w * pue
    assert cost.value == pytest.approx(joules / 3.6e6 * 0.12)
