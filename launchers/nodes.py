"""How the devices of a launch are divided among its workers, and a worker's among hosts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby, islice

from autotune.domain.basics.errors import InfeasibleConfigError
from autotune.domain.hardware.hardware import Device

PlacedDevice = tuple[int, Device]
"""A device and the slot of the host that it is on."""


def placed(devices: Iterable[Device]) -> Iterator[PlacedDevice]:
    """Tell hosts apart: indices are a host's own, so that one seen before is another host's."""
    seen: Counter[int] = Counter()
    for device in devices:
        yield seen[device.index], device
        seen[device.index] += 1


def take(devices: Iterator[PlacedDevice], count: int) -> tuple[tuple[int, tuple[Device, ...]], ...]:
    """The next ``count`` devices by host slot; raises InfeasibleConfigError for uneven shares of hosts."""
    mine = tuple(islice(devices, count))
    shares = tuple(
        (slot, tuple(device for _, device in share))
        for slot, share in groupby(mine, key=lambda each: each[0])
    )
    if len({len(share) for _, share in shares}) > 1:
        sizes = " and ".join(str(len(share)) for _, share in shares)
        raise InfeasibleConfigError(f"a worker's devices lie unevenly on its hosts: {sizes}")
    return shares
