"""Drift of a node: a reference configuration is measured again and again; what it lost, others lost too.

Only launches on one node are compared: two nodes differ without either having drifted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from autotune.domain.measuring.stats import Interval


class DriftAction(StrEnum):
    """What to do about a drift beyond the noise: say so, correct later figures for it as well, or stop."""

    REPORT = "report"
    CORRECT = "correct"
    STOP = "stop"


class DriftSpec(BaseModel):
    """How a study watches its machine for drift."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    every: PositiveInt | None = Field(
        None, description="launches from one measurement of the reference to the next; never if left out"
    )
    action: DriftAction = Field(DriftAction.REPORT, description="on a drift beyond the noise")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The reference configuration as one launch measured it: ``value`` is its objective.

    ``index`` is the launch's trial number. ``interval`` must cover repeats of the launch, or noise will pass
    for drift. A reference that reached no objective is a broken bench, not a drift: ValueError.
    """

    index: int
    node: str
    value: float
    interval: Interval

    def __post_init__(self) -> None:
        if not 0 < self.value < math.inf:
            raise ValueError(f"the reference of trial {self.index} has no objective to compare: {self.value}")
        if not self.interval.low <= self.value <= self.interval.high:
            raise ValueError(f"the reference of trial {self.index} lies outside its interval: {self}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """How far the reference moved on a node: ``change`` is (later - first) / first, with its interval."""

    node: str
    first: int
    later: int
    change: float
    interval: Interval

    @property
    def beyond_noise(self) -> bool:
        """Whether the interval leaves out that nothing changed."""
        return not self.interval.low <= 0 <= self.interval.high

    def describe(self) -> str:
        """One sentence for people, in per cent."""
        between = f"on {self.node} between trial {self.first} and trial {self.later}"
        low, value, high = (100 * share for share in (self.interval.low, self.change, self.interval.high))
        if not self.beyond_noise:
            return f"the reference held within the noise {between}: {value:+.1f} % [{low:+.1f}, {high:+.1f}]"
        if value < 0:
            return f"the reference lost {-value:.1f} % [{-high:.1f}, {-low:.1f}] {between}"
        return f"the reference gained {value:.1f} % [{low:.1f}, {high:.1f}] {between}"


def drift_between(first: Reference, later: Reference) -> Drift:
    """Compare two measurements of the reference on one node; raises ValueError across nodes.

    The interval is that of a difference of independent estimates, each with its own (perhaps lopsided)
    interval of the same level: MOVER (Zou & Donner 2008).
    """
    if first.node != later.node:
        raise ValueError(f"{first.node} and {later.node} are two nodes: their references do not compare")
    fall = math.hypot(later.value - later.interval.low, first.interval.high - first.value)
    rise = math.hypot(later.interval.high - later.value, first.value - first.interval.low)
    moved = later.value - first.value
    return Drift(
        node=first.node,
        first=first.index,
        later=later.index,
        change=moved / first.value,
        interval=Interval((moved - fall) / first.value, (moved + rise) / first.value),
    )


def drifts(references: Sequence[Reference]) -> tuple[Drift, ...]:
    """Every later reference against the first of its node, by node and then by launch."""
    found = []
    for node in sorted({reference.node for reference in references}):
        first, *later = _on(node, references)
        found += [drift_between(first, reference) for reference in later]
    return tuple(found)


def correction(references: Sequence[Reference], node: str, index: int) -> float:
    """Factor that brings what a launch measured to the state of its node at the node's first reference.

    Drift is taken to run in a straight line from one reference to the next, and to stay after the last. One
    within the noise counts as none, so that the reference's noise is not laid on the others. 1 for a node
    without a reference.
    """
    on_node = _on(node, references)
    if not on_node:
        return 1.0
    against_first = [drift_between(on_node[0], reference) for reference in on_node]
    levels = [1 + drift.change if drift.beyond_noise else 1.0 for drift in against_first]
    return float(1 / np.interp(index, [reference.index for reference in on_node], levels))


def _on(node: str, references: Sequence[Reference]) -> list[Reference]:
    return sorted((r for r in references if r.node == node), key=lambda reference: reference.index)
