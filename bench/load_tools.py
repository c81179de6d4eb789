"""The load generators that are compared: how each is installed, asked for a load, and read."""

from __future__ import annotations

import compileall
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from load_processes import Site
from load_truth import Account, Claim, ToolError

ROOT = Path(__file__).resolve().parents[1]
TOKENIZER = ROOT / ".models" / "tiny-dense"
"""What the others make their prompts with."""
MODEL = "tiny"
INPUT_TOKENS = 64
INSTALL_TIMEOUT_S = 1800.0
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A load to ask every tool for: ``requests`` in all, open loop (Poisson) or closed loop."""

    output_tokens: int
    requests: int
    rate_rps: float | None = None
    concurrency: int | None = None

    @property
    def label(self) -> str:
        return f"{self.rate_rps:g} req/s" if self.rate_rps else f"{self.concurrency} concurrent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A load generator.

    ``command`` writes its command line, ``read`` reads the records that it left in its folder.
    ``ceiling_requests`` last some seconds at its full speed.
    """

    name: str
    version: str
    command: Callable[[Load, Site], Sequence[str]]
    read: Callable[[Path], Account]
    env: dict[str, str]
    ceiling_requests: int


def autotune(python: str) -> Tool:
    """Our driver, in a process of its own."""
    # As pip does with the others: what is installed in place stays uncompiled where Python may not write.
    compileall.compile_dir(ROOT / "autotune", quiet=2)

    def command(load: Load, site: Site) -> list[str]:
        return [
            *(python, str(Path(__file__).with_name("load_client_main.py"))),
            *("--url", site.url, "--model", MODEL, "--out", str(site.folder / "answers.json")),
            *("--requests", str(load.requests), "--output-tokens", str(load.output_tokens)),
            *("--input-tokens", str(INPUT_TOKENS)),
            *(("--rate", str(load.rate_rps)) if load.rate_rps else ("--concurrency", str(load.concurrency))),
        ]

    def read(folder: Path) -> Account:
        rows = json.loads((folder / "answers.json").read_text())
        good = [row for row in rows if not row["error"]]
        claims = (Claim(key=r["prompt"], ttft_s=r["ttft_s"], tpot_s=r["tpot_s"]) for r in good)
        return Account(tuple(claims), failed=len(rows) - len(good))

    return Tool(
        name="autotune",
        version="this tree",
        command=command,
        read=read,
        env={},
        ceiling_requests=8000,
    )


def vllm(python: str) -> Tool:
    """`vllm bench serve`, of the engine that `autotune engines install vllm` installed."""
    listed = subprocess.run(
        [python, "-m", "autotune", "engines", "list", "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if listed.returncode != 0:
        raise ToolError(f"`autotune engines list` failed: {listed.stderr.strip()[-300:]}")
    engines = [e for e in json.loads(listed.stdout) if e["id"] == "vllm" and e["installed"]]
    if not engines:
        raise ToolError("vLLM is not installed; run: autotune engines install vllm")
    engine = engines[0]

    def command(load: Load, site: Site) -> list[str]:
        if load.rate_rps:
            shape = ["--request-rate", str(load.rate_rps)]
        else:
            shape = ["--max-concurrency", str(load.concurrency)]
        return [
            *(engine["path"], "bench", "serve", "--backend", "openai", "--base-url", site.url),
            *("--model", MODEL, "--tokenizer", str(TOKENIZER), "--dataset-name", "random"),
            *("--random-input-len", str(INPUT_TOKENS), "--random-output-len", str(load.output_tokens)),
            *("--num-prompts", str(load.requests), *shape, "--ignore-eos", "--disable-tqdm"),
            *("--request-id-prefix", "bench-", "--save-result", "--save-detailed"),
            *("--result-dir", str(site.folder), "--result-filename", "result.json"),
        ]

    def read(folder: Path) -> Account:
        result = json.loads((folder / "result.json").read_text())
        claims = []
        for index, error in enumerate(result["errors"]):
            gaps_s = result["itls"][index]
            if not error and gaps_s:
                # vLLM's own TPOT: the time after the first token, over the tokens after it.
                tpot_s = sum(gaps_s) / (result["output_lens"][index] - 1)
                key = f"cmpl-bench-{index}"
                claims.append(Claim(key=key, ttft_s=result["ttfts"][index], tpot_s=tpot_s))
        return Account(tuple(claims), failed=len(result["errors"]) - len(claims))

    return Tool(
        name="vllm",
        version=engine["version"],
        command=command,
        read=read,
        env=OFFLINE | {"VLLM_NO_USAGE_STATS": "1"},
        ceiling_requests=2500,
    )


def aiperf(environments: Path) -> Tool:
    version = "0.13.0"
    binary = install(environments / "aiperf", [f"aiperf=={version}"], "aiperf")

    def command(load: Load, site: Site) -> list[str]:
        if load.rate_rps:
            shape = ["--request-rate", str(load.rate_rps), "--arrival-pattern", "poisson"]
        else:
            shape = ["--concurrency", str(load.concurrency)]
        return [
            *(
                binary,
                "profile",
                "-m",
                MODEL,
                "-u",
                site.url,
                "--endpoint-type",
                "completions",
                "--streaming",
            ),
            *("--tokenizer", str(TOKENIZER), "--use-server-token-count", "--use-legacy-max-tokens"),
            *("--isl", str(INPUT_TOKENS), "--osl", str(load.output_tokens), *shape),
            *("--request-count", str(load.requests), "--extra-inputs", "ignore_eos:true"),
            *("--no-gpu-telemetry", "--no-server-metrics", "--ui", "none"),
            *("--output-artifact-dir", str(site.folder)),
        ]

    def read(folder: Path) -> Account:
        lines = (folder / "profile_export.jsonl").read_text().splitlines()
        claims = []
        for row in map(json.loads, lines):
            metrics: dict[str, Any] = row["metrics"]
            if not row.get("error"):
                key = f"cmpl-{row['metadata']['x_request_id']}"
                ttft_s = metrics["time_to_first_token"]["value"] / 1e3
                tpot_s = metrics["inter_token_latency"]["value"] / 1e3
                claims.append(Claim(key=key, ttft_s=ttft_s, tpot_s=tpot_s))
        return Account(tuple(claims), failed=len(lines) - len(claims))

    # No OFFLINE, whatever its value: with it a tokenizer in a local folder is rejected.
    return Tool(
        name="aiperf",
        version=version,
        command=command,
        read=read,
        env={},
        ceiling_requests=800,
    )


def guidellm(environments: Path) -> Tool:
    version = "0.8.1"
    # The engine's own torch: where that is the CPU build, so is this, and both come from pip's cache.
    packages = [f"guidellm=={version}", "torch==2.13.0"]
    binary = install(environments / "guidellm", packages, "guidellm")

    def command(load: Load, site: Site) -> list[str]:
        if load.rate_rps:
            profile = f"kind=poisson,rate={load.rate_rps:g}"
        else:
            profile = f"kind=concurrent,streams={load.concurrency}"
        data = f"kind=synthetic_text,prompt_tokens={INPUT_TOKENS},output_tokens={load.output_tokens}"
        return [
            *(binary, "run", "--profile", profile, "--data", data),
            *(
                "--backend",
                f"kind=openai_http,target={site.url},model={MODEL},request_format=/v1/completions",
            ),
            *("--constraint", f"kind=max_requests,count={load.requests}"),
            *("--tokenizer", f"kind=hf_auto,model={TOKENIZER}"),
            *("--output", f"kind=json,path={site.folder / 'result.json'}", "--disable-console"),
        ]

    def read(folder: Path) -> Account:
        requests = json.loads((folder / "result.json").read_text())["benchmarks"][0]["requests"]
        claims = tuple(
            Claim(
                key=row["response_id"],
                ttft_s=row["time_to_first_token_ms"] / 1e3,
                # (last - first) / (n - 1); its "time per output token" counts the first one in.
                tpot_s=row["inter_token_latency_ms"] / 1e3,
            )
            for row in requests["successful"]
        )
        return Account(claims, failed=len(requests["errored"]) + len(requests["incomplete"]))

    return Tool(
        name="guidellm",
        version=version,
        command=command,
        read=read,
        env=OFFLINE,
        ceiling_requests=600,
    )


def install(at: Path, packages: Sequence[str], command: str) -> str:
    """Make an environment that holds packages, unless it is there; returns the path of a command in it."""
    marker, wanted = at / ".installed", " ".join(packages)
    if not marker.exists() or marker.read_text() != wanted:
        print(f"installing {wanted} in {at} …", flush=True)
        _must([sys.executable, "-m", "venv", "--clear", str(at)])
        _must([str(at / "bin" / "python"), "-m", "pip", "install", "-qq", *packages])
        marker.write_text(wanted)
    return str(at / "bin" / command)


def _must(argv: Sequence[str]) -> None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolError(f"could not be installed: {error}") from error
    if done.returncode != 0:
        raise ToolError(f"could not be installed: {done.stderr.strip()[-400:]}")
