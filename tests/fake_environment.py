"""An engine environment without an engine: `bin/vllm` is the mock, `bin/python` answers the probes."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

MOCK_ENGINE = Path(__file__).parents[1] / "bench" / "mock_engine.py"

VERSION = "0.32.0+mock"

FLAGS: dict[str, list[str]] = {
    "--host": [],
    "--port": [],
    "--tensor-parallel-size": [],
    "--pipeline-parallel-size": [],
    "--data-parallel-size": [],
    "--enable-expert-parallel": [],
    "--no-enable-expert-parallel": [],
    "--max-num-seqs": [],
    "--max-num-batched-tokens": [],
    "--enable-chunked-prefill": [],
    "--no-enable-chunked-prefill": [],
    "--enable-prefix-caching": [],
    "--no-enable-prefix-caching": [],
    "--speculative-config": [],
    "--dtype": ["auto", "half", "float16", "bfloat16", "float", "float32"],
    "--quantization": [],
    "--kv-cache-dtype": ["auto", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2"],
    "--block-size": [],
    "--gpu-memory-utilization": [],
    "--kv-cache-memory-bytes": [],
    "--max-model-len": [],
    "--enable-lora": [],
    "--no-enable-lora": [],
    "--max-loras": [],
    "--max-lora-rank": [],
    "--enable-auto-tool-choice": [],
    "--no-enable-auto-tool-choice": [],
    "--tool-call-parser": [],
    "--enforce-eager": [],
    "--no-enforce-eager": [],
    "--distributed-executor-backend": ["ray", "mp", "uni", "external_launcher"],
    "--load-format": [],
    "--model": [],
    "--revision": [],
    "--seed": [],
    "--served-model-name": [],
    "--scheduling-policy": ["fcfs", "priority"],
    "--tokenizer": [],
    "--trust-remote-code": [],
    "--mock-fail": [],
}
"""Flags that the stand-in says it has: the ones of vLLM that launchers and studies use."""


REFUSED = "4 is no number of sequences"
"""Why the stand-in's validation refuses `--max-num-seqs 4`."""

_REFUSALS = f"""
import json, sys
asked = json.load(sys.stdin)
print(json.dumps([{REFUSED!r} if "--max-num-seqs 4" in " ".join(argv) else None for argv in asked]))
"""


def make_fake_environment(path: Path, program: Path = MOCK_ENGINE) -> Path:
    """Make a directory that passes for an installed vLLM, and runs ``program``; returns it."""
    probed = json.dumps({"version": VERSION, "device": "cpu", "flags": FLAGS})
    _script(path / "bin" / "vllm", f'exec {shlex.quote(sys.executable)} {shlex.quote(str(program))} "$@"')
    refusals = f"{shlex.quote(sys.executable)} -c {shlex.quote(_REFUSALS)}"
    parser = f"printf '%s\\n' {shlex.quote(probed)}"
    # What is asked about comes on standard input; a parser is asked about nothing.
    asked = 'asked=$(cat); if [ -n "$asked" ]; then printf \'%s\' "$asked"'
    _script(path / "bin" / "python", f"{asked} | {refusals}; else {parser}; fi")
    return path


def _script(path: Path, line: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
