"""The ledger beside a figure: what a level's good tokens take in watts and in money, on every known basis.

Figures on different bases are never ranked against one another. Of watts the window's mean is taken; only
the basis that was measured over the same window has an interval of its own (tokens and joules move
together), on the others the interval is that of goodput.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, model_validator

from autotune.domain.hardware.accelerators import Accelerator, Market
from autotune.domain.judging.scoring import LevelScore
from autotune.domain.measuring.power import EnergyVerdict, PowerBasis
from autotune.domain.measuring.stats import Figure

DOLLARS = "USD"
JOULES_PER_KWH = 3.6e6
SECONDS_PER_HOUR = 3600
WATTS_PER_MW = 1e6

NODE: Literal["node"] = "node"
Basis = PowerBasis | Literal["node"]
"""A power basis, or the whole machine as an outside meter sees it."""


class Prices(BaseModel):
    """What energy and accelerators cost; what is not given is not counted, and its figures are left out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pue: Annotated[float, Field(ge=1)] = Field(
        1.0, description="facility watts / machine watts; 1 leaves out cooling and distribution"
    )
    electricity_per_kwh: PositiveFloat | None = None
    accelerator_hour: PositiveFloat | None = Field(None, description="one accelerator for one hour")
    market: Market | None = Field(
        None, description="take the accelerator's hourly price from the shipped table (dollars)"
    )
    currency: str = Field(DOLLARS, pattern=r"^[A-Z]{3}$")

    @model_validator(mode="after")
    def _one_price(self) -> Self:
        if self.market is not None and self.accelerator_hour is not None:
            raise ValueError("accelerator_hour and market both price an hour; give one of them")
        if self.market is not None and self.currency != DOLLARS:
            raise ValueError(f"prices by market are in {DOLLARS}; give accelerator_hour in {self.currency}")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class SideReadings:
    """Mean watts read beside the level's own meter over its window; None for what nothing read.

    ``idle_w`` is that of the same devices before the launch. ``node_w`` is the whole machine's, by its BMC or
    PDU, whatever else ran on it.
    """

    idle_w: float | None = None
    cpu_memory_w: float | None = None
    node_w: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BasisLine:
    """One power basis: machine watts, the same x PUE, and what they make of the goodput.

    ``tok_per_s_per_mw`` is of machine watts, as the objective is; ``energy_per_mtok`` is what the facility's
    energy for a million good tokens costs, None without goodput or a price of electricity.
    """

    basis: Basis
    power_w: float
    facility_w: float
    tok_per_s_per_mw: Figure
    tok_per_s_per_facility_mw: Figure
    energy_per_mtok: Figure | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """Watts and money of one level, a line for each basis that is known.

    ``ranking`` is the basis whose good tokens per joule rank, None where goodput ranks. ``idle_share`` is the
    part of the GPU watts that the same devices draw at rest. ``rental_per_mtok`` is the accelerators' hourly
    price for a million good tokens; it is not added to that of energy, since a rent or a cost of ownership
    mostly holds it.
    """

    devices: int
    goodput_tok_per_s: Figure
    ranking: PowerBasis | None
    lines: tuple[BasisLine, ...]
    idle_share: float | None
    pue: float
    currency: str
    accelerator_hour: float | None
    rental_per_mtok: Figure | None
    remarks: tuple[str, ...]

    def line(self, basis: Basis) -> BasisLine | None:
        """The line of a basis."""
        return next((line for line in self.lines if line.basis == basis), None)


def ledger_of(
    level: LevelScore,
    *,
    devices: int,
    prices: Prices,
    accelerator: Accelerator | None = None,
    beside: SideReadings | None = None,
) -> Ledger:
    """Draw up the ledger of a level that held ``devices`` of an accelerator.

    A window whose energy is invalid has no line on its own basis, nor on one that builds on it.
    """
    beside = beside or SideReadings()
    known_w = _known_watts(level, beside, accelerator.all_in_kw * 1e3 * devices if accelerator else None)
    gpu_w = known_w.get(PowerBasis.GPU)
    goodput = Figure(level.goodput_tok_per_s, level.goodput_interval)
    hour = _hourly_price(prices, accelerator)
    return Ledger(
        devices=devices,
        goodput_tok_per_s=goodput,
        ranking=level.power_basis if level.power_basis.ranks else None,
        lines=tuple(_line(basis, power_w, level, prices) for basis, power_w in known_w.items()),
        idle_share=beside.idle_w / gpu_w if gpu_w and beside.idle_w is not None else None,
        pue=prices.pue,
        currency=prices.currency,
        accelerator_hour=hour,
        rental_per_mtok=_cost_per_mtok(goodput, hour * devices / SECONDS_PER_HOUR if hour else None),
        remarks=tuple(_remarks(prices, accelerator)) if level.power_basis.ranks else (),
    )


def _known_watts(level: LevelScore, beside: SideReadings, provisioned_w: float | None) -> dict[Basis, float]:
    """Mean watts by basis, in the order in which they are shown."""
    own = level.power_basis
    own_w = level.mean_power_w if level.energy_verdict is not EnergyVerdict.INVALID else None
    watts: dict[Basis, float | None] = {
        PowerBasis.GPU: None,
        PowerBasis.HOST: None,
        NODE: beside.node_w,
        PowerBasis.PROVISIONED: provisioned_w,
        PowerBasis.ESTIMATED: None,
    }
    if own is PowerBasis.GPU and own_w and beside.cpu_memory_w is not None:
        watts[PowerBasis.HOST] = own_w + beside.cpu_memory_w
    watts[own] = own_w
    return {basis: power_w for basis, power_w in watts.items() if power_w}


def _line(basis: Basis, power_w: float, level: LevelScore, prices: Prices) -> BasisLine:
    if basis == level.power_basis:
        per_joule = Figure(level.tokens_per_joule, level.tokens_per_joule_interval)
    else:
        per_joule = Figure(level.goodput_tok_per_s, level.goodput_interval).times(1 / power_w)
    per_facility_joule = per_joule.times(1 / prices.pue)
    electricity = prices.electricity_per_kwh
    return BasisLine(
        basis=basis,
        power_w=power_w,
        facility_w=power_w * prices.pue,
        tok_per_s_per_mw=per_joule.times(WATTS_PER_MW),
        tok_per_s_per_facility_mw=per_facility_joule.times(WATTS_PER_MW),
        energy_per_mtok=_cost_per_mtok(
            per_facility_joule, electricity / JOULES_PER_KWH if electricity else None
        ),
    )


def _cost_per_mtok(good_tokens: Figure, price: float | None) -> Figure | None:
    """A million tokens' cost from tokens per unit (joule, second) and the price of that unit."""
    return good_tokens.inverse().times(price * 1e6) if price and good_tokens.value > 0 else None


def _hourly_price(prices: Prices, accelerator: Accelerator | None) -> float | None:
    if prices.market is None:
        return prices.accelerator_hour
    known = accelerator.usd_per_hour.get(prices.market) if accelerator else None
    return known.usd if known else None


def _remarks(prices: Prices, accelerator: Accelerator | None) -> Iterator[str]:
    """What a reader must know to use the figures: what is left out, and where constants come from."""
    if prices.pue == 1:
        yield "PUE 1: cooling and distribution are not counted"
    if accelerator is None:
        yield "provisioned watts unknown: the accelerator is not in the table"
        if prices.market is not None:
            yield f"no {prices.market} price: the accelerator is not in the table"
        return
    yield f"provisioned: {accelerator.all_in_kw:g} kW per {accelerator.name} ({accelerator.source})"
    if prices.market is not None:
        price = accelerator.usd_per_hour.get(prices.market)
        said = f"${price.usd:g} an hour ({price.source})" if price else "not known"
        yield f"{prices.market} price of {accelerator.name}: {said}"
