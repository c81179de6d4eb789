"""Placement: ranks that talk most stay together, wherever there is room."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.domain.hardware.hardware import Device, DeviceKind
from autotune.domain.hardware.placement import choose_devices


def gpu(index: int, island: int = -1, node: int = -1) -> Device:
    return Device(DeviceKind.CUDA, index, "GPU", f"GPU-{index}", 1, island=island, numa_node=node)


def machine(*islands: tuple[int, ...], per_node: int = 4) -> list[Device]:
    """GPUs by their islands; ``per_node`` of consecutive indices are next to one node of memory."""
    return [gpu(i, number, i // per_node) for number, members in enumerate(islands) for i in members]


def indices(devices: tuple[Device, ...]) -> list[int]:
    return [device.index for device in devices]


@st.composite
def machines(draw: st.DrawFn) -> list[Device]:
    count = draw(st.integers(1, 12))
    places = st.integers(-1, 3)
    devices = [gpu(index, draw(places), draw(places)) for index in range(count)]
    return draw(st.permutations(devices))


@pytest.mark.parametrize(
    ("islands", "count", "group", "chosen"),
    [
        (((0, 1), (2, 3)), 2, 2, [0, 1]),
        (((0, 2), (1, 3)), 2, 2, [0, 2]),
        (((0,), (1, 2)), 2, 2, [1, 2]),  # never over two islands where one has room
        (((0, 1, 2, 3), (4, 5)), 2, 2, [4, 5]),  # the tightest: what is large stays whole
        (((0, 1, 2), (3, 4, 5)), 4, 2, [0, 1, 3, 4]),  # a pair in each, rather than one over both
        (((0, 1), (2, 3), (4, 5), (6, 7)), 4, 4, [0, 1, 2, 3]),  # no island has room: a node has
        (((0, 1), (2, 3), (4, 5), (6, 7)), 8, 8, [0, 1, 2, 3, 4, 5, 6, 7]),
        (((0, 1), (2, 3)), 2, 1, [0, 1]),  # replicas of one device each stay close too
        (((0,), (1, 2, 3)), 2, 1, [1, 2]),
        (((0, 1), (2, 3)), 3, 2, [0, 1, 2]),  # the last group is what is left over
        (((0, 1), (2, 3)), 5, 1, []),
    ],
)
def test_examples(islands: tuple[tuple[int, ...], ...], count: int, group: int, chosen: list[int]) -> None:
    assert indices(choose_devices(machine(*islands), count, group=group)) == chosen


def test_a_group_that_fits_no_island_takes_whole_ones_of_its_node() -> None:
    # Node 0 has the islands {0}, {1, 2}, {3}: two of a kind are better than two strangers.
    assert indices(choose_devices(machine((0,), (1, 2), (3,)), 3, group=3)) == [0, 1, 2]


def test_where_nothing_is_known_the_lowest_are_taken() -> None:
    cores = [Device(DeviceKind.CPU, i, "core", f"cpu-{i}", 1) for i in (4, 1, 3)]
    assert indices(choose_devices(cores, 2, group=2)) == [1, 3]


@given(machines(), st.integers(1, 12), st.integers(1, 4))
def test_as_many_as_asked_for_each_once_or_none(devices: list[Device], count: int, group: int) -> None:
    chosen = choose_devices(devices, count, group=group)
    assert len(chosen) == (count if count <= len(devices) else 0)
    assert len({*chosen}) == len(chosen)
    assert {*chosen} <= {*devices}


@given(machines(), st.integers(1, 12), st.integers(1, 4))
def test_the_order_in_which_devices_are_given_plays_no_part(
    devices: list[Device], count: int, group: int
) -> None:
    again = choose_devices(sorted(devices, key=lambda d: d.index), count, group=group)
    assert choose_devices(devices, count, group=group) == again


@given(machines(), st.integers(1, 4), st.integers(1, 4))
def test_as_many_groups_as_can_be_lie_inside_an_island(
    devices: list[Device], groups: int, group: int
) -> None:
    chosen = choose_devices(devices, groups * group, group=group)
    if not chosen:
        return
    inside = sum(_is_one_island(chosen[at : at + group]) for at in range(0, len(chosen), group))
    sizes = Counter(_island(device) for device in devices)
    assert inside == min(groups, sum(size // group for size in sizes.values()))


@given(machines(), st.integers(2, 4))
def test_one_group_lies_in_a_node_if_any_holds_it_and_no_island_does(
    devices: list[Device], group: int
) -> None:
    chosen = choose_devices(devices, group, group=group)
    possible = [set(c) for c in combinations(devices, group)]
    if chosen and not any(_is_one_island(tuple(c)) for c in possible):
        assert _is_one_node(chosen) == any(_is_one_node(tuple(c)) for c in possible)


def _island(device: Device) -> object:
    return device.island if device.island >= 0 else device.uid


def _is_one_island(devices: tuple[Device, ...]) -> bool:
    return len({_island(device) for device in devices}) == 1


def _is_one_node(devices: tuple[Device, ...]) -> bool:
    return len(devices) == 1 or {device.numa_node for device in devices} in ({0}, {1}, {2}, {3})
