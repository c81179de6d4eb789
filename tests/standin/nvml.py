"""Builds the stand-in for NVIDIA's driver library, and the environment of a process that is to load it.

What a scenario may say is told at the head of ``nvml_standin.c``. A process loads one driver library for its
whole life, so what is tested runs in a child: ``run_on_standin`` runs Python code there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from autotune.adapters.debian_packages import apt_line

SOURCE = Path(__file__).with_name("nvml_standin.c")
SCENARIO_VARIABLE = "NVML_STANDIN_SCENARIO"


def build_standin(directory: Path) -> Path:
    """Compile ``libnvidia-ml.so.1`` into a directory and return its path."""
    compiler = shutil.which("gcc")
    if compiler is None:
        raise FileNotFoundError(
            f"gcc is missing, and this test compiles C; run: {apt_line(['gcc', 'libc6-dev'])}"
        )
    library = directory / "libnvidia-ml.so.1"
    subprocess.run(
        [
            compiler,
            "-std=gnu11",
            "-shared",
            "-fPIC",
            "-O1",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-o",
            library,
            SOURCE,
        ],
        check=True,
        timeout=120,
    )
    return library


def standin_env(library: Path, scenario: Path) -> dict[str, str]:
    """Environment in which nvidia-ml-py loads ``library``, which replays the file ``scenario``."""
    searched = [str(library.parent), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    kept = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    return kept | {"LD_LIBRARY_PATH": os.pathsep.join(searched), SCENARIO_VARIABLE: str(scenario)}


def run_on_standin(library: Path, scenario: Path, code: str, *, timeout_s: float = 60) -> str:
    """Run Python ``code`` in a child that has the stand-in for its driver; returns what it printed.

    ``scenario`` is the file's path; raises CalledProcessError where the child fails.
    """
    return subprocess.run(
        [sys.executable, "-c", code],
        env=standin_env(library, scenario),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=timeout_s,
    ).stdout
