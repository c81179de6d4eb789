"""Logs of gateways and of OpenTelemetry: what each says of a request, and traffic that says no more."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autotune.adapters.files.logged_requests import LogFormat, LoggedRequest, ReadingTally, logged_requests
from autotune.adapters.files.synthetic_model import make_tiny_model
from autotune.adapters.files.traffic_files import read_traffic, write_traffic
from autotune.adapters.files.traffic_logs import traffic_from
from autotune.domain.basics.errors import InputError

LITELLM = {
    "id": "chatcmpl-1",
    "call_type": "acompletion",
    "status": "success",
    "prompt_tokens": 42,
    "completion_tokens": 17,
    "startTime": 1752570000.25,
    "endTime": 1752570001.5,
    "metadata": {"user_api_key_alias": "team"},
    "messages": [{"role": "user", "content": "what is a lighthouse"}],
    "response": {"usage": {"prompt_tokens": 1, "completion_tokens": 1}},
}
BODIES = {
    "@timestamp": "2025-07-15T09:00:00.250Z",
    "status": 200,
    "request_body": json.dumps({"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}),
    "response_body": {"usage": {"prompt_tokens": 42, "completion_tokens": 17}},
    "session_id": "s-9",
}


def attribute(key: str, value: Any) -> dict[str, Any]:
    kinds = {str: "stringValue", int: "intValue", float: "doubleValue"}
    return {"key": key, "value": {kinds[type(value)]: str(value) if isinstance(value, int) else value}}


def span(said: dict[str, Any], **parts: Any) -> dict[str, Any]:
    attributes = [attribute(key, value) for key, value in said.items()]
    return {"startTimeUnixNano": "1752570000250000000", "attributes": attributes, **parts}


def spans(*listed: dict[str, Any]) -> dict[str, Any]:
    return {"resourceSpans": [{"resource": {}, "scopeSpans": [{"scope": {}, "spans": list(listed)}]}]}


USAGE = {
    "gen_ai.operation.name": "chat",
    "gen_ai.usage.input_tokens": 42,
    "gen_ai.usage.output_tokens": 17,
}
SAID = json.dumps([{"role": "user", "parts": [{"type": "text", "content": "what is a lighthouse"}]}])


def read(path: Path, *rows: Any, **options: Any) -> tuple[list[LoggedRequest], ReadingTally]:
    file = path / "log.jsonl"
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    tally = ReadingTally()
    return list(logged_requests([file], tally, **options)), tally


def one(path: Path, row: Any, **options: Any) -> LoggedRequest:
    (request,), _ = read(path, row, **options)
    return request


def test_litellms_payload(tmp_path: Path) -> None:
    request = one(tmp_path, LITELLM)
    assert request == LoggedRequest(
        at_s=1752570000.25,
        input_tokens=42,
        output_tokens=17,
        messages=("user\nwhat is a lighthouse\n",),
    )
    assert one(tmp_path, LITELLM | {"status": "failure"}).failed
    with_session = one(tmp_path, LITELLM | {"metadata": {"session_id": "s-1"}})
    assert with_session.conversation == "s-1"


def test_openai_bodies_in_an_access_log(tmp_path: Path) -> None:
    request = one(tmp_path, BODIES)
    assert request == LoggedRequest(
        at_s=1752570000.25,
        input_tokens=42,
        output_tokens=17,
        conversation="s-9",
        messages=("user\nhi\n",),
    )
    assert one(tmp_path, BODIES | {"status": 503}).failed
    assert not one(tmp_path, BODIES | {"status": "200"}).failed


def test_fields_of_any_log_can_be_named(tmp_path: Path) -> None:
    row = {"when": {"ms": 1752570000250}, "in": 42, "out": "17", "said": "what is a lighthouse", "talk": 5}
    fields = {
        "start": "when.ms",
        "input_tokens": "in",
        "output_tokens": "out",
        "messages": "said",
        "conversation": "talk",
    }
    assert one(tmp_path, row, fields=fields) == LoggedRequest(
        1752570000.25, 42, 17, "5", ("what is a lighthouse",)
    )
    bare = one(tmp_path, row)
    assert (bare.at_s, bare.input_tokens, bare.output_tokens, bare.messages) == (None, None, None, ())


@pytest.mark.parametrize(
    "said",
    [
        USAGE | {"gen_ai.input.messages": SAID},
        USAGE | {"gen_ai.prompt": SAID},
        USAGE | {"gen_ai.prompt.0.role": "user", "gen_ai.prompt.0.content": "what is a lighthouse"},
        {
            "gen_ai.request.model": "m",
            "gen_ai.usage.prompt_tokens": 42,
            "gen_ai.usage.completion_tokens": 17,
            "gen_ai.prompt": SAID,
        },
    ],
)
def test_spans_of_several_conventions(tmp_path: Path, said: dict[str, Any]) -> None:
    request = one(tmp_path, spans(span(said)))
    # Nanoseconds since 1970 are more digits than a float has.
    assert request.at_s == pytest.approx(1752570000.25, abs=1e-6)
    assert replace(request, at_s=None) == LoggedRequest(
        None, 42, 17, messages=("user\nwhat is a lighthouse\n",)
    )


def test_structured_messages_and_system_instructions_and_events(tmp_path: Path) -> None:
    text = {"arrayValue": {"values": [{"kvlistValue": {"values": [attribute("content", "be kind")]}}]}}
    system = {"key": "gen_ai.system_instructions", "value": text}
    event = {"attributes": [attribute("gen_ai.input.messages", SAID)]}
    made = span(USAGE | {"gen_ai.conversation.id": "c1"}, events=[event])
    made["attributes"].append(system)
    request = one(tmp_path, spans(made))
    assert request.conversation == "c1"
    assert len(request.messages) == 2
    assert "be kind" in request.messages[0]
    assert "lighthouse" in request.messages[1]


def test_spans_that_ask_no_model_are_passed_over(tmp_path: Path) -> None:
    agent = span(USAGE | {"gen_ai.operation.name": "invoke_agent"})
    web = span({"http.method": "GET"})
    failed = span(USAGE, status={"code": 2})
    requests, tally = read(tmp_path, spans(agent, web, failed), spans(span(USAGE)))
    assert [request.failed for request in requests] == [True, False]
    assert tally.formats == {LogFormat.OTEL}


def test_redacted_messages_are_no_text(tmp_path: Path) -> None:
    redacted = LITELLM | {"messages": [{"role": "user", "content": "redacted-by-litellm"}]}
    assert one(tmp_path, redacted).messages == ()


def test_what_is_no_request_is_counted_and_passed_over(tmp_path: Path) -> None:
    requests, tally = read(tmp_path, LITELLM, "", "{broken", "[1]", "plain text", BODIES)
    assert len(requests) == 2
    assert (tally.lines, tally.malformed) == (5, 3)
    assert tally.formats == {LogFormat.GATEWAY}


@pytest.mark.parametrize(
    "strange",
    [
        {"resourceSpans": 5},
        {"resourceSpans": [{"scopeSpans": [None, {"spans": [{"attributes": "x", "events": {}}]}]}]},
        {"startTime": {}, "prompt_tokens": [], "messages": 7, "status": {}},
        {"startTime": "yesterday", "prompt_tokens": "many", "messages": [{"content": None}, None, 3]},
        {"prompt_tokens": 1e999, "messages": {"messages": [{"tool_calls": [{"id": 1}]}]}},
    ],
)
def test_strange_logs_do_not_end_the_reading(tmp_path: Path, strange: dict[str, Any]) -> None:
    requests, _ = read(tmp_path, strange, LITELLM)
    assert requests[-1].input_tokens == 42
    assert all(request.at_s is None for request in requests[:-1])


def test_gzipped_logs_and_the_bytes_read(tmp_path: Path) -> None:
    files = [tmp_path / "a.gz", tmp_path / "b.jsonl"]
    line = (json.dumps(LITELLM) + "\n").encode()
    files[0].write_bytes(gzip.compress(line * 3))
    files[1].write_bytes(line * 2)
    tally, told = ReadingTally(), list[int]()
    assert len(list(logged_requests(files, tally, tell=told.append))) == 5
    assert told == sorted(told)
    assert told[-1] == sum(file.stat().st_size for file in files)


@pytest.mark.parametrize("content", [None, gzip.compress(b"{}\n" * 1000, mtime=0)[:-9]])
def test_a_log_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "log.gz"
    if content:
        file.write_bytes(content)
    with pytest.raises(InputError, match=r"log\.gz: cannot be read"):
        list(logged_requests([file], ReadingTally()))


# Traffic


def request(at_s: float | None, tokens: int | None, *messages: str, **parts: Any) -> LoggedRequest:
    return replace(LoggedRequest(at_s, tokens, 5, messages=messages), **parts)


def test_prompts_that_begin_alike_share_blocks() -> None:
    shared, one, two = "s" * 2560, "a" * 1280, "b" * 1280
    found = traffic_from(request(at, 960, shared, tail) for at, tail in enumerate((one, two, one)))
    traffic = found.traffic
    assert found.with_text == 3
    # 4 bytes to a token, as these logs say: blocks of 64 tokens.
    assert traffic.block_tokens == pytest.approx(64)
    assert traffic.blocks.tolist() == [15, 15, 15]
    first, second, third = np.split(traffic.block, traffic.block_end[:-1])
    assert (first == third).all()
    assert (first[:10] == second[:10]).all()
    assert not (first[10:] == second[10:]).any()
    assert traffic.prefix_share == pytest.approx((640 + 960) / 2880)


def test_blocks_are_as_many_tokens_as_the_log_says_bytes_are() -> None:
    dense = traffic_from([request(0, 2000, "x" * 4000)]).traffic
    assert dense.block_tokens == pytest.approx(128)


def test_a_tokenizer_makes_blocks_of_its_tokens(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "model")
    words = " baba bade" * 64
    found = traffic_from(
        [request(0, None, words + " bagu"), request(1, 131, words)],
        tokenizer=tmp_path / "model",
        block_tokens=32,
    )
    assert found.traffic.input_tokens.tolist() == [129, 131]
    assert found.traffic.block_tokens == 32
    assert found.traffic.blocks.tolist() == [4, 4]
    assert found.traffic.prefix_share == pytest.approx(128 / 260)


def test_a_block_is_equal_only_where_all_before_it_is() -> None:
    one, two, tail = "a" * 256, "b" * 256, "c" * 256
    traffic = traffic_from([request(0, 128, one + tail), request(1, 128, two + tail)]).traffic
    assert len(set(traffic.block.tolist())) == 4


def test_turns_are_known_by_the_logs_id_or_by_their_messages() -> None:
    found = traffic_from(
        [
            request(0, 10, "system", "u1"),
            request(1, 10, "system", "v1"),
            request(2, 30, "system", "u1", "a1", "u2"),
            request(3, 30, "system", "v1", "b1", "v2"),
            request(4, 50, "system", "u1", "a1", "u2", "a2", "u3"),
            request(5, 10, conversation="x"),
            request(6, 10, conversation="x"),
            request(7, 10),
        ]
    )
    assert found.traffic.conversation.tolist() == [0, 1, 0, 1, 0, 2, 2, -1]
    assert sorted(found.traffic.turns.tolist()) == [2, 2, 3]


def test_requests_are_sorted_and_what_cannot_be_used_is_counted() -> None:
    found = traffic_from(
        [
            request(20.0, 7),
            request(10.0, 8),
            request(11.0, 9, failed=True),
            request(12.0, 9, output_tokens=0),
            request(13.0, 9, output_tokens=None),
            request(None, 9),
            request(14.0, None),
        ]
    )
    assert found.traffic.input_tokens.tolist() == [8, 7]
    assert found.traffic.arrival_s is not None
    assert found.traffic.arrival_s.tolist() == [0.0, 10.0]
    assert (found.unanswered, found.incomplete, found.with_text) == (2, 3, 0)


def test_logs_without_a_usable_request_are_refused_with_a_remedy() -> None:
    with pytest.raises(InputError, match="1 lack some, 1 failed") as raised:
        traffic_from([request(0, 5, failed=True), request(None, 5)])
    assert "--field start=" in raised.value.problems[0].remedy


def test_the_salt_is_another_each_time_and_the_file_the_same_kind_of_numbers(tmp_path: Path) -> None:
    """Were the keys hashes of the text alone, anyone could look for a text that they guess."""
    texts = [str(number) * 600 for number in range(10)]
    orders = set()
    for run in range(5):
        traffic = traffic_from(request(at, 150, text) for at, text in enumerate(texts)).traffic
        assert sorted(traffic.block.tolist()) == list(range(len(traffic.block)))
        orders.add(tuple(traffic.block.tolist()))
        write_traffic(tmp_path / f"{run}", traffic, {})
        assert (read_traffic(tmp_path / f"{run}").block == traffic.block).all()
    assert len(orders) == 5
