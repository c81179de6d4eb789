"""What a core of this machine can do, as an engine's own torch shows: no table of CPUs tells it.

Whether bf16 is fast, or is computed in float32 and converted, differs between CPUs of one name; an engine's
build decides as much as the machine.
"""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, PositiveFloat, ValidationError

from autotune.adapters.commands import last_line, run_program
from autotune.domain.hardware.accelerators import Performance, Source

_TIMEOUT_S = 90.0

_PROGRAM = """
import json, time
import torch

torch.set_num_threads(1)

def seconds(work):
    # The least of several: what else runs on the machine only ever adds.
    work()
    times = []
    end = time.perf_counter() + 0.5
    while time.perf_counter() < end or len(times) < 3:
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)

def tflops(dtype, rows=64, width=1024):
    left, right = (torch.ones(rows, width, dtype=dtype), torch.ones(width, width, dtype=dtype))
    return 2 * rows * width * width / seconds(lambda: torch.nn.functional.linear(left, right)) / 1e12

with torch.inference_mode():
    many = torch.ones(1 << 25)
    print(json.dumps({
        "torch": torch.__version__,
        "tflops": {"32": tflops(torch.float32), "16": tflops(torch.bfloat16)},
        "memory_gb_s": many.nbytes / seconds(many.sum) / 1e9,
    }))
"""
"""Matrices of a step that reads a prompt; a sum that no cache holds."""


class _Answer(BaseModel):
    torch: str
    tflops: dict[int, PositiveFloat]
    memory_gb_s: PositiveFloat


def core_peaks(interpreter: Path, memory_gb: float) -> Performance | str:
    """Measure one core, in some seconds, with the torch of an engine's environment; else say why not.

    ``memory_gb`` is that of the machine.
    """
    try:
        # Isolated, since the working directory may hold a checkout of the engine.
        done = run_program([str(interpreter), "-I", "-c", _PROGRAM], _TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"{interpreter} did not measure a core in {_TIMEOUT_S:.0f} s"
    except OSError as failed:
        return f"{interpreter} could not measure a core: {failed}"
    if done.returncode != 0:
        return f"{interpreter} could not measure a core: {last_line(done.stderr)}"
    try:
        answer = _Answer.model_validate_json(last_line(done.stdout))
    except ValidationError:
        return f"{interpreter} measured a core and answered {last_line(done.stdout)[:80]!r}"
    measured_on = datetime.now(UTC).date()  # noqa: TID251 - nothing is reckoned with it
    return Performance(
        memory_gb=memory_gb,
        memory_gb_s=answer.memory_gb_s,
        dense_tflops=answer.tflops,
        # Ranks of one machine meet in its memory.
        link_gb_s=answer.memory_gb_s,
        network_gb_s=answer.memory_gb_s,
        source=Source(where=f"measured on this machine, torch {answer.torch}", date=measured_on),
    )
