"""What every engine's failures have in common, on public logs of real ones (``tests/data/engine_logs``).

Each log names its address, its engine's version and the class that a reader gave it. Those in ``public`` are
what rules were written from; those in ``holdout`` were looked up afterwards, and no rule was made for them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.domain.launches.launch import REACTIONS, Evidence, Failure, FailureClass, Phase, Reaction
from autotune.domain.studies.ports import Launcher
from launchers import sglang, transformers_serve, trtllm, vllm
from launchers.failures import FailureRules, classify

LOGS = Path(__file__).parents[1] / "data/engine_logs"
LAUNCHERS: dict[str, Launcher] = {
    "vllm": vllm.LAUNCHER,
    "sglang": sglang.LAUNCHER,
    "transformers": transformers_serve.LAUNCHER,
    "trtllm": trtllm.LAUNCHER,
}
HEAD = re.compile(
    r"# source: https://github\.com/(?P<source>\S+)\n"
    r"# version: (?P<version>.+)\n"
    r"# engine: (?P<engine>\w+); phase: (?P<phase>[\w ]+); exit: (?P<exit>-?\d+|none); of: (?P<of>\w+)\n"
    r"# class: (?P<class>.+)\n"
)


@dataclass(frozen=True)
class PublicLog:
    """A public log and what a reader says of it."""

    name: str
    engine: str
    expected: FailureClass
    evidence: Evidence

    def classify(self) -> Failure:
        return LAUNCHERS[self.engine].classify_failure(self.evidence)


def read(path: Path) -> PublicLog:
    text = path.read_text()
    head = HEAD.match(text)
    assert head, f"{path} does not say where it is from"
    body = text[head.end() :]
    evidence = Evidence(
        phase=Phase(head["phase"]),
        exit_code=None if head["exit"] == "none" else int(head["exit"]),
        log=body if head["of"] == "log" else "",
        kernel_log=body if head["of"] == "kernel" else "",
    )
    return PublicLog(path.stem, head["engine"], FailureClass(head["class"]), evidence)


def logs(folder: str) -> list[PublicLog]:
    return [read(path) for path in sorted((LOGS / folder).glob("*.log"))]


PUBLIC, HOLDOUT = logs("public"), logs("holdout")


@pytest.mark.parametrize("log", PUBLIC, ids=lambda log: log.name)
def test_public_logs_are_understood(log: PublicLog) -> None:
    failure = log.classify()
    assert failure.failure_class is log.expected
    text = log.evidence.log or log.evidence.kernel_log
    assert failure.line.strip() in text
    assert failure.line


def misses(log: PublicLog) -> bool:
    return log.classify().failure_class is not log.expected


def test_no_log_of_the_holdout_is_taken_for_another_failure() -> None:
    wrong = [log.name for log in HOLDOUT if misses(log) and not is_unrecognised(log)]
    assert wrong == []


def is_unrecognised(log: PublicLog) -> bool:
    return log.classify().failure_class is FailureClass.UNRECOGNISED


def test_the_holdouts_recall_is_what_the_document_says() -> None:
    """Whoever writes a rule for one of these says so in docs/design/failures.md, where the figures are."""
    known = [log for log in HOLDOUT if log.expected is not FailureClass.UNRECOGNISED]
    missed = {log.name for log in known if misses(log)}
    print(f"hold-out: {len(known) - len(missed)} of {len(known)} recognised")
    assert missed == MISSED_IN_HOLDOUT
    document = (LOGS.parents[2] / "docs/design/failures.md").read_text()
    assert f"{len(known) - len(missed)} of {len(known)}" in document


MISSED_IN_HOLDOUT = {
    "nccl_peer_gone",
    "sglang_awq_moe",
    "vllm_0_7_engine_dead",
    "vllm_gptq_moe",
    "vllm_kv_0_5",
    "vllm_kv_models",
    "vllm_triton_image",
}


@pytest.mark.parametrize("failure_class", FailureClass)
def test_every_class_is_documented_with_its_reaction(failure_class: FailureClass) -> None:
    document = (LOGS.parents[2] / "docs/design/failures.md").read_text()
    reaction = REACTIONS.get(failure_class, Reaction.INFEASIBLE)
    assert re.search(rf"^\| {failure_class} \|.*\| {reaction} \|", document, re.MULTILINE)


NO_RULES = FailureRules()


def judged(
    log: str = "",
    *,
    phase: Phase = Phase.STARTING,
    exit_code: int | None = 1,
    kernel_log: str = "",
    pids: tuple[int, ...] = (),
    rules: FailureRules = NO_RULES,
) -> FailureClass:
    evidence = Evidence(phase=phase, exit_code=exit_code, log=log, kernel_log=kernel_log, pids=pids)
    return classify(evidence, rules).failure_class


# Linux, mm/oom_kill.c; recorded with vLLM 0.32.0 in a memory cgroup too small for it.
KILL = (
    "[28032.871285] Memory cgroup out of memory: Killed process 13641 (VLLM::EngineCor) total-vm:4792036kB\n"
)
ERROR = "ValueError: something of its own\n"


def test_a_kill_of_the_launchs_own_process_is_the_hosts_want_of_memory() -> None:
    assert judged(kernel_log=KILL, pids=(13600, 13641)) is FailureClass.HOST_MEMORY
    assert judged(f"(EngineCore pid=13641) INFO x\n{ERROR}", kernel_log=KILL) is FailureClass.HOST_MEMORY


def test_a_kill_of_another_process_is_not() -> None:
    assert judged(ERROR, kernel_log=KILL, pids=(7,)) is FailureClass.UNRECOGNISED
    assert judged(ERROR, kernel_log=KILL) is FailureClass.UNRECOGNISED


def test_where_pids_are_of_another_namespace_the_launch_must_have_been_killed() -> None:
    assert judged(kernel_log=KILL, exit_code=-9) is FailureClass.HOST_MEMORY
    assert judged(kernel_log=KILL, exit_code=1) is FailureClass.UNRECOGNISED
    counted = "memory events of /x: oom_kill +1\n"
    assert judged(kernel_log=counted, exit_code=-9) is FailureClass.HOST_MEMORY
    assert judged(ERROR, kernel_log=counted) is FailureClass.UNRECOGNISED


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.FIRST_REQUEST, Phase.LOADING])
@pytest.mark.parametrize("exit_code", [-9, -15])
def test_a_signal_without_a_word_comes_from_outside(phase: Phase, exit_code: int) -> None:
    assert judged(phase=phase, exit_code=exit_code) is FailureClass.KILLED


def test_an_engine_that_kills_itself_was_not_killed_from_outside() -> None:
    """SGLang's server sends its whole process tree signal 9 when a scheduler failed."""
    log = "[2025-08-08 09:09:09] Received sigquit from a child process. It usually means the child failed.\n"
    for exit_code in (-9, 137):
        evidence = Evidence(phase=Phase.STARTING, exit_code=exit_code, log=log)
        assert LAUNCHERS["sglang"].classify_failure(evidence).failure_class is FailureClass.UNRECOGNISED


@pytest.mark.parametrize(
    ("code", "expected"), [(79, FailureClass.NODE_FAULT), (31, FailureClass.UNRECOGNISED)]
)
def test_only_the_nodes_own_xids_are_its_fault(code: int, expected: FailureClass) -> None:
    """NVIDIA's catalog: 79 is a GPU off the bus, 31 a program's illegal access."""
    assert judged(ERROR, kernel_log=f"NVRM: Xid (PCI:0000:44:00): {code}, pid=7") is expected


def test_ranks_that_lost_each_other_are_no_cause_where_another_error_came_first() -> None:
    lost = "RuntimeError: NCCL error: unhandled system error\n"
    assert judged(lost) is FailureClass.COMMUNICATION
    assert judged(ERROR + lost) is FailureClass.UNRECOGNISED
    assert judged(lost + "torch.OutOfMemoryError: CUDA out of memory.\n") is FailureClass.OUT_OF_MEMORY


STAGES = FailureRules(
    stages={
        FailureClass.OUT_OF_MEMORY_LOADING: (r"weights begin",),
        FailureClass.OUT_OF_MEMORY_PROFILING: (r"weights are there",),
    }
)
SHORT = "torch.OutOfMemoryError: CUDA out of memory.\n"


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (f"INFO weights begin\n{SHORT}", FailureClass.OUT_OF_MEMORY_LOADING),
        (f"INFO weights begin\nINFO weights are there\n{SHORT}", FailureClass.OUT_OF_MEMORY_PROFILING),
        (f"{SHORT}INFO weights are there\n", FailureClass.OUT_OF_MEMORY),
    ],
)
def test_where_memory_ran_out_is_told_by_the_last_stage_before(log: str, expected: FailureClass) -> None:
    assert judged(log, rules=STAGES) is expected
    assert judged(log, rules=STAGES, phase=Phase.LOADING) is FailureClass.OUT_OF_MEMORY_SERVING


@given(
    st.text(alphabet=st.characters(codec="ascii", categories=("L", "Zs", "P")), max_size=200),
    st.sampled_from([None, 0, 1, 137, -11]),
)
def test_a_log_that_no_rule_knows_is_never_guessed_at(text: str, exit_code: int | None) -> None:
    for launcher in LAUNCHERS.values():
        evidence = Evidence(phase=Phase.STARTING, exit_code=exit_code, log=f"ValueError: qx {text}")
        failure = launcher.classify_failure(evidence)
        assert failure.failure_class is FailureClass.UNRECOGNISED
        assert failure.line.startswith("ValueError: qx")
