"""How SGLang's failures are understood.

Whole logs are of real starts of 0.5.23 on a CPU (``tests/data/sglang_logs``). What only a GPU shows is
put together from its sources, and from issues of sgl-project/sglang where one is named.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from autotune.domain.launches.launch import Evidence, Failure, FailureClass, Phase
from launchers.sglang import LAUNCHER
from launchers.sglang_pd import LAUNCHER as WITH_POOLS

LOGS = Path(__file__).parents[1] / "data/sglang_logs"


def classify(text: str, *, phase: Phase = Phase.STARTING, exit_code: int = -9) -> Failure:
    return LAUNCHER.classify_failure(Evidence(phase=phase, exit_code=exit_code, log=text))


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("unknown_flag", "sglang serve: error: unrecognized arguments: --no-such-flag 3"),
        ("bad_choice", "sglang serve: error: argument --dtype: invalid choice: 'int3'"),
    ],
)
def test_refused_arguments_of_real_starts(name: str, line: str) -> None:
    failure = classify((LOGS / f"{name}.log").read_text(), exit_code=2)
    assert failure.failure_class is FailureClass.REFUSED_ARGUMENTS
    assert failure.line.startswith(line)


def crashed(error: str, *, loaded: bool = True) -> str:
    """A log as a scheduler that raised ``error`` leaves it: managers/scheduler.py, entrypoints/engine.py."""
    end = "[2026-03-15 03:28:30 TP0] Load weight end. type=LlamaForCausalLM, avail mem=21.96 GB.\n"
    return (
        "[2026-03-15 03:28:20] Ignore import error when loading sglang.srt.models.x: ImportError: none\n"
        "[2026-03-15 03:28:25 TP0] Load weight begin. avail mem=108.11 GB\n"
        f"{end if loaded else ''}"
        "[2026-03-15 03:28:35 TP0] Scheduler hit an exception: Traceback (most recent call last):\n"
        '  File "sglang/srt/managers/scheduler.py", line 2712, in run_scheduler_process\n'
        "    scheduler = Scheduler(server_args, port_args)\n"
        f"{error}\n\n"
        "[2026-03-15 03:28:35] Received sigquit from a child process. It usually means the child failed.\n"
        "RuntimeError: Rank 0 scheduler died during initialization (exit code: -3). If exit code is -9 "
        "(SIGKILL), a common cause is the OS OOM killer. Run `dmesg -T | grep -i oom` to check.\n"
        "Killed\n"
    )


@pytest.mark.parametrize(
    ("error", "failure_class"),
    [
        (  # issue 4791
            "ValueError: Weight output_partition_size = 576 is not divisible by weight "  # noqa: ISC004
            "quantization block_n = 128.",
            FailureClass.UNSUPPORTED_COMBINATION,
        ),
        (
            "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.",
            FailureClass.KV_CACHE_TOO_SMALL,
        ),
        (
            "ValueError: Target model's context_length (9) is greater than the derived context_length",
            FailureClass.CONTEXT_TOO_LONG,
        ),
        (
            "Exception: Capture cuda graph failed: CUDA out of memory. Tried to allocate 2.00 GiB.",
            FailureClass.OUT_OF_MEMORY_PROFILING,
        ),
        ("Exception: Capture cuda graph failed: no kernel", FailureClass.COMPILATION),
        ("AssertionError: 8 is not divisible by 3", FailureClass.UNSUPPORTED_COMBINATION),
        (
            "ValueError: Currently ngram speculative decoding does not support dp attention.",
            FailureClass.UNSUPPORTED_COMBINATION,
        ),
        ("RuntimeError: something that no rule knows", FailureClass.UNRECOGNISED),
    ],
)
def test_the_schedulers_own_error_is_the_cause(error: str, failure_class: FailureClass) -> None:
    failure = classify(crashed(error))
    assert failure.failure_class is failure_class
    assert error.startswith(failure.line)
    assert failure.line


def test_how_far_the_start_had_come_tells_which_memory_was_short() -> None:
    error = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
    assert classify(crashed(error, loaded=False)).failure_class is FailureClass.OUT_OF_MEMORY_LOADING
    assert classify(crashed(error)).failure_class is FailureClass.OUT_OF_MEMORY_PROFILING


SERVING = "[2025-03-07 21:49:33 TP13] Decode out of memory happened. #retracted_reqs: 1\n"
"""Issue 4184: a warning of an engine that goes on."""


@pytest.mark.parametrize("phase", [Phase.FIRST_REQUEST, Phase.LOADING])
def test_a_server_that_killed_itself_died_and_was_not_killed(phase: Phase) -> None:
    log = (
        f"{SERVING}[2026-05-06 19:12:07] Subprocess scheduler_3 (pid=22856) crashed with exit code -6. "
        "Triggering SIGQUIT for cleanup...\n"
        "[2026-05-06 19:12:07] SIGQUIT received. signum=None, frame=None.\n"
    )
    died = {
        Phase.FIRST_REQUEST: FailureClass.DIED_AT_FIRST_REQUEST,
        Phase.LOADING: FailureClass.DIED_UNDER_LOAD,
    }
    assert classify(log, phase=phase).failure_class is died[phase]


def test_a_pool_of_blocks_that_ran_out_under_load() -> None:
    # issue 4602
    log = f"{SERVING}RuntimeError: Decode out of memory. Try to lower your batch size.\n"
    assert classify(log, phase=Phase.LOADING).failure_class is FailureClass.OUT_OF_MEMORY_SERVING


def test_a_step_that_never_ended_is_a_stall() -> None:
    log = "[2026-05-06 19:12:07] Scheduler watchdog timeout (self.watchdog_timeout=300, self.soft=False)\n"
    assert classify(log, phase=Phase.LOADING).failure_class is FailureClass.STALLED


def test_workers_of_pools_fail_as_servers_do() -> None:
    evidence = Evidence(
        phase=Phase.STARTING, exit_code=-9, log=crashed("AssertionError: 8 is not divisible by 3")
    )
    assert WITH_POOLS.classify_failure(evidence) == LAUNCHER.classify_failure(evidence)
