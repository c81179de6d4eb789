"""Runs commands of other programs to their end, or to a deadline."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from autotune.domain.basics.errors import InputError, InputProblem

Echo = Callable[[str], None]
"""Takes one line of progress."""

_TAIL_LINES = 15


class CommandResult(NamedTuple):
    """How a command ended; one that was stopped at its deadline has the code of its signal."""

    code: int
    output: str


Run = Callable[[Sequence[str], float], CommandResult]
"""Runs a command for at most so many seconds."""


def run_command(command: Sequence[str], timeout_s: float) -> CommandResult:
    """Run a command without input, its errors among its output, to the end or the deadline."""
    try:
        done = run_program(command, timeout_s, errors_to=subprocess.STDOUT)
    except subprocess.TimeoutExpired as late:
        output = (late.output or b"").decode(errors="replace")
        return CommandResult(-signal.SIGKILL, f"{output}\nnot done after {timeout_s:.0f} s")
    return CommandResult(done.returncode, done.stdout)


def run_program(
    command: Sequence[str],
    timeout_s: float,
    *,
    folder: Path | None = None,
    env: Mapping[str, str] | None = None,
    question: str = "",
    errors_to: int = subprocess.PIPE,
) -> subprocess.CompletedProcess[str]:
    """Run to the end, or end it with all that it started; ``env`` comes on top of ours.

    Raises TimeoutExpired, whose output so far is bytes, and OSError.
    """
    with subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, **(env or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors_to,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(question, timeout=timeout_s)
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def last_line(text: str) -> str:
    """The last line of what was printed; empty where there is none."""
    return (text.strip().splitlines() or [""])[-1]


def check_result(result: CommandResult, what: str, remedy: str) -> None:
    """Raise InputError with the end of its output for a command that failed."""
    if result.code != 0:
        tail = "\n".join(result.output.strip().splitlines()[-_TAIL_LINES:])
        raise InputError(InputProblem(what, f"exit code {result.code}\n{tail}", remedy))
