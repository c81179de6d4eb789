"""Proves that a launch left nothing: shared memory, semaphores, and memory of its GPUs.

What is found is removed only where it is the launch's beyond doubt: it is ours, it came since the launch
began, and no process maps it, has it open, or made it and still lives. All else that came is told and left
alone.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from autotune.adapters.devices.gpu_memory import used_memory
from autotune.domain.basics.errors import BenchError
from autotune.domain.hardware.hardware import Device

GPU_TIMEOUT_S = 60.0
"""How long a driver may take to free the memory of processes that are gone."""
GPU_TOLERANCE_BYTES = 256 << 20
"""By how much the driver's own use of a GPU's memory may have grown."""
POLL_S = 0.5

_IPC_RMID = 0
_GETPID = 11


@dataclass(frozen=True, slots=True)
class SharedFile:
    """A file of POSIX shared memory, or a named semaphore, which Linux keeps beside it."""

    name: str
    inode: int


@dataclass(frozen=True, slots=True)
class IpcObject:
    """A System V object; ``kind`` is shm or sem, and its id is given out again only when it is gone."""

    kind: str
    id: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What there is of each at one moment; ``gpu_bytes`` by device uid."""

    files: frozenset[SharedFile]
    objects: frozenset[IpcObject]
    gpu_bytes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Left:
    """What a launch left: what was removed, what came and is not surely its own, and what stays occupied.

    ``occupied`` says, for a device whose memory did not come back, how much of it.
    """

    removed: tuple[str, ...]
    kept: tuple[str, ...]
    occupied: Mapping[Device, str]

    def __bool__(self) -> bool:
        return bool(self.removed or self.kept or self.occupied)

    def __str__(self) -> str:
        said = {"removed": self.removed, "left alone": self.kept}
        lines = [f"{how}: {what}" for how, things in said.items() for what in things]
        return "\n".join([*lines, *(f"{device.uid}: {why}" for device, why in self.occupied.items())])


def nobody_sets_aside(device: Device, why: str) -> None:
    """Raise BenchError: with nobody to keep others off a device, it cannot be used on."""
    raise BenchError(f"{device.uid}: {why}")


class Hygiene:
    """Looks before and after a launch.

    ``set_aside`` is told of a device whose memory did not come back; ``root`` is where the kernel's files
    are.
    """

    def __init__(
        self,
        *,
        set_aside: Callable[[Device, str], None] = nobody_sets_aside,
        gpu_bytes: Callable[[Sequence[Device]], Mapping[str, int]] = used_memory,
        gpu_timeout_s: float = GPU_TIMEOUT_S,
        root: Path = Path("/"),
    ) -> None:
        self._set_aside = set_aside
        self._gpu_bytes = gpu_bytes
        self._gpu_timeout_s = gpu_timeout_s
        self._root = root

    @contextmanager
    def kept(self, devices: Sequence[Device], workdir: Path) -> Iterator[None]:
        """Clean up after a ``with`` block; what there was to clean is told in ``workdir/hygiene.txt``.

        Devices whose memory did not come back are set aside. Raises BenchError where a GPU does not answer.
        """
        before = self.snapshot(devices)
        try:
            yield
        finally:
            left = self.clean(before, devices)
            if left:
                (workdir / "hygiene.txt").write_text(f"{left}\n")
            for device, why in left.occupied.items():
                self._set_aside(device, why)

    def snapshot(self, devices: Sequence[Device]) -> Snapshot:
        """Look now; raises BenchError where a GPU does not answer."""
        return Snapshot(
            frozenset(_files(self._root)), frozenset(_objects(self._root)), self._gpu_bytes(devices)
        )

    def clean(self, before: Snapshot, devices: Sequence[Device]) -> Left:
        """Remove what came since and is surely ours, and wait for the memory of the devices."""
        removed: list[str] = []
        kept: list[str] = []
        files = [file for file in _files(self._root) if file not in before.files]
        used = _used_inodes(self._root) if files else frozenset[int]()
        for file in files:
            (removed if _remove_file(self._root, file, used) else kept).append(f"shared memory {file.name}")
        for there, row in _objects(self._root).items():
            if there not in before.objects:
                (removed if _remove_object(there, row) else kept).append(f"{there.kind} segment {there.id}")
        return Left(tuple(removed), tuple(kept), self._await_memory(before, devices))

    def _await_memory(self, before: Snapshot, devices: Sequence[Device]) -> dict[Device, str]:
        deadline_s = time.monotonic() + self._gpu_timeout_s
        while True:
            now = self._gpu_bytes(devices)
            more = {uid: now[uid] - before.gpu_bytes.get(uid, 0) for uid in now}
            full = [d for d in devices if more.get(d.uid, 0) > GPU_TOLERANCE_BYTES]
            if not full or time.monotonic() > deadline_s:
                return {
                    device: f"{more[device.uid] / 2**30:.1f} GiB of its memory did not come back in "
                    f"{self._gpu_timeout_s:g} s"
                    for device in full
                }
            time.sleep(POLL_S)


def _files(root: Path) -> list[SharedFile]:
    """What is in /dev/shm, our own alone: nobody else's is ours to remove or to tell of."""
    try:
        entries = list(os.scandir(root / "dev/shm"))
    except FileNotFoundError:
        return []
    found = []
    for entry in entries:
        try:
            stat = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        if stat.st_uid == os.getuid() and not entry.is_dir(follow_symlinks=False):
            found.append(SharedFile(entry.name, stat.st_ino))
    return found


def _used_inodes(root: Path) -> frozenset[int]:
    """Inodes under /dev/shm that a process maps or has open; processes of others cannot be looked into."""
    device = (root / "dev/shm").stat().st_dev
    used: set[int] = set()
    for process in (root / "proc").glob("[0-9]*"):
        # A process may end at any of these, and those of others refuse.
        with suppress(OSError):
            used |= {inode for at, inode in _mapped(process / "maps") if at == device}
            for descriptor in (process / "fd").iterdir():
                with suppress(FileNotFoundError):
                    stat = descriptor.stat()
                    used |= {stat.st_ino} if stat.st_dev == device else set()
    return frozenset(used)


def _mapped(maps: Path) -> Iterator[tuple[int, int]]:
    """Device and inode of each mapping: ``ADDRESSES PERMISSIONS OFFSET MAJOR:MINOR INODE [PATH]``."""
    for line in maps.read_text().splitlines():
        where, inode = line.split()[3:5]
        major, minor = where.split(":")
        yield os.makedev(int(major, 16), int(minor, 16)), int(inode)


def _remove_file(root: Path, file: SharedFile, used: frozenset[int]) -> bool:
    if file.inode in used:
        return False
    try:
        (root / "dev/shm" / file.name).unlink()
    except FileNotFoundError:
        pass
    except OSError:
        return False
    return True


def _objects(root: Path) -> dict[IpcObject, Mapping[str, int]]:
    """System V segments and semaphores of ours, each with its row of /proc/sysvipc."""
    found: dict[IpcObject, Mapping[str, int]] = {}
    for kind in ("shm", "sem"):
        try:
            head, *rows = (root / "proc/sysvipc" / kind).read_text().splitlines()
        except (FileNotFoundError, ValueError):
            continue
        for row in rows:
            values = dict(zip(head.split(), (int(word) for word in row.split()), strict=True))
            if values["uid"] == os.getuid():
                found[IpcObject(kind, values[f"{kind}id"])] = values
    return found


def _remove_object(there: IpcObject, row: Mapping[str, int]) -> bool:
    """Remove a segment that nobody is attached to, or semaphores, if who made and used them is gone."""
    libc = ctypes.CDLL(None, use_errno=True)
    if there.kind == "shm":
        # Its maker is 0 where that is a process of another PID namespace.
        lives = not row["cpid"] or psutil.pid_exists(row["cpid"])
        if lives or row["nattch"] or (row["lpid"] and psutil.pid_exists(row["lpid"])):
            return False
        return bool(libc.shmctl(there.id, _IPC_RMID, None) == 0)
    users = [libc.semctl(there.id, number, _GETPID) for number in range(row["nsems"])]
    # Without a user it cannot be told whose they are.
    if not any(user > 0 for user in users) or any(psutil.pid_exists(user) for user in users if user > 0):
        return False
    return bool(libc.semctl(there.id, 0, _IPC_RMID) == 0)
