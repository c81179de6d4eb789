"""A fleet for a given demand: replicas, devices, a spare, and joules per day, idle hours included.

A replica carries its operating point and no more; requests are spread evenly, and a replica's power lies on
the lines between its measured levels and its watts at rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

SECONDS_PER_DAY = 86_400.0


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Demand(_Part):
    """What the fleet must carry: the peak, and the day as shares of it in steps of one length."""

    peak_rps: PositiveFloat
    daily_curve: Annotated[
        tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(min_length=1, max_length=1440)
    ] = Field((1.0,), description="demand / peak, from midnight to midnight; one value: the same all day")


class Policy(_Part):
    """What one way to run the fleet takes in a day."""

    joules_per_day: NonNegativeFloat
    idle_joules_per_day: NonNegativeFloat = Field(
        description="what replicas draw at rest, in steps in which nobody asks anything"
    )
    replica_hours: NonNegativeFloat
    requests_per_day: NonNegativeFloat
    joules_per_request: NonNegativeFloat | None = Field(description="null: nobody asks anything")


class FleetPlan(_Part):
    """Replicas and devices for a demand, and what they draw."""

    demand: Demand
    replicas: PositiveInt = Field(description="enough for the peak, each at its operating point")
    replicas_n_plus_1: PositiveInt = Field(description="the same when one of them is lost")
    devices: PositiveInt
    devices_n_plus_1: PositiveInt
    load_per_replica_rps: NonNegativeFloat = Field(description="at the peak, with every replica there")
    replicas_by_step: tuple[NonNegativeInt, ...] = Field(
        description="replicas that each step of the day needs, the spare not counted"
    )
    always_on: Policy | None = Field(description="N + 1 replicas all day; null: watts are not known")
    scaled: Policy | None = Field(description="what each step needs, and one spare; null: as above")
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One replica: what it carries, and its watts at measured loads.

    ``levels`` are (requests per second, watts), in any order; none: watts are not known. ``idle_w`` is None
    where nothing was measured at rest.
    """

    operating_rps: float
    devices: int
    levels: tuple[tuple[float, float], ...] = ()
    idle_w: float | None = None

    def power_w(self, load_rps: float) -> float:
        """Watts at a load: between measured levels on a line, beyond them as at the nearest."""
        points = dict(self.levels)
        if self.idle_w is not None:
            points[0.0] = min(self.idle_w, *points.values())
        rates = sorted(points)
        return float(np.interp(load_rps, rates, [points[rate] for rate in rates]))


def plan_fleet(replica: Replica, demand: Demand) -> FleetPlan:
    """Size a fleet for a demand; raises ValueError for a replica that carries nothing."""
    if not replica.operating_rps > 0:
        raise ValueError("a replica must carry some load")
    replicas = replicas_for(demand.peak_rps, replica)
    steps = tuple(replicas_for(share * demand.peak_rps, replica) for share in demand.daily_curve)
    known = bool(replica.levels)
    return FleetPlan(
        demand=demand,
        replicas=replicas,
        replicas_n_plus_1=replicas + 1,
        devices=replicas * replica.devices,
        devices_n_plus_1=(replicas + 1) * replica.devices,
        load_per_replica_rps=demand.peak_rps / replicas,
        replicas_by_step=steps,
        always_on=_day(replica, demand, [replicas + 1] * len(steps)) if known else None,
        scaled=_day(replica, demand, [count + 1 for count in steps]) if known else None,
        remarks=_remarks(replica),
    )


def replicas_for(load_rps: float, replica: Replica) -> int:
    """Replicas that carry a load, each at its operating point at most."""
    # A load that is a whole multiple but for rounding needs no further replica.
    return max(math.ceil(load_rps / replica.operating_rps * (1 - 1e-12)), 1 if load_rps > 0 else 0)


def _day(replica: Replica, demand: Demand, running: Sequence[int]) -> Policy:
    step_s = SECONDS_PER_DAY / len(running)
    joules = idle = requests = 0.0
    for count, share in zip(running, demand.daily_curve, strict=True):
        load_rps = share * demand.peak_rps
        spent = count * replica.power_w(load_rps / count) * step_s
        joules += spent
        idle += spent if load_rps == 0 else 0.0
        requests += load_rps * step_s
    return Policy(
        joules_per_day=joules,
        idle_joules_per_day=idle,
        replica_hours=sum(running) * step_s / 3600,
        requests_per_day=requests,
        joules_per_request=joules / requests if requests else None,
    )


def _remarks(replica: Replica) -> tuple[str, ...]:
    remarks = []
    if not replica.levels:
        remarks.append("joules are not reckoned: no valid watts were measured at any level")
    elif replica.idle_w is None:
        remarks.append("no watts at rest were measured: below the lowest level its watts are taken")
    else:
        remarks.append(
            "watts at rest are the devices' before the launch; an engine that is loaded and not asked may "
            "draw more"
        )
    return tuple(remarks)
