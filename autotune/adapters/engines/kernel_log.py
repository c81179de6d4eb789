"""What the kernel says of an engine that failed: its log where it may be read, its count of memory kills."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path

LOG_TIMEOUT_S = 2.0
"""A kernel that logs faster than it is read is read for no longer than this."""
LOG_RECORD_BYTES = 8192
"""The kernel hands out no longer record than this, and refuses a shorter buffer."""
CLOCKS_APART_S = 5.0
"""The kernel stamps its log by a clock that is not disciplined: lines from so long before count too."""

# A record of /dev/kmsg: "priority,sequence,microseconds since boot,flags;text" (the kernel's ABI document
# dev-kmsg). Priorities below 8 are the kernel's own: a process cannot write such a line.
_RECORD = re.compile(r"^[0-7],\d+,(?P<us>\d+),[^;\n]*;(?P<text>.*)$", re.MULTILINE)
_OOM_KILLS = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


class KernelLog:
    """Tells what the kernel said of late; says nothing where it may not be listened to.

    ``root`` is where the kernel's files are. Kills are counted from the making of this, or from when it was
    last asked.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._kills = _memory_kills(root)

    def __call__(self, since_s: float) -> str:
        """The kernel's own lines since a moment of the monotonic clock, each with its seconds in front.

        After them come the control groups of this process in which the kernel killed processes for want of
        memory, as ``memory events of GROUP: oom_kill +NUMBER``.
        """
        lines = [
            f"[{int(record['us']) / 1e6:.6f}] {record['text']}\n"
            for record in _RECORD.finditer(read_log(self._root / "dev/kmsg"))
            if int(record["us"]) / 1e6 >= since_s - CLOCKS_APART_S
        ]
        before, self._kills = self._kills, _memory_kills(self._root)
        lines += [
            f"memory events of {group}: oom_kill +{kills - before[group]}\n"
            for group, kills in self._kills.items()
            if kills > before.get(group, kills)
        ]
        return "".join(lines)


def read_log(path: Path) -> str:
    """All records of /dev/kmsg; empty where it is not there or we may not read it."""
    try:
        log_fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:  # or dmesg_restrict forbids it
        return ""
    try:
        return _read(log_fd)
    finally:
        os.close(log_fd)


def _read(log_fd: int) -> str:
    chunks = []
    deadline_s = time.monotonic() + LOG_TIMEOUT_S
    while time.monotonic() < deadline_s:
        try:
            chunk = os.read(log_fd, LOG_RECORD_BYTES)
        except BrokenPipeError:  # records were overwritten before they were read; the next read goes on
            continue
        except OSError:  # the end: it would block
            break
        if not chunk:
            break
        chunks.append(chunk)
    return b"".join(chunks).decode(errors="replace")


def _memory_kills(root: Path) -> Mapping[str, int]:
    """How many processes the kernel killed for want of memory in each control group of this process.

    See proc(5), cgroups(7): a line of /proc/self/cgroup is ``ID:CONTROLLERS:PATH``, both empty in version 2.
    """
    kills = {}
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "memory":
            counter = root / "sys/fs/cgroup/memory" / group.lstrip("/") / "memory.oom_control"
        elif not controllers:
            counter = root / "sys/fs/cgroup" / group.lstrip("/") / "memory.events"
        else:
            continue
        if found := _OOM_KILLS.search(_text(counter)):
            kills[group] = int(found[1])
    return kills


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
