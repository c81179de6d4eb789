"""Constants of accelerators: what one is provisioned for in a data centre, and what an hour of it costs."""

from __future__ import annotations

import datetime
from enum import StrEnum
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator


class _Constant(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Market(StrEnum):
    """At whose prices an hour of an accelerator is counted.

    ``hyperscaler`` and ``neocloud``: what owning one costs them. ``rental``: the rent for three years.
    """

    HYPERSCALER = "hyperscaler"
    NEOCLOUD = "neocloud"
    RENTAL = "rental"


class Source(_Constant):
    """Where a constant was published, and when it stood there."""

    where: str
    date: datetime.date

    def __str__(self) -> str:
        return f"{self.where}, {self.date}"


class HourlyPrice(_Constant):
    """Dollars per hour of one accelerator."""

    usd: PositiveFloat
    source: Source


class Performance(_Constant):
    """Peaks of one accelerator, as its maker states them: none is reached.

    ``dense_tflops`` are those of its matrix units without sparsity, by bits of both operands; a width that is
    missing runs at the next wider one. ``link_gb_s`` and ``network_gb_s`` are per accelerator and direction:
    among the ``linked`` accelerators of a node or rack, and beyond them. ``pace`` is no peak but the speed at
    which engines run there, of what they would run at on NVIDIA's accelerators with the same peaks.
    """

    memory_gb: PositiveFloat
    memory_gb_s: PositiveFloat
    dense_tflops: dict[int, PositiveFloat] = Field(min_length=1)
    link_gb_s: PositiveFloat
    linked: PositiveInt = 8
    network_gb_s: PositiveFloat
    pace: PositiveFloat = 1.0
    source: Source

    def peak_flops(self, bits: float) -> float:
        """Operations per second on operands of so many bits: those of the narrowest unit that holds them."""
        fitting = [width for width in self.dense_tflops if width >= bits]
        return self.dense_tflops[min(fitting, default=max(self.dense_tflops))] * 1e12


class Accelerator(_Constant):
    """One product: ``all_in_kw`` is its own power and its share of host and network, before PUE.

    ``reported_as`` are the whole names by which drivers report it (NVML, amdsmi).
    """

    name: str
    reported_as: tuple[str, ...] = Field(min_length=1)
    tdp_w: PositiveFloat
    all_in_kw: PositiveFloat
    source: Source
    usd_per_hour: dict[Market, HourlyPrice] = {}
    performance: Performance | None = None

    @property
    def known_as(self) -> frozenset[str]:
        """Whole names, plain: drivers', and the table's own, by which studies name what is not here."""
        return frozenset(map(_plain, (self.name, *self.reported_as)))


class AcceleratorTable(_Constant):
    """Every accelerator of which constants are known."""

    accelerators: tuple[Accelerator, ...]

    @model_validator(mode="after")
    def _unambiguous(self) -> Self:
        names = [name for a in self.accelerators for name in a.known_as]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"reported by more than one accelerator: {', '.join(twice)}")
        return self

    def find(self, device_name: str) -> Accelerator | None:
        """The accelerator of this name, the table's or a driver's; None for one not in the table.

        Whole names only: an H200 is no GH200, and an H200 NVL card, a partition of an H100 or a workstation
        edition is provisioned differently from the product whose name it shares.
        """
        wanted = _plain(device_name)
        return next((a for a in self.accelerators if wanted in a.known_as), None)


def _plain(name: str) -> str:
    """A name without what drivers vary in it: case, and runs of blanks."""
    return " ".join(name.casefold().split())
