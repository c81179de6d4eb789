"""The output probe against a real HTTP server that answers as engines do, and as broken ones do."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from scripted_server import Call, Script, serving

from autotune.adapters.load.output_probe import HttpOutputProbe
from autotune.domain.basics.errors import StudyCancelledError
from autotune.domain.judging.answers import Answer, AnswerTerms, NoAnswerError, Question, Step
from autotune.domain.launches.endpoint import Endpoint

pytestmark = pytest.mark.alone

ASKED = Question((5, 6, 7))
SCORED = Question((5, 6, 7, 70, 71), scored=2)
ALONE = AnswerTerms(output_tokens=2, together=1, timeout_s=10.0)
NOT_FOUND = {"error": {"message": "Not Found", "code": 404}}


def never() -> bool:
    return False


def ask(script: Script, *questions: Question, terms: AnswerTerms = ALONE) -> tuple[Answer, ...]:
    with serving(script) as server:
        return HttpOutputProbe().ask(server.endpoint, questions or (ASKED,), terms, never)


def completion(text: str, **choice: Any) -> dict[str, Any]:
    return {
        "choices": [{"index": 0, "text": text, "finish_reason": "length", "logprobs": None, **choice}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
    }


# --- engines as they are


async def vllm(call: Call) -> None:
    """vLLM 0.32: token ids for tokens, and log-probabilities of the prompt's tokens."""
    if call.path != "/v1/completions":
        await call.answer(NOT_FOUND, 404)
        return
    if call.body.get("prompt_logprobs"):
        told: list[Any] = [None, *({str(i): {"logprob": -1.0 * i, "rank": 1}} for i in (6, 7))]
        told += [
            {"70": {"logprob": -0.5}, "9": {"logprob": -1.5}},
            {"8": {"logprob": -0.2}, "71": {"logprob": -4.0}},
        ]
        await call.answer(completion("x", prompt_logprobs=told))
        return
    logprobs = {
        "tokens": ["token_id:70", "token_id:71"],
        "token_logprobs": [-0.5, -0.25],
        "top_logprobs": [{"token_id:70": -0.5, "token_id:9": -1.5}, {"token_id:71": -0.25}],
    }
    await call.answer(completion("a b", logprobs=logprobs))


def test_vllm_tells_ids_with_the_likeliest_beside_them() -> None:
    (answer,) = ask(vllm)
    assert answer == Answer(
        text="a b",
        output_tokens=2,
        steps=(Step(70, -0.5, ((70, -0.5), (9, -1.5))), Step(71, -0.25, ((71, -0.25),))),
    )


def test_vllm_scores_given_tokens() -> None:
    (scored,) = ask(vllm, SCORED)
    assert scored.steps == (
        Step(70, -0.5, ((70, -0.5), (9, -1.5))),
        Step(71, -4.0, ((8, -0.2), (71, -4.0))),
    )


def test_questions_are_greedy_whole_and_of_exact_length() -> None:
    with serving(vllm) as server:
        HttpOutputProbe().ask(server.endpoint, (ASKED, SCORED), ALONE, never)
        asked, scored = (call.body for call in server.calls)
    assert (asked["prompt"], asked["max_tokens"], asked["temperature"]) == ([5, 6, 7], 2, 0)
    assert asked["ignore_eos"] is True
    assert "stream" not in asked
    assert (scored["prompt"], scored["max_tokens"]) == ([5, 6, 7, 70, 71], 1)


def test_an_endpoint_that_refuses_ignore_eos_is_not_asked_for_it() -> None:
    with serving(vllm) as server:
        endpoint = Endpoint(server.endpoint.base_url, "tiny", ignore_eos=False)
        HttpOutputProbe().ask(endpoint, (ASKED,), ALONE, never)
        assert "ignore_eos" not in server.calls[0].body


async def sglang(call: Call) -> None:
    """SGLang 0.5: its completions name no ids, its own path does."""
    if call.path == "/v1/completions":
        logprobs = {"tokens": ["a", " b"], "token_logprobs": [-0.5, -0.25], "top_logprobs": [{"a": -0.5}, {}]}
        await call.answer(completion("a b", logprobs=logprobs))
        return
    assert call.path == "/generate"
    meta: dict[str, Any] = {
        "completion_tokens": 2,
        "output_token_logprobs": [[-0.5, 70, None], [-0.25, 71, None]],
        "output_top_logprobs": [[[-0.5, 70, None], [-1.5, 9, None]], [[-0.25, 71, None]]],
    }
    if "logprob_start_len" in call.body:
        assert call.body["logprob_start_len"] == 2
        meta["input_token_logprobs"] = [[None, 7, None], [-0.5, 70, None], [-4.0, 71, None]]
        meta["input_top_logprobs"] = [None, [[-0.5, 70, None], [-1.5, 9, None]], [[-0.2, 8, None]]]
    await call.answer({"text": "a b", "output_ids": [70, 71], "meta_info": meta})


def test_sglang_is_asked_on_its_own_path() -> None:
    (answer,) = ask(sglang)
    assert [step.token for step in answer.steps] == [70, 71]
    assert answer.steps[0].top == ((70, -0.5), (9, -1.5))
    assert (answer.text, answer.output_tokens) == ("a b", 2)
    (scored,) = ask(sglang, SCORED)
    assert [(step.token, step.logprob) for step in scored.steps] == [(70, -0.5), (71, -4.0)]


async def hosted(call: Call) -> None:
    """OpenAI's completions: tokens by their text, and those of the prompt where it is echoed."""
    if call.path != "/v1/completions":
        await call.answer(NOT_FOUND, 404)
        return
    if unknown := call.body.keys() & {"prompt_logprobs", "return_tokens_as_token_ids"}:
        await call.answer({"error": {"message": f"Unrecognized: {sorted(unknown)}"}}, 400)
        return
    echoed = ["x", "y", "z"] if call.body.get("echo") else []
    tokens = [*echoed, "a", " b"][: len(echoed) + (call.body["max_tokens"] or 0)]  # type: ignore[operator]
    nats = [None, *[-0.5] * (len(tokens) - 1)] if echoed else [-0.5] * len(tokens)
    top = [None if n is None else {t: n} for t, n in zip(tokens, nats, strict=True)]
    logprobs = {"tokens": tokens, "token_logprobs": nats, "top_logprobs": top}
    await call.answer(completion("".join(tokens), logprobs=logprobs))


def test_tokens_by_their_text_and_scores_of_an_echoed_prompt() -> None:
    (answer,) = ask(hosted)
    assert answer.steps == (Step("a", -0.5, (("a", -0.5),)), Step(" b", -0.5, ((" b", -0.5),)))
    (scored,) = ask(hosted, Question((5, 6, 7), scored=2))
    assert [step.token for step in scored.steps] == ["y", "z"]


async def plain(call: Call) -> None:
    """An engine that tells no log-probabilities whatever it is asked."""
    if call.path != "/v1/completions":
        await call.answer(NOT_FOUND, 404)
    elif "logprobs" in call.body:
        await call.answer({"error": {"message": "logprobs are\nnot supported"}}, 422)
    else:
        await call.answer(completion("a b"))


def test_where_there_are_no_log_probabilities_there_is_text_and_why() -> None:
    first, second = ask(plain, ASKED, ASKED)
    assert first == Answer(text="a b", output_tokens=2, problem="HTTP 422: logprobs are not supported")
    assert second.text == "a b"
    (scored,) = ask(plain, SCORED)
    assert scored.steps == ()
    assert scored.problem


async def chat_only(call: Call) -> None:
    if call.path != "/v1/chat/completions":
        await call.answer(NOT_FOUND, 404)
        return
    told = [{"token": "a", "logprob": -0.5, "top_logprobs": [{"token": "a", "logprob": -0.5}]}]
    choice = {"message": {"role": "assistant", "content": "a"}, "logprobs": {"content": told}}
    await call.answer({"choices": [choice], "usage": {"completion_tokens": 1}})


def test_a_chat_endpoint_is_asked_by_messages() -> None:
    with serving(chat_only) as server:
        question = Question((5, 6, 7), (("user", "hello"),))
        (answer,) = HttpOutputProbe().ask(server.endpoint, (question,), ALONE, never)
        assert server.calls[-1].body["messages"] == [{"role": "user", "content": "hello"}]
    assert answer.steps == (Step("a", -0.5, (("a", -0.5),)),)


# --- engines as they break


async def speaks_nan(call: Call) -> None:
    """vLLM of which every logit is no number: JSON cannot say it, the server breaks, the text is garbage."""
    if call.path != "/v1/completions":
        await call.answer(NOT_FOUND, 404)
    elif "logprobs" in call.body:
        await call.answer({"error": {"message": "Out of range float values are not JSON compliant"}}, 500)
    else:
        await call.answer(completion("!!"))


def test_what_the_server_said_in_place_of_log_probabilities_is_kept() -> None:
    (answer,) = ask(speaks_nan)
    assert answer.text == "!!"
    assert answer.problem == "HTTP 500: Out of range float values are not JSON compliant"


@pytest.mark.parametrize("said", [math.nan, None])
def test_a_log_probability_that_is_no_number_comes_as_one(said: float | None) -> None:
    async def script(call: Call) -> None:
        logprobs = {
            "tokens": ["token_id:1"],
            "token_logprobs": [said],
            "top_logprobs": [{"token_id:1": said}],
        }
        await call.answer(completion("!", logprobs=logprobs))

    (answer,) = ask(script)
    assert math.isnan(answer.steps[0].logprob)


def test_a_refusal_is_an_answer() -> None:
    async def script(call: Call) -> None:
        await call.answer({"object": "error", "message": "prompt is too long"}, 400)

    first, second = ask(script, ASKED, ASKED)
    assert (first.text, first.output_tokens, first.problem) == ("", 0, "HTTP 400: prompt is too long")
    assert second.problem == "HTTP 400: prompt is too long"


@pytest.mark.parametrize(
    "document", [{}, [], None, "text", {"choices": []}, {"choices": [{"text": 1}], "usage": None}]
)
def test_what_is_no_completion_is_told_as_none(document: object) -> None:
    async def script(call: Call) -> None:
        await call.answer(document)

    (answer,) = ask(script)
    assert answer.steps == ()
    assert "/v1/completions" in answer.problem


def test_a_connection_that_breaks_is_no_answer() -> None:
    async def script(call: Call) -> None:
        call.writer.close()

    with pytest.raises(NoAnswerError, match="/v1/completions"):
        ask(script)


def test_an_engine_that_stalls_is_no_answer_after_the_deadline() -> None:
    async def script(call: Call) -> None:
        await asyncio.sleep(3600)

    with pytest.raises(NoAnswerError, match="timed out"):
        ask(script, terms=AnswerTerms(output_tokens=2, together=1, timeout_s=0.2))


def test_a_wish_to_stop_does_not_wait_for_the_answer() -> None:
    async def script(call: Call) -> None:
        await asyncio.sleep(3600)

    with serving(script) as server, pytest.raises(StudyCancelledError):
        HttpOutputProbe().ask(server.endpoint, (ASKED,), ALONE, lambda: bool(server.calls))


# --- how many at once, and who asks


def test_questions_asked_together_are_in_flight_together_and_answered_in_order() -> None:
    questions = tuple(Question((number,)) for number in range(4))
    gathered = 0

    async def script(call: Call) -> None:
        """After the one that finds the dialect, none is answered until all have come."""
        nonlocal gathered
        gathered += call.number > 0
        while 0 < gathered < len(questions):
            await asyncio.sleep(0.005)
        (number,) = call.body["prompt"]  # type: ignore[misc]
        logprobs = {"tokens": [f"token_id:{number}"], "token_logprobs": [-0.5], "top_logprobs": [{}]}
        await call.answer(completion(str(number), logprobs=logprobs))

    answers = ask(script, *questions, terms=AnswerTerms(output_tokens=1, together=4, timeout_s=10.0))
    assert [answer.text for answer in answers] == ["0", "1", "2", "3"]


def test_questions_asked_alone_are_never_in_flight_together() -> None:
    with serving(vllm) as server:
        answers = HttpOutputProbe().ask(server.endpoint, (ASKED,) * 5, ALONE, never)
        assert (len(answers), server.most_busy, len(server.calls)) == (5, 1, 5)


def test_nothing_is_asked_for_nothing() -> None:
    with serving(vllm) as server:
        assert HttpOutputProbe().ask(server.endpoint, (), ALONE, never) == ()
        assert server.calls == []


def test_a_token_is_sent_where_the_endpoint_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "t0k3n")
    with serving(vllm) as server:
        endpoint = Endpoint(f"{server.endpoint.base_url}/prefix/", "tiny", token_variable="SOME_TOKEN")
        HttpOutputProbe().ask(endpoint, (ASKED,), ALONE, never)
        assert "Authorization: Bearer t0k3n" in server.calls[0].head
        assert server.calls[0].path == "/prefix/v1/completions"
