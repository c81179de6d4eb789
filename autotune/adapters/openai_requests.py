"""Requests of OpenAI's HTTP API, written out in full, so that sending one is one write."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

from autotune.domain.launch import Endpoint
from autotune.domain.load_plan import LoadPlan, PlannedRequest

PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}


class RequestWriter:
    """Writes the requests of a plan for an endpoint; raises ValueError for what is not plain HTTP."""

    def __init__(self, endpoint: Endpoint, plan: LoadPlan) -> None:
        url = urlsplit(endpoint.base_url)
        if url.scheme != "http" or url.hostname is None:
            raise ValueError(f"an endpoint is http://HOST:PORT, not {endpoint.base_url!r}")
        self.host = url.hostname
        self.port = url.port or 80
        self._head = (
            f"POST {url.path.rstrip('/')}{PATHS[plan.api]} HTTP/1.1\r\nHost: {url.netloc}\r\n"
            "Content-Type: application/json\r\nContent-Length: "
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
