"""This client beside `vllm bench serve`: interleaved pairs on one real vLLM server at a load it carries.

    python bench/against_vllm_bench.py [--pairs 6]      # writes build/bench/against_vllm_bench.json

Both drive the same workload: a closed loop of 4 (what vLLM's tool calls --max-concurrency), lengths drawn
from the same uniform ranges. Compared are output tokens per second, median TPOT, and median TTFT counted from
send, since `vllm bench serve` does not count from due. No difference may lie outside its paired 90 %
interval, nor exceed 3 % in the mean. The engine has one core and the clients the others: on the engine's own
core the heavier client would slow it down. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from rich.console import Console
from rich.table import Table

from autotune import wiring
from autotune.adapters.files.traffic_files import load_traffic
from autotune.adapters.load.clients import LoadClients
from autotune.domain.launches.endpoint import Endpoint
from autotune.domain.load.level import Level
from autotune.domain.load.load_plan import LoadPlan
from autotune.domain.load.planning import plan_load
from autotune.domain.load.prompts import RandomTokens
from autotune.domain.load.workload import Workload
from autotune.domain.studies.ports import RunningEngine
from autotune.domain.studies.study import StudySpec

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / ".models" / "tiny-dense"
VOCAB_SIZE = 2048
CONCURRENCY = 4
REQUESTS = 240
INPUT_TOKENS, OUTPUT_TOKENS, RANGE = 64, 32, 0.5
"""Lengths are uniform within +- RANGE of these."""
TOOL_TIMEOUT_S = 300
# Student's t at 0.95 by pairs - 1 degrees of freedom.
STUDENT_T = {4: 2.132, 5: 2.015, 6: 1.943, 7: 1.895, 8: 1.860, 9: 1.833}
LARGEST_MEAN_DIFFERENCE = 0.03
Figures = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pairs", type=int, default=6, choices=[5, 6, 7, 8, 9, 10])
    pairs = parser.parse_args().pairs
    study = StudySpec.model_validate(
        {
            "name": "against",
            "model": str(MODEL),
            "engines": [{"name": "vllm", "fixed": {"context_length": 2048, "eager": True}}],
            "workloads": [{"name": "chat", "input_tokens": 64, "output_tokens": 32}],
            "slas": [{"name": "any", "slos": {"e2e": "60s"}}],
            "space": {"dimensions": {"max_num_seqs": ["default"]}},
            "budget": {"launches": 1},
        }
    )
    with (
        tempfile.TemporaryDirectory(prefix="autotune-against-") as scratch,
        wiring.benches_for(study) as benches,
        benches["vllm"].inventory.lease(benches["vllm"].hardware, 1, "bench") as devices,
    ):
        bench = benches["vllm"]
        context = study.engine("vllm").context(study.model, bench.environment, devices)
        spec = bench.launcher.launch_spec(study.default_config(), context)
        with bench.host.serving(
            spec, workdir=Path(scratch), start_timeout_s=240, cancelled=lambda: False
        ) as engine:
            os.sched_setaffinity(0, os.sched_getaffinity(0) - {device.index for device in devices})
            tool = bench.environment.executable
            rounds = [compare(engine, tool, Path(scratch), number) for number in range(-1, pairs)][1:]
    report = {"pairs": rounds, "differences": differences(rounds)}
    out = ROOT / "build" / "bench" / "against_vllm_bench.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1))
    show(report["differences"])


def compare(engine: RunningEngine, tool: Path, scratch: Path, number: int) -> dict[str, Figures]:
    """One pair, in turns which comes first; pair -1 warms both up and is thrown away."""
    runs = {
        "autotune": lambda: ours(engine.endpoint, scratch, number),
        "vllm": lambda: theirs(engine.endpoint, tool, scratch, number),
    }
    order = list(runs) if number % 2 else list(runs)[::-1]
    figures = {name: runs[name]() for name in order}
    print(f"pair {number}: {figures}", flush=True)
    return figures


def ours(endpoint: Endpoint, scratch: Path, number: int) -> Figures:
    lengths = scratch / f"lengths-{number}.csv"
    rng = np.random.default_rng(number + 1)
    with lengths.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["input_length", "output_length"])
        draws = [
            rng.integers(round(n * (1 - RANGE)), round(n * (1 + RANGE)) + 1, 10_000)
            for n in (INPUT_TOKENS, OUTPUT_TOKENS)
        ]
        rows.writerows(zip(*(draw.tolist() for draw in draws), strict=True))
    workload = Workload(name="chat", lengths=str(lengths), longest=2048)
    with LoadClients() as clients:
        result = clients.drive(endpoint, plan(workload, number), alive=lambda: True, cancelled=lambda: False)
    requests = result.requests
    assert requests.ok.all(), set(requests.error)
    return {
        "tok_per_s": float(requests.output_tokens.sum() / (requests.last_token_s.max() - result.started_s)),
        "tpot_p50_s": float(np.nanmedian(requests.tpot_s)),
        "ttft_from_send_p50_s": float(np.median(requests.first_token_s - requests.sent_s)),
    }


def plan(workload: Workload, number: int) -> LoadPlan:
    """Exactly REQUESTS requests, CONCURRENCY at a time."""
    drawn = plan_load(
        workload,
        Level("chat", concurrency=CONCURRENCY),
        duration_s=600.0,
        seed=number + 1,
        prompts=RandomTokens(VOCAB_SIZE, number + 1),
        traffic=load_traffic(workload),
    )
    return LoadPlan(
        requests=drawn.requests[:REQUESTS],
        prompts=drawn.prompts,
        duration_s=600.0,
        concurrency=CONCURRENCY,
    )


def theirs(endpoint: Endpoint, tool: Path, scratch: Path, number: int) -> Figures:
    result = scratch / f"vllm-{number}.json"
    arguments = {
        "--base-url": endpoint.base_url,
        "--model": endpoint.model,
        "--tokenizer": str(MODEL),
        "--dataset-name": "random",
        "--random-input-len": INPUT_TOKENS,
        "--random-output-len": OUTPUT_TOKENS,
        "--random-range-ratio": RANGE,
        "--num-prompts": REQUESTS,
        "--max-concurrency": CONCURRENCY,
        "--seed": number + 1,
        "--temperature": 0,
        "--result-filename": str(result),
    }
    subprocess.run(
        [
            str(tool),
            *("bench", "serve", "--ignore-eos", "--save-result", "--save-detailed", "--disable-tqdm"),
            *(str(part) for pair in arguments.items() for part in pair),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=TOOL_TIMEOUT_S,
    )
    said = json.loads(result.read_text())
    assert said["completed"] == REQUESTS, said["completed"]
    return {
        "tok_per_s": said["output_throughput"],
        "tpot_p50_s": said["median_tpot_ms"] / 1e3,
        "ttft_from_send_p50_s": said["median_ttft_ms"] / 1e3,
    }


def differences(rounds: list[dict[str, Figures]]) -> dict[str, Figures]:
    """Relative differences, ours less theirs, with the paired 90 % interval of their mean."""
    found = {}
    for name in rounds[0]["autotune"]:
        shares = [r["autotune"][name] / r["vllm"][name] - 1 for r in rounds]
        half = STUDENT_T[len(shares) - 1] * stdev(shares) / len(shares) ** 0.5
        found[name] = {
            "autotune": mean(r["autotune"][name] for r in rounds),
            "vllm": mean(r["vllm"][name] for r in rounds),
            "mean": mean(shares),
            "low": mean(shares) - half,
            "high": mean(shares) + half,
        }
    return found


def show(found: dict[str, Figures]) -> None:
    table = Table("figure", "autotune", "vllm bench", "difference", "90 % interval", "agrees")
    for name, figures in found.items():
        agrees = figures["low"] <= 0 <= figures["high"] and abs(figures["mean"]) <= LARGEST_MEAN_DIFFERENCE
        table.add_row(
            name,
            f"{figures['autotune']:.4g}",
            f"{figures['vllm']:.4g}",
            f"{figures['mean']:+.2%}",
            f"[{figures['low']:+.2%}, {figures['high']:+.2%}]",
            "yes" if agrees else "no",
        )
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
