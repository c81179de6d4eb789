"""Whether a queue grows through a window by more than chance explains."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from autotune.domain.measuring.power import Window

Floats = NDArray[np.float64]

SAMPLES = 40
"""Moments of a window at which its queue is looked at."""
TELLING_GROWTH = 2.0
"""A queue that outgrew a Poisson process's own scatter by so many deviations grows: no longer run holds."""


def sample_times(window: Window) -> Floats:
    """Moments of a window at which its queue is looked at."""
    return np.linspace(window.start_s, window.end_s, SAMPLES)


def in_flight(due_s: Floats, finished_s: Floats, at_s: Floats) -> Floats:
    """Requests that were due and had not ended (NaN: never did), at some moments."""
    due, ended = np.sort(due_s), np.sort(np.nan_to_num(finished_s, nan=np.inf))
    return (np.searchsorted(due, at_s, "right") - np.searchsorted(ended, at_s, "right")).astype(np.float64)


def queue_growth(queue: Floats, window: Window, rate_rps: float, *, dispersion: float = 1.0) -> float:
    """Growth of requests in flight through a window, by a straight line, over what chance explains.

    In standard deviations of arrivals less departures: arrivals of that dispersion (variance / mean of their
    counts), departures as Poisson has them, both at the offered rate.
    """
    grown = float(np.polyfit(np.linspace(0.0, 1.0, len(queue)), queue, 1)[0])
    return grown / math.sqrt((1 + dispersion) * max(rate_rps * window.length_s, 1.0))
