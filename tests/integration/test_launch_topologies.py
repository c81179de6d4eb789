"""Launches of several processes: their ports and files, what ends with them, and what is read of them."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from host_harness import (
    DEADLINE_S,
    complete,
    launch,
    never,
    nothing_left,  # noqa: F401 - a fixture
    other_tuner,
    script,
    serve,
    spec,
    wait_for,
)
from host_harness import host as plain_host

from autotune.adapters.engines import warden
from autotune.adapters.engines.host import LocalEngineHost
from autotune.adapters.engines.process import reap_orphans
from autotune.domain.basics.errors import BenchError
from autotune.domain.launches.launch import EngineDiedError, LaunchSpec, Phase, ProcessSpec

pytestmark = pytest.mark.alone

COUNTERS = {
    "prompt_tokens_total": "vllm:prompt_tokens_total",
    "requests_running": "vllm:num_requests_running",
    "kv_cache_usage": "vllm:kv_cache_usage_perc",
}
PAGE_SERVER = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(sys.argv[2].encode() if self.path == "/prometheus/metrics" else b"")
    def log_message(self, *args):
        pass
HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
SLEEP = "import time; time.sleep(600)"


def page_server(role: str, page: str, **more: object) -> ProcessSpec:
    process = script(PAGE_SERVER, role=role, **more)
    return replace(process, argv=(*process.argv, f"{{port:{role}}}", page))


def stopped_by(path: Path, **more: object) -> ProcessSpec:
    """A process without a port whose stop command writes a line into a file, its own port among it."""
    write = f"import sys; open({str(path)!r}, 'a').write(sys.argv[1] + chr(10))"
    return script(
        SLEEP, ready_path="", stop_argv=(sys.executable, "-c", write, "stopped {port:serve/rpc}"), **more
    )


def test_a_role_has_further_ports_and_all_differ(tmp_path: Path) -> None:
    show = "import sys; print(*sys.argv[1:], flush=True); sys.exit(1)"
    other = script(SLEEP, role="router", ready_path="")
    process = script(show)
    words = ("{port:serve}", "{port:serve/rpc}", "{port:router/rpc}", "{port:serve/rpc}", "{port:router}")
    with pytest.raises(EngineDiedError) as died:
        serve(tmp_path, launch(other, replace(process, argv=(*process.argv, *words))))
    ports = died.value.evidence.log.split()
    assert ports[1] == ports[3]
    assert len({*ports}) == 4


def test_files_are_written_with_their_placeholders_filled_in(tmp_path: Path) -> None:
    show = "import sys; print(open(sys.argv[1]).read(), open(sys.argv[2]).read()); sys.exit(1)"
    process = script(
        show,
        files={"a.yaml": "port: {port:serve}, {kept: as it is}", "b.json": '{"a": "{file:a.yaml}"}'},
    )
    helper = script(SLEEP, role="helper", ready_path="", files={"a.yaml": "of another"})
    with pytest.raises(EngineDiedError) as died:
        serve(
            tmp_path,
            launch(helper, replace(process, argv=(*process.argv, "{file:a.yaml}", "{file:b.json}"))),
        )
    first, second = died.value.evidence.log.strip().split("} {")
    assert first.startswith("port: ")
    assert first.removeprefix("port: ").split(",")[0].isdigit()
    assert first.endswith("{kept: as it is")
    path = json.loads("{" + second)["a"]
    assert Path(path).read_text().startswith("port: ")


@pytest.mark.parametrize(
    "word", ["{file:none.yaml}", "{file:../secret}", "{port:nobody/rpc}", "{host:serve/rpc}"]
)
def test_a_placeholder_that_names_nothing_is_refused_before_anything_starts(
    tmp_path: Path, word: str
) -> None:
    with pytest.raises(ValueError, match="names no"):
        serve(tmp_path, launch(replace(script(""), argv=("engine", word))))
    assert not (tmp_path / "serve.log").exists()


def test_the_stop_command_runs_at_the_end(tmp_path: Path) -> None:
    told = tmp_path / "told"
    with plain_host(tmp_path).serving(
        launch(stopped_by(told)), workdir=tmp_path, start_timeout_s=DEADLINE_S, cancelled=never
    ):
        assert not told.exists()
    assert told.read_text().startswith("stopped ")
    assert told.read_text().count("\n") == 1
    assert list((tmp_path / "engines").iterdir()) == []


def test_the_stop_command_runs_after_a_failed_start(tmp_path: Path) -> None:
    told = tmp_path / "told"
    with pytest.raises(EngineDiedError):
        serve(
            tmp_path,
            launch(replace(stopped_by(told), argv=(sys.executable, "-c", "exit(3)"), ready_path="/")),
        )
    assert told.read_text().count("\n") == 1


def test_the_stop_command_runs_when_the_tuner_was_killed(tmp_path: Path) -> None:
    told = tmp_path / "told"
    with other_tuner(tmp_path, launch(stopped_by(told))) as tuner:
        wait_for(lambda: list((tmp_path / "engines").glob("*.json")))
        watching = warden.descendants(tuner.pid)[0]
        tuner.send_signal(signal.SIGKILL)
    wait_for(lambda: warden.find(watching.pid) is None)
    assert told.read_text().count("\n") == 1


def test_the_stop_command_runs_when_the_warden_was_killed(tmp_path: Path) -> None:
    told = tmp_path / "told"
    with plain_host(tmp_path).serving(
        launch(stopped_by(told)), workdir=tmp_path, start_timeout_s=DEADLINE_S, cancelled=never
    ) as engine:
        os.kill(warden.descendants(os.getpid())[0].pid, signal.SIGKILL)
        wait_for(lambda: not engine.alive())
        assert not told.exists()
    assert told.read_text().count("\n") == 1
    assert list((tmp_path / "engines").iterdir()) == []


def test_the_stop_command_runs_at_the_next_start_when_all_were_killed(tmp_path: Path) -> None:
    told = tmp_path / "told"
    with other_tuner(tmp_path, launch(stopped_by(told))) as tuner:
        wait_for(lambda: list((tmp_path / "engines").glob("*.json")))
        watching = warden.descendants(tuner.pid)[0]
        tuner.send_signal(signal.SIGSTOP)  # it must not see its warden go
        os.kill(watching.pid, signal.SIGKILL)
        tuner.send_signal(signal.SIGKILL)
    assert not told.exists()
    reap_orphans(tmp_path)
    assert told.read_text().count("\n") == 1
    assert list((tmp_path / "engines").iterdir()) == []


def test_a_stop_command_that_fails_is_a_bench_error_that_says_why(tmp_path: Path) -> None:
    fails = (sys.executable, "-c", "import sys; sys.exit('the daemon is not there')")
    with pytest.raises(BenchError, match="the daemon is not there"):
        serve(tmp_path, launch(script(SLEEP, ready_path="", stop_argv=fails)))
    # Its record stays: the next start, of another tuner, tries again.
    assert len(list((tmp_path / "engines").iterdir())) == 1


def test_a_port_that_is_still_listened_to_is_a_bench_error(tmp_path: Path) -> None:
    """A listener that neither the warden nor a stop command knows, as a container that was left."""
    told = tmp_path / "port"
    process = script(f"open({str(told)!r}, 'w').write('{{port:serve}}'); {SLEEP}", ready_path="")
    with (  # noqa: PT012 - what is left is made while it serves
        socket.socket() as outside,
        pytest.raises(BenchError, match=r"still listened to: \d+ \(serve\)"),
        plain_host(tmp_path).serving(
            launch(process), workdir=tmp_path, start_timeout_s=DEADLINE_S, cancelled=never
        ),
    ):
        wait_for(lambda: told.exists() and told.read_text())
        outside.bind(("127.0.0.1", int(told.read_text())))
        outside.listen()


def test_counters_of_several_roles_add_up_and_the_fullest_cache_counts(tmp_path: Path) -> None:
    pages = [
        f"vllm:prompt_tokens_total {tokens}\nvllm:num_requests_running {running}\n"
        + "".join(f'vllm:kv_cache_usage_perc{{engine="{i}"}} {share}\n' for i, share in enumerate(shares))
        for tokens, running, shares in ((100, 3, (0.2, 0.4)), (50, 2, (0.7, 0.1)))
    ]
    prefill, decode = (
        page_server(role, page) for role, page in zip(("prefill", "decode"), pages, strict=True)
    )
    router = page_server("router", "vllm:prompt_tokens_total 7\n", depends_on=("prefill", "decode"))
    spec = LaunchSpec(
        processes=(prefill, decode, router),
        serving_role="router",
        served_model="tiny",
        counter_roles=("prefill", "decode"),
        ignore_eos=False,
    )
    host = LocalEngineHost(COUNTERS, tmp_path, counters_path="/prometheus/metrics")
    with host.serving(spec, workdir=tmp_path, start_timeout_s=DEADLINE_S, cancelled=never) as engine:
        assert engine.counters() == {
            "prompt_tokens_total": 150,
            "requests_running": 5,
            "kv_cache_usage": 0.7,
        }
        assert not engine.endpoint.ignore_eos
        decoding = next(p for p in warden.descendants(os.getpid()) if _says(p.pid, pages[1]))
        os.kill(decoding.pid, signal.SIGKILL)
        wait_for(lambda: not engine.alive())
        # A sum over what is left would look like counters that fell.
        assert engine.counters() == {}
        assert engine.evidence(loading=True).exit_code == -signal.SIGKILL


def _says(pid: int, word: str) -> bool:
    """Whether a process that is no warden has a word on its command line."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    return word in words and warden.__file__ not in words


def test_evidence_is_of_the_process_that_died_first(tmp_path: Path) -> None:
    """The worker dies, and the router because of it; the router stands first in the launch."""
    go = tmp_path / "go"
    worker = script(
        f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)\n"
        "print('the cause'); exit(3)",
        role="worker",
        ready_path="",
    )
    router = script(
        f"import os, time\nwhile not os.path.exists({str(tmp_path / 'late')!r}): time.sleep(0.01)\nexit(4)",
        role="router",
        ready_path="",
    )
    what = replace(launch(router, worker), serving_role="router")
    with plain_host(tmp_path).serving(
        what, workdir=tmp_path, start_timeout_s=DEADLINE_S, cancelled=never
    ) as engine:
        go.touch()
        wait_for(lambda: "the cause" in (tmp_path / "worker.log").read_text())
        wait_for(lambda: not engine.alive())
        (tmp_path / "late").touch()
        wait_for(lambda: len(warden.descendants(os.getpid())) == 0)
        evidence = engine.evidence(loading=False)
    assert (evidence.exit_code, evidence.phase) == (3, Phase.FIRST_REQUEST)
    assert "the cause" in evidence.log


def test_evidence_has_the_kernel_log_since_the_start_and_says_that_it_stalled(tmp_path: Path) -> None:
    asked_s: list[float] = []

    def kernel_log(since_s: float) -> str:
        asked_s.append(since_s)
        return "NVRM: Xid (PCI:0000:3b:00): 79"

    host = LocalEngineHost({}, tmp_path, kernel_log=kernel_log)
    with host.serving(spec(), workdir=tmp_path, start_timeout_s=DEADLINE_S, cancelled=never) as engine:
        (serving,) = [p.pid for p in warden.descendants(os.getpid()) if _says(p.pid, "tiny")]
        evidence = engine.evidence("nothing came", loading=True, stalled=True)
    assert evidence.pids == (serving,)
    assert (evidence.stalled, evidence.exit_code, evidence.stream_error) == (True, None, "nothing came")
    assert evidence.kernel_log == "NVRM: Xid (PCI:0000:3b:00): 79"
    with (
        pytest.raises(EngineDiedError) as died,
        host.serving(
            launch(script("exit(1)")), workdir=tmp_path, start_timeout_s=DEADLINE_S, cancelled=never
        ),
    ):
        pass
    assert "Xid" in died.value.evidence.kernel_log
    assert asked_s == sorted(asked_s)


def test_the_mock_engine_behind_a_role_that_waits_for_it(tmp_path: Path) -> None:
    """Both serve, in the order of their dependence, and the serving role answers."""
    first = spec().processes[0]
    second = replace(
        first,
        role="front",
        argv=tuple(word.replace(":serve", ":front") for word in first.argv),
        depends_on=("serve",),
    )
    what = LaunchSpec(processes=(second, first), serving_role="front", served_model="tiny")
    with plain_host(tmp_path).serving(
        what, workdir=tmp_path, start_timeout_s=DEADLINE_S, cancelled=never
    ) as engine:
        assert "[DONE]" in complete(engine.endpoint.base_url)
    assert "listens" in (tmp_path / "serve.log").read_text()
