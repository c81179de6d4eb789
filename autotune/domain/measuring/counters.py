"""Engine counters sampled through a load level, and what they say of a window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from autotune.domain.measuring.power import Window

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterTrace:
    """Samples of an engine's own counters by our names: monotonic seconds, ascending; NaN where unknown."""

    time_s: Floats = field(default_factory=lambda: np.zeros(0))
    values: Mapping[str, Floats] = field(default_factory=dict)

    def gained(self, name: str, window: Window) -> float | None:
        """By how much a counter rose in the window, interpolated at its edges; None where it is not known."""
        known = self._known(name)
        if known is None or len(known[0]) < 2:  # noqa: PLR2004 - a difference
            return None
        start, end = np.interp([window.start_s, window.end_s], *known)
        return float(end - start)

    def mean(self, name: str, window: Window) -> float | None:
        """Mean of a gauge over its samples in the window; None where there is none."""
        known = self._known(name)
        if known is None:
            return None
        time_s, values = known
        inside = values[window.holds(time_s)]
        return float(inside.mean()) if len(inside) else None

    def prefix_hit_rate(self, window: Window) -> float | None:
        """Share of the prompt tokens looked up in the prefix cache that it held; None where none were."""
        return self._share("prefix_cache_hits_total", "prefix_cache_queries_total", window)

    def acceptance(self, window: Window) -> float | None:
        """Share of the speculated tokens that were accepted; None where none were speculated."""
        return self._share("spec_decode_accepted_tokens_total", "spec_decode_draft_tokens_total", window)

    def _share(self, part: str, whole: str, window: Window) -> float | None:
        above, below = self.gained(part, window), self.gained(whole, window)
        return above / below if above is not None and below else None

    def _known(self, name: str) -> tuple[Floats, Floats] | None:
        values = self.values.get(name)
        if values is None:
            return None
        known = np.isfinite(values)
        return self.time_s[known], values[known]
