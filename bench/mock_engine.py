"""A stand-in for `vllm serve`: a real process and a real HTTP server, no model, and known timing.

    python mock_engine.py serve MODEL --port 8000 --max-num-seqs 32 [any other flag of vLLM is ignored]

Timing, from the environment: a request waits for one of `--max-num-seqs` places, then MOCK_TTFT_MS (20) to
its first token, then MOCK_TPOT_MS (2) a token, longer by MOCK_TPOT_PER_SEQ_MS (0) for each request that runs
beside it, with MOCK_JITTER (0.1, relative standard deviation, seed MOCK_SEED) and for the first token
MOCK_TTFT_JITTER (0). MOCK_PACE_JITTER (0) makes whole requests faster or slower: jitter of tokens averages
out over an answer, and a closed loop would run in lockstep. MOCK_START_S (0) passes before it listens.

MOCK_LOG names a file that gets one JSON line per request, to judge load clients by: when it was received and
when each of its tokens was written, in monotonic seconds; its id, which as in vLLM comes from the client's
X-Request-Id where there is one; and `mock_wire.digest` of its prompt, for clients that send no id.

MOCK_FLOOD=N (0) is for finding the limit of clients: streams come as fast as one core can write them, from
bytes prepared beforehand, still one token per event and one HTTP chunk per event, but N events a write on
average (1 to 2N-1 at random), by turns over all running requests. The log then has the times of the first and
the last write only.

Failures, as vLLM shows them: `--block-size 16` (refused at start), `--pipeline-parallel-size 2` (healthy, but
dies at the first request, exit code 0), `--no-such-flag` (exit code 2), and by `--mock-fail` or MOCK_FAIL:
never-ready, unknown-flag, oom (at start), die-under-load:N (killed at request N), stall:N (from request N on
tokens stop), spawn-child (a child in a session of its own that ignores SIGTERM).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, SupportsIndex, TextIO

from mock_flood import Flood
from mock_wire import STREAM_END, STREAM_HEAD, digest, event

ENGINE_DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."
CHILD = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(3600)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long things take, s."""

    ttft_s: float
    tpot_s: float
    tpot_per_seq_s: float
    jitter: float
    ttft_jitter: float
    pace_jitter: float
    seed: int

    @classmethod
    def from_environment(cls) -> Timing:
        def number(name: str, default: float) -> float:
            return float(os.environ.get(name, default))

        return cls(
            ttft_s=number("MOCK_TTFT_MS", 20) / 1e3,
            tpot_s=number("MOCK_TPOT_MS", 2) / 1e3,
            tpot_per_seq_s=number("MOCK_TPOT_PER_SEQ_MS", 0) / 1e3,
            jitter=number("MOCK_JITTER", 0.1),
            ttft_jitter=number("MOCK_TTFT_JITTER", 0),
            pace_jitter=number("MOCK_PACE_JITTER", 0),
            seed=int(number("MOCK_SEED", 0)),
        )


@dataclass(slots=True, kw_only=True)
class Engine:
    """State of the engine, and the counters it shows."""

    model: str
    most_running: int
    most_tokens: int
    timing: Timing
    dies_at_request: int | None = None
    dies_politely: bool = False
    stalls_at_request: int | None = None
    truth: TextIO | None = None
    flood: Flood | None = None
    requests: int = 0
    waiting: int = 0
    running: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    dead: bool = False
    random: random.Random = field(init=False)
    places: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self.random = random.Random(self.timing.seed)
        self.places = asyncio.Semaphore(self.most_running)

    def first_step_s(self) -> float:
        """Time from a request's place to its first token."""
        return self.timing.ttft_s * max(0.0, self.random.gauss(1.0, self.timing.ttft_jitter))

    def pace(self) -> float:
        """Factor on all times between a request's tokens."""
        return max(0.1, self.random.gauss(1.0, self.timing.pace_jitter))

    def step_s(self) -> float:
        """Time to the next token of a running request."""
        mean_s = self.timing.tpot_s + self.timing.tpot_per_seq_s * (self.running - 1)
        return mean_s * max(0.0, self.random.gauss(1.0, self.timing.jitter))

    def metrics(self) -> str:
        values = {
            "num_requests_running": self.running,
            "num_requests_waiting": self.waiting,
            "kv_cache_usage_perc": self.running / self.most_running,
            "prompt_tokens_total": self.prompt_tokens,
            "generation_tokens_total": self.generated_tokens,
            "num_preemptions_total": 0,
            "prefix_cache_queries_total": self.prompt_tokens,
            "prefix_cache_hits_total": 0,
        }
        labels = f'{{engine="0",model_name="{self.model}"}}'
        return "".join(f"vllm:{name}{labels} {float(value)}\n" for name, value in values.items())


@dataclass(frozen=True, slots=True)
class Arrival:
    """When a request was received, monotonic seconds, and the id that its client gave it."""

    received_s: float
    request_id: str | None


class RefusedError(Exception):
    """A request that gets an error for an answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class StampedReader(asyncio.StreamReader):
    """Knows when its latest bytes came; those that came in a burst do not wait for the handling of others."""

    fed_s = float("nan")

    def feed_data(self, data: Iterable[SupportsIndex]) -> None:
        self.fed_s = time.monotonic()
        super().feed_data(data)


class Connection:
    """One HTTP/1.1 connection, kept alive."""

    def __init__(self, engine: Engine, reader: StampedReader, writer: asyncio.StreamWriter) -> None:
        self.engine, self.reader, self.writer = engine, reader, writer

    async def serve(self) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while not self.writer.is_closing():
                head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                method, path, _ = head[0].split(" ")
                headers = {
                    k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)
                }
                body = await self.reader.readexactly(int(headers.get("content-length", 0)))
                try:
                    arrival = Arrival(self.reader.fed_s, headers.get("x-request-id"))
                    await self.answer(method, path, body, arrival)
                except RefusedError as refusal:
                    kind = "BadRequestError" if refusal.status < 500 else "InternalServerError"
                    error = {"message": str(refusal), "type": kind, "param": None, "code": refusal.status}
                    self.respond(refusal.status, json.dumps({"error": error}).encode())
                await self.writer.drain()
                if headers.get("connection", "").lower() == "close":
                    break
        self.writer.close()

    async def answer(self, method: str, path: str, body: bytes, arrival: Arrival) -> None:
        engine = self.engine
        if method == "GET" and path == "/health":
            self.respond(503 if engine.dead else 200, b"")
        elif method == "GET" and path == "/v1/models":
            card = {"id": engine.model, "object": "model", "max_model_len": engine.most_tokens}
            self.respond(200, json.dumps({"object": "list", "data": [card]}).encode())
        elif method == "GET" and path == "/metrics":
            self.respond(200, engine.metrics().encode(), "text/plain; version=0.0.4")
        elif method == "POST" and path == "/v1/completions":
            await Completion(self, body, arrival).run()
        else:
            raise RefusedError(404, "Not Found")

    def respond(self, status: int, body: bytes, kind: str = "application/json") -> None:
        head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
        self.writer.write(head.encode() + body)

    def begin_stream(self) -> None:
        self.writer.write(STREAM_HEAD)

    def send_event(self, data: str) -> None:
        self.writer.write(event(data))

    def end_stream(self) -> None:
        self.writer.write(STREAM_END)


class Completion:
    """One request to /v1/completions."""

    def __init__(self, connection: Connection, body: bytes, arrival: Arrival) -> None:
        self.connection, self.engine, self.received_s = connection, connection.engine, arrival.received_s
        self.id = f"cmpl-{arrival.request_id or uuid.uuid4().hex}"
        try:
            self.asked: dict[str, Any] = json.loads(body)
            prompt = self.asked["prompt"]
        except (ValueError, KeyError, TypeError) as error:
            raise RefusedError(400, f"the body is no completion request: {error!r}") from error
        self.prompt: list[int] = list(prompt.encode()) if isinstance(prompt, str) else prompt
        self.wanted = int(self.asked.get("max_tokens", 16))
        if len(self.prompt) + self.wanted > self.engine.most_tokens:
            raise RefusedError(
                400,
                f"This model's maximum context length is {self.engine.most_tokens} tokens. However, you "
                f"requested {self.wanted} output tokens and your prompt has {len(self.prompt)} input tokens",
            )
        self.streams = bool(self.asked.get("stream"))
        self.options: dict[str, Any] = self.asked.get("stream_options") or {}
        self.token_s: list[float] = []
        self.first_due_s: float | None = None
        self.made = 0

    async def run(self) -> None:
        engine = self.engine
        engine.requests += 1
        number = engine.requests
        if engine.dies_at_request is not None and number >= engine.dies_at_request:
            self.die()
            return
        engine.waiting += 1
        try:
            await engine.places.acquire()
        finally:
            engine.waiting -= 1
        engine.running += 1
        engine.prompt_tokens += len(self.prompt)
        try:
            if engine.flood and self.streams:
                await self.pour(engine.flood)
            else:
                await self.generate(
                    stalls=engine.stalls_at_request is not None and number >= engine.stalls_at_request
                )
        finally:
            engine.running -= 1
            engine.places.release()
            # Before the answer's end: who has all of it finds it in the log.
            self.tell_truth()
        self.finish()

    async def generate(self, *, stalls: bool) -> None:
        engine, connection = self.engine, self.connection
        if self.streams:
            connection.begin_stream()
        pace = engine.pace()
        due_s = self.first_due_s = time.monotonic() + engine.first_step_s()
        while self.made < self.wanted and not connection.writer.is_closing():
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            if stalls and self.made:
                await asyncio.sleep(3600)
            text = self.text(self.made)
            self.made += 1
            chunk = event(self.chunk(text, self.made)) if self.streams else b""
            # Before the write: on loopback the client can have the token before the call returns.
            self.token_s.append(time.monotonic())
            connection.writer.write(chunk)
            engine.generated_tokens += 1
            await connection.writer.drain()
            due_s += pace * engine.step_s()

    async def pour(self, flood: Flood) -> None:
        """Stream as fast as may be."""
        stream = flood.start(self.connection.writer.get_extra_info("socket").fileno(), self.wanted)
        await stream.ended
        self.made, self.token_s = stream.made, stream.write_s
        self.engine.generated_tokens += self.made

    def finish(self) -> None:
        """Send what comes after the last token, or the whole answer."""
        connection, usage = self.connection, {"usage": self.usage(self.made)}
        if not self.streams:
            text = "".join(self.text(index) for index in range(self.made))
            whole = self.envelope() | {"choices": [self.choice(text, "length")]}
            connection.respond(200, json.dumps(whole | usage).encode())
            return
        if self.options.get("include_usage"):
            connection.send_event(json.dumps(self.envelope() | {"choices": []} | usage))
        connection.end_stream()

    def text(self, index: int) -> str:
        """A token's text; it depends on the prompt alone: every configuration answers alike."""
        return f" t{(sum(self.prompt) + 7 * index) % 997}"

    def chunk(self, text: str, count: int) -> str:
        chunk = self.envelope() | {"choices": [self.choice(text, "length" if count == self.wanted else None)]}
        if self.options.get("continuous_usage_stats"):
            chunk["usage"] = self.usage(count)
        return json.dumps(chunk)

    def envelope(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": 0,
            "model": self.engine.model,
        }

    def choice(self, text: str, finish_reason: str | None) -> dict[str, Any]:
        return {
            "index": 0,
            "text": text,
            "logprobs": None,
            "finish_reason": finish_reason,
            "stop_reason": None,
        }

    def usage(self, count: int) -> dict[str, int]:
        prompt = len(self.prompt)
        return {"prompt_tokens": prompt, "total_tokens": prompt + count, "completion_tokens": count}

    def die(self) -> None:
        """End the engine: at once, or as vLLM does whose core died under its server."""
        if not self.engine.dies_politely:
            os.kill(os.getpid(), signal.SIGKILL)
        if not self.engine.dead:
            self.engine.dead = True
            say_traceback(f"vllm.v1.engine.exceptions.EngineDeadError: {ENGINE_DEAD}")
            asyncio.get_running_loop().call_later(0.3, os._exit, 0)
        if not self.streams:
            raise RefusedError(500, ENGINE_DEAD)
        error = {"message": ENGINE_DEAD, "type": "InternalServerError", "param": None, "code": 500}
        self.connection.begin_stream()
        self.connection.send_event(json.dumps({"error": error}))
        self.connection.end_stream()

    def tell_truth(self) -> None:
        if self.engine.truth is None:
            return
        line = {
            "id": self.id,
            "prompt": digest(self.asked["prompt"]),
            "received_s": self.received_s,
            "first_due_s": self.first_due_s,
            "token_s": self.token_s,
            "prompt_tokens": len(self.prompt),
            "output_tokens": self.made,
        }
        self.engine.truth.write(json.dumps(line) + "\n")


def say_traceback(last_line: str) -> None:
    print(f"Traceback (most recent call last):\n{last_line}", file=sys.stderr, flush=True)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="vllm", allow_abbrev=False)
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("model")
    parser.add_argument("--served-model-name")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--max-model-len", type=int, default=8192)
    parser.add_argument("--block-size", type=int)
    parser.add_argument("--pipeline-parallel-size", type=int, default=1)
    parser.add_argument("--mock-fail", default=os.environ.get("MOCK_FAIL", ""))
    args, ignored = parser.parse_known_args(argv)
    if args.mock_fail == "unknown-flag" or "--no-such-flag" in ignored:
        parser.error("unrecognized arguments: --no-such-flag")
    return args


def fail_at_start(args: argparse.Namespace, mode: str) -> None:
    if args.block_size == 16:
        say_traceback("ValueError: No common block size for 16. ")
        sys.exit(1)
    if mode == "oom":
        say_traceback("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.")
        sys.exit(1)
    if mode == "never-ready":
        time.sleep(3600)
    if mode == "spawn-child":
        child = subprocess.Popen([sys.executable, "-I", "-S", "-c", CHILD], start_new_session=True)
        print(f"mock child has pid {child.pid}", flush=True)


def make_engine(args: argparse.Namespace, mode: str, at_request: int | None) -> Engine:
    pipeline = args.pipeline_parallel_size > 1
    events_per_write = int(os.environ.get("MOCK_FLOOD", "0"))
    return Engine(
        model=args.served_model_name or args.model,
        most_running=args.max_num_seqs,
        most_tokens=args.max_model_len,
        timing=Timing.from_environment(),
        dies_at_request=1 if pipeline else at_request if mode == "die-under-load" else None,
        dies_politely=pipeline,
        stalls_at_request=at_request if mode == "stall" else None,
        flood=Flood(events_per_write) if events_per_write else None,
    )


async def serve(engine: Engine, host: str, port: int) -> None:
    loop = asyncio.get_running_loop()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert isinstance(reader, StampedReader)
        await Connection(engine, reader, writer).serve()

    def accept() -> asyncio.StreamReaderProtocol:
        return asyncio.StreamReaderProtocol(StampedReader(loop=loop), connected, loop=loop)

    # A burst of connections waits in the backlog; the default of 100 would refuse some.
    server = await loop.create_server(accept, host, port, backlog=2048)
    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    print(f"mock engine listens on {host}:{port}", flush=True)
    await stopped.wait()
    server.close()


def main() -> None:
    args = parse(sys.argv[1:])
    mode, _, number = args.mock_fail.partition(":")
    time.sleep(float(os.environ.get("MOCK_START_S", "0")))
    fail_at_start(args, mode)
    engine = make_engine(args, mode, int(number) if number else None)
    with contextlib.ExitStack() as stack:
        if at := os.environ.get("MOCK_LOG"):
            # By the line: a mock that is killed leaves what it logged.
            engine.truth = stack.enter_context(Path(at).open("a", buffering=1))
        asyncio.run(serve(engine, args.host, args.port))


if __name__ == "__main__":
    main()
