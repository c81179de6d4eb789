"""The mock engine: what it answers, what it measures of itself, and the ways in which it fails."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_environment import FLAGS, MOCK_ENGINE, make_fake_environment

pytestmark = pytest.mark.alone

DEADLINE_S = 30.0


@contextmanager
def mock(*flags: str, **env: str) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
    process = start("--port", str(port), *flags, **env)
    try:
        deadline_s = time.monotonic() + DEADLINE_S
        while not listens(port):
            assert process.poll() is None
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        yield port, process
    finally:
        process.kill()
        process.communicate(timeout=DEADLINE_S)


def start(*flags: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(MOCK_ENGINE), "serve", "tiny", *flags],
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def listens(port: int) -> bool:
    try:
        return request(port, "GET", "/health")[0] == 200
    except ConnectionRefusedError:
        return False


def request(
    port: int, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
    try:
        connection.request(method, path, json.dumps(body) if body is not None else None, headers or {})
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def logged(truth: Path) -> list[Any]:
    return [json.loads(line) for line in truth.read_text().splitlines()]


def stream(port: int, tokens: int = 5, **more: Any) -> list[Any]:
    body = {"model": "tiny", "prompt": [1, 2, 3], "max_tokens": tokens, "stream": True, **more}
    status, text = request(port, "POST", "/v1/completions", body)
    assert status == 200
    events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]


def test_streams_one_chunk_per_token_and_the_usage() -> None:
    with mock() as (port, _):
        *chunks, last = stream(port, stream_options={"include_usage": True})
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 4 + ["length"]
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 3, "total_tokens": 8, "completion_tokens": 5}


def test_answers_whole_and_streamed_requests_alike() -> None:
    with mock() as (port, _):
        streamed = "".join(chunk["choices"][0]["text"] for chunk in stream(port))
        _, body = request(port, "POST", "/v1/completions", {"prompt": [1, 2, 3], "max_tokens": 5})
        other = stream(port, prompt=[9, 9])
    assert json.loads(body)["choices"][0]["text"] == streamed
    assert other[0]["choices"][0]["text"] not in streamed


def test_refuses_what_is_longer_than_its_context() -> None:
    with mock("--max-model-len", "10") as (port, _):
        status, body = request(port, "POST", "/v1/completions", {"prompt": [1] * 8, "max_tokens": 3})
    assert status == 400
    assert "maximum context length is 10" in json.loads(body)["error"]["message"]


def test_counts_what_it_did() -> None:
    with mock() as (port, _):
        stream(port)
        _, metrics = request(port, "GET", "/metrics")
    assert 'vllm:generation_tokens_total{engine="0",model_name="tiny"} 5.0' in metrics
    assert 'vllm:prompt_tokens_total{engine="0",model_name="tiny"} 3.0' in metrics


def test_requests_beyond_its_places_wait(tmp_path: Path) -> None:
    truth = tmp_path / "truth.jsonl"
    with mock("--max-num-seqs", "2", MOCK_LOG=str(truth)) as (port, _), ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: stream(port, 10), range(6)))
    rows = logged(truth)
    assert len(rows) == 6
    for row in rows:
        assert row["token_s"] == sorted(row["token_s"])
        assert row["received_s"] < row["token_s"][0]
        overlapping = [o for o in rows if o["token_s"][0] <= row["token_s"][0] <= o["token_s"][-1]]
        assert len(overlapping) <= 2


def test_truth_follows_the_timing_asked_for(tmp_path: Path) -> None:
    truth = tmp_path / "truth.jsonl"
    with mock(MOCK_LOG=str(truth), MOCK_TTFT_MS="80", MOCK_TPOT_MS="10") as (port, _):
        stream(port, 11)
    row = json.loads(truth.read_text())
    # Lower bounds only: a busy machine makes things late, never early.
    assert row["token_s"][0] - row["received_s"] >= 0.080
    assert row["token_s"][-1] - row["token_s"][0] >= 0.060


def test_the_first_token_can_vary_too(tmp_path: Path) -> None:
    truth = tmp_path / "truth.jsonl"
    with mock(MOCK_LOG=str(truth), MOCK_TTFT_MS="40", MOCK_TTFT_JITTER="0.5") as (port, _):
        for _ in range(8):
            stream(port, 1)
    waits_s = [row["token_s"][0] - row["received_s"] for row in logged(truth)]
    # Without jitter none comes before its time.
    assert min(waits_s) < 0.040


def test_whole_requests_can_vary_too(tmp_path: Path) -> None:
    truth = tmp_path / "truth.jsonl"
    settings = {"MOCK_TPOT_MS": "5", "MOCK_JITTER": "0", "MOCK_PACE_JITTER": "0.5"}
    with mock(MOCK_LOG=str(truth), **settings) as (port, _):
        for _ in range(8):
            stream(port, 21)
    lasted_s = [row["token_s"][-1] - row["token_s"][0] for row in logged(truth)]
    # Without it none is done before its time.
    assert min(lasted_s) < 20 * 0.005


def test_the_log_names_requests_by_their_id_and_by_their_prompt(tmp_path: Path) -> None:
    truth = tmp_path / "truth.jsonl"
    with mock(MOCK_LOG=str(truth)) as (port, _):
        anonymous = [stream(port)[0]["id"] for _ in range(2)]
        body = {"prompt": "hello", "max_tokens": 1}
        _, answer = request(port, "POST", "/v1/completions", body, {"X-Request-Id": "mine"})
    rows = logged(truth)
    assert json.loads(answer)["id"] == "cmpl-mine"
    assert [row["id"] for row in rows] == [*anonymous, "cmpl-mine"]
    assert len(set(anonymous)) == 2
    assert rows[0]["prompt"] == rows[1]["prompt"] != rows[2]["prompt"]


def test_flood_streams_one_token_per_event_in_turns(tmp_path: Path) -> None:
    truth = tmp_path / "truth.jsonl"
    with mock(MOCK_LOG=str(truth), MOCK_FLOOD="4") as (port, _), ThreadPoolExecutor(4) as pool:
        options = {"stream_options": {"include_usage": True}}
        answers = list(pool.map(lambda _: stream(port, 100, **options), range(4)))
    for *chunks, last in answers:
        assert [chunk["choices"][0]["text"] for chunk in chunks] == [f" t{n}" for n in range(1, 101)]
        assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 99 + ["length"]
        assert last["usage"] == {"prompt_tokens": 3, "total_tokens": 103, "completion_tokens": 100}
    for row in logged(truth):
        first_s, last_s = row["token_s"]
        assert row["received_s"] <= first_s < last_s
        assert row["output_tokens"] == 100


@pytest.mark.parametrize(
    ("flags", "exit_code", "line"),
    [
        (["--block-size", "16"], 1, "ValueError: No common block size for 16"),
        (["--no-such-flag"], 2, "error: unrecognized arguments: --no-such-flag"),
        (["--mock-fail=unknown-flag"], 2, "error: unrecognized arguments: --no-such-flag"),
        (["--mock-fail", "oom"], 1, "torch.OutOfMemoryError: CUDA out of memory"),
    ],
)
def test_fails_at_start_as_vllm_does(flags: list[str], exit_code: int, line: str) -> None:
    process = start(*flags)
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == exit_code
    assert line in output


def test_pipeline_parallel_is_healthy_and_dies_at_its_first_request() -> None:
    with mock("--pipeline-parallel-size", "2") as (port, process):
        (error,) = stream(port)
        assert "choices" not in error
        assert error["error"]["code"] == 500
        assert request(port, "GET", "/health")[0] == 503
        output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    assert "EngineDeadError" in output


def test_can_be_killed_under_load() -> None:
    with mock("--mock-fail=die-under-load:2") as (port, process):
        stream(port)
        with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
            stream(port)
        assert process.wait(DEADLINE_S) == -signal.SIGKILL


def test_can_stall_after_the_first_token() -> None:
    with mock("--mock-fail=stall:1") as (port, _):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1.0)
        connection.request(
            "POST", "/v1/completions", json.dumps({"prompt": [1], "max_tokens": 3, "stream": True})
        )
        response = connection.getresponse()
        assert response.readline().startswith(b"data: ")
        response.readline()
        with pytest.raises(TimeoutError):
            response.readline()
        connection.close()
        assert listens(port)


def test_the_fake_environment_passes_for_an_engine(tmp_path: Path) -> None:
    at = make_fake_environment(tmp_path / "engine dir")
    probed = subprocess.run(
        [at / "bin" / "python", "-c", "anything"], capture_output=True, check=True, timeout=DEADLINE_S
    )
    assert json.loads(probed.stdout) == {"version": "0.32.0+mock", "device": "cpu", "flags": FLAGS}
    refused = subprocess.run(
        [at / "bin" / "vllm", "serve", "a model", "--block-size", "16"],
        capture_output=True,
        check=False,
        timeout=DEADLINE_S,
    )
    assert refused.returncode == 1
