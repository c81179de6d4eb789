"""Power of a machine by its power-supply driver (``power_now``, microwatts), as laptops have."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from autotune.adapters.power.reading import Reading, Recording, device_power
from autotune.adapters.power.sampling import Sampling
from autotune.domain.basics.errors import BenchError
from autotune.domain.hardware.hardware import Device
from autotune.domain.measuring.power import PowerBasis, PowerScope, PowerTrace

PERIOD_S = 0.5


# --8<-- [start:read]
def read_supply(file: Path) -> Reading:
    """One reading; whatever goes wrong is a BenchError with its remedy."""
    at_s = time.monotonic()
    try:
        text = file.read_text(encoding="ascii").strip()
    except OSError as error:
        remedy = "is the driver loaded, and may this user read it?"
        raise BenchError(f"power meter lost: {file}: {error.strerror}; {remedy}") from error
    if not text.isdecimal():
        raise BenchError(f"power meter lost: {file} holds {text[:40]!r} instead of microwatts")
    return Reading(at_s=at_s, power_w=int(text) / 1e6)


# --8<-- [end:read]


# --8<-- [start:meter]
@dataclass(frozen=True, slots=True, kw_only=True)
class PowerSupplyMeter:
    """PowerMeter on basis ``host``, scope ``node``: all that the supply feeds."""

    file: Path
    period_s: float = PERIOD_S

    @contextmanager
    def window(self, devices: Sequence[Device]) -> Iterator[Recording[Reading]]:  # noqa: ARG002 - the host is one
        """Record for the length of a ``with`` block; raises BenchError where the supply cannot be read."""
        with Sampling(lambda: read_supply(self.file), self.period_s) as sampling:
            yield Recording(sampling.samples, self._trace)

    def _trace(self, readings: tuple[Reading, ...]) -> PowerTrace:
        return PowerTrace(
            basis=PowerBasis.HOST,
            source=f"power supply ({self.file})",
            period_s=self.period_s,
            devices=(device_power("supply", readings),),
            scope=PowerScope.NODE,
            reserved=("supply",),
        )


# --8<-- [end:meter]
