"""How fast the pages are: 10,000 trials in the store, and a study of 200 launches with raw records.

What users feel: the first page, lists, a study's page cold and warm, the picture, another SLA's score.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import web_store

MEMORY = Path("/dev/shm")
SCORE, PICTURE = "/api/v1/studies/dense/score", "/api/v1/studies/dense/picture"
Body = Callable[[], dict[str, object]]
SLIDER = count(1)


@contextmanager
def served(url: str) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "autotune", "serve", "--storage", url, "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{address}/healthz", timeout=2).read()
                break
            except OSError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)
        yield address
    finally:
        server.terminate()
        server.wait(timeout=15)


def moved(tpot_ms: float = 31.0) -> dict[str, object]:
    """An SLA with its slider at a place where it never was: what was judged before is remembered."""
    slos = {"ttft": "350ms", "tpot": f"{tpot_ms + next(SLIDER) / 100:.2f}ms"}
    return {"name": "moved", "attainment": 0.9, "slos": slos}


def took_ms(address: str, path: str, body: Body | None = None) -> tuple[float, int]:
    data = json.dumps(body()).encode() if body is not None else None
    request = urllib.request.Request(address + path, data, {"content-type": "application/json"})
    began = time.perf_counter()
    with urllib.request.urlopen(request, timeout=120) as answer:
        size = len(answer.read())
    return (time.perf_counter() - began) * 1e3, size


def show(address: str, name: str, path: str, body: Body | None = None, *, times: int = 20) -> None:
    first, size = took_ms(address, path, body)
    rest = [took_ms(address, path, body)[0] for _ in range(times)]
    print(
        f"{name:<44}{first:>9.0f}{statistics.median(rest):>9.0f}{max(rest):>9.0f}{size / 1e3:>9.0f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=99)
    parser.add_argument("--trials", type=int, default=100, help="rows of each study")
    parser.add_argument("--archived", type=int, default=200, help="launches with raw records")
    asked = parser.parse_args()
    # In memory where there is such a place: to make the store takes thousands of commits.
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        url = web_store.make(
            Path(folder), studies=asked.studies, trials=asked.trials, archived=asked.archived
        )
        rows = asked.studies * asked.trials + asked.archived
        print(f"{rows} trials in {asked.studies + 1} studies; {asked.archived} launches archived")
        with served(url) as address:
            print(f"{'ms':<44}{'first':>9}{'median':>9}{'worst':>9}{'kB':>9}")
            show(address, "studies, the first page", "/")
            show(address, "trials of a study", "/studies/study-0001/trials")
            show(address, "API: studies", "/api/v1/studies")
            began = time.perf_counter()
            took_ms(address, "/studies/dense")
            print(f"{'study page, nothing read yet':<44}{(time.perf_counter() - began) * 1e3:>9.0f}")
            while json.loads(urllib.request.urlopen(address + "/api/v1/studies/dense/curves").read())[
                "pending_launches"
            ]:
                time.sleep(0.2)
            print(f"{'  until all launches are read':<44}{(time.perf_counter() - began) * 1e3:>9.0f}")
            show(address, "study page, launches read", "/studies/dense", times=5)
            show(address, "another SLA scored", SCORE, lambda: {"sla": moved()})
            show(address, "  that no launch meets", SCORE, lambda: {"sla": moved(tpot_ms=1.0)})
            show(address, "the picture", PICTURE, lambda: {"measure": "mw"}, times=5)
            show(address, "  of another SLA", PICTURE, lambda: {"measure": "mw", "slas": [moved()]}, times=5)
            show(address, "a trial", f"/studies/dense/trials/{asked.archived // 2}", times=5)


if __name__ == "__main__":
    main()
