"""What the tuner and its load workers say to each other: pickles, each behind its length.

::

    tuner     Prepare ──> Start ──────────────> [Stop]
    worker              ──> Ready    Increment ...     Done | Failed
"""

from __future__ import annotations

import pickle
import struct
from dataclasses import dataclass

from autotune.domain.launches.endpoint import Endpoint
from autotune.domain.load.load_plan import LoadPlan
from autotune.domain.load.progress import Floats
from autotune.domain.measuring.measurement import ClientHealth, RequestTable

HEADER = struct.Struct("!Q")


@dataclass(frozen=True, slots=True)
class Prepare:
    """Open connections and write the first requests of a plan."""

    endpoint: Endpoint
    plan: LoadPlan


@dataclass(frozen=True, slots=True)
class Start:
    """Begin at a time to come, monotonic seconds."""

    at_s: float


@dataclass(frozen=True, slots=True)
class Stop:
    """Send nothing more; drop what is in flight, for the reason that ``cut`` names, unless it is None."""

    cut: str | None = None


@dataclass(frozen=True, slots=True)
class Ready:
    """All is prepared."""


@dataclass(frozen=True, slots=True)
class Increment:
    """What was due and what ended up to ``at_s``, since the last one.

    ``ended`` has a row for each, with the columns of EndedRequest.
    """

    at_s: float
    due_s: Floats
    ended: Floats


@dataclass(frozen=True, slots=True)
class Done:
    """The drive is over."""

    requests: RequestTable
    health: ClientHealth


@dataclass(frozen=True, slots=True)
class Failed:
    """This machine cannot drive the load, and why."""

    reason: str


Order = Prepare | Start | Stop
Report = Ready | Increment | Done | Failed


def framed(message: Order | Report) -> bytes:
    """A message as bytes."""
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return HEADER.pack(len(data)) + data


class Unframer:
    """Finds the reports in what a worker sent, however it is cut."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> list[Report]:
        """Return the reports that are complete now."""
        self._data += data
        reports: list[Report] = []
        while len(self._data) >= HEADER.size:
            end = HEADER.size + HEADER.unpack_from(self._data)[0]
            if len(self._data) < end:
                break
            # Both ends are this program: a worker is a child that was started with nothing else to say.
            reports.append(pickle.loads(self._data[HEADER.size : end]))  # noqa: S301
            del self._data[:end]
        return reports
