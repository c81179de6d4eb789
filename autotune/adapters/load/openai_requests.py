"""Requests of OpenAI's HTTP API, written out in full, so that sending one is one write."""

from __future__ import annotations

import json
import os
import re
from typing import Any
from urllib.parse import urlsplit

from autotune.domain.basics.errors import InputError, InputProblem
from autotune.domain.launches.endpoint import Endpoint
from autotune.domain.load.load_plan import LoadPlan, PlannedRequest

PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
PORTS = {"http": 80, "https": 443}

_TOKEN = re.compile(r"[\x21-\x7e]+")
"""What may stand in a header: a line's end in it would begin another."""


def authorization(endpoint: Endpoint) -> str:
    """Value of the header that lets requests in, empty where none is sent; read anew, and kept nowhere.

    Raises InputError, without the token in it, where the environment does not hold one.
    """
    name = endpoint.token_variable
    if not name:
        return ""
    token = os.environ.get(name, "")
    if not _TOKEN.fullmatch(token):
        what = "holds what is no bearer token: blanks or other characters" if token else "is not set"
        remedy = f"set it to the token of {endpoint.base_url}"
        raise InputError(InputProblem(f"environment variable {name}", what, remedy))
    return f"Bearer {token}"


class RequestWriter:
    """Writes the requests of a plan for an endpoint; raises ValueError for what is no URL of one, InputError
    where its token is not there.
    """

    def __init__(self, endpoint: Endpoint, plan: LoadPlan) -> None:
        url = urlsplit(endpoint.base_url)
        if url.scheme not in PORTS or url.hostname is None:
            raise ValueError(f"an endpoint is http(s)://HOST:PORT, not {endpoint.base_url!r}")
        self.host = url.hostname
        self.port = url.port or PORTS[url.scheme]
        self.encrypted = url.scheme == "https"
        credentials = authorization(endpoint)
        self._head = (
            f"POST {url.path.rstrip('/')}{PATHS[plan.api]} HTTP/1.1\r\nHost: {url.netloc}\r\n"
            + (f"Authorization: {credentials}\r\n" if credentials else "")
            + "Content-Type: application/json\r\nContent-Length: "
        ).encode()
        self._plan = plan
        self._common: dict[str, Any] = {"model": endpoint.model, "temperature": plan.temperature}
        if endpoint.ignore_eos:
            self._common["ignore_eos"] = True
        self._common |= {"stream": True, "stream_options": {"include_usage": True}}

    def write(self, request: PlannedRequest) -> bytes:
        """Return head and body of a request."""
        prompts = self._plan.prompts
        if self._plan.api == "chat":
            content: dict[str, Any] = {"messages": prompts.messages(request.prompt)}
        else:
            content = {"prompt": prompts.token_ids(request.prompt)}
        # Of max_tokens and max_completion_tokens, the first is the one that every engine takes in both APIs:
        # transformers serve ignores the second.
        body = json.dumps(
            {**self._common, "max_tokens": request.output_tokens, **content}, separators=(",", ":")
        ).encode()
        return b"%b%d\r\n\r\n%b" % (self._head, len(body), body)
