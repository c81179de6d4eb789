"""Power of a whole node, as its management controller tells it over Redfish.

Facts: DMTF DSP0268 (schemas) and DSP0266 (protocol; basic authentication is mandatory there). A chassis tells
its power in one of three ways, best first: ``EnvironmentMetrics`` ``PowerWatts.Reading`` (since 2020.4);
``PowerSubsystem`` with ``InputPowerWatts.Reading`` of each power supply, added up; the older ``Power``
``PowerControl[0].PowerConsumedWatts``.
"""

from __future__ import annotations

import base64
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.adapters.power.http_reader import TIMEOUT_S, HttpReader
from autotune.adapters.power.reading import Reading, Recording, device_power
from autotune.adapters.power.sampling import Sampling
from autotune.domain.basics.errors import BenchError, InputError, InputProblem
from autotune.domain.hardware.hardware import Device
from autotune.domain.measuring.power import PowerBasis, PowerScope, PowerTrace

PERIOD_S = 2.0
"""Controllers renew their figure about every second, and are small computers."""
ROOT = "/redfish/v1/"
OK, NOT_FOUND = 200, 404
NOT_PERMITTED = frozenset({401, 403})

ENVIRONMENT = ("PowerWatts", "Reading")
SUPPLY = ("InputPowerWatts", "Reading")
OLDER = ("PowerControl", 0, "PowerConsumedWatts")

_Steps = tuple[str | int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RedfishAccess:
    """Where a node's controller is and who we are to it.

    User and password stand in the environment variables named here; ``chassis`` is an id, needed only where
    the controller tells of several.
    """

    url: str
    user_variable: str = ""
    password_variable: str = ""
    chassis: str = ""
    ca_file: Path | None = None
    verify: bool = True
    timeout_s: float = TIMEOUT_S


@dataclass(frozen=True, slots=True)
class _Sensor:
    """A resource, and the way to the watts in it."""

    path: str
    steps: _Steps


class RedfishPowerMeter:
    """PowerMeter on basis ``host``, scope ``node``: power at the node's supplies, its GPUs included.

    There is no energy counter that is fine enough, so a window is at best ``unchecked``. Raises InputError
    for what is wrong in the access.
    """

    def __init__(self, access: RedfishAccess, *, period_s: float = PERIOD_S) -> None:
        self._access = access
        self._period_s = period_s
        self._reader()

    @contextmanager
    def window(self, devices: Sequence[Device]) -> Iterator[Recording[Reading]]:  # noqa: ARG002 - the node is one
        """Record for the length of a ``with`` block; raises BenchError where no power is told."""
        with self._reader() as reader:
            sensors = _find(reader, self._access.chassis)
            with Sampling(lambda: _read(reader, sensors), self._period_s) as sampling:
                yield Recording(sampling.samples, lambda readings: self._trace(reader, sensors, readings))

    def _reader(self) -> HttpReader:
        access = self._access
        headers = {"Accept": "application/json", "OData-Version": "4.0"}
        if access.user_variable:
            user, password = _secret(access.user_variable), _secret(access.password_variable)
            token = base64.b64encode(f"{user}:{password}".encode()).decode()
            headers["Authorization"] = f"Basic {token}"
        reader = HttpReader(
            access.url,
            headers=headers,
            ca_file=access.ca_file,
            verify=access.verify,
            timeout_s=access.timeout_s,
        )
        if access.user_variable and not (reader.encrypted or reader.on_this_machine):
            raise InputError(
                InputProblem(access.url, "a password would cross the network unencrypted", "use https://")
            )
        return reader

    def _trace(
        self, reader: HttpReader, sensors: Sequence[_Sensor], readings: Sequence[Reading]
    ) -> PowerTrace:
        ways = ", ".join(f"{sensor.path} {'.'.join(map(str, sensor.steps))}" for sensor in sensors)
        return PowerTrace(
            basis=PowerBasis.HOST,
            source=f"Redfish: {ways}",
            period_s=self._period_s,
            devices=(device_power(reader.host, readings),),
            scope=PowerScope.NODE,
            reserved=(reader.host,),
        )


def _secret(variable: str) -> str:
    value = os.environ.get(variable, "")
    if not value:
        raise InputError(
            InputProblem(
                f"environment variable {variable or '(none named)'}",
                "holds no credentials for Redfish",
                "set it before the study",
            )
        )
    return value


def _find(reader: HttpReader, chassis: str) -> tuple[_Sensor, ...]:
    """Find the node's sensors; raises BenchError where none, or more than one chassis, could be it."""
    collection = _json(reader, _link(_json(reader, ROOT), "Chassis") or f"{ROOT}Chassis")
    paths = [_text(member, "@odata.id") for member in _list(collection, "Members")]
    if chassis:
        paths = [path for path in paths if path.rstrip("/").rpartition("/")[2] == chassis]
    found = {}
    for path in paths:
        resource = _json(reader, path)
        # What is inside another chassis is counted by the outer one.
        outermost = chassis or not _at(resource, ("Links", "ContainedBy"))
        if outermost and (sensors := _sensors(reader, resource)):
            found[path] = sensors
    if len(found) != 1:
        told = ", ".join(found) or "none"
        raise BenchError(
            f"Redfish at {reader.host}: chassis that could be the node and tell their power: {told}; "
            "name the one that is the node by its id"
        )
    return next(iter(found.values()))


def _sensors(reader: HttpReader, chassis: object) -> tuple[_Sensor, ...]:
    """Find a chassis' sensors that tell something now, by the best way that it has."""
    environment = [_Sensor(path, ENVIRONMENT) for path in _paths(_link(chassis, "EnvironmentMetrics"))]
    older = [_Sensor(path, OLDER) for path in _paths(_link(chassis, "Power"))]
    for sensors in (environment, _supplies(reader, chassis), older):
        telling = tuple(s for s in sensors if _watts(_at(_json(reader, s.path), s.steps)) is not None)
        if telling:
            return telling
    return ()


def _supplies(reader: HttpReader, chassis: object) -> list[_Sensor]:
    """Metrics of each power supply of a ``PowerSubsystem``; a bay without a supply has none."""
    sensors = []
    for subsystem in _paths(_link(chassis, "PowerSubsystem")):
        for supplies in _paths(_link(_json(reader, subsystem), "PowerSupplies")):
            for member in _list(_json(reader, supplies), "Members"):
                supply = _json(reader, _text(member, "@odata.id"))
                sensors += [_Sensor(path, SUPPLY) for path in _paths(_link(supply, "Metrics"))]
    return sensors


def _read(reader: HttpReader, sensors: Sequence[_Sensor]) -> Reading:
    """Read the power now: of several sensors the sum, at the mean of their moments."""
    total_w = 0.0
    moments_s = []
    for sensor in sensors:
        answer = reader.get(sensor.path)
        watts = _watts(_at(_parsed(reader, sensor.path, answer.status, answer.body), sensor.steps))
        if watts is None:
            raise BenchError(
                f"power meter lost: Redfish at {reader.host}: {sensor.path} tells no power any more; "
                "see the controller's own page, and restart it if it shows none either"
            )
        total_w += watts
        moments_s.append(answer.at_s)
    return Reading(at_s=sum(moments_s) / len(moments_s), power_w=total_w)


def _json(reader: HttpReader, path: str) -> object:
    answer = reader.get(path)
    return _parsed(reader, path, answer.status, answer.body)


def _parsed(reader: HttpReader, path: str, status: int, body: bytes) -> object:
    """Read a resource, None for one that is not there: controllers link to what they have not got."""
    if status == NOT_FOUND:
        return None
    if status != OK:
        remedy = (
            "see that user and password are right and may read"
            if status in NOT_PERMITTED
            else "see the controller's own page"
        )
        raise BenchError(f"Redfish at {reader.host}: {path} answered with status {status}; {remedy}")
    try:
        return json.loads(body)
    except ValueError as error:
        raise BenchError(f"Redfish at {reader.host}: {path} is not JSON: {body[:60]!r}") from error


def _at(value: Any, steps: _Steps) -> Any:
    """Follow keys and indices; None where the way ends early."""
    for step in steps:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _watts(value: object) -> float | None:
    """Read a figure: null, text or a negative number is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value < math.inf else None


def _link(resource: object, name: str) -> str:
    return _text(_at(resource, (name,)), "@odata.id")


def _text(resource: object, key: str) -> str:
    value = _at(resource, (key,))
    return value if isinstance(value, str) else ""


def _list(resource: object, key: str) -> list[Any]:
    value = _at(resource, (key,))
    return value if isinstance(value, list) else []


def _paths(link: str) -> tuple[str, ...]:
    return (link,) if link else ()
