"""A small study of the mock engine, run by the whole command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from autotune.adapters.files.synthetic_model import make_tiny_model

STUDY = """
name: small
model: {model}
engines:
  - name: vllm
    fixed: {{ context_length: 2048 }}
    env: {{ MOCK_TTFT_MS: "5", MOCK_TPOT_MS: "2", MOCK_TPOT_PER_SEQ_MS: "0.5" }}
hardware: {{ cpus: 2 }}
workloads:
  - {{ name: chat, input_tokens: 16, output_tokens: 8 }}
slas:
  - {{ name: interactive, attainment: 0.8, slos: {{ ttft: 60ms, tpot: 12ms }} }}
  - {{ name: bulk, contract: percentile, slos: {{ e2e: {{ p80: 500ms }} }} }}
space:
  dimensions:
    max_num_seqs: [default, 2, 4]
    block_size: [default, 16]
    pipeline_parallel: [default, 2]
try_first:
  - {{ block_size: 16 }}
  - {{ pipeline_parallel: 2 }}
budget: {{ launches: 6, wall_time: 5m }}
measurement:
  warmup: 100ms
  window: 600ms
  longest_window: 1s
  final_window: 1s
  longest_warmup: 1s
  most_levels: 3
  saturating_concurrency: 8
  start_timeout: 20s
"""

Autotune = Callable[..., "subprocess.CompletedProcess[str]"]


def make_folder(path: Path) -> Path:
    make_tiny_model(path / "model")
    (path / "small.yaml").write_text(STUDY.format(model=path / "model"))
    return path


def runner(folder: Path) -> Autotune:
    def run(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "autotune", *arguments],
            cwd=folder,
            env=own_env(folder),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return run


def own_env(folder: Path) -> dict[str, str]:
    """Nothing of this user's: leases, engines and caches of the tests are their own."""
    homes = {"HOME": str(folder), "XDG_STATE_HOME": str(folder / "state")}
    own = {"AUTOTUNE_HOME": str(folder / "home"), "COLUMNS": "200", "PATH": "/usr/bin:/bin"}
    return {**os.environ, **homes, **own}
