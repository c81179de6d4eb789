"""Tells processes that compute on a GPU and are not ours, by what a driver says and what this machine shows.

Drivers that know PID namespaces (NVIDIA's open kernel modules convert each number to the asker's namespace)
leave out what the asker cannot see: from inside a container, other containers' processes are not seen at all.
Older ones give the host's numbers, which mean nothing inside a container. ``--pid=host`` mends both.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

import psutil


def foreign_processes(computing: Callable[[], Iterable[int]]) -> frozenset[str]:
    """Name the processes that are neither this one nor its descendants.

    ``computing`` asks the driver for the process ids on a GPU.
    """
    found = {pid for pid in computing() if not _is_ours(pid)}
    if not all(psutil.pid_exists(pid) for pid in found):
        # One that has ended since is no longer listed; one that still is has another namespace's number.
        found &= set(computing())
    return frozenset(_name(pid) for pid in found)


def _is_ours(pid: int) -> bool:
    """Follow the parents up: listing all descendants would read every process of the machine."""
    if pid == os.getpid():
        return True
    try:
        return any(parent.pid == os.getpid() for parent in psutil.Process(pid).parents())
    except psutil.Error:
        return False


def _name(pid: int) -> str:
    try:
        return f"{psutil.Process(pid).name()} (pid {pid})"
    except psutil.Error:
        # Where /proc hides other users' processes (hidepid), they exist and have no name.
        unseen = (
            "" if psutil.pid_exists(pid) else " of another PID namespace; run the container with --pid=host"
        )
        return f"pid {pid}{unseen}"
