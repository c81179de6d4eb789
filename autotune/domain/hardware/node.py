"""A node before and after a launch, and which faults are its own and not the configuration's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

APPLICATION_XIDS = frozenset({13, 31, 43, 45, 68, 109})
"""Xid errors that a program provokes on a sound GPU, as NVIDIA's device plugin for Kubernetes has them.

These are the configuration's failures (an illegal access in a kernel, a process that was killed); any
other Xid is the node's.
"""
BUSY_SHARE = 0.10
"""Others that use more than this share of a node's CPU before a launch make it a busy machine."""
STEAL_SHARE = 0.02
"""A hypervisor that keeps more than this share of the CPU time to itself makes a machine a shared one."""
LIMIT_SLACK_W = 1.0
"""Power limits are told in milliwatts; less than this below the default is no cap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceHealth:
    """One GPU; None where it does not say. ECC counts are volatile: since the driver last loaded or reset it.

    Idle GPUs lower their clocks and the generation (not the width) of their PCIe link. ``pci`` is the address
    in the kernel log's form, ``0000:3b:00``. ``nvlink_errors`` were corrected by retransmission;
    ``nvlink_recoveries`` are links that had to be trained again. ``recovery`` is what the driver says must be
    done with the GPU: ``none``, ``gpu-reset``, ``node-reboot``, …
    """

    uid: str
    pci: str | None = None
    temperature_c: float | None = None
    ecc_corrected: int | None = None
    ecc_uncorrected: int | None = None
    remap_pending: bool | None = None
    remap_failed: bool | None = None
    recovery: str | None = None
    nvlinks_up: int | None = None
    nvlinks: int | None = None
    nvlink_errors: int | None = None
    nvlink_recoveries: int | None = None
    pcie_generation: int | None = None
    pcie_generation_max: int | None = None
    pcie_width: int | None = None
    pcie_width_max: int | None = None
    sm_clock_mhz: float | None = None
    sm_clock_max_mhz: float | None = None
    power_limit_w: float | None = None
    power_limit_default_w: float | None = None
    mig: bool | None = None


@dataclass(frozen=True, slots=True)
class XidCount:
    """How often the driver logged one Xid for the GPU at ``pci``; ``last_s`` is seconds since boot."""

    pci: str
    code: int
    count: int
    last_s: float

    @property
    def is_nodes(self) -> bool:
        """Whether it speaks of the node, rather than of a program on it."""
        return self.code not in APPLICATION_XIDS


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    """A node at one moment, recorded with every launch.

    ``dataclasses.asdict`` makes it JSON, ``read_node_state`` reads it back. Figures are compared only among
    launches of one ``node``. Shares are of all the node's CPU time. ``xids`` is None where the kernel log
    cannot be read, which is not to say that there were none. ``idle_power_w``, all devices together, is
    filled in by who holds the power meter.
    """

    node: str
    boot_id: str
    kernel: str
    devices: tuple[DeviceHealth, ...] = ()
    cores: int
    load_1min: float
    busy_share: float
    steal_share: float
    cpu_governor: str | None = None
    cpu_mhz: float | None = None
    memory_available_bytes: int
    xids: tuple[XidCount, ...] | None = None
    idle_power_w: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CoolDown:
    """How long to wait for devices to be as cool as at the start: to within ``tolerance_c``, degrees.

    Given up after ``timeout_s``, or once they did not cool for ``settled_s``: the room got warmer.
    """

    tolerance_c: float = 3.0
    timeout_s: float = 300.0
    settled_s: float = 45.0
    poll_s: float = 1.0


_NODE_STATE = TypeAdapter(NodeState)


def read_node_state(data: Mapping[str, Any]) -> NodeState:
    """Make a NodeState of its JSON; raises ValueError for what is none."""
    return _NODE_STATE.validate_python(data)


def faults(state: NodeState) -> tuple[str, ...]:
    """Why nothing should be measured on this node, each as ``code:device: words``; empty for a sound one."""
    found = [reason for device in state.devices for reason in _device_faults(device)]
    found += [
        f"nvlink-down:{device.uid}: {device.nvlinks_up} NVLinks are up where its peers have {most}"
        for device, most in _short_of_links(state)
        if device.nvlinks_up
    ]
    # Where the driver says itself what a GPU needs, that is newer than an old line in the log.
    silent = {device.pci for device in state.devices if device.recovery is None}
    found += [
        f"xid-{xid.code}:{xid.pci}: logged {xid.count} times since boot; reset the GPU or reboot the node"
        for xid in _nodes_xids(state)
        if xid.pci in silent
    ]
    return tuple(found)


def warnings(state: NodeState) -> tuple[str, ...]:
    """What makes this node's figures unlike another's, each as ``code:device: words``; nothing is refused."""
    found = [reason for device in state.devices for reason in _device_warnings(device)]
    found += [
        f"nvlink-none:{device.uid}: no NVLink is up where its peers have {most}"
        for device, most in _short_of_links(state)
        if not device.nvlinks_up
    ]
    if state.devices and state.xids is None:
        found.append("xid-unknown: the kernel log cannot be read here, so Xid errors are not seen")
    told = {device.pci for device in state.devices if device.recovery is not None}
    found += [
        f"xid-{xid.code}:{xid.pci}: logged {xid.count} times since boot"
        for xid in _nodes_xids(state)
        if xid.pci in told
    ]
    if state.busy_share > BUSY_SHARE:
        found.append(f"busy: other processes use {state.busy_share:.0%} of {state.cores} cores")
    if state.steal_share > STEAL_SHARE:
        found.append(f"steal: the hypervisor withholds {state.steal_share:.0%} of the CPU time")
    return tuple(found)


def code_of(reason: str) -> str:
    """The code that a fault or a warning begins with."""
    return reason.partition(":")[0]


def new_faults(before: NodeState, after: NodeState) -> tuple[str, ...]:
    """Faults that appeared between two states of a node, each as ``code:device: words``.

    Where a launch lies between them it is broken by the bench, whatever became of the configuration. Errors
    that the hardware corrected are not faults. Devices that are in one state only are not compared. Raises
    ValueError for states of different nodes.
    """
    if before.node != after.node:
        raise ValueError(f"{before.node} and {after.node} are different nodes")
    if before.boot_id != after.boot_id:
        return (f"rebooted: {after.node} was restarted",)
    afterwards = {device.uid: device for device in after.devices}
    found: list[str] = []
    for device in before.devices:
        if device.uid in afterwards:
            found += _device_changes(device, afterwards[device.uid])
    known_s = {(xid.pci, xid.code): xid.last_s for xid in before.xids or ()}
    # By time and not by count: the kernel's log is a ring, from which old lines vanish.
    found += [
        f"xid-{xid.code}:{xid.pci}: logged {xid.last_s:.0f} s after boot; see NVIDIA's catalog of Xid errors"
        for xid in _nodes_xids(after)
        if before.xids is not None and xid.last_s > known_s.get((xid.pci, xid.code), -1.0)
    ]
    return tuple(found)


def describe(state: NodeState) -> str:
    """One line for people."""
    return "; ".join(
        [
            f"{state.node}, Linux {state.kernel}",
            *(_describe_device(device) for device in state.devices),
            *([f"idle {state.idle_power_w:.0f} W"] if state.idle_power_w is not None else []),
            f"{state.cores} cores {state.busy_share:.0%} busy, load {state.load_1min:.1f}",
            f"{state.memory_available_bytes / 2**30:.0f} GiB free",
        ]
    )


def _device_faults(device: DeviceHealth) -> Iterator[str]:
    if device.ecc_uncorrected:
        yield f"ecc-uncorrected:{device.uid}: {device.ecc_uncorrected} errors that ECC could not correct"
    if device.remap_pending:
        yield f"remap-pending:{device.uid}: bad memory waits for a reset of the GPU to be mapped out"
    if device.remap_failed:
        yield f"remap-failed:{device.uid}: bad memory could not be mapped out; the GPU should be replaced"
    if device.recovery not in {None, "none"}:
        yield f"recovery-needed:{device.uid}: the driver asks for {device.recovery}"


def _device_warnings(device: DeviceHealth) -> Iterator[str]:
    limit_w, default_w = device.power_limit_w, device.power_limit_default_w
    if limit_w is not None and default_w is not None and limit_w < default_w - LIMIT_SLACK_W:
        yield f"power-cap:{device.uid}: limited to {limit_w:.0f} W, by default {default_w:.0f} W"
    width, width_max = device.pcie_width, device.pcie_width_max
    if width is not None and width_max is not None and width < width_max:
        yield f"pcie-narrow:{device.uid}: x{width} of x{width_max} lanes"
    if device.nvlinks_up and device.nvlinks and device.nvlinks_up < device.nvlinks:
        yield f"nvlink-partial:{device.uid}: {device.nvlinks_up} of {device.nvlinks} NVLinks are up"
    if device.mig:
        yield f"mig:{device.uid}: MIG is on, and its watts are those of all its instances"


def _device_changes(before: DeviceHealth, after: DeviceHealth) -> Iterator[str]:
    for code, was, now, words in (
        (
            "ecc-uncorrected",
            before.ecc_uncorrected,
            after.ecc_uncorrected,
            "errors that ECC could not correct",
        ),
        ("remap-pending", before.remap_pending, after.remap_pending, "memory that waits to be mapped out"),
        ("remap-failed", before.remap_failed, after.remap_failed, "memory that could not be mapped out"),
        ("nvlink-recovery", before.nvlink_recoveries, after.nvlink_recoveries, "NVLinks trained again"),
    ):
        if was is not None and now is not None and now > was:
            yield f"{code}:{after.uid}: {int(now) - int(was)} new: {words}"
    if (
        before.nvlinks_up is not None
        and after.nvlinks_up is not None
        and after.nvlinks_up < before.nvlinks_up
    ):
        yield f"nvlink-down:{after.uid}: {after.nvlinks_up} NVLinks are up, before {before.nvlinks_up}"
    if after.recovery not in {None, "none", before.recovery}:
        yield f"recovery-needed:{after.uid}: the driver asks for {after.recovery}"


def _short_of_links(state: NodeState) -> list[tuple[DeviceHealth, int]]:
    """Devices with fewer NVLinks up than the best of them has, and what that one has.

    Fewer than the GPU could have is no sign: bridges between cards use some of them, or none.
    """
    up = [device.nvlinks_up for device in state.devices if device.nvlinks_up is not None]
    most = max(up, default=0)
    return [(d, most) for d in state.devices if d.nvlinks_up is not None and d.nvlinks_up < most]


def _nodes_xids(state: NodeState) -> list[XidCount]:
    """Xid errors of these devices that speak of the node."""
    watched = {device.pci for device in state.devices}
    return [xid for xid in state.xids or () if xid.is_nodes and xid.pci in watched]


def _describe_device(device: DeviceHealth) -> str:
    facts = [
        (device.temperature_c, "{:.0f} °C"),
        (device.power_limit_w, "limit {:.0f} W"),
        (device.sm_clock_max_mhz, "to {:.0f} MHz"),
        (device.ecc_uncorrected, "{} ECC errors"),
        (device.nvlinks_up, "{} NVLinks"),
        (device.pcie_width, "PCIe x{}"),
    ]
    known = [words.format(value) for value, words in facts if value is not None]
    return " ".join([device.uid, ", ".join(known)]) if known else device.uid
