"""The mock engine with faults of single requests: a burst of refusals, and errors in the middle of streams.

FAULTY_BURST is ``FROM-TO``, the requests that get 503; after it every FAULTY_STREAM-th breaks off.
"""

from __future__ import annotations

import json
import os

import mock_engine

STREAM_ERROR = "the KV cache of this request was lost"


class FaultyCompletion(mock_engine.Completion):
    async def run(self) -> None:
        first, last = map(int, os.environ["FAULTY_BURST"].split("-"))
        number = self.engine.requests + 1
        if first <= number <= last:
            self.engine.requests = number
            raise mock_engine.RefusedError(503, "no capacity")
        if number > last and number % int(os.environ["FAULTY_STREAM"]) == 0:
            self.engine.requests = number
            self.break_off()
            return
        await super().run()

    def break_off(self) -> None:
        connection = self.connection
        connection.begin_stream()
        connection.send_event(self.chunk(self.text(0), 1))
        connection.send_event(json.dumps({"error": {"message": STREAM_ERROR, "code": 500}}))
        connection.end_stream()


if __name__ == "__main__":
    mock_engine.Completion = FaultyCompletion  # type: ignore[misc]
    mock_engine.main()
