"""Whether another launch is worth what it costs, for the rest of the deployment's life."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

USUAL_STEP = math.log(1.2)
"""What a record gains over the one before, as a logarithm, where none was seen yet."""
RECENT = 3
"""Records that say how large the next will be: the first ones are the largest."""


class DeploymentSpec(BaseModel):
    """Where the recommendation will serve: what a better one would save there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    accelerators: PositiveInt = Field(description="devices that will serve, all replicas together")
    days: PositiveFloat = Field(description="how long the configuration will stay")


def expected_gain(objectives: Sequence[float]) -> float:
    """Relative gain that one more launch is expected to bring, from those made, in order.

    The next of n exchangeable launches is a record with chance 1 / (n + 1) (Renyi 1962); how large a record
    is, the last few say, with one of USUAL_STEP among them.
    """
    best, steps = 0.0, []
    for objective in objectives:
        if objective > best > 0:
            steps.append(math.log(objective / best))
        best = max(best, objective)
    recent = [USUAL_STEP, *steps[-RECENT:]]
    return math.expm1(sum(recent) / len(recent) / (len(objectives) + 1))


def why_stop(
    deployment: DeploymentSpec, objectives: Mapping[str, Sequence[float]], launch_device_s: float
) -> str:
    """Why another launch is not worth it, in accelerator-hours; empty where it is.

    ``objectives`` are those of the launches so far, by SLA, each of which serves an equal share of the
    deployment. A gain of g serves the same good tokens with 1 / (1 + g) of the devices, or of their energy.
    """
    cost_h = launch_device_s / 3600
    gains = [expected_gain(made) for made in objectives.values()]
    saved = sum(gain / (1 + gain) for gain in gains) / len(gains)
    saved_h = saved * deployment.accelerators * deployment.days * 24
    if saved_h >= cost_h:
        return ""
    return (
        f"another launch costs {cost_h:.2g} accelerator-hours and is expected to save {saved_h:.2g} of the "
        f"deployment's ({deployment.accelerators} accelerators, {deployment.days:g} days)"
    )
