"""An engine's own counters, read from its Prometheus page and sampled through a load level."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from autotune.adapters.power.sampling import Sampling
from autotune.domain.measuring.counters import CounterTrace

PERIOD_S = 1.0
"""Writing the page costs an engine's server some milliseconds: often enough, and no load of its own."""

LARGEST = frozenset({"kv_cache_usage"})
"""Counters, by our names, that are shares: the fullest of several counts. All others add up."""


def read_counters(page: str, names: Mapping[str, str]) -> Mapping[str, float]:
    """Counters by our names, combined over labels; ``names`` maps ours to the engine's.

    A page that is no Prometheus text shows none.
    """
    ours = {theirs: name for name, theirs in names.items()}
    try:
        return combined(
            {ours[sample.name]: sample.value}
            for family in text_string_to_metric_families(page)
            for sample in family.samples
            if sample.name in ours
        )
    except ValueError:
        return {}


def combined(parts: Iterable[Mapping[str, float]]) -> Mapping[str, float]:
    """Counters of several replicas or processes as those of one engine; each has what its parts have."""
    whole: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            if name not in whole:
                whole[name] = value
            else:
                whole[name] = max(whole[name], value) if name in LARGEST else whole[name] + value
    return whole


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
