"""An engine's own counters, read from its Prometheus page and sampled through a load level."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from autotune.adapters.sampling import Sampling
from autotune.domain.counters import CounterTrace

PERIOD_S = 1.0
"""Writing the page costs an engine's server some milliseconds: often enough, and no load of its own."""


def read_counters(page: str, names: Mapping[str, str]) -> Mapping[str, float]:
    """Counters by our names, summed over labels; ``names`` maps ours to the engine's.

    A page that is no Prometheus text shows none.
    """
    theirs = set(names.values())
    sums: dict[str, float] = {}
    try:
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                if sample.name in theirs:
                    sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    except ValueError:
        return {}
    return {ours: sums[name] for ours, name in names.items() if name in sums}


@dataclass(frozen=True, slots=True)
class _Sample:
    at_s: float
    counters: Mapping[str, float]


class CounterSampling:
    """CounterRecording of a level, under way or over."""

    def __init__(self, samples: Callable[[], tuple[_Sample, ...]]) -> None:
        self._samples = samples

    def trace(self) -> CounterTrace:
        """What was sampled so far; a page that did not come at once leaves a gap."""
        samples = [sample for sample in self._samples() if sample.counters]
        names = dict.fromkeys(name for sample in samples for name in sample.counters)
        return CounterTrace(
            time_s=np.array([sample.at_s for sample in samples], dtype=np.float64),
            values={
                name: np.array([sample.counters.get(name, np.nan) for sample in samples]) for name in names
            },
        )


@contextmanager
def counting(
    read: Callable[[], Mapping[str, float]], *, period_s: float = PERIOD_S
) -> Iterator[CounterSampling]:
    """Sample counters for the length of a ``with`` block."""

    def sample() -> _Sample:
        return _Sample(time.monotonic(), read())

    with Sampling(sample, period_s, of="engine's counters") as sampling:
        yield CounterSampling(sampling.samples)
