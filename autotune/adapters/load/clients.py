"""LoadDriver whose clients are processes of their own, so that nothing the tuner does disturbs their timing.

::

    LoadClients ──> load_worker ──> engine      one conversation, socket pair, per worker
              └───> load_worker ──> engine
"""

from __future__ import annotations

import math
import os
import selectors
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType

import numpy as np

from autotune.adapters.load.messages import Done, Failed, Increment, Prepare, Ready, Report, Start, Stop
from autotune.adapters.load.openai_requests import RequestWriter
from autotune.adapters.load.process import LoadProcess
from autotune.domain.basics.errors import BenchError, StudyCancelledError
from autotune.domain.launches.endpoint import Endpoint
from autotune.domain.load.load_plan import LoadPlan
from autotune.domain.load.pacing import share_out, shares
from autotune.domain.load.progress import (
    Cancelled,
    EndedRequest,
    EndedRequests,
    Floats,
    Progress,
    Steer,
    Steering,
    to_the_end,
)
from autotune.domain.measuring.measurement import ClientHealth, LoadResult, RequestTable

TICK_S = 0.05
"""How often the engine's life and cancelling are looked at."""
READY_TIMEOUT_S = 60.0
"""How long workers may take to start, to connect and to write the first requests."""
START_AHEAD_S = 0.02
"""The common start lies this far ahead of the order to start, which must have reached every worker."""
RESULT_TIMEOUT_S = 30.0
"""How long after its last deadline a drive's result may take."""

OUTPUT_TOKEN_CPU_S = 6e-6
REQUEST_CPU_S = 150e-6
PROMPT_TOKEN_CPU_S = 0.15e-6
"""What a client spends on a token that comes as a chunk of its own, on a request, and on a prompt's token.

Measured against a server that floods it (4 µs, 50-100 µs, 0.13 µs), with a margin for slower machines.
"""
PROCESS_SHARE = 0.4
"""Share of a core up to which a client process is planned, 65k tok/s: bursts need the rest."""
USER_TOK_PER_S = 200.0
"""Assumed of closed loops, whose rate nobody knows beforehand; if it is too low, ClientHealth says so."""


class LoadClients:
    """Drives load from worker processes, which are started once and kept between drives.

    As many as the plan needs, unless ``processes`` says how many. ``start`` begins starting the first one
    while something else is waited for; a drive starts what is missing. ``close`` ends them; so does the end
    of the tuner, however it comes. Not for several threads at once.
    """

    def __init__(self, *, processes: int | None = None) -> None:
        self._processes = processes
        self._workers: list[LoadProcess] = []

    def __enter__(self) -> LoadClients:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Begin starting workers; returns at once."""
        self._have(self._processes or 1)

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the workers that were started."""
        return tuple(worker.pid for worker in self._workers)

    def close(self) -> None:
        """End the workers; another drive starts new ones."""
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.hang_up()
        for worker in workers:
            worker.end()

    def drive(
        self,
        endpoint: Endpoint,
        plan: LoadPlan,
        *,
        alive: Callable[[], bool],
        cancelled: Cancelled,
        steer: Steering = to_the_end,
    ) -> LoadResult:
        """Send the requests of the plan until ``steer`` says otherwise; each failure is data in its record.

        An open-loop drive lasts until ``duration_s`` even if all requests ended earlier. Requests that were
        not due when sending stopped are not in the result. Raises StudyCancelledError, ValueError for an
        endpoint that is not plain HTTP, and BenchError when a worker was lost or this machine cannot open
        the connections needed.
        """
        RequestWriter(endpoint, plan)  # raises here what would else end a worker
        places = shares(plan, self._processes or processes_for(plan))
        parts = share_out(plan, places)
        joint = _JointDrive(self._have(len(parts)), plan, places)
        try:
            return joint.run(endpoint, parts, alive, cancelled, steer)
        except BaseException:
            # Whatever the workers were at, nobody waits for it any more.
            for worker in self._workers:
                worker.kill()
            self.close()
            raise

    def _have(self, count: int) -> Sequence[LoadProcess]:
        """So many workers, in place of those that are gone."""
        for worker in [w for w in self._workers if not w.alive()]:
            self._workers.remove(worker)
            worker.end()
        while len(self._workers) < count:
            self._workers.append(LoadProcess())
        return self._workers[:count]


class _JointDrive:
    """One drive, as seen over all of its workers: started together, steered together, merged."""

    def __init__(
        self, workers: Sequence[LoadProcess], plan: LoadPlan, places: Sequence[Sequence[int]]
    ) -> None:
        self._workers = workers
        self._plan = plan
        self._places = places
        self._ready = 0
        self._done: dict[LoadProcess, Done] = {}
        self._due_s: Floats = np.zeros(0)
        self._ended: Floats = np.zeros((0, len(EndedRequest._fields)))
        self._started_s = math.nan
        self._steered_s = math.nan
        self._known_to_s = dict.fromkeys(workers, math.nan)
        self._deadline_s = time.monotonic() + READY_TIMEOUT_S
        self._stopped = False
        self._engine_died = False

    def run(
        self,
        endpoint: Endpoint,
        parts: Sequence[LoadPlan],
        alive: Callable[[], bool],
        cancelled: Cancelled,
        steer: Steering,
    ) -> LoadResult:
        """Carry it out; raises StudyCancelledError, BenchError."""
        for worker, part in zip(self._workers, parts, strict=True):
            worker.send(Prepare(endpoint, part))
        with selectors.DefaultSelector() as selector:
            for worker in self._workers:
                selector.register(worker, selectors.EVENT_READ, worker)
            while len(self._done) < len(self._workers):
                for key, _ in selector.select(TICK_S):
                    for report in key.data.receive():
                        self._take(key.data, report)
                    if key.data in self._done:
                        # It has said everything: that it ends by now is no loss to this drive.
                        selector.unregister(key.data)
                if cancelled():
                    raise StudyCancelledError("stopped while driving load")
                self._look(alive, steer)
        return self._result()

    def _take(self, worker: LoadProcess, report: Report) -> None:
        match report:
            case Ready():
                self._ready += 1
                if self._ready == len(self._workers):
                    self._start()
            case Increment():
                self._due_s = np.concatenate([self._due_s, report.due_s])
                self._ended = np.concatenate([self._ended, report.ended])
                self._known_to_s[worker] = report.at_s
            case Done():
                self._done[worker] = report
                self._known_to_s[worker] = math.inf
            case Failed():
                raise BenchError(report.reason)

    def _start(self) -> None:
        self._started_s = time.monotonic() + START_AHEAD_S
        self._steered_s = self._started_s
        self._known_to_s = dict.fromkeys(self._workers, self._started_s)
        self._deadline_s = (
            self._started_s + self._plan.duration_s + self._plan.drain_timeout_s + RESULT_TIMEOUT_S
        )
        for worker in self._workers:
            worker.send(Start(self._started_s))

    def _look(self, alive: Callable[[], bool], steer: Steering) -> None:
        """See to what does not come from the workers."""
        now_s = time.monotonic()
        if now_s > self._deadline_s:
            raise BenchError(f"load clients do not answer; {len(self._done)} of {len(self._workers)} did")
        if now_s < self._started_s or math.isnan(self._started_s):
            return
        if not self._engine_died and not alive():
            self._engine_died = True
            self._stop(cut="engine died")
        # What is known is known of every worker only up to the one that has been silent longest.
        known_to_s = min(self._known_to_s.values())
        if not self._stopped and self._steered_s < known_to_s < math.inf:
            self._steered_s = known_to_s
            match steer(self._progress(known_to_s)):
                case Steer.DRAIN:
                    self._stop(cut=None)
                case Steer.CUT:
                    self._stop(cut="cut off")
                case Steer.GO_ON:
                    pass

    def _stop(self, *, cut: str | None) -> None:
        self._stopped = True
        drain_s = self._plan.drain_timeout_s if cut is None else 0.0
        self._deadline_s = min(self._deadline_s, time.monotonic() + drain_s + RESULT_TIMEOUT_S)
        for worker in self._workers:
            if worker not in self._done:
                worker.send(Stop(cut))

    def _progress(self, at_s: float) -> Progress:
        finished_s = self._ended[:, EndedRequest._fields.index("finished_s")]
        in_order = np.argsort(finished_s, kind="stable")
        return Progress(
            started_s=self._started_s,
            at_s=at_s,
            due_s=np.sort(self._due_s[self._due_s <= at_s]),
            ended=EndedRequests.of(self._ended[in_order[: np.count_nonzero(finished_s <= at_s)]]),
        )

    def _result(self) -> LoadResult:
        healths = [done.health for done in self._done.values()]
        parts = [self._done[worker].requests for worker in self._workers]
        return LoadResult(
            requests=RequestTable.concat(
                [
                    replace(part, planned=np.array(places, dtype=np.int64)[part.planned])
                    for part, places in zip(parts, self._places, strict=True)
                ]
            ),
            started_s=self._started_s,
            health=ClientHealth(
                lag_p99_s=max(health.lag_p99_s for health in healths),
                cpu_share=max(health.cpu_share for health in healths),
                loop_lag_p99_s=max(health.loop_lag_p99_s for health in healths),
                processes=len(healths),
            ),
            engine_died=self._engine_died,
        )


def processes_for(plan: LoadPlan) -> int:
    """Client processes for a plan: by the work it is for a client, and leaving a core to everything else."""
    most = max(1, len(os.sched_getaffinity(0)) - 1)
    return max(1, min(most, math.ceil(client_cores(plan) / PROCESS_SHARE)))


def client_cores(plan: LoadPlan) -> float:
    """Cores that a plan keeps busy on the client's side, at one token a chunk."""
    output_tokens = sum(request.output_tokens for request in plan.requests)
    prompt_tokens = sum(segment.tokens for request in plan.requests for segment in request.prompt)
    cpu_s = (
        output_tokens * OUTPUT_TOKEN_CPU_S
        + prompt_tokens * PROMPT_TOKEN_CPU_S
        + len(plan.requests) * REQUEST_CPU_S
    )
    if plan.concurrency is None:
        return cpu_s / max(plan.duration_s, 1.0)
    return cpu_s * plan.concurrency * USER_TOK_PER_S / max(output_tokens, 1)
