"""Runs commands of other programs to their end, or to a deadline."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from typing import NamedTuple

from autotune.domain.basics.errors import InputError, InputProblem

Echo = Callable[[str], None]
"""Takes one line of progress."""

_TAIL_LINES = 15


class CommandResult(NamedTuple):
    """How a command ended; a command that was stopped at its deadline has the code of its signal."""

    code: int
    output: str


Run = Callable[[Sequence[str], float], CommandResult]
"""Runs a command for at most so many seconds."""


def run_command(command: Sequence[str], timeout_s: float) -> CommandResult:
    """Run a command without input; it and its children are killed at the deadline or on an interrupt."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout_s)
        return CommandResult(process.returncode, output)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        return CommandResult(process.returncode, f"{output}\nnot done after {timeout_s:.0f} s")
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise


def check_result(result: CommandResult, what: str, remedy: str) -> None:
    """Raise InputError with the end of its output for a command that failed."""
    if result.code != 0:
        tail = "\n".join(result.output.strip().splitlines()[-_TAIL_LINES:])
        raise InputError(InputProblem(what, f"exit code {result.code}\n{tail}", remedy))
