"""The mock engine with faults of single requests, and one that stops.

FAULTY_BURST is ``FROM-TO``, the requests that get 503; after it every FAULTY_STREAM-th breaks off.
FAULTY_STOP is the request at which the whole process stops, alive and silent. FAULTY_HANG is one that never
ends, whoever waits for it, while others are served.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal

import mock_engine

STREAM_ERROR = "the KV cache of this request was lost"


class FaultyCompletion(mock_engine.Completion):
    async def run(self) -> None:
        first, last = map(int, os.environ.get("FAULTY_BURST", "0-0").split("-"))
        number = self.engine.requests + 1
        if number == int(os.environ.get("FAULTY_STOP", "0")):
            os.kill(os.getpid(), signal.SIGSTOP)
        if number == int(os.environ.get("FAULTY_HANG", "0")):
            self.engine.requests = number
            self.engine.running += 1
            await asyncio.sleep(3600)
        if first <= number <= last:
            self.engine.requests = number
            raise mock_engine.RefusedError(503, "no capacity")
        every = int(os.environ.get("FAULTY_STREAM", "0"))
        if every and number > last and number % every == 0:
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
