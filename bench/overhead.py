"""What the tuner itself costs: start to first launch, and per trial all but engine start and load.

    python bench/overhead.py            # prints the table, writes build/bench/overhead.json

Runs a small study on the real engine in a folder of its own, and reads the figures from its catalog.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
STUDY = """
model: {model}
engines: [{{ name: vllm, fixed: {{ context_length: 2048, eager: true }} }}]
workloads: [{{ name: chat, input_tokens: 64, output_tokens: 32 }}]
slas: [{{ name: bulk, attainment: 0.9, slos: {{ e2e: 5s }} }}]
space: {{ dimensions: {{ max_num_seqs: [default, 16] }} }}
budget: {{ launches: 4, wall_time: 9m }}
measurement: {{ warmup: 1s, longest_warmup: 10s, window: 5s, longest_window: 8s, final_window: 10s }}
"""


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="autotune-overhead-") as scratch:
        folder = Path(scratch)
        (folder / "overhead.yaml").write_text(STUDY.format(model=ROOT / ".models" / "tiny-dense"))
        first_launch_s = run_study(folder)
        shown = subprocess.run(
            [sys.executable, "-m", "autotune", "show", "overhead", "--json"],
            cwd=folder,
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
    trials = json.loads(shown.stdout)["trials"]
    rows = [
        {key: trial[key] for key in ("number", "launch_s", "load_s", "total_s")}
        | {"own_share": 1 - (trial["launch_s"] + trial["load_s"]) / trial["total_s"]}
        for trial in trials
        if trial["state"] == "measured"
    ]
    report = {"start_to_first_launch_s": first_launch_s, "trials": rows}
    out = ROOT / "build" / "bench" / "overhead.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=2))
    show(report)


def run_study(folder: Path) -> float:
    """Run the study to its end; returns seconds from the command's start to its first launch."""
    began_s = time.monotonic()
    first_launch_s = None
    command = [sys.executable, "-m", "autotune", "tune", "overhead.yaml"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as study:
        assert study.stdout is not None
        for line in study.stdout:
            if first_launch_s is None and re.search(r"trial 0: starting", line):
                first_launch_s = time.monotonic() - began_s
            print(line, end="", flush=True)
    if study.returncode or first_launch_s is None:
        sys.exit(f"the study ended with exit code {study.returncode}")
    return first_launch_s


def show(report: dict) -> None:
    table = Table("trial", "launch s", "load s", "total s", "tuner's own share")
    for row in report["trials"]:
        seconds = (f"{row[key]:.2f}" for key in ("launch_s", "load_s", "total_s"))
        table.add_row(str(row["number"]), *seconds, f"{row['own_share']:.2%}")
    Console().print(f"start to first launch: {report['start_to_first_launch_s']:.2f} s", table)


if __name__ == "__main__":
    main()
