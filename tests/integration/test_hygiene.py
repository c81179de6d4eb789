"""What launches leave behind: real shared memory, semaphores and processes that left them."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from host_harness import (
    DEADLINE_S,
    launch,
    never,
    nothing_left,  # noqa: F401 - a fixture
    script,
    wait_for,
)

from autotune.adapters.engines.host import LocalEngineHost
from autotune.adapters.engines.hygiene import GPU_TOLERANCE_BYTES, Hygiene, IpcObject, Left, Snapshot
from autotune.domain.basics.errors import BenchError
from autotune.domain.hardware.hardware import Device, DeviceKind

pytestmark = pytest.mark.alone

SHM = Path("/dev/shm")
GPU = Device(DeviceKind.CUDA, 0, "NVIDIA H200", "GPU-0", 1 << 37)
GIB = 1 << 30

POSIX = """
import mmap, os, sys
file = os.open('/dev/shm/' + sys.argv[1], os.O_CREAT | os.O_RDWR, 0o600)
os.ftruncate(file, 4096)
"""
SYSTEM_V = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
segment = libc.shmget(0, 4096, 0o1600)
semaphores = libc.semget(0, 2, 0o1600)
assert segment >= 0 and semaphores >= 0
"""
USED_ONCE = """
class Operation(ctypes.Structure):
    _fields_ = [("number", ctypes.c_ushort), ("change", ctypes.c_short), ("flags", ctypes.c_short)]
assert libc.semop(semaphores, ctypes.byref(Operation(1, 1, 0)), 1) == 0
"""
TELL = "print(segment, semaphores, flush=True)\n"
WAIT = "print('there', flush=True)\nimport sys; sys.stdin.readline()\n"


@contextmanager
def process(code: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", code, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as started:
        try:
            yield started
        finally:
            started.kill()


def run(code: str, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *words], stdout=subprocess.PIPE, text=True, check=True, timeout=30
    )
    return done.stdout


@pytest.fixture
def name() -> Iterator[str]:
    """A name in /dev/shm that nothing has; whatever has it at the end is removed."""
    name = f"autotune-test-{uuid4().hex}"
    yield name
    (SHM / name).unlink(missing_ok=True)


def no_gpus(devices: Sequence[Device]) -> Mapping[str, int]:
    return {}


def hygiene() -> Hygiene:
    return Hygiene(gpu_bytes=no_gpus)


def clean(before: Snapshot) -> Left:
    return hygiene().clean(before, ())


def test_shared_memory_that_a_process_left_is_removed(name: str) -> None:
    before = hygiene().snapshot(())
    run(POSIX, name)
    assert (SHM / name).exists()
    assert f"shared memory {name}" in clean(before).removed
    assert not (SHM / name).exists()


def test_shared_memory_that_was_there_before_is_not_touched(name: str) -> None:
    run(POSIX, name)
    before = hygiene().snapshot(())
    left = clean(before)
    assert (SHM / name).exists()
    assert name not in str(left)


@pytest.mark.parametrize(
    "keep",
    [
        "memory = mmap.mmap(file, 4096); os.close(file)\n",  # mapped, not open
        "",  # open, not mapped
    ],
)
def test_shared_memory_that_a_process_uses_is_left_alone_and_told(name: str, keep: str) -> None:
    before = hygiene().snapshot(())
    with process(POSIX + keep + WAIT, name) as user:
        assert user.stdout is not None
        assert user.stdout.readline() == "there\n"
        assert f"shared memory {name}" in clean(before).kept
    assert f"shared memory {name}" in clean(before).removed


def test_a_name_made_anew_since_is_another(name: str) -> None:
    run(POSIX, name)
    before = hygiene().snapshot(())
    # Both exist for a moment, so that they cannot have the same number.
    run(POSIX, f"{name}.new")
    (SHM / f"{name}.new").replace(SHM / name)
    assert f"shared memory {name}" in clean(before).removed


def exists(there: IpcObject) -> bool:
    return there in hygiene().snapshot(()).objects


@pytest.fixture
def libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def test_segments_and_semaphores_whose_users_are_gone_are_removed() -> None:
    before = hygiene().snapshot(())
    segment, semaphores = map(int, run(SYSTEM_V + USED_ONCE + TELL).split())
    left = clean(before)
    assert {f"shm segment {segment}", f"sem segment {semaphores}"} <= {*left.removed}
    assert not exists(IpcObject("shm", segment))
    assert not exists(IpcObject("sem", semaphores))


def test_segments_and_semaphores_of_a_living_process_are_left_alone() -> None:
    before = hygiene().snapshot(())
    with process(SYSTEM_V + USED_ONCE + TELL + WAIT) as user:
        assert user.stdout is not None
        segment, semaphores = map(int, user.stdout.readline().split())
        left = clean(before)
        assert {f"shm segment {segment}", f"sem segment {semaphores}"} <= {*left.kept}
        assert exists(IpcObject("shm", segment))
    assert {f"shm segment {segment}", f"sem segment {semaphores}"} <= {*clean(before).removed}


def test_semaphores_that_nobody_used_are_nobodys_and_left_alone(libc: ctypes.CDLL) -> None:
    before = hygiene().snapshot(())
    segment, semaphores = map(int, run(SYSTEM_V + TELL).split())
    try:
        left = clean(before)
        assert f"shm segment {segment}" in left.removed
        assert f"sem segment {semaphores}" in left.kept
    finally:
        assert libc.semctl(semaphores, 0, 0) == 0


class Memory:
    """Memory in use of one GPU, a figure a look; the last one stays."""

    def __init__(self, *used_bytes: int) -> None:
        self.used_bytes = list(used_bytes)

    def __call__(self, devices: Sequence[Device]) -> Mapping[str, int]:
        used = self.used_bytes.pop(0) if len(self.used_bytes) > 1 else self.used_bytes[0]
        return {device.uid: used for device in devices}


def kept(memory: Memory, tmp_path: Path, gpu_timeout_s: float = 30.0) -> list[tuple[str, str]]:
    """What is set aside after a launch that did nothing."""
    aside: list[tuple[str, str]] = []
    with Hygiene(
        set_aside=lambda device, why: aside.append((device.uid, why)),
        gpu_bytes=memory,
        gpu_timeout_s=gpu_timeout_s,
    ).kept((GPU,), tmp_path):
        pass
    return aside


def test_memory_of_a_gpu_is_waited_for(tmp_path: Path) -> None:
    memory = Memory(GIB, 90 * GIB, 40 * GIB, GIB + GPU_TOLERANCE_BYTES)
    assert kept(memory, tmp_path) == []
    assert memory.used_bytes == [GIB + GPU_TOLERANCE_BYTES]


def test_a_gpu_whose_memory_does_not_come_back_is_set_aside(tmp_path: Path) -> None:
    why = "3.0 GiB of its memory did not come back in 0 s"
    assert kept(Memory(GIB, 4 * GIB), tmp_path, gpu_timeout_s=0) == [("GPU-0", why)]
    assert f"GPU-0: {why}" in (tmp_path / "hygiene.txt").read_text()


def test_without_anybody_to_set_it_aside_it_is_a_bench_error(tmp_path: Path) -> None:
    alone = Hygiene(gpu_bytes=Memory(0, 4 * GIB), gpu_timeout_s=0)
    with pytest.raises(BenchError, match=r"GPU-0: 4\.0 GiB"), alone.kept((GPU,), tmp_path):
        pass


def test_a_launch_leaves_no_shared_memory_and_says_what_it_was(tmp_path: Path, name: str) -> None:
    """Through the host, as an engine that was killed leaves it."""
    code = f"import sys; sys.argv = ['', {name!r}]\n{POSIX}\nimport time; time.sleep(600)"
    host = LocalEngineHost({}, tmp_path, stop_grace_s=0.1, hygiene=hygiene())
    workdir = tmp_path / "work"
    with host.serving(
        launch(script(f"{code}", ready_path="")), workdir=workdir, start_timeout_s=DEADLINE_S, cancelled=never
    ):
        wait_for((SHM / name).exists)
    assert not (SHM / name).exists()
    assert f"removed: shared memory {name}" in (workdir / "hygiene.txt").read_text()
