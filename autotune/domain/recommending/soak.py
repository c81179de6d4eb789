"""Whether a configuration bears long, bursty load: what shows in minutes that no short window tells."""

from __future__ import annotations

import numpy as np

from autotune.domain.judging.scoring import open_levels
from autotune.domain.judging.sla import Sla, keeping_requests
from autotune.domain.measuring.measurement import LoadCurve, Measurement
from autotune.domain.measuring.stats import BLOCKS, proportion_interval, trend

MANY_PREEMPTIONS = 10
"""Fewer than so many in a soak are no trend worth a recommendation."""


def soak_trouble(curve: LoadCurve, sla: Sla, workload: str) -> str:
    """Why a soak speaks against a configuration: what grew in it; empty where nothing did.

    Bursts alone may cost attainment, and that is no trouble; what gets worse from one minute to the next is.
    """
    for level in open_levels(curve, workload):
        if trouble := _growing_queue(level) or _growing_preemption(level) or _drifting(level, sla):
            return trouble
    return ""


def _growing_queue(level: Measurement) -> str:
    return "its queue only grew" if level.oversaturated else ""


def _growing_preemption(level: Measurement) -> str:
    edges = np.linspace(level.window.start_s, level.window.end_s, BLOCKS + 1)
    counter = level.counters.values.get("preemptions_total")
    if counter is None or not np.isfinite(counter).any():
        return ""
    known = np.isfinite(counter)
    gained = np.diff(np.interp(edges, level.counters.time_s[known], counter[known]))
    if gained.sum() < MANY_PREEMPTIONS:
        return ""
    rising = trend(gained)
    if not (rising.significant and rising.slope > 0):
        return ""
    first, second = gained[: BLOCKS // 2].sum(), gained[BLOCKS // 2 :].sum()
    return f"preemption grew, {first:.0f} in its first half and {second:.0f} in its second"


def _drifting(level: Measurement, sla: Sla) -> str:
    """The goal whose share fell from the first half to the second, beyond chance, and was missed there."""
    requests, window = level.requests, level.window
    offered = window.sums(requests.due_s, blocks=BLOCKS)
    for bounds, share in sla.goals():
        kept = window.sums(requests.due_s[keeping_requests(requests, bounds)], blocks=BLOCKS)
        early, late = (slice(None, BLOCKS // 2), slice(BLOCKS // 2, None))
        before, after = (proportion_interval(kept[half], offered[half]) for half in (early, late))
        found = kept[late].sum() / max(offered[late].sum(), 1)
        if found < share and after.high < before.low:
            names = " and ".join(metric.value for metric, _ in bounds)
            return f"{names} drifted: {found:.1%} of its second half's requests kept what {share:.1%} should"
    return ""
