"""What a GPU's sensors are worth: watts idle and loaded, how often they change, its counter beside them.

    python scripts/gpu_meters.py --python /opt/vllm/bin/python     # a Python that has torch, to load the GPU
    python scripts/gpu_meters.py --load "./my-own-load"            # or a command that works until it is ended

Reads instant power and energy counter of one GPU: idle, under a steady load, and under one that comes and
goes, in windows of several lengths. Prints what it saw and leaves in ``--to``: ``meters.json``, and the
readings as ``trace-….npz``. Nothing of the GPU is set.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from autotune.adapters.devices.inventory import LocalInventory
from autotune.adapters.power.nvml import NvmlPowerMeter
from autotune.domain.basics.errors import BenchError
from autotune.domain.hardware.hardware import Device, DeviceKind
from autotune.domain.measuring.power import PowerTrace, Window, counted_j, energy_in, integrate_j

WINDOWS_S = (2.0, 5.0, 10.0, 30.0)
FAST_PERIOD_S = 0.002
"""Far below what sensors are known to need for an update: 20 to 100 ms."""
FEWEST_CHANGES = 3
MATMULS = """
import sys, time, torch
a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
on_s, off_s = map(float, sys.argv[1:])
while True:
    end_s = time.monotonic() + on_s
    while time.monotonic() < end_s:
        for _ in range(20):
            a @ a
        torch.cuda.synchronize()
    time.sleep(off_s)
"""
LOADS = {"steady": ("1", "0"), "coming and going": ("0.3", "0.2")}


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="a Python that has torch")
    parser.add_argument("--load", help="a command that loads the GPU, in place of matrix products")
    parser.add_argument("--gpu", type=int, default=0, help="index of the GPU, as the driver counts")
    parser.add_argument("--windows", default=",".join(f"{w:g}" for w in WINDOWS_S), help="seconds of each")
    parser.add_argument("--settle", type=float, default=10.0, help="seconds of load before it is measured")
    parser.add_argument("--to", type=Path, default=Path("build/gpu-meters"), help="folder of what is made")
    args = parser.parse_args()
    windows_s = [float(word) for word in args.windows.split(",")]
    args.to.mkdir(parents=True, exist_ok=True)
    try:
        device = LocalInventory(kind=DeviceKind.CUDA).devices().devices[args.gpu]
        print(f"{device.name}, {device.uid}; idle", flush=True)
        found = {"device": device.name, "idle": measured(device, windows_s, args.to / "trace-idle.npz")}
        for name, pace in LOADS.items():
            print(name, flush=True)
            matmuls = [str(args.python), "-c", MATMULS, *pace]
            with loading(shlex.split(args.load) if args.load else matmuls):
                time.sleep(args.settle)
                trace = args.to / f"trace-{name.replace(' ', '-')}.npz"
                found[name] = measured(device, windows_s, trace)
    except BenchError as error:
        sys.exit(f"error: {error}")
    (args.to / "meters.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    show(found)
    print(f"left in {args.to}: meters.json and the readings")


@contextmanager
def loading(command: Sequence[str]) -> Iterator[None]:
    """Keep a command working; raises BenchError if it ended by itself."""
    with subprocess.Popen(command, start_new_session=True) as process:
        try:
            yield
            if process.poll() is not None:
                raise BenchError(f"the load ended with exit code {process.returncode}: {command[0]}")
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def measured(device: Device, windows_s: Sequence[float], keep: Path) -> dict[str, Any]:
    """Update periods, then windows one after another, of what the GPU does now."""
    fast = recorded(device, sum(windows_s[:2]), period_s=FAST_PERIOD_S)
    slow = recorded(device, sum(windows_s) + 1.0)
    own, all_of_it = slow.devices[0], fast.devices[0]
    np.savez_compressed(
        keep,
        fast_time_s=all_of_it.time_s,
        fast_power_w=all_of_it.power_w,
        fast_counter_time_s=all_of_it.counter_time_s,
        fast_counter_j=all_of_it.counter_j,
        time_s=own.time_s,
        power_w=own.power_w,
        counter_time_s=own.counter_time_s,
        counter_j=own.counter_j,
    )
    start_s, rows = float(own.time_s[0]) + 0.5, []
    for length_s in windows_s:
        window = Window(start_s, start_s + length_s)
        energy, counted = energy_in(slow, window), counted_j(own, window)
        rows.append(
            {
                "window_s": length_s,
                "integrated_j": integrate_j(own, window),
                "counted_j": counted,
                "verdict": energy.verdict,
                "reasons": energy.reasons,
            }
        )
        start_s += length_s
    return {
        "mean_w": float(own.power_w.mean()),
        "least_w": float(own.power_w.min()),
        "most_w": float(own.power_w.max()),
        "power_changes_every_s": between_changes_s(all_of_it.time_s, all_of_it.power_w),
        "counter_changes_every_s": between_changes_s(all_of_it.counter_time_s, all_of_it.counter_j),
        "read_every_s": float(np.median(np.diff(all_of_it.time_s))),
        "windows": rows,
    }


def recorded(device: Device, seconds: float, **how: float) -> PowerTrace:
    """Everything the meter reads in so many seconds."""
    with NvmlPowerMeter(**how).window([device]) as recording:
        time.sleep(seconds)
    return recording.trace()


def between_changes_s(time_s: NDArray[np.float64], value: NDArray[np.float64]) -> float | None:
    """Median seconds from one new value to the next; None where hardly any came."""
    changes = time_s[1:][np.diff(value) != 0]
    return float(np.median(np.diff(changes))) if len(changes) >= FEWEST_CHANGES else None


def show(found: dict[str, Any]) -> None:
    """A line for each window."""
    table = Table(title=f"{found['device']}: energy counter beside integrated instant power")
    headings = ("load", "mean W", "power / counter change every", "window", "counter off by", "verdict")
    for heading in headings:
        table.add_column(heading, justify="right")
    for name in ("idle", *LOADS):
        one = found[name]
        periods = " / ".join(
            "-" if p is None else f"{1e3 * p:.0f} ms"
            for p in (one["power_changes_every_s"], one["counter_changes_every_s"])
        )
        for row in one["windows"]:
            counted = row["counted_j"]
            table.add_row(
                name,
                f"{one['mean_w']:.0f}",
                periods,
                f"{row['window_s']:g} s",
                "-" if counted is None else f"{counted / row['integrated_j'] - 1:+.1%}",
                f"{row['verdict']} {' '.join(row['reasons'])}",
            )
    Console().print(table)


if __name__ == "__main__":
    main()
