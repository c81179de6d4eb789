"""Measurements made by hand: requests, a steady power trace, and analytic engines of known capacity."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autotune.domain.load.level import Level
from autotune.domain.measuring.measurement import ClientHealth, Measurement, RequestRecord, RequestTable
from autotune.domain.measuring.power import DevicePower, PowerBasis, PowerTrace, Window

NOTHING = np.zeros(0)
HEALTHY = ClientHealth(lag_p99_s=0.0, cpu_share=0.1)


def request(
    due_s: float, *, ttft_s: float = 0.1, tokens: int = 5, tpot_s: float = 0.01, error: str = ""
) -> RequestRecord:
    """A request whose tokens come one to a chunk; one with an error got none."""
    chunk_s = () if error else tuple(due_s + ttft_s + tpot_s * i for i in range(tokens))
    return RequestRecord(
        due_s=due_s,
        sent_s=due_s,
        finished_s=due_s + ttft_s if error else chunk_s[-1],
        chunk_s=chunk_s,
        prompt_tokens=10,
        output_tokens=len(chunk_s),
        status=503 if error else 200,
        error=error,
    )


def steady_power(
    window: Window, *, watts: float = 100.0, devices: int = 1, basis: PowerBasis = PowerBasis.GPU
) -> PowerTrace:
    """Constant power of each device over a little more than the window; no counters."""
    time_s = np.arange(window.start_s - 0.1, window.end_s + 0.2, 0.05)
    return PowerTrace(
        basis=basis,
        source="synthetic",
        period_s=0.05,
        devices=tuple(
            DevicePower(
                uid=f"gpu-{index}",
                time_s=time_s,
                power_w=np.full(len(time_s), watts),
                counter_time_s=NOTHING,
                counter_j=NOTHING,
            )
            for index in range(devices)
        ),
    )


def measurement(
    records: Sequence[RequestRecord],
    *,
    level: Level,
    window: Window,
    power: PowerTrace | None = None,
) -> Measurement:
    """A level measured at 100 W, unless a trace is given."""
    return Measurement(
        level=level,
        window=window,
        requests=RequestTable.of(records),
        power=power or steady_power(window),
        health=HEALTHY,
    )
