"""Results of other load generators: of ``vllm bench serve``, AIPerf and GuideLLM, the JSON that each writes.

``vllm bench serve`` was read as vLLM 0.32 writes it. AIPerf is read after ``JsonExportData`` of its 0.13,
GuideLLM after ``GenerativeBenchmark`` of its 0.8, both from their source: neither was run for it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from autotune.domain.basics.errors import InputError, InputProblem
from autotune.domain.studies.observations import Observation

MOST_BYTES = 1 << 30
PERCENTILES = ("p50", "p90", "p95", "p99")
REMEDY = (
    "give what `vllm bench serve --save-result`, AIPerf (profile_export_aiperf.json) or GuideLLM (json) wrote"
)

Data = Mapping[str, Any]


def read_results(path: Path) -> tuple[Observation, ...]:
    """Every run in a file; raises InputError for one that is no result of a tool known here."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InputError(InputProblem(str(path), f"is larger than {MOST_BYTES >> 20} MiB", REMEDY))
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as missing:
        raise InputError(InputProblem(str(path), f"cannot be read: {missing.strerror}", REMEDY)) from missing
    except (ValueError, RecursionError) as broken:
        raise InputError(InputProblem(str(path), f"is no JSON: {broken}", REMEDY)) from broken
    read = _reader(data)
    if read is None:
        raise InputError(InputProblem(str(path), "is of no tool that is known here", REMEDY))
    try:
        found = tuple(read(data, path.name))
    except (KeyError, TypeError, ValueError, AttributeError) as odd:
        what = f"is not as that tool writes it: {type(odd).__name__}: {odd}"
        raise InputError(InputProblem(str(path), what, REMEDY)) from odd
    if not found:
        raise InputError(InputProblem(str(path), "holds no run", REMEDY))
    return found


def _reader(data: Any) -> Callable[[Data, str], Iterator[Observation]] | None:
    """Who wrote it, by keys that only one of them has."""
    if not isinstance(data, dict):
        return None
    if {"backend", "request_throughput", "output_throughput", "completed"} <= data.keys():
        return _vllm_bench
    if isinstance(data.get("request_throughput"), dict) and "request_latency" in data:
        return _aiperf
    return _guidellm if isinstance(data.get("benchmarks"), list) else None


def _vllm_bench(data: Data, source: str) -> Iterator[Observation]:
    def seconds(metric: str) -> dict[str, float]:
        named = {p: data.get(f"{p}_{metric}_ms") for p in PERCENTILES}
        named["p50"] = data.get(f"median_{metric}_ms", named["p50"])
        return _seconds(named, 1e-3)

    # Without a rate everything is sent at once, which the tool writes as the text "inf".
    rate = float(data.get("request_rate") or math.inf)
    concurrency = data.get("max_concurrency")
    yield Observation(
        key=_key("vllm bench serve", data),
        tool="vllm bench serve",
        source=source,
        model=str(data.get("model_id") or ""),
        label=str(data.get("label") or ""),
        rate_rps=rate if math.isfinite(rate) and concurrency is None else None,
        concurrency=float(concurrency) if concurrency is not None else None,
        requests=int(data["completed"]),
        failed=int(data.get("failed") or 0),
        duration_s=_number(data.get("duration")),
        throughput_rps=_number(data["request_throughput"]),
        output_tok_per_s=_number(data["output_throughput"]),
        ttft_s=seconds("ttft"),
        tpot_s=seconds("tpot"),
        e2e_s=seconds("e2el"),
    )


def _aiperf(data: Data, source: str) -> Iterator[Observation]:
    def average(metric: str) -> float | None:
        return _number((data.get(metric) or {}).get("avg"))

    def seconds(metric: str) -> dict[str, float]:
        told = data.get(metric) or {}
        return _seconds({p: told.get(p) for p in PERCENTILES}, _unit(told.get("unit", "ms")))

    asked = data.get("input_config") or {}
    load, endpoint = asked.get("loadgen") or {}, asked.get("endpoint") or {}
    rate = _number(load.get("request_rate"))
    models = endpoint.get("model_names") or []
    yield Observation(
        key=_key("AIPerf", data),
        tool=f"AIPerf {data.get('aiperf_version') or ''}".strip(),
        source=source,
        model=str(models[0]) if models else "",
        rate_rps=rate,
        concurrency=_number(load.get("concurrency")) if rate is None else None,
        requests=int(average("request_count") or 0),
        failed=int(average("error_request_count") or 0),
        duration_s=average("benchmark_duration"),
        throughput_rps=average("request_throughput"),
        output_tok_per_s=average("output_token_throughput"),
        ttft_s=seconds("time_to_first_token"),
        tpot_s=seconds("inter_token_latency"),
        e2e_s=seconds("request_latency"),
    )


def _guidellm(data: Data, source: str) -> Iterator[Observation]:
    for place, run in enumerate(data["benchmarks"]):
        metrics = run["metrics"]
        strategy = (run.get("config") or {}).get("strategy") or {}
        totals = metrics.get("request_totals") or {}
        rate = _number(strategy.get("rate"))
        streams = _number(strategy.get("streams"))

        def seconds(metric: str, factor: float, metrics: Data = metrics) -> dict[str, float]:
            told = ((metrics.get(metric) or {}).get("successful") or {}).get("percentiles") or {}
            return _seconds({p: told.get(p) for p in PERCENTILES}, factor)

        yield Observation(
            key=_key("GuideLLM", {"run": run, "place": place}),
            tool="GuideLLM",
            source=source,
            label=str(strategy.get("type_") or ""),
            rate_rps=rate,
            concurrency=streams if rate is None else None,
            requests=int(totals.get("successful") or 0),
            failed=int(totals.get("errored") or 0),
            duration_s=_number(run.get("duration")),
            throughput_rps=_mean(metrics, "requests_per_second"),
            output_tok_per_s=_mean(metrics, "output_tokens_per_second"),
            ttft_s=seconds("time_to_first_token_ms", 1e-3),
            # (last - first) / (n - 1); its "time per output token" counts the first one in.
            tpot_s=seconds("inter_token_latency_ms", 1e-3),
            e2e_s=seconds("request_latency", 1.0),
        )


def _mean(metrics: Data, name: str) -> float | None:
    return _number(((metrics.get(name) or {}).get("successful") or {}).get("mean"))


def _seconds(named: Mapping[str, Any], factor: float) -> dict[str, float]:
    known = {name: _number(value) for name, value in named.items()}
    return {name: value * factor for name, value in known.items() if value is not None}


def _unit(unit: str) -> float:
    factors = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0}
    if unit not in factors:
        raise ValueError(f"unit {unit!r} of a latency is not known")
    return factors[unit]


def _number(value: Any) -> float | None:
    """A finite number; None for what is not told."""
    if value is None or isinstance(value, bool):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def _key(tool: str, data: Data) -> str:
    text = json.dumps(data, sort_keys=True)
    return hashlib.sha256(f"{tool}{text}".encode()).hexdigest()[:32]
