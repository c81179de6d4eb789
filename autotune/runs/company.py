"""Copies of a configuration beside the one that is measured: a node as full as it will be in service.

What shares a node shares its cores, its memory, its links, its air and its power supply: two devices of eight
are faster with the node to themselves than each of the four pairs that will serve.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass

from autotune.domain.basics.errors import BenchError, InfeasibleConfigError, StudyCancelledError
from autotune.domain.launches.endpoint import Endpoint
from autotune.domain.launches.launch import EngineDiedError
from autotune.domain.load.load_plan import LoadPlan
from autotune.domain.load.progress import Cancelled, Steering, to_the_end
from autotune.domain.measuring.measurement import LoadResult
from autotune.domain.studies.ports import LoadDriver, RunningEngine

Opening = Callable[[Cancelled], AbstractContextManager[RunningEngine]]
"""Starts a copy, and keeps it for the length of a ``with`` block."""

Accompanied = Callable[[LoadDriver], LoadDriver]
"""Waits until all copies are up, and makes of the measured engine's driver one that drives them all alike."""


@dataclass(frozen=True, slots=True)
class Copy:
    """An engine beside the measured one, and what drives it."""

    driver: LoadDriver
    engine: RunningEngine


@contextmanager
def company(openings: Sequence[tuple[LoadDriver, Opening]], cancelled: Cancelled) -> Iterator[Accompanied]:
    """Start all copies at once, each in a thread, and keep them for the length of the block.

    Waiting for them raises BenchError where one does not come up.
    """
    ended = threading.Event()
    up: list[Future[RunningEngine]] = [Future() for _ in openings]

    def serve(opening: Opening, mine: Future[RunningEngine]) -> None:
        try:
            with opening(lambda: ended.is_set() or cancelled()) as engine:
                mine.set_result(engine)
                ended.wait()
        except BaseException as error:
            if mine.done():
                raise
            mine.set_exception(error)

    def accompanied(own: LoadDriver) -> LoadDriver:
        try:
            engines = [each.result() for each in up]
        except (EngineDiedError, InfeasibleConfigError) as error:
            raise BenchError(f"the node was not full, a copy beside it did not come up: {error}") from error
        copies = [Copy(driver, engine) for (driver, _), engine in zip(openings, engines, strict=True)]
        return _Together(own, copies) if copies else own

    with ThreadPoolExecutor(len(openings) or 1, thread_name_prefix="copy") as threads:
        serving = [threads.submit(serve, o, mine) for (_, o), mine in zip(openings, up, strict=True)]
        try:
            yield accompanied
        finally:
            ended.set()
    for each in serving:
        each.result()


class _Together:
    """Drives the measured engine and its copies with the same requests; what the measured one did counts."""

    def __init__(self, own: LoadDriver, copies: Sequence[Copy]) -> None:
        self._own, self._copies = own, tuple(copies)

    def drive(
        self,
        endpoint: Endpoint,
        plan: LoadPlan,
        *,
        alive: Callable[[], bool],
        cancelled: Cancelled,
        steer: Steering = to_the_end,
    ) -> LoadResult:
        ended = threading.Event()

        def beside(copy: Copy) -> None:
            copy.engine.reset_caches()
            with suppress(StudyCancelledError):
                copy.driver.drive(copy.engine.endpoint, plan, alive=copy.engine.alive, cancelled=ended.is_set)

        with ThreadPoolExecutor(len(self._copies), thread_name_prefix="copy-load") as threads:
            loads = [threads.submit(beside, copy) for copy in self._copies]
            try:
                result = self._own.drive(endpoint, plan, alive=alive, cancelled=cancelled, steer=steer)
            finally:
                ended.set()
        for load in loads:
            load.result()
        if not all(copy.engine.alive() for copy in self._copies):
            raise BenchError("the node was not full, a copy beside it died under its load")
        return result
