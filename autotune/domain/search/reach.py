"""The most that a running configuration can still reach, at any load: whether it is worth further levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autotune.domain.measuring.measurement import LoadCurve, Measurement
from autotune.domain.measuring.power import EnergyVerdict, energy_in
from autotune.domain.measuring.stats import BLOCKS, ratio_interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """Upper bounds at any load: output tok/s, and tokens per joule; None where watts do not rank."""

    throughput_tok_per_s: float
    tokens_per_joule: float | None

    @property
    def objective(self) -> float:
        """The bound of what ranks."""
        return self.throughput_tok_per_s if self.tokens_per_joule is None else self.tokens_per_joule


def reach_of(curve: LoadCurve) -> Reach | None:
    """Bound what any load can yield from levels at which the engine had more to do than it could.

    No good token without a token, and none faster than an engine that never lacks a request gives them: the
    upper end of the 90 % interval of throughput there, or at any other level if that is more. Watts rise less
    than in proportion to tokens, from an idle draw above 0, so tokens per joule are at most those of full
    load. An engine that preempts may do better with less to do: of it, as of one that was never seen
    saturated, nothing is said, and the answer is None.
    """
    full = [m for m in curve if _is_saturated(m)]
    if not full or any(m.counters.gained("preemptions_total", m.window) for m in full):
        return None
    upper = max(_throughput_at_most(m) for m in curve)
    joules = [bound for m in full if (bound := _per_joule_at_most(m, upper)) is not None]
    ranks = full[0].power.basis.ranks
    if ranks and not joules:
        return None
    return Reach(throughput_tok_per_s=upper, tokens_per_joule=max(joules) if ranks else None)


def loses_everywhere(curve: LoadCurve, slas: Sequence[str], incumbents: Mapping[str, float]) -> Reach | None:
    """The bound of a launch that loses to the incumbent of every SLA; None for one that may yet win.

    ``incumbents`` are objectives by SLA; an SLA without one can still be won.
    """
    if not slas or any(incumbents.get(sla, 0.0) <= 0 for sla in slas):
        return None
    reach = reach_of(curve)
    return reach if reach and all(reach.objective < incumbents[sla] for sla in slas) else None


def _is_saturated(measurement: Measurement) -> bool:
    """A queue that only grew; in closed loop, one that never emptied, as far as counters tell."""
    if measurement.level.rate_rps is not None:
        return measurement.oversaturated
    window, waiting = measurement.window, measurement.counters.values.get("requests_waiting")
    if waiting is None:
        return False
    inside = waiting[window.holds(measurement.counters.time_s) & np.isfinite(waiting)]
    return bool(len(inside)) and float(np.mean(inside > 0)) >= ALWAYS


ALWAYS = 0.95
"""Share of samples that show somebody waiting, at which a closed loop counts as saturated."""


def _throughput_at_most(measurement: Measurement) -> float:
    window, requests = measurement.window, measurement.requests
    tokens = window.sums(requests.chunk_s, requests.chunk_tokens, blocks=BLOCKS)
    return ratio_interval(tokens, np.full(BLOCKS, window.length_s / BLOCKS)).high


def _per_joule_at_most(measurement: Measurement, throughput_tok_per_s: float) -> float | None:
    energy = energy_in(measurement.power, measurement.window)
    if energy.verdict is EnergyVerdict.INVALID or energy.mean_w <= 0:
        return None
    return throughput_tok_per_s / energy.mean_w
