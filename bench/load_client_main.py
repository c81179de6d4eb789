"""Our load driver as a command, to be timed from its start like any other load generator.

    python load_client_main.py --url http://127.0.0.1:8000 --model tiny --requests 1000 --output-tokens 32
        (--rate 100 | --concurrency 50) --out answers.json

Writes one JSON object per request: the digest of its prompt, TTFT from due and TPOT in seconds, its error.
`drive` alone knows the driver's Python interface.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from mock_wire import digest

from autotune.adapters.load.clients import LoadClients
from autotune.domain.launches.endpoint import Endpoint
from autotune.domain.load.level import Level
from autotune.domain.load.planning import FASTEST_TPOT_S, plan_load
from autotune.domain.load.prompts import RandomTokens
from autotune.domain.load.workload import Workload

VOCAB_SIZE = 32_000
FAR_S = 3600.0
"""Longer than any run: closed loops end when their requests run out."""
MARGIN_S = 0.01
"""Sending goes on for so long after the last request is due."""


def drive(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Send the load and return what the driver says of each request."""
    workload = Workload(input_tokens=args.input_tokens, output_tokens=args.output_tokens)
    level = Level(workload.name, rate_rps=args.rate, concurrency=args.concurrency)
    # A closed loop's plan holds requests for the fastest of engines; what is more than asked for is cut off.
    seconds = args.requests / (args.rate or args.concurrency / (args.output_tokens * FASTEST_TPOT_S)) + 1
    drawn = plan_load(
        workload, level, duration_s=seconds, seed=args.seed, prompts=RandomTokens(VOCAB_SIZE, args.seed)
    )
    requests = drawn.requests[: args.requests]
    plan = replace(drawn, requests=requests, duration_s=requests[-1].due_s + MARGIN_S if args.rate else FAR_S)
    # One process: the comparison is of what one core can do, and rows then come in the plan's order.
    with LoadClients(processes=1) as clients:
        result = clients.drive(
            Endpoint(base_url=args.url, model=args.model), plan, alive=lambda: True, cancelled=lambda: False
        )
    table = result.requests
    return [
        {
            "prompt": digest(plan.prompts.token_ids(request.prompt)),
            "ttft_s": ttft_s,
            "tpot_s": tpot_s,
            "error": error,
        }
        for request, ttft_s, tpot_s, error in zip(
            requests, table.ttft_s.tolist(), table.tpot_s.tolist(), table.error, strict=True
        )
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--requests", type=int, required=True)
    parser.add_argument("--input-tokens", type=int, default=64)
    parser.add_argument("--output-tokens", type=int, required=True)
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--rate", type=float)
    kind.add_argument("--concurrency", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.write_text(json.dumps(drive(args)))


if __name__ == "__main__":
    main()
