"""A stand-in for `vllm serve`: a real process and a real HTTP server, no model, and known timing.

    python mock_engine.py serve MODEL --port 8000 --max-num-seqs 32 [any other flag of vLLM is ignored]

Timing, from the environment: a request waits for one of `--max-num-seqs` places, then MOCK_TTFT_MS (20) to
its first token, then MOCK_TPOT_MS (2) a token, longer by MOCK_TPOT_PER_SEQ_MS (0) for each request that runs
beside it, with MOCK_JITTER (0.1, relative standard deviation, seed MOCK_SEED). MOCK_START_S (0) passes before
it listens. MOCK_LOG names a file that gets one JSON line per request with the times at which its tokens were
truly written, in monotonic seconds, to judge load clients by.

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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ENGINE_DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."
CHILD = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(3600)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long things take, s."""

    ttft_s: float
    tpot_s: float
    tpot_per_seq_s: float
    jitter: float
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
    truth: Path | None = None
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


class RefusedError(Exception):
    """A request that gets an error for an answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Connection:
    """One HTTP/1.1 connection, kept alive."""

    def __init__(self, engine: Engine, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.engine, self.reader, self.writer = engine, reader, writer

    async def serve(self) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while not self.writer.is_closing():
                head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                received_s = time.monotonic()
                method, path, _ = head[0].split(" ")
                headers = {
                    k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)
                }
                body = await self.reader.readexactly(int(headers.get("content-length", 0)))
                try:
                    await self.answer(method, path, body, received_s)
                except RefusedError as refusal:
                    kind = "BadRequestError" if refusal.status < 500 else "InternalServerError"
                    error = {"message": str(refusal), "type": kind, "param": None, "code": refusal.status}
                    self.respond(refusal.status, json.dumps({"error": error}).encode())
                await self.writer.drain()
                if headers.get("connection", "").lower() == "close":
                    break
        self.writer.close()

    async def answer(self, method: str, path: str, body: bytes, received_s: float) -> None:
        engine = self.engine
        if method == "GET" and path == "/health":
            self.respond(503 if engine.dead else 200, b"")
        elif method == "GET" and path == "/v1/models":
            card = {"id": engine.model, "object": "model", "max_model_len": engine.most_tokens}
            self.respond(200, json.dumps({"object": "list", "data": [card]}).encode())
        elif method == "GET" and path == "/metrics":
            self.respond(200, engine.metrics().encode(), "text/plain; version=0.0.4")
        elif method == "POST" and path == "/v1/completions":
            await Completion(self, body, received_s).run()
        else:
            raise RefusedError(404, "Not Found")

    def respond(self, status: int, body: bytes, kind: str = "application/json") -> None:
        head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
        self.writer.write(head.encode() + body)

    def begin_stream(self) -> None:
        self.writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )

    def send_event(self, data: str) -> None:
        event = f"data: {data}\n\n".encode()
        self.writer.write(b"%x\r\n%b\r\n" % (len(event), event))

    def end_stream(self) -> None:
        self.send_event("[DONE]")
        self.writer.write(b"0\r\n\r\n")


class Completion:
    """One request to /v1/completions."""

    def __init__(self, connection: Connection, body: bytes, received_s: float) -> None:
        self.connection, self.engine, self.received_s = connection, connection.engine, received_s
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
        try:
            await self.generate(
                stalls=engine.stalls_at_request is not None and number >= engine.stalls_at_request
            )
        finally:
            engine.running -= 1
            engine.places.release()
            self.tell_truth()

    async def generate(self, *, stalls: bool) -> None:
        engine, connection = self.engine, self.connection
        engine.prompt_tokens += len(self.prompt)
        if self.streams:
            connection.begin_stream()
        due_s = time.monotonic() + engine.timing.ttft_s
        texts: list[str] = []
        while len(texts) < self.wanted and not connection.writer.is_closing():
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            if stalls and texts:
                await asyncio.sleep(3600)
            # Depends on the prompt alone: every configuration answers alike.
            texts.append(f" t{(sum(self.prompt) + 7 * len(texts)) % 997}")
            engine.generated_tokens += 1
            if self.streams:
                connection.send_event(self.chunk(texts[-1], len(texts)))
            self.token_s.append(time.monotonic())
            await connection.writer.drain()
            due_s += engine.step_s()
        if self.streams:
            if self.options.get("include_usage"):
                usage_chunk = self.envelope() | {"choices": [], "usage": self.usage(len(texts))}
                connection.send_event(json.dumps(usage_chunk))
            connection.end_stream()
        else:
            whole = self.envelope() | {"choices": [self.choice("".join(texts), "length")]}
            connection.respond(200, json.dumps(whole | {"usage": self.usage(len(texts))}).encode())

    def chunk(self, text: str, count: int) -> str:
        chunk = self.envelope() | {"choices": [self.choice(text, "length" if count == self.wanted else None)]}
        if self.options.get("continuous_usage_stats"):
            chunk["usage"] = self.usage(count)
        return json.dumps(chunk)

    def envelope(self) -> dict[str, Any]:
        return {
            "id": f"cmpl-{id(self):x}",
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
            "received_s": self.received_s,
            "token_s": self.token_s,
            "prompt_tokens": len(self.prompt),
            "output_tokens": len(self.token_s),
        }
        with self.engine.truth.open("a") as file:
            file.write(json.dumps(line) + "\n")


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


async def serve(args: argparse.Namespace, mode: str, at_request: int | None) -> None:
    pipeline = args.pipeline_parallel_size > 1
    truth = os.environ.get("MOCK_LOG")
    engine = Engine(
        model=args.served_model_name or args.model,
        most_running=args.max_num_seqs,
        most_tokens=args.max_model_len,
        timing=Timing.from_environment(),
        dies_at_request=1 if pipeline else at_request if mode == "die-under-load" else None,
        dies_politely=pipeline,
        stalls_at_request=at_request if mode == "stall" else None,
        truth=Path(truth) if truth else None,
    )

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await Connection(engine, reader, writer).serve()

    # A burst of connections waits in the backlog; the default of 100 would refuse some.
    server = await asyncio.start_server(connected, args.host, args.port, backlog=2048)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    print(f"mock engine listens on {args.host}:{args.port}", flush=True)
    await stopped.wait()
    server.close()


def main() -> None:
    args = parse(sys.argv[1:])
    mode, _, number = args.mock_fail.partition(":")
    time.sleep(float(os.environ.get("MOCK_START_S", "0")))
    fail_at_start(args, mode)
    asyncio.run(serve(args, mode, int(number) if number else None))


if __name__ == "__main__":
    main()
