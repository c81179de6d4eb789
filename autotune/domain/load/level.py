"""A load level: what a launch is measured at."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Level:
    """One load to measure: open loop at ``rate_rps``, or closed loop with ``concurrency`` in flight.

    ``bursty`` bunches arrivals that would come evenly.
    """

    workload: str
    rate_rps: float | None = None
    concurrency: int | None = None
    bursty: bool = False

    def __post_init__(self) -> None:
        if (self.rate_rps is None) == (self.concurrency is None):
            raise ValueError("a level is either open loop (rate_rps) or closed loop (concurrency)")

    @property
    def label(self) -> str:
        """Short text: ``12.5 req/s`` or ``32 concurrent``."""
        return f"{self.concurrency} concurrent" if self.concurrency else f"{self.rate_rps:.3g} req/s"
