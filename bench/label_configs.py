"""What becomes of configurations of the tiny models on a real vLLM for CPU: each launched once, and labelled.

    python bench/label_configs.py [--jobs 2] [--only TEXT]    # about 30 s a launch

Writes ``tests/data/labelled_configs.jsonl``: first what the engine's parser says, then a line per
configuration with its words and what happened. Those that are there already are left out, so that an
interrupted run goes on; delete a line to launch it anew. What our own rules would refuse is launched all the
same, or they would judge themselves: its words go to the engine as plain arguments. At the end the engine's
own validation is asked about each command.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import tempfile
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from urllib.parse import urlsplit

from autotune.adapters.engines.environments import EngineEnvironments
from autotune.adapters.engines.host import LocalEngineHost
from autotune.adapters.files.synthetic_model import make_tiny_model
from autotune.domain.basics.errors import InfeasibleConfigError
from autotune.domain.configs.config import EngineConfig
from autotune.domain.hardware.hardware import Device, DeviceKind
from autotune.domain.launches.endpoint import Endpoint
from autotune.domain.launches.launch import (
    EngineDiedError,
    EngineEnvironment,
    Failure,
    LaunchContext,
    LaunchSpec,
    Reaction,
)
from launchers.vllm import LAUNCHER
from launchers.vllm.flags import TABLE

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "tests" / "data" / "labelled_configs.jsonl"
RUNS = "runs"
START_TIMEOUT_S = 900.0
REQUEST_TIMEOUT_S = 60.0
BASE = {"context_length": 2048, "eager": True}
OF_THE_LAUNCH = frozenset(
    {"tensor_parallel", "pipeline_parallel", "data_parallel", "dp_attention", "extra_args"}
)
"""Words by which the launcher chooses processes: they stay words where the others are forced."""


@dataclass(frozen=True)
class Case:
    """One configuration: ``words`` beside or in place of BASE, and the engine's environment variables."""

    words: Mapping[str, Any] = field(default_factory=dict)
    moe: bool = False
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def config(self) -> EngineConfig:
        words = {**BASE, **self.words}
        return EngineConfig.model_validate({"engine": "vllm", **words})

    @property
    def model(self) -> str:
        return "tiny-moe" if self.moe else "tiny-dense"

    @property
    def id(self) -> str:
        env = "".join(f" {name}={value}" for name, value in self.env.items())
        return f"{self.model}: {self.config.label()}{env}"


@dataclass(frozen=True)
class Label:
    """A line of the data: what was launched, and what became of it.

    ``checked`` is why the engine's own validation refuses it, asked apart; None: it was not asked yet.
    """

    id: str
    model: str
    words: Mapping[str, Any]
    env: Mapping[str, str]
    outcome: str
    phase: str
    exit_code: int | None
    line: str
    seconds: float
    checked: str | None = None


def dense(**words: Any) -> Case:
    return Case(words)


def moe(**words: Any) -> Case:
    return Case(words, moe=True)


def ngram(**words: Any) -> Case:
    return dense(speculation="ngram", **words)


CASES = (
    # What the engine's parser and configuration refuse, and what they accept.
    dense(),
    moe(),
    dense(tensor_parallel=3),
    dense(tensor_parallel=5),
    dense(expert_parallel=True),
    dense(tensor_parallel=2, context_parallel=2),
    moe(tensor_parallel=3),
    dense(context_length=4096),
    dense(context_length=4097),
    dense(context_length=8192),
    dense(context_length=100_000),
    dense(dtype="int8"),
    dense(quantization="best"),
    dense(kv_cache_dtype="int3"),
    dense(scheduling_policy="lifo"),
    dense(tool_parser="nobodys"),
    dense(extra_args=("--no-such-flag",)),
    dense(extra_args=("--max-num-seqs", "0")),
    dense(extra_args=("--block-size", "none")),
    # Blocks and steps.
    dense(block_size=8),
    dense(block_size=16),
    dense(block_size=32),
    dense(block_size=48),
    dense(block_size=64),
    dense(block_size=96),
    dense(block_size=128),
    moe(block_size=16),
    dense(max_num_batched_tokens=512),
    dense(max_num_batched_tokens=512, chunked_prefill=True),
    dense(max_num_batched_tokens=512, chunked_prefill=False),
    dense(max_num_batched_tokens=2048, chunked_prefill=False),
    dense(max_num_batched_tokens=2047, chunked_prefill=False),
    dense(max_num_batched_tokens=128, max_num_seqs=256),
    dense(max_num_batched_tokens=64, max_num_seqs=64),
    # Precision.
    dense(dtype="float16"),
    dense(dtype="float32"),
    dense(dtype="bfloat16"),
    dense(quantization="int8_per_channel_weight_only"),
    dense(quantization="fp8"),
    dense(quantization="awq"),
    dense(quantization="gptq"),
    dense(quantization="compressed-tensors"),
    dense(quantization="modelopt"),
    moe(quantization="experts_int8"),
    moe(quantization="mxfp4"),
    dense(kv_cache_dtype="fp8"),
    dense(kv_cache_dtype="fp8_e5m2"),
    dense(kv_cache_dtype="nvfp4"),
    # Speculation.
    ngram(speculative_tokens=3),
    ngram(speculative_tokens=3, prompt_lookup_max=4),
    ngram(),
    dense(speculative_tokens=3),
    dense(speculation="draft_model", speculative_tokens=3),
    dense(speculation="mtp", speculative_tokens=1),
    # KV caches too small and too large.
    Case({"extra_args": ("--kv-cache-memory-bytes", "1000000")}, env={"VLLM_CPU_KVCACHE_SPACE": ""}),
    Case({"extra_args": ("--kv-cache-memory-bytes", "4000000000000")}, env={"VLLM_CPU_KVCACHE_SPACE": ""}),
    Case(env={"VLLM_CPU_KVCACHE_SPACE": "4000"}),
    # Scheduling, caching, LoRA and tools.
    dense(chunked_prefill=False),
    dense(chunked_prefill=True, prefix_caching=False),
    dense(chunked_prefill=False, prefix_caching=False),
    dense(prefix_caching=True),
    dense(scheduling_policy="priority"),
    dense(lora=True),
    dense(tool_parser="hermes"),
    moe(expert_parallel=True),
    # Several ranks, the dearest last.
    dense(pipeline_parallel=5),
    dense(tensor_parallel=2),
    dense(pipeline_parallel=2),
    dense(data_parallel=2),
    moe(tensor_parallel=2),
    moe(tensor_parallel=2, expert_parallel=True),
    moe(data_parallel=2),
    moe(data_parallel=2, expert_parallel=True),
    dense(tensor_parallel=4),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="launches at a time")
    parser.add_argument("--only", default="", help="launch only configurations whose id has this text")
    arguments = parser.parse_args()
    environment = EngineEnvironments().find(LAUNCHER, None)
    known = _known(environment)
    todo = [case for case in CASES if case.id not in known and arguments.only in case.id]
    print(f"{len(known)} labelled already, {len(todo)} to launch")
    with tempfile.TemporaryDirectory(prefix="autotune-labels-") as folder:
        labels = _Labels(environment, Path(folder), arguments.jobs)
        labels.make(todo)
        labels.check()


class _Labels:
    """Launches cases, some at a time, and appends each label as it comes."""

    def __init__(self, environment: EngineEnvironment, folder: Path, jobs: int) -> None:
        self._environment, self._folder, self._jobs = environment, folder, jobs
        self._host = LocalEngineHost(counters={}, stop_grace_s=3.0)
        self._models = {False: folder / "tiny-dense", True: folder / "tiny-moe"}
        for with_experts, path in self._models.items():
            make_tiny_model(path, moe=with_experts)
        self._slots: SimpleQueue[int] = SimpleQueue()
        for slot in range(jobs):
            self._slots.put(slot)
        self._writing = threading.Lock()
        self._stop = threading.Event()

    def make(self, cases: list[Case]) -> None:
        with ThreadPoolExecutor(self._jobs) as pool:
            waiting = {pool.submit(self._one, case): case for case in cases}
            try:
                for at, (done, case) in enumerate(waiting.items(), 1):
                    label = done.result()
                    print(f"{at}/{len(cases)}  {case.id}  ->  {label}", flush=True)
            except BaseException:
                self._stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def check(self) -> None:
        """Ask the engine's own parser and validation about every command; old answers are remembered."""
        first, *lines = DATA.read_text(encoding="utf-8").splitlines()
        labels = [Label(**json.loads(line)) for line in lines]
        specs = [self._spec(_case(label), 0).processes[0] for label in labels]
        filled = [
            [
                word.replace("{host:server}", "127.0.0.1").replace("{port:server}", "8000")
                for word in spec.argv
            ]
            for spec in specs
        ]
        env = dict(self._spec(Case(), 0).processes[0].env)
        told = EngineEnvironments().refusals(LAUNCHER, self._environment, filled, env=env)
        checked = [
            replace(label, checked=self._without_paths(why or ""))
            for label, why in zip(labels, told, strict=True)
        ]
        text = "".join(f"{line}\n" for line in (first, *(json.dumps(asdict(each)) for each in checked)))
        DATA.write_text(text, encoding="utf-8")

    def _one(self, case: Case) -> str:
        slot = self._slots.get()
        try:
            started_s = time.monotonic()
            failure = self._launch(case, slot)
            seconds = round(time.monotonic() - started_s, 1)
        finally:
            self._slots.put(slot)
        if failure and failure.reaction is not Reaction.INFEASIBLE:
            return f"not labelled, {failure.reaction}: {failure.failure_class}: {failure.line}"
        label = Label(
            id=case.id,
            model=case.model,
            words=case.config.words,
            env=case.env,
            outcome=failure.failure_class if failure else RUNS,
            phase=failure.phase if failure else "",
            exit_code=failure.exit_code if failure else None,
            line=self._without_paths(failure.line) if failure else "",
            seconds=seconds,
        )
        with self._writing, DATA.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(label)) + "\n")
        return f"{label.outcome} after {seconds:.0f} s  {label.line[:120]}"

    def _launch(self, case: Case, slot: int) -> Failure | None:
        spec = self._spec(case, slot)
        workdir = self._folder / re.sub(r"\W+", "-", case.id)
        try:
            with self._host.serving(
                spec, workdir=workdir, start_timeout_s=START_TIMEOUT_S, cancelled=self._stop.is_set
            ) as engine:
                error = _first_answer(engine.endpoint)
                return LAUNCHER.classify_failure(engine.evidence(error, loading=False)) if error else None
        except EngineDiedError as died:
            return LAUNCHER.classify_failure(died.evidence)

    def _spec(self, case: Case, slot: int) -> LaunchSpec:
        config = case.config
        cores = sorted(os.sched_getaffinity(0))
        devices = tuple(
            Device(DeviceKind.CPU, cores[(slot + at) % len(cores)], "core", f"cpu-{at}", 1 << 30)
            for at in range(config.devices)
        )
        context = LaunchContext(
            model=str(self._models[case.moe]), environment=self._environment, devices=devices, env=case.env
        )
        try:
            return LAUNCHER.launch_spec(config, context)
        except InfeasibleConfigError:
            unasked = replace(context, environment=replace(self._environment, flags={}))
            return LAUNCHER.launch_spec(_forced(config), unasked)

    def _without_paths(self, line: str) -> str:
        """A log line without the places of this run."""
        places = {str(self._folder): "MODELS", str(self._environment.executable.parent.parent): "ENGINE"}
        for place, name in {**places, str(Path.home()): "HOME", str(ROOT): "."}.items():
            line = line.replace(place, name)
        return line


def _case(label: Label) -> Case:
    return Case({**label.words}, moe=label.model == "tiny-moe", env=label.env)


def _forced(config: EngineConfig) -> EngineConfig:
    """The same configuration as plain arguments, which no rule of the launcher reads."""
    kept = {word: value for word, value in config.words.items() if word in OF_THE_LAUNCH}
    tokens = [
        token for word, said in TABLE.tokens(config).items() if word not in OF_THE_LAUNCH for token in said
    ]
    speculation = {
        "method": config.speculation,
        "num_speculative_tokens": config.speculative_tokens,
        "prompt_lookup_max": config.prompt_lookup_max,
    }
    if given := {key: value for key, value in speculation.items() if value is not None}:
        tokens += ["--speculative-config", json.dumps(given)]
    if config.tool_parser:
        tokens += ["--enable-auto-tool-choice", "--tool-call-parser", config.tool_parser]
    words = {**kept, "extra_args": (*tokens, *config.extra_args)}
    return EngineConfig.model_validate({"engine": config.engine, **words})


def _first_answer(endpoint: Endpoint) -> str:
    """Ask for a few tokens; returns what went wrong, empty for an answer."""
    address = urlsplit(endpoint.base_url)
    connection = http.client.HTTPConnection(
        address.hostname or "", address.port or 80, timeout=REQUEST_TIMEOUT_S
    )
    request = {"model": endpoint.model, "prompt": list(range(5, 45)), "max_tokens": 4, "ignore_eos": True}
    try:
        connection.request(
            "POST", "/v1/completions", json.dumps(request), {"Content-Type": "application/json"}
        )
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return f"no answer: {error!r}"
    else:
        return "" if answer.status == http.HTTPStatus.OK else f"HTTP {answer.status}: {text}"
    finally:
        connection.close()


def _known(environment: EngineEnvironment) -> set[str]:
    """Ids of the labels that are there; writes the first line anew: a probe may have learned to ask more."""
    labels = DATA.read_text(encoding="utf-8").splitlines()[1:] if DATA.exists() else []
    answers = {"version": environment.version, "kind": environment.kind, "flags": environment.flags}
    first = json.dumps({"environment": answers}, sort_keys=True)
    DATA.parent.mkdir(parents=True, exist_ok=True)
    DATA.write_text("".join(f"{line}\n" for line in (first, *labels)), encoding="utf-8")
    return {json.loads(line)["id"] for line in labels}


if __name__ == "__main__":
    main()
