"""What the levels of a launch showed, as forecasts tell it: late TTFT and TPOT, and tokens per watt."""

from __future__ import annotations

import numpy as np

from autotune.domain.measuring.digest import LevelDigest, digest
from autotune.domain.measuring.measurement import LoadCurve
from autotune.domain.search.curves import Floats, SeenLevels

LATE = 95
"""Percentile of the late requests that forecasts are of."""


def seen_levels(curve: LoadCurve, workload: str) -> SeenLevels | None:
    """Logarithms of a curve's figures by level; None where no level of the workload has all of them."""
    levels = [digest(measured) for measured in curve if measured.level.workload == workload]
    figures = [each for level in levels if np.isfinite(each := _figures(level)).all()]
    if not figures:
        return None
    concurrency, *rest = np.array(figures).T
    return SeenLevels(np.exp(concurrency), np.array(rest))


def _figures(level: LevelDigest) -> Floats:
    """Logarithms of concurrency, TTFT, TPOT and value; NaN for what a level does not show."""
    watts = level.energy.mean_w if level.power_basis.ranks else 1.0
    finished = level.e2e_s[level.ok & level.due_in_window]
    # Little: requests in flight are those that come in a second by the seconds that each stays.
    in_flight = level.level.concurrency or level.rate_rps * (finished.mean() if len(finished) else np.nan)
    figures = np.array(
        [
            in_flight,
            level.ttft_percentiles_s.get(LATE, np.nan),
            level.tpot_percentiles_s.get(LATE, np.nan),
            level.throughput_tok_per_s / watts if watts > 0 else np.nan,
        ]
    )
    found: Floats = np.log(np.where(figures > 0, figures, np.nan))
    return found
