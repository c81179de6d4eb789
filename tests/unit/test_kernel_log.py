"""What is read of the kernel's log, from files in the kernel's own form."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from autotune.adapters.engines.kernel_log import CLOCKS_APART_S, KernelLog

KILL = "Memory cgroup out of memory: Killed process 13641 (VLLM::EngineCor) total-vm:4792036kB"
# Recorded here: a memory cgroup too small for vLLM 0.32.0, Linux 6.18.
RECORDS = (
    "4,431,28032870933,-;VLLM::EngineCor invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL)\n"
    " SUBSYSTEM=x\n"
    f"3,511,28032871285,-;{KILL}\n"
    "12,512,28032871300,-;Memory cgroup out of memory: Killed process 7 (a process wrote this)\n"
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "dev/kmsg", RECORDS)
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_kernels_own_lines_are_told_with_their_time(root: Path) -> None:
    told = KernelLog(root)(28032.0).splitlines()
    assert told[-1] == f"[28032.871285] {KILL}"
    assert len(told) == 2


def test_older_lines_are_not_told(root: Path) -> None:
    assert KernelLog(root)(28033.0 + CLOCKS_APART_S) == ""


@pytest.mark.parametrize(
    ("membership", "counter"),
    [
        ("0::/engines\n", "sys/fs/cgroup/engines/memory.events"),
        ("4:memory:/engines\n3:cpuset:/\n", "sys/fs/cgroup/memory/engines/memory.oom_control"),
    ],
)
def test_kills_are_counted_where_the_log_may_not_be_read(
    tmp_path: Path, membership: str, counter: str
) -> None:
    write(tmp_path / "proc/self/cgroup", membership)
    write(tmp_path / counter, "oom 3\noom_kill 2\n")
    log = KernelLog(tmp_path)
    assert log(0.0) == ""
    write(tmp_path / counter, "oom 4\noom_kill 3\n")
    assert log(0.0) == "memory events of /engines: oom_kill +1\n"
    assert log(0.0) == ""


def test_nothing_is_told_where_nothing_may_be_read(tmp_path: Path) -> None:
    assert KernelLog(tmp_path)(0.0) == ""


def test_this_kernel_is_listened_to_or_silent() -> None:
    """Of the real one only that asking never fails, and that what it said of old is not told again."""
    assert KernelLog()(time.monotonic() + 3600.0) == ""
    assert isinstance(KernelLog()(0.0), str)


@pytest.mark.skipif(not os.access("/dev/kmsg", os.W_OK), reason="only root may write to the kernel's log")
def test_a_line_that_a_process_wrote_is_not_the_kernels() -> None:
    log = KernelLog()
    began_s = time.monotonic()
    Path("/dev/kmsg").write_text("autotune test: Out of memory: Killed process 1\n")
    assert "autotune test" not in log(began_s)
