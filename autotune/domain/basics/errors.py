"""Errors, named by the reaction that is wanted.

::

    AutotuneError
    ├── InputError            the user mends a file or an argument (exit code 2)
    ├── InfeasibleConfigError record it: this configuration cannot run
    ├── BenchError            retry it: the bench broke, the configuration was not judged
    │   └── DevicesBusyError  another study or process holds the devices
    └── StudyCancelledError   stop cleanly: the user asked for it
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class AutotuneError(Exception):
    """Base of every error this package raises on purpose."""


@dataclass(frozen=True, slots=True)
class InputProblem:
    """One thing wrong in the user's input: where, what, and what to do about it."""

    where: str
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        remedy = f"\n    remedy: {self.remedy}" if self.remedy else ""
        return f"{self.where}: {self.what}{remedy}"


class InputError(AutotuneError):
    """The user's input is wrong; every problem found is listed, one line each."""

    def __init__(self, problems: Sequence[InputProblem] | InputProblem) -> None:
        self.problems = (problems,) if isinstance(problems, InputProblem) else tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class InfeasibleConfigError(AutotuneError):
    """The configuration cannot be expressed for, or run by, this engine."""


class BenchError(AutotuneError):
    """The bench failed (port, meter, client, disk); nothing was learned of the configuration."""


class DevicesBusyError(BenchError):
    """The devices that were asked for are held by another study or process."""


class StudyCancelledError(AutotuneError):
    """The user asked to stop; engines are down and the study can be resumed."""
