"""Reads what a failed engine left behind; what only one engine writes is in its launcher's FailureRules.

The last error of a log says for many causes alike that something died, and exit codes say less: 0 is what
vLLM gives after its engine died, 137 what SGLang gives itself. The cause is the first message that a rule
knows. A log that none knows stays unrecognised: its first error is kept, and nothing is guessed.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from autotune.domain.hardware.node import APPLICATION_XIDS
from autotune.domain.launches.launch import Evidence, Failure, FailureClass, Phase
from launchers import failure_texts as shared


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureRules:
    """Regular expressions for what one engine writes, added to those that all engines share.

    ``at_start`` are causes, known by their messages; those that cannot strike a running engine are looked
    for in a failed start only. ``stages`` are lines, frames of tracebacks among them, that tell how far a
    start had come: under OUT_OF_MEMORY_LOADING those from before the weights are there, under
    OUT_OF_MEMORY_PROFILING those from after it. ``prefixes`` are cut from the head of each line, in order.
    ``harmless`` lines are no errors. ``hollow`` messages only say that something failed elsewhere. ``dead``
    messages say that the engine is dead, whatever its process does.
    """

    at_start: Mapping[FailureClass, tuple[str, ...]] = field(default_factory=dict)
    stages: Mapping[FailureClass, tuple[str, ...]] = field(default_factory=dict)
    prefixes: tuple[str, ...] = ()
    harmless: tuple[str, ...] = ()
    hollow: tuple[str, ...] = ()
    dead: tuple[str, ...] = ()


def classify(evidence: Evidence, rules: FailureRules) -> Failure:
    """Name the cause of a failed launch and the line that tells it, without its logging prefixes."""
    failure_class, line = _judge(evidence, _Log(evidence.log, rules), rules)
    return Failure(failure_class=failure_class, phase=evidence.phase, line=line, exit_code=evidence.exit_code)


_ANY_PHASE = frozenset(
    {
        FailureClass.NODE_FAULT,
        FailureClass.DISK_FULL,
        FailureClass.DRIVER,
        FailureClass.OUT_OF_MEMORY,
        FailureClass.COMPILATION,
        FailureClass.STALLED,
    }
)
"""Causes that can strike a running engine too: kernels are compiled and files written when first needed."""

_SIGNALS = frozenset({-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT})
"""Signals that come from outside: an operator's, or the kernel's for want of host memory."""

_DEATHS = {
    Phase.FIRST_REQUEST: FailureClass.DIED_AT_FIRST_REQUEST,
    Phase.LOADING: FailureClass.DIED_UNDER_LOAD,
}

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_ERROR_LEVEL = re.compile(
    r"^(?:\([^)]*\) |\[[^\]]*\] ?|\d{4}-\d\d-\d\dT[\d:.]+Z +)*"
    r"(?:(?:ERROR|CRITICAL|FATAL)\b|(?<=\[E\] ))"
)
_PYDANTIC_TAIL = re.compile(r" \[type=\w+, input_value=.*$")
_EXCEPTION = re.compile(
    r"^(?:[\w.]+\.)?\w*(?:Error|Exception)(?:: .+)?$"
    r"|^(?:[a-z_]\w*\.)+[A-Z]\w*: "
    r"|^Value error, "
    r"|^[\w. -]+: error: "  # argparse
    r"|^Fatal Python error: |^!+ Segfault encountered|^terminate called after"
)
_BARE = re.compile(r"^[\w.]+$")


class _Log:
    """A log's messages: what its errors and exceptions say, in order."""

    def __init__(self, text: str, rules: FailureRules) -> None:
        self._lines = _ANSI.sub("", text).splitlines()
        self._prefixes = [re.compile(prefix) for prefix in (*rules.prefixes, *shared.PREFIXES)]
        self._harmless = _any((*rules.harmless, *shared.HARMLESS))
        self._hollow = _any((*rules.hollow, *shared.HOLLOW))

    @cached_property
    def messages(self) -> tuple[tuple[int, str], ...]:
        """Each with its line's number, without prefixes; the frames of tracebacks are left out.

        A bare ``AssertionError`` gets the statement that raised it.
        """
        return tuple(self._messages())

    @cached_property
    def sound(self) -> tuple[tuple[int, str], ...]:
        """The messages that are not hollow."""
        return tuple(m for m in self.messages if not self._hollow.search(m[1]))

    @cached_property
    def telling(self) -> tuple[int, str]:
        """The first exception that says something; no text and the end of the log where there is none."""
        return next((m for m in self.sound if _EXCEPTION.match(m[1])), (len(self._lines), ""))

    def first(self, texts: Iterable[str]) -> tuple[int, str] | None:
        """The first message, hollow ones too, that one of the texts matches."""
        pattern = _any(texts)
        return next((m for m in self.messages if pattern.search(m[1])), None)

    def first_logged_error(self) -> str:
        """The first line that is logged as an error."""
        return next((self._stripped(line) for line in self._lines if _ERROR_LEVEL.match(line)), "")

    def stage(self, stages: Mapping[FailureClass, tuple[str, ...]], before: int) -> FailureClass:
        """What the last line before a line's number, or that line, tells of how far a start had come."""
        patterns = {stage: _any(texts) for stage, texts in stages.items()}
        for line in reversed(self._lines[: before + 1]):
            for stage, pattern in patterns.items():
                if pattern.search(line):
                    return stage
        return FailureClass.OUT_OF_MEMORY

    def _messages(self) -> Iterator[tuple[int, str]]:
        statement = ""
        for number, line in enumerate(self._lines):
            text = self._stripped(line).rstrip()
            if self._harmless.match(text) or self._harmless.match(line):
                continue
            if text.startswith("  Value error, "):  # pydantic indents what its validators say
                yield number, text.strip()
            elif text.startswith(" "):
                statement = text.strip(" ^~") or statement
            elif text:
                bare = _BARE.match(text) and _EXCEPTION.match(text)
                yield number, f"{text}: {statement}" if bare else text

    def _stripped(self, line: str) -> str:
        for prefix in self._prefixes:
            if found := prefix.match(line):
                line = line[found.end() :]
        return _PYDANTIC_TAIL.sub("", line)


def _judge(evidence: Evidence, log: _Log, rules: FailureRules) -> tuple[FailureClass, str]:
    telling = log.telling[1] or evidence.stream_error or log.first_logged_error()
    if fault := _node_fault(evidence.kernel_log):
        return FailureClass.NODE_FAULT, fault
    if kill := _memory_kill(evidence, log):
        return FailureClass.HOST_MEMORY, kill
    if evidence.timed_out:
        return FailureClass.START_TIMEOUT, telling
    if cause := _cause(evidence, log, rules):
        return cause
    if evidence.stalled:
        return FailureClass.STALLED, telling
    is_dead = bool(_any(rules.dead).search(f"{evidence.log}\n{evidence.stream_error}"))
    if not is_dead and _was_killed(evidence, log):
        return FailureClass.KILLED, telling or "ended by a signal from outside, with no error in its log"
    # Exit code 0 is left to the log: a stop from outside has it, and so has an engine that died serving.
    if evidence.phase in _DEATHS and (is_dead or evidence.exit_code not in {None, 0}):
        return _DEATHS[evidence.phase], telling
    return FailureClass.UNRECOGNISED, telling


def _cause(evidence: Evidence, log: _Log, rules: FailureRules) -> tuple[FailureClass, str] | None:
    """What the first message tells that any rule knows."""
    starting = evidence.phase is Phase.STARTING
    # An engine's own texts say more than what all share.
    causes = [
        (failure_class, _any(texts))
        for table in (rules.at_start, shared.CAUSES)
        for failure_class, texts in table.items()
        if (starting or failure_class in _ANY_PHASE) and failure_class is not FailureClass.COMMUNICATION
    ]
    known = _any(pattern.pattern for _, pattern in causes)
    messages = (*log.sound, (0, evidence.stream_error))
    if found := next((m for m in messages if known.search(m[1])), None):
        number, message = found
        cause = next(failure_class for failure_class, pattern in causes if pattern.search(message))
        short = cause is FailureClass.OUT_OF_MEMORY
        return _shortage(evidence, log, rules, number) if short else cause, message
    lost = log.first((*rules.at_start.get(FailureClass.COMMUNICATION, ()), *shared.COMMUNICATION))
    if lost and lost[0] <= log.telling[0]:
        return FailureClass.COMMUNICATION, lost[1]
    return None


def _shortage(evidence: Evidence, log: _Log, rules: FailureRules, number: int) -> FailureClass:
    """Which want of memory a message of that line's number tells of."""
    if evidence.phase is Phase.STARTING:
        return log.stage(rules.stages, number)
    return FailureClass.OUT_OF_MEMORY_SERVING


def _node_fault(kernel_log: str) -> str:
    for line in kernel_log.splitlines():
        xid = re.search(shared.XID, line)
        if (xid and int(xid[1]) not in APPLICATION_XIDS) or _any(shared.KERNEL_FAULTS).search(line):
            return line
    return ""


def _memory_kill(evidence: Evidence, log: _Log) -> str:
    """The kernel's line of an out-of-memory kill of one of the launch's processes.

    Its process ids are those of another namespace where the engine runs in a container, and a counter of
    kills names none: there the launch must have been killed besides.
    """
    was_killed = _was_killed(evidence, log)
    for line in evidence.kernel_log.splitlines():
        kill = _any(shared.OOM_KILL).search(line)
        pid = next((int(number) for number in kill.groups() if number), 0) if kill else 0
        is_ours = pid in evidence.pids or (pid and re.search(rf"\bpid[= ]{pid}\b", evidence.log))
        if is_ours or (was_killed and (kill or re.search(shared.OOM_KILL_COUNTED, line))):
            return line
    return ""


def _was_killed(evidence: Evidence, log: _Log) -> bool:
    """Whether it was ended by a signal that nobody of the launch sends, with no error of its own before."""
    told = log.first((shared.KILLED,))
    if told and told[0] <= log.telling[0]:
        return True
    return not log.telling[1] and evidence.exit_code in _SIGNALS


def _any(texts: Iterable[str]) -> re.Pattern[str]:
    """A pattern for any of the texts; for none of them, one that matches nothing."""
    return re.compile("|".join(f"(?:{text})" for text in texts) or r"(?!)")
