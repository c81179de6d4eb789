"""What other tools measured: points beside a study's own, never ranked.

Their windows, warm-ups and clocks are not ours, nothing says what power was drawn, and whether an SLA held
cannot be told from percentiles alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One run of a load generator; percentiles in seconds by their name (``p50``), None for what is not told.

    ``key`` is the same for the same run, however often it is imported. ``rate_rps`` is the offered load of an
    open loop, ``concurrency`` that of a closed one; a run may have neither.
    """

    key: str
    tool: str
    source: str
    model: str = ""
    label: str = ""
    rate_rps: float | None = None
    concurrency: float | None = None
    requests: int = 0
    failed: int = 0
    duration_s: float | None = None
    throughput_rps: float | None = None
    output_tok_per_s: float | None = None
    ttft_s: Mapping[str, float] = field(default_factory=dict)
    tpot_s: Mapping[str, float] = field(default_factory=dict)
    e2e_s: Mapping[str, float] = field(default_factory=dict)

    @property
    def load(self) -> str:
        """Short text: ``12.5 req/s`` or ``32 concurrent``."""
        if self.rate_rps is not None:
            return f"{self.rate_rps:.3g} req/s"
        return f"{self.concurrency:g} concurrent" if self.concurrency is not None else "all at once"

    @property
    def interactivity(self) -> float | None:
        """1 / median TPOT, tok/s/user."""
        median = self.tpot_s.get("p50")
        return 1 / median if median else None


def observations_document(observations: Sequence[Observation]) -> list[dict[str, Any]]:
    """Observations as plain data, each marked as what it is."""
    return [{**asdict(each), "ranked": False} for each in observations]
