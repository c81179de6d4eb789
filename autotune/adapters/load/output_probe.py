"""Asks a running engine for greedy answers, with the log-probabilities that its endpoint can tell.

Endpoints differ in how they tell them. The dialects below are tried in order with the first question; the
first that the endpoint answers in is kept for the others. Where none tells log-probabilities there is text.
"""

from __future__ import annotations

import http.client
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

from autotune.domain.basics.errors import StudyCancelledError
from autotune.domain.judging.answers import Answer, AnswerTerms, NoAnswerError, Question, Step
from autotune.domain.launches.endpoint import Endpoint
from autotune.domain.load.progress import Cancelled

TOP = 20
"""Likeliest tokens asked for: as many as vLLM gives unless it is told otherwise (`--max-logprobs`)."""
TOP_OPENAI = 5
"""The most that OpenAI's completions give."""
POLL_S = 0.05
MOST_BYTES = 256 << 20
PIECE_BYTES = 1 << 20
MOST_MESSAGE = 300
REFUSED = 400
"""From this status on an answer is an error."""
NOT_FOUND = 404

T = TypeVar("T")
Body = dict[str, Any]


class HttpOutputProbe:
    """OutputProbe over HTTP."""

    def ask(
        self, endpoint: Endpoint, questions: Sequence[Question], terms: AnswerTerms, cancelled: Cancelled
    ) -> tuple[Answer, ...]:
        """Put the questions; raises NoAnswerError, StudyCancelledError."""
        if not questions:
            return ()
        server = _Server(endpoint, terms)
        ((dialect, first),) = _run([partial(server.find_dialect, questions[0])], 1, cancelled)
        if len(questions) == 1:
            return (first,)
        # The first was asked alone, which is not what asking together is for.
        rest = questions[1:] if terms.together == 1 else questions
        tasks = [partial(server.ask, dialect, question) for question in rest]
        answers = _run(tasks, terms.together, cancelled)
        return (first, *answers) if terms.together == 1 else answers


def _run(tasks: Sequence[Callable[[], T]], together: int, cancelled: Cancelled) -> tuple[T, ...]:
    """Results of tasks, so many at once; raises what one of them raised, or StudyCancelledError."""
    pool = ThreadPoolExecutor(max_workers=together)
    try:
        futures = [pool.submit(task) for task in tasks]
        pending: set[Future[T]] = set(futures)
        while pending:
            if cancelled():
                raise StudyCancelledError("stopped while the engine answered known prompts")
            done, pending = wait(pending, timeout=POLL_S)
            for future in done:
                future.result()
        return tuple(future.result() for future in futures)
    finally:
        # Threads whose answer nobody waits for end with the engine.
        pool.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class _Server:
    endpoint: Endpoint
    terms: AnswerTerms

    def find_dialect(self, question: Question) -> tuple[_Dialect, Answer]:
        """The first dialect in which the endpoint answers, and its answer."""
        problem = ""
        for dialect in _DIALECTS:
            answer = self.ask(dialect, question)
            if not answer.problem:
                # Why there are no log-probabilities is worth knowing even where the text came.
                return dialect, answer if answer.steps else replace(answer, problem=problem)
            problem = problem or answer.problem
        return _DIALECTS[0], Answer(problem=problem)

    def ask(self, dialect: _Dialect, question: Question) -> Answer:
        """One answer in a dialect; its problem where it does not speak it, or refuses."""
        body = dialect.write(self.endpoint, question, self.terms.output_tokens)
        if body is None:
            return Answer(problem=f"cannot be put as {dialect.name}")
        status, content = self._post(dialect.path, body)
        if status >= REFUSED:
            return Answer(problem=f"HTTP {status}: {_message(content)}")
        try:
            return dialect.read(json.loads(content), question)
        except (LookupError, TypeError, ValueError, AttributeError):
            return Answer(problem=f"no {dialect.name} in what {dialect.path} answers")

    def _post(self, path: str, body: Body) -> tuple[int, bytes]:
        url = urlsplit(self.endpoint.base_url)
        kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        headers = {"Content-Type": "application/json"}
        if token := os.environ.get(self.endpoint.token_variable):
            headers["Authorization"] = f"Bearer {token}"
        until_s = time.monotonic() + self.terms.timeout_s
        connection = kind(url.hostname or "", url.port, timeout=self.terms.timeout_s)
        try:
            connection.request("POST", url.path.rstrip("/") + path, json.dumps(body), headers)
            with connection.getresponse() as response:
                return response.status, _content(response, until_s)
        except (OSError, http.client.HTTPException) as lost:
            what = f"{path}: {lost or type(lost).__name__}"
            raise NoAnswerError(what, timed_out=isinstance(lost, TimeoutError)) from lost
        finally:
            connection.close()


def _content(response: http.client.HTTPResponse, until_s: float) -> bytes:
    """Read to the end; a socket's time-out is for each piece."""
    content = bytearray()
    while piece := response.read1(PIECE_BYTES):
        content += piece
        if time.monotonic() > until_s or len(content) > MOST_BYTES:
            raise TimeoutError(f"the answer did not end ({len(content)} bytes so far)")
    return bytes(content)


def _message(content: bytes) -> str:
    """What an error says, on one line."""
    text = content.decode(errors="replace")
    try:
        document = json.loads(text)
        error = document.get("error", document)
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError):
        pass
    return " ".join(text.split())[:MOST_MESSAGE]


@dataclass(frozen=True, slots=True)
class _Dialect:
    """How log-probabilities are asked for and told; ``write`` gives None for what cannot be put so."""

    name: str
    path: str
    write: Callable[[Endpoint, Question, int], Body | None]
    read: Callable[[Any, Question], Answer]


def _common(endpoint: Endpoint, question: Question, tokens: int) -> Body:
    exact = {"ignore_eos": True} if endpoint.ignore_eos else {}
    return {
        "model": endpoint.model,
        "temperature": 0,
        "max_tokens": 1 if question.scored else tokens,
        **exact,
    }


def _write_vllm(endpoint: Endpoint, question: Question, tokens: int) -> Body:
    asked: Body = (
        {"prompt_logprobs": TOP} if question.scored else {"logprobs": TOP, "return_tokens_as_token_ids": True}
    )
    return {**_common(endpoint, question, tokens), "prompt": question.ids, **asked}


def _read_vllm(document: Any, question: Question) -> Answer:
    (choice,) = document["choices"]
    used = document["usage"]["completion_tokens"]
    if question.scored:
        told = choice["prompt_logprobs"][-question.scored :]
        steps = tuple(_vllm_prompt_step(token, of) for token, of in zip(_scored(question), told, strict=True))
        return Answer(output_tokens=used, steps=steps)
    logprobs = choice["logprobs"]
    steps = tuple(
        Step(_token_id(token), _number(own), tuple((_token_id(t), _number(p)) for t, p in top.items()))
        for token, own, top in zip(
            logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
        )
    )
    return Answer(text=choice["text"], output_tokens=used, steps=steps)


def _vllm_prompt_step(token: int, told: Mapping[str, Mapping[str, Any]]) -> Step:
    top = tuple((int(other), _number(each["logprob"])) for other, each in told.items())
    return Step(token, dict(top)[token], top)


def _token_id(text: str) -> int:
    """Read ``token_id:17``; raises ValueError for a token's text."""
    return int(text.removeprefix("token_id:")) if text.startswith("token_id:") else int("")


def _write_sglang(endpoint: Endpoint, question: Question, tokens: int) -> Body:
    common = _common(endpoint, question, tokens)
    sampling = {"temperature": 0, "max_new_tokens": common["max_tokens"]}
    if endpoint.ignore_eos:
        sampling["ignore_eos"] = True
    asked: Body = {
        "input_ids": question.ids,
        "sampling_params": sampling,
        "return_logprob": True,
        "top_logprobs_num": TOP,
    }
    if question.scored:
        asked["logprob_start_len"] = max(len(question.ids) - question.scored - 1, 0)
    return asked


def _read_sglang(document: Any, question: Question) -> Answer:
    """Each log-probability is (value, token id, text)."""
    meta = document["meta_info"]
    if question.scored:
        last = slice(-question.scored, None)
        told, tops = meta["input_token_logprobs"][last], meta["input_top_logprobs"][last]
    else:
        told, tops = meta["output_token_logprobs"], meta["output_top_logprobs"]
    steps = tuple(
        Step(int(token), _number(own), tuple((int(t), _number(p)) for p, t, *_ in top))
        for (own, token, *_), top in zip(told, tops, strict=True)
    )
    if question.scored and [step.token for step in steps] != list(_scored(question)):
        raise ValueError("these are log-probabilities of other tokens")
    text = "" if question.scored else document["text"]
    return Answer(text=text, output_tokens=meta["completion_tokens"], steps=steps)


def _write_completions(endpoint: Endpoint, question: Question, tokens: int) -> Body:
    echo = {"echo": True} if question.scored else {}
    return {
        **_common(endpoint, question, tokens),
        "prompt": question.ids,
        "logprobs": TOP_OPENAI,
        **echo,
    }


def _read_completions(document: Any, question: Question) -> Answer:
    (choice,) = document["choices"]
    used, told = document["usage"]["completion_tokens"], choice.get("logprobs")
    if told is None and not question.scored:
        return Answer(text=choice["text"], output_tokens=used)
    steps = tuple(
        Step(token, _number(own), tuple((t, _number(p)) for t, p in (top or {}).items()))
        for token, own, top in zip(
            told["tokens"],
            told["token_logprobs"],
            told.get("top_logprobs") or [None] * len(told["tokens"]),
            strict=True,
        )
    )
    if not question.scored:
        return Answer(text=choice["text"], output_tokens=used, steps=steps)
    prompt = steps[: len(question.ids)]
    if len(prompt) < len(question.ids):
        raise ValueError("the prompt is not among them")
    return Answer(output_tokens=used, steps=prompt[-question.scored :])


def _write_plain(endpoint: Endpoint, question: Question, tokens: int) -> Body | None:
    if question.scored:
        return None
    return {**_common(endpoint, question, tokens), "prompt": question.ids}


def _write_chat(endpoint: Endpoint, question: Question, tokens: int) -> Body | None:
    plain = _write_plain_chat(endpoint, question, tokens)
    return None if plain is None else {**plain, "logprobs": True, "top_logprobs": TOP_OPENAI}


def _write_plain_chat(endpoint: Endpoint, question: Question, tokens: int) -> Body | None:
    if question.scored or not question.messages:
        return None
    messages = [{"role": role, "content": text} for role, text in question.messages]
    return {**_common(endpoint, question, tokens), "messages": messages}


def _read_chat(document: Any, _question: Question) -> Answer:
    (choice,) = document["choices"]
    message, told = choice["message"], choice.get("logprobs") or {}
    # A model that thinks first may have spent its tokens on that.
    text = message.get("content") or message.get("reasoning_content") or message.get("reasoning") or ""
    steps = tuple(
        Step(
            each["token"],
            _number(each["logprob"]),
            tuple((t["token"], _number(t["logprob"])) for t in each.get("top_logprobs") or ()),
        )
        for each in told.get("content") or ()
    )
    return Answer(text=text, output_tokens=document["usage"]["completion_tokens"], steps=steps)


def _scored(question: Question) -> tuple[int, ...]:
    return question.ids[-question.scored :]


def _number(value: float | None) -> float:
    """A log-probability; NaN for null, as servers write what JSON cannot say."""
    return float("nan") if value is None else float(value)


_COMPLETIONS, _CHAT = "/v1/completions", "/v1/chat/completions"

_DIALECTS = (
    # As vLLM 0.32 has it in vllm/entrypoints/openai/completion/protocol.py.
    _Dialect("token ids with log-probabilities", _COMPLETIONS, _write_vllm, _read_vllm),
    # As SGLang 0.5 documents it: docs.sglang.io/docs/basic_usage/sampling_params.
    _Dialect("native log-probabilities", "/generate", _write_sglang, _read_sglang),
    _Dialect("log-probabilities", _COMPLETIONS, _write_completions, _read_completions),
    _Dialect("plain completion", _COMPLETIONS, _write_plain, _read_completions),
    _Dialect("chat with log-probabilities", _CHAT, _write_chat, _read_chat),
    _Dialect("plain chat", _CHAT, _write_plain_chat, _read_chat),
)
