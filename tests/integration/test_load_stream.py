"""What the load client reads off the streams of engines."""

from __future__ import annotations

import time

import numpy as np
import pytest
from load_harness import answer_of, drive, one_request, open_plan, records, three_tokens
from scripted_server import DONE, END, HEAD, Call, chunk, event, serving, token, usage

from autotune.adapters.load.clients import LoadClients
from autotune.domain.launches.endpoint import Endpoint

pytestmark = pytest.mark.alone


def delta(finish_reason: str | None = None, **content: object) -> bytes:
    """A chat's event as vLLM writes it."""
    choice = {"index": 0, "delta": content, "logprobs": None, "finish_reason": finish_reason}
    return event({"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [choice]})


ROLE = delta(role="assistant", content="")


def test_a_finished_request_has_all_its_times_in_order(clients: LoadClients) -> None:
    with serving(three_tokens) as server:
        before_s = time.monotonic()
        result = drive(clients, server, open_plan(0.05))
        after_s = time.monotonic()
    (record,) = records(result)
    assert (record.error, record.status) == ("", 200)
    assert (record.prompt_tokens, record.output_tokens, len(record.chunk_s)) == (3, 3, 3)
    times = [before_s, result.started_s, record.due_s, record.sent_s, *record.chunk_s, record.finished_s]
    assert [*times, after_s] == sorted([*times, after_s])
    assert record.due_s == pytest.approx(result.started_s + 0.05)
    assert not result.engine_died
    assert result.requests.ok.all()


def test_a_completion_asks_for_exactly_the_planned_tokens(clients: LoadClients) -> None:
    with serving(three_tokens) as server:
        drive(clients, server, open_plan(0.0, 0.0, tokens=7))
    assert {call.path for call in server.calls} == {"/v1/completions"}
    assert sorted(call.body.pop("prompt") for call in server.calls) == [[0, 0, 0], [1, 1, 1]]
    assert server.calls[0].body == {
        "model": "tiny",
        "max_tokens": 7,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_a_chat_asks_for_exactly_the_planned_tokens(clients: LoadClients) -> None:
    with serving(answer_of(ROLE, delta(content="a"), usage(3, 1), DONE)) as server:
        record = one_request(clients, server, api="chat")
    assert (record.error, record.output_tokens) == ("", 1)
    (call,) = server.calls
    assert call.path == "/v1/chat/completions"
    assert call.body["messages"] == [{"role": "user", "content": "0 x3"}]
    assert (call.body["max_tokens"], call.body["ignore_eos"]) == (3, True)
    assert "prompt" not in call.body


def test_what_an_engine_refuses_is_not_sent(clients: LoadClients) -> None:
    with serving(three_tokens) as server:
        endpoint = Endpoint(f"{server.endpoint.base_url}/engine/", "tiny", ignore_eos=False)
        clients.drive(endpoint, open_plan(0.0), alive=lambda: True, cancelled=lambda: False)
    assert "ignore_eos" not in server.calls[0].body
    assert server.calls[0].path == "/engine/v1/completions"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
def test_events_are_found_however_the_bytes_are_cut(clients: LoadClients, size: int) -> None:
    """Segments that split events, HTTP chunks and lines, and segments that hold several."""
    body = b"".join((token("a"), token("bc"), token('say "text":"" \n'), usage(3, 5), DONE))
    answer = HEAD + chunk(body[:50]) + chunk(body[50:51]) + chunk(body[51:]) + END

    async def script(call: Call) -> None:
        await call.send(*(answer[i : i + size] for i in range(0, len(answer), size)))

    with serving(script) as server:
        record = one_request(clients, server)
    assert (record.error, len(record.chunk_s), record.output_tokens) == ("", 3, 5)


def test_a_chunk_of_several_tokens_is_one_chunk_and_the_server_counts_the_tokens(
    clients: LoadClients,
) -> None:
    with serving(answer_of(token("four tokens in one"), token(), usage(3, 5), DONE)) as server:
        record = one_request(clients, server)
    assert (record.error, len(record.chunk_s), record.output_tokens) == ("", 2, 5)


def test_an_empty_text_is_a_token_and_an_empty_list_of_choices_is_not(clients: LoadClients) -> None:
    last = token("", finish_reason="length")
    with serving(answer_of(token(""), token(""), last, usage(3, 3), DONE)) as server:
        record = one_request(clients, server)
    assert (record.error, len(record.chunk_s), record.output_tokens) == ("", 3, 3)


CHATS = {
    "vLLM": (
        (ROLE, delta(content="a"), delta(content=""), delta(content='"content":""', finish_reason="length")),
        (3, 0),
    ),
    "vLLM, reasoning": (
        (
            ROLE,
            delta(reasoning="hm"),
            delta(reasoning=""),
            delta(reasoning=" so", content="a"),
            delta("stop"),
        ),
        (3, 1),
    ),
    "SGLang": (
        (
            delta(role="assistant", content="", reasoning_content=None),
            delta(reasoning_content="hm"),
            delta(reasoning_content=None, content="a"),
            delta("length", reasoning_content=None),
        ),
        (2, 1),
    ),
    "TensorRT-LLM": (
        (
            delta(role="assistant"),
            delta(content="", reasoning_content="hm"),
            delta(content="a", reasoning_content=""),
            delta(content="", reasoning_content=""),
        ),
        (3, 1),
    ),
    "transformers": (
        (delta(role="assistant"), delta(content="a"), delta(reasoning_content="hm"), delta("stop")),
        (2, 1),
    ),
    "a role in every chunk": (
        (delta(role="assistant", content="a"), delta(role="assistant", content="b")),
        (2, 0),
    ),
    "both names of reasoning": ((ROLE, delta(reasoning="hm", reasoning_content="hm")), (1, 1)),
    "tools": (
        (ROLE, delta(tool_calls=[{"index": 0, "function": {"arguments": '{"content":"x"}'}}])),
        (1, 0),
    ),
}


@pytest.mark.parametrize("engine", CHATS)
def test_which_chunks_of_a_chat_bear_tokens(clients: LoadClients, engine: str) -> None:
    events, expected = CHATS[engine]
    with serving(answer_of(*events, usage(3, 9), DONE)) as server:
        record = one_request(clients, server, api="chat")
    assert record.error == ""
    assert (len(record.chunk_s), record.reasoning_chunks) == expected
    assert record.output_tokens == 9


def test_the_first_token_of_a_chat_is_not_the_role(clients: LoadClients) -> None:
    async def script(call: Call) -> None:
        await call.send(HEAD, chunk(ROLE), apart_s=0.1)
        server.received_s.append(time.monotonic())
        await call.send(*map(chunk, (delta(content="a"), usage(3, 1), DONE)), END)

    with serving(script) as server:
        record = one_request(clients, server, api="chat")
    assert record.chunk_s[0] >= server.received_s[-1]


def test_other_spellings_of_the_stream_are_read(clients: LoadClients) -> None:
    """Spaces in the JSON, CRLF line ends, comments, no blank after the colon, an unended last line."""
    spaced = b'data:{"choices": [{"index": 0, "text": "a"}]}\r\n\r\n: ping\r\n\r\nevent: x\r\n' * 2
    last = b'data: {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 2}}\r\n\r\ndata: [DONE]'
    with serving(answer_of(spaced, last)) as server:
        record = one_request(clients, server)
    assert (record.error, len(record.chunk_s)) == ("", 2)
    assert (record.prompt_tokens, record.output_tokens) == (4, 2)


def test_spaced_chats_are_read(clients: LoadClients) -> None:
    spaced = (
        b'data: {"choices": [{"delta": {"content": "a"}}]} \n\ndata: {"choices": [{"delta": '
        b'{"reasoning": "b"}}]} \n\ndata: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}\n\n'
    )
    with serving(answer_of(spaced, usage(3, 2), b"data: [DONE] \n\n")) as server:
        record = one_request(clients, server, api="chat")
    assert (record.error, len(record.chunk_s), record.reasoning_chunks) == ("", 2, 1)


@pytest.mark.parametrize("framing", [b"Content-Length: %d", b"Connection: close"])
def test_bodies_without_chunked_framing_are_read(clients: LoadClients, framing: bytes) -> None:
    async def script(call: Call) -> None:
        body = token() + token() + usage(3, 2) + DONE
        header = framing % len(body) if b"%" in framing else framing
        await call.send(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n" % header, body[:300], body[300:])
        if header == framing:
            call.writer.close()

    with serving(script) as server:
        record = one_request(clients, server)
    assert (record.error, len(record.chunk_s), record.output_tokens) == ("", 2, 2)


def test_usage_beside_the_last_text_is_found(clients: LoadClients) -> None:
    last = event({"choices": [{"text": "b"}], "usage": {"prompt_tokens": 3, "completion_tokens": 9}})
    with serving(answer_of(token(), last, DONE)) as server:
        record = one_request(clients, server)
    assert (record.error, len(record.chunk_s), record.output_tokens) == ("", 2, 9)


@pytest.mark.parametrize(
    ("events", "error", "tokens"),
    [
        ((token(), token(), DONE), "", 2),  # no usage: chunks are counted
        ((token(), usage(3, 1)), "", 1),  # no [DONE]: the usage was the last word
        ((token(), token()), "truncated", 2),
        ((DONE,), "no tokens", 0),
        ((b"data: {oops\n\n", DONE), "unreadable event: {oops", 0),
        (
            (token(), event({"error": {"message": "EngineCore died", "code": 500}}), DONE),
            "EngineCore died",
            1,
        ),
        ((event({"error": "plain words"}), DONE), "plain words", 0),
        ((event({"object": "error", "message": "aborted", "code": 503}), DONE), "aborted", 0),
    ],
)
def test_how_a_stream_ended(clients: LoadClients, events: tuple[bytes, ...], error: str, tokens: int) -> None:
    with serving(answer_of(*events)) as server:
        record = one_request(clients, server)
    assert (record.error, record.output_tokens, record.status) == (error, tokens, 200)


def test_a_stall_and_the_second_token_are_seen(clients: LoadClients) -> None:
    async def script(call: Call) -> None:
        await call.send(HEAD, chunk(token()), chunk(token()), apart_s=0.05)
        await call.send(chunk(token()), apart_s=0.5)
        await call.send(*map(chunk, (token(), usage(3, 4), DONE)), END)

    with serving(script) as server:
        requests = drive(clients, server, open_plan(0.0)).requests
    assert 0.25 < requests.stall_s[0] == pytest.approx(np.diff(requests.chunk_s)[2])
    assert requests.second_token_s[0] == requests.chunk_s[1]
