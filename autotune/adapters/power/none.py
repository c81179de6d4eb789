"""No power: of an endpoint on hardware that nobody named, nothing is known."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from autotune.domain.hardware.hardware import Device
from autotune.domain.measuring.power import PowerBasis, PowerTrace


class NoPowerMeter:
    """PowerMeter on basis ``none``: its windows have no joules, and goodput ranks."""

    @contextmanager
    def window(self, devices: Sequence[Device]) -> Iterator[NoPowerRecording]:  # noqa: ARG002 - one signature
        """Record nothing for the length of a ``with`` block."""
        yield NoPowerRecording()


@dataclass(frozen=True, slots=True)
class NoPowerRecording:
    """PowerRecording of a window, under way or over."""

    started_s: float = field(default_factory=time.monotonic)

    def trace(self) -> PowerTrace:
        """No device at all."""
        return PowerTrace(
            basis=PowerBasis.NONE,
            source="unknown: nothing measures this endpoint, and no accelerator is named for it",
            period_s=time.monotonic() - self.started_s,
            devices=(),
        )
