"""Which of the free devices a launch gets: ranks that talk most stay where they reach each other best."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence

from autotune.domain.hardware.hardware import Device

Group = tuple[Device, ...]


def choose_devices(free: Sequence[Device], count: int, *, group: int = 1) -> tuple[Device, ...]:
    """Choose ``count`` devices of some, group after group; empty where there are fewer.

    A group is ``group`` devices (the tensor-parallel ranks of one stage of one replica); the last may be
    smaller. As many groups as can be lie inside an island each; one that fits in none lies inside a NUMA node
    if it can. Groups stay together where there is room, and the lowest indices are taken first.
    """
    if len(free) < count:
        return ()
    left = sorted(free, key=lambda device: device.index)
    chosen: list[Device] = []
    while len(chosen) < count:
        size = min(group, count - len(chosen))
        chosen += _one_group(left, size, chosen, count - len(chosen))
        left = [device for device in left if device not in chosen]
    return tuple(chosen)


def _one_group(free: Sequence[Device], size: int, chosen: Sequence[Device], missing: int) -> Group:
    """One group of ``size``: beside those chosen, else where there is room for all ``missing`` devices."""
    islands = _parts(free, _island)
    for within in (_island, _node, _machine):
        near = {within(device) for device in chosen}
        roomy = [part for part in _parts(free, within) if len(part) >= size]
        if roomy:
            part = min(roomy, key=lambda p: (within(p[0]) not in near, *_fit(p, missing)))
            # Whole islands rather than ends of several, where a group cannot lie in one.
            whole_first = sorted(part, key=lambda device: _rest(device, islands))
            return tuple(sorted(whole_first[:size], key=lambda device: device.index))
    raise AssertionError("unreachable: all that is free has room")


def _fit(part: Group, missing: int) -> tuple[bool, int, int]:
    """The tightest part that holds all that is missing comes first, then the largest."""
    holds_all = len(part) >= missing
    return (not holds_all, len(part) if holds_all else -len(part), part[0].index)


def _rest(device: Device, islands: Sequence[Group]) -> tuple[int, int, int]:
    own = next(island for island in islands if device in island)
    return (-len(own), own[0].index, device.index)


def _parts(devices: Sequence[Device], of: Callable[[Device], Hashable]) -> list[Group]:
    parts: dict[Hashable, list[Device]] = defaultdict(list)
    for device in devices:
        parts[of(device)].append(device)
    return [tuple(part) for part in parts.values()]


def _island(device: Device) -> Hashable:
    """What is not known to lie in an island is one of its own."""
    return device.island if device.island >= 0 else device.uid


def _node(device: Device) -> Hashable:
    return device.numa_node if device.numa_node >= 0 else device.uid


def _machine(_: Device) -> Hashable:
    return None
