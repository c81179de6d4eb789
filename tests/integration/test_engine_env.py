from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from autotune.adapters import debian_packages
from autotune.adapters.commands import CommandResult, run_command
from autotune.adapters.engines import environments as engine_env
from autotune.adapters.engines import install as engine_install
from autotune.adapters.engines.environments import COMPLETE, EngineEnvironments
from autotune.adapters.engines.install import Installer
from autotune.domain.basics.errors import InputError
from autotune.domain.configs.config import EngineConfig
from autotune.domain.hardware.hardware import DeviceKind
from autotune.domain.launches.launch import (
    Container,
    EngineEnvironment,
    Evidence,
    Failure,
    LaunchContext,
    LaunchSpec,
)
from autotune.domain.studies.ports import LauncherTraits

pytestmark = pytest.mark.alone

ANSWER = {"version": "1.2.3", "device": "cuda", "flags": {"--dtype": ["auto", "half"], "--port": []}}


class Launcher:
    """A launcher of which only the traits are asked."""

    def __init__(self, probe: str = "question", config_probe: str = "") -> None:
        self.traits = LauncherTraits(
            engine="toy",
            executable="toy-serve",
            dimensions=frozenset(),
            device_kinds=frozenset(DeviceKind),
            parser_probe=probe,
            config_probe=config_probe,
            counters={},
        )

    def launch_spec(self, config: EngineConfig, context: LaunchContext) -> LaunchSpec:
        raise NotImplementedError

    def parse_command(self, command: str) -> tuple[EngineConfig, str]:
        raise NotImplementedError

    def classify_failure(self, evidence: Evidence) -> Failure:
        raise NotImplementedError


class FakeVenv:
    """A directory like a virtual environment, whose ``python`` notes each question and answers it."""

    def __init__(self, path: Path, answer: object = ANSWER, code: int = 0) -> None:
        self.path = path
        self.site = path / "lib/python3.11/site-packages"
        self.package = self.site / "toy-1.2.3.dist-info"
        self.package.mkdir(parents=True)
        (path / "bin").mkdir()
        self._asked = path / "asked"
        self._script("toy-serve", "exit 0")
        self.answers(answer if isinstance(answer, str) else json.dumps(answer), code)

    def answers(self, answer: str, code: int = 0) -> None:
        self._script(
            "python",
            f'echo "$2" >> {shlex.quote(str(self._asked))}\n'
            "echo INFO some noise on standard output\necho 'ImportError: libfoo' >&2\n"
            f"echo {shlex.quote(answer)}\nexit {code}",
        )

    @property
    def asked(self) -> list[str]:
        return self._asked.read_text().splitlines() if self._asked.exists() else []

    def _script(self, name: str, body: str) -> None:
        (self.path / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (self.path / "bin" / name).chmod(0o755)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def environments(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineEnvironments:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    return EngineEnvironments(home, tmp_path / "cache")


def test_a_named_environment_says_what_its_parser_has(
    tmp_path: Path, environments: EngineEnvironments
) -> None:
    venv = FakeVenv(tmp_path / "venv")
    found = environments.find(Launcher(), venv.path)

    assert (found.engine, found.version, found.kind) == ("toy", "1.2.3", DeviceKind.CUDA)
    assert found.executable == venv.path / "bin/toy-serve"
    assert found.flags == {"--dtype": ("auto", "half"), "--port": ()}
    assert venv.asked == ["question"]


def test_the_engine_is_asked_once_by_all_processes(
    tmp_path: Path, home: Path, environments: EngineEnvironments
) -> None:
    venv = FakeVenv(tmp_path / "venv")
    first = environments.find(Launcher(), venv.path)

    assert EngineEnvironments(home, tmp_path / "cache").find(Launcher(), venv.path) == first
    assert len(venv.asked) == 1


DOCKER = """#!/bin/sh
echo "$1" >> {folder}/asked
case "$1" in
image) test -e {folder}/image && cat {folder}/image ;;
pull) echo sha256:1 > {folder}/image ;;
run) while [ "$1" != -c ]; do shift; done; exec {python} "$@" ;;
esac
"""
"""A runtime that has no image before it was told to pull one, and runs it by our own Python."""


def test_the_parser_in_an_image_is_asked_once_for_each_image(
    tmp_path: Path, environments: EngineEnvironments, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker = tmp_path / "bin" / "docker"
    docker.parent.mkdir()
    docker.write_text(DOCKER.format(folder=tmp_path, python=sys.executable))
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{docker.parent}:/usr/bin:/bin")
    launcher = Launcher(f"print({json.dumps(json.dumps(ANSWER))})")
    image = Container(image="toy:1")

    found = environments.inside(launcher, image)
    assert (found.version, found.kind, str(found.executable)) == ("1.2.3", DeviceKind.CUDA, "toy-serve")
    assert environments.inside(launcher, image) == found
    (tmp_path / "image").write_text("sha256:2")
    assert environments.inside(launcher, image) == found
    asked = (tmp_path / "asked").read_text().split()
    assert asked == ["image", "pull", "image", "run", "image", "image", "run"]


def test_an_image_that_cannot_be_fetched_is_told_with_its_remedy(
    tmp_path: Path, environments: EngineEnvironments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"docker pull toy:1 cannot be run(?s:.*)name another `image`"):
        environments.inside(Launcher(), Container(image="toy:1"))


def _upgrade_in_place(venv: FakeVenv) -> None:
    os.utime(venv.package, ns=(1, 1))


def _add_package(venv: FakeVenv) -> None:
    (venv.site / "other-2.0.dist-info").mkdir()


def _rename(venv: FakeVenv) -> None:
    venv.package.rename(venv.site / "toy-1.2.4.dist-info")


@pytest.mark.parametrize("change", [_upgrade_in_place, _add_package, _rename])
def test_a_changed_environment_is_asked_again(
    tmp_path: Path, environments: EngineEnvironments, change: object
) -> None:
    venv = FakeVenv(tmp_path / "venv")
    environments.find(Launcher(), venv.path)
    assert callable(change)
    change(venv)
    venv.answers(json.dumps({**ANSWER, "version": "1.2.4"}))

    assert environments.find(Launcher(), venv.path).version == "1.2.4"


def test_another_question_and_another_environment_are_asked_anew(
    tmp_path: Path, environments: EngineEnvironments
) -> None:
    one, two = FakeVenv(tmp_path / "one"), FakeVenv(tmp_path / "two", {**ANSWER, "version": "2"})
    environments.find(Launcher(), one.path)
    environments.find(Launcher("another question"), one.path)

    assert environments.find(Launcher(), two.path).version == "2"
    assert one.asked == ["question", "another question"]


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff", b"[]", b'{"version": "1"}'])
def test_a_damaged_cache_is_asked_again(
    tmp_path: Path, environments: EngineEnvironments, damage: bytes
) -> None:
    venv = FakeVenv(tmp_path / "venv")
    environments.find(Launcher(), venv.path)
    (cached,) = (tmp_path / "cache").iterdir()
    cached.write_bytes(damage)

    assert environments.find(Launcher(), venv.path).version == "1.2.3"
    assert len(venv.asked) == 2


@pytest.mark.parametrize(
    ("answer", "code", "what"),
    [
        (json.dumps(ANSWER), 3, r"exit code 3(.|\n)*ImportError: libfoo"),
        ("no json", 0, "no description"),
        (json.dumps({**ANSWER, "device": "abacus"}), 0, "no description"),
    ],
)
def test_a_failed_probe_is_told_with_its_remedy_and_not_kept(
    tmp_path: Path, environments: EngineEnvironments, answer: str, code: int, what: str
) -> None:
    venv = FakeVenv(tmp_path / "venv", answer, code)
    with pytest.raises(InputError, match=what) as raised:
        environments.find(Launcher(), venv.path)
    assert "autotune engines install toy" in raised.value.problems[0].remedy

    venv.answers(json.dumps(ANSWER))
    assert environments.find(Launcher(), venv.path).version == "1.2.3"


def test_a_probe_without_end_is_stopped(
    tmp_path: Path, environments: EngineEnvironments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_env, "_PROBE_TIMEOUT_S", 0.2)
    venv = FakeVenv(tmp_path / "venv")
    (venv.path / "bin/python").write_text("#!/bin/sh\nexec sleep 60\n")

    with pytest.raises(InputError, match="no answer"):
        environments.find(Launcher(), venv.path)


class AskedVenv(FakeVenv):
    """A virtual environment whose ``python`` refuses command lines with ``--bad``, and all if BAD is set."""

    ANSWER = """
import json, os, sys
asked = json.load(sys.stdin)
with open({notes!r}, "a") as notes:
    notes.write(json.dumps(asked) + "\\n")
bad = os.environ.get("BAD")
print("INFO some noise")
print(json.dumps([bad or ("bad it is" if "--bad" in argv else None) for argv in asked]))
"""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.notes = path / "notes"
        program = path / "answer.py"
        program.write_text(self.ANSWER.format(notes=str(self.notes)))
        self._script("python", f'[ "$2" = refusals ] || exit 1\nexec {shlex.quote(sys.executable)} {program}')

    @property
    def batches(self) -> list[list[list[str]]]:
        return (
            [json.loads(line) for line in self.notes.read_text().splitlines()] if self.notes.exists() else []
        )


ASKING = Launcher(config_probe="refusals")


@pytest.fixture
def asked_venv(tmp_path: Path) -> AskedVenv:
    return AskedVenv(tmp_path / "venv")


def environment_of(venv: FakeVenv) -> EngineEnvironment:
    return EngineEnvironment(
        engine="toy",
        executable=venv.path / "bin/toy-serve",
        version="1",
        kind=DeviceKind.CUDA,
        flags={},
    )


def test_an_engine_says_what_it_refuses_and_is_asked_once(
    tmp_path: Path, home: Path, environments: EngineEnvironments, asked_venv: AskedVenv
) -> None:
    good, bad = ["serve", "m"], ["serve", "m", "--bad"]
    environment = environment_of(asked_venv)
    assert environments.refusals(ASKING, environment, [good, bad, good]) == (None, "bad it is", None)
    assert asked_venv.batches == [[good, bad]]

    again = EngineEnvironments(home, tmp_path / "cache")
    other = ["serve", "n"]
    assert again.refusals(ASKING, environment, [bad, other]) == ("bad it is", None)
    assert asked_venv.batches[1:] == [[other]]


def test_what_is_set_in_the_environment_is_part_of_the_question(
    environments: EngineEnvironments, asked_venv: AskedVenv
) -> None:
    environment, commands = environment_of(asked_venv), [["serve", "m"]]
    assert environments.refusals(ASKING, environment, commands, env={"BAD": "it"}) == ("it",)
    assert environments.refusals(ASKING, environment, commands) == (None,)


def test_a_changed_model_is_asked_about_again(
    tmp_path: Path, environments: EngineEnvironments, asked_venv: AskedVenv
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    environment, commands = environment_of(asked_venv), [["serve", str(model)]]
    for _ in range(2):
        environments.refusals(ASKING, environment, commands)
    os.utime(model / "config.json", ns=(1, 1))
    environments.refusals(ASKING, environment, commands)
    assert len(asked_venv.batches) == 2


def test_many_are_asked_about_in_batches_and_told(
    environments: EngineEnvironments, asked_venv: AskedVenv, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_env, "_BATCH", 2)
    told: list[tuple[int, int]] = []
    commands = [["serve", str(n)] for n in range(5)]
    environments.refusals(
        ASKING, environment_of(asked_venv), commands, told=lambda answered, of: told.append((answered, of))
    )
    assert [len(batch) for batch in asked_venv.batches] == [2, 2, 1]
    assert told == [(2, 5), (4, 5), (5, 5)]


def test_an_engine_without_validation_refuses_nothing(
    environments: EngineEnvironments, asked_venv: AskedVenv
) -> None:
    assert environments.refusals(Launcher(), environment_of(asked_venv), [["serve", "--bad"]]) == (None,)
    assert not asked_venv.batches


@pytest.mark.parametrize("answer", ["no json", "[null, null]", '[{"no": "reason"}]'])
def test_an_answer_that_is_no_list_of_refusals_is_told(
    tmp_path: Path, environments: EngineEnvironments, answer: str
) -> None:
    venv = FakeVenv(tmp_path / "venv", answer)
    with pytest.raises(InputError, match="no list of 1 refusals"):
        environments.refusals(ASKING, environment_of(venv), [["serve"]])


def test_validation_without_end_is_stopped_with_all_that_it_started(
    tmp_path: Path, environments: EngineEnvironments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_env, "_PROBE_TIMEOUT_S", 0.5)
    monkeypatch.setattr(engine_env, "_REFUSAL_TIMEOUT_S", 0.0)
    venv = FakeVenv(tmp_path / "venv")
    mark = f"6{os.getpid()}"
    (venv.path / "bin/python").write_text(f"#!/bin/sh\nsleep {mark} & sleep {mark}\n")
    with pytest.raises(InputError, match="no answer"):
        environments.refusals(ASKING, environment_of(venv), [["serve"]])
    left = [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", mark]]
    assert not psutil.wait_procs(left, timeout=5)[1]


@pytest.mark.parametrize("absent", ["bin/toy-serve", "bin/python"])
def test_what_is_missing_is_named(tmp_path: Path, environments: EngineEnvironments, absent: str) -> None:
    venv = FakeVenv(tmp_path / "venv")
    (venv.path / absent).unlink()

    with pytest.raises(InputError) as raised:
        environments.find(Launcher(), venv.path)
    assert str(venv.path / absent) in str(raised.value)
    assert "--engine toy=" in raised.value.problems[0].remedy


def test_no_engine_anywhere_says_where_it_looked(home: Path, environments: EngineEnvironments) -> None:
    with pytest.raises(InputError, match="autotune engines install toy") as raised:
        environments.find(Launcher(), None)
    assert str(home) in str(raised.value)


def test_our_own_complete_installation_goes_before_the_path(
    tmp_path: Path, home: Path, environments: EngineEnvironments, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_path = FakeVenv(tmp_path / "venv")
    monkeypatch.setenv("PATH", f"{on_path.path / 'bin'}:/usr/bin:/bin")
    own = FakeVenv(home / "toy-9.0", {**ANSWER, "version": "9.0"})
    assert environments.find(Launcher(), None).version == "1.2.3"
    assert environments.installed() == ()

    (own.path / COMPLETE).touch()
    assert environments.find(Launcher(), None).version == "9.0"
    assert [(e.engine, e.version, e.path) for e in environments.installed()] == [("toy", "9.0", own.path)]


def test_an_engine_on_the_path_may_name_its_interpreter_itself(
    tmp_path: Path, environments: EngineEnvironments, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv = FakeVenv(tmp_path / "venv")
    interpreter = tmp_path / "usr/python3"
    interpreter.parent.mkdir()
    (venv.path / "bin/python").rename(interpreter)
    (venv.path / "bin/toy-serve").write_text(f"#!{interpreter}\n")
    monkeypatch.setenv("PATH", f"{venv.path / 'bin'}:/usr/bin:/bin")

    assert environments.find(Launcher(), None).version == "1.2.3"


def test_a_check_asks_afresh_and_names_missing_libraries(
    tmp_path: Path, environments: EngineEnvironments, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv = FakeVenv(tmp_path / "venv", {**ANSWER, "device": "cpu"})
    environments.find(Launcher(), venv.path)
    monkeypatch.setattr(debian_packages, "_loads", lambda _: True)
    assert environments.check(Launcher(), venv.path).remedy == ""
    assert len(venv.asked) == 2

    monkeypatch.setattr(debian_packages, "_loads", lambda _: False)
    checked = environments.check(Launcher(), venv.path)
    assert checked.missing_libraries == ("libnuma.so.1",)
    assert checked.remedy == "sudo apt-get install -y libnuma1"


def test_a_library_is_missing_only_where_the_loader_does_not_find_it() -> None:
    assert debian_packages.missing_libraries(["libc.so.6", "libof-nobody.so.9"]) == ("libof-nobody.so.9",)


def test_the_prerequisites_run_before_anything_is_installed() -> None:
    command = [sys.executable, "-I", "-S", debian_packages.__file__]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert done.stderr.strip() == debian_packages.complaint()
    assert done.returncode == bool(debian_packages.complaint())


class StubCommands:
    """Stands in for venv and pip: notes every command, fails those that ``fails`` names."""

    def __init__(self, fails: Sequence[str] = (), offered: str = "2.13.0+cpu") -> None:
        self.commands: list[tuple[str, float]] = []
        self._fails = fails
        self._offered = offered

    def __call__(self, command: Sequence[str], timeout_s: float) -> CommandResult:
        line = " ".join(command)
        self.commands.append((line, timeout_s))
        if any(part in line for part in self._fails):
            return CommandResult(1, "ERROR: no such thing")
        if "-m venv" in line:
            Path(command[-1], "lib/python3.11/site-packages").mkdir(parents=True)
        return CommandResult(0, self._offered if "index versions" in line else "")

    def torch(self) -> list[str]:
        """How torch was looked for: the sources, in order."""
        names = {"index versions": "list", "--index-url": "pytorch", "+cpu": "pip", "torch==": "any"}
        lines = [line for line, _ in self.commands if "torch==" in line or "versions torch" in line]
        return [next(name for part, name in names.items() if part in line) for line in lines]


@pytest.fixture
def able_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_install, "missing_packages", lambda: ())
    monkeypatch.setattr(engine_install, "_FREE_BYTES", 0)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")


def _install(home: Path, run: StubCommands) -> tuple[Path, list[str]]:
    said: list[str] = []
    return Installer(home=home, echo=said.append, run=run).install("vllm"), said


@pytest.mark.parametrize(
    ("commands", "sources"),
    [
        (StubCommands(), ["pip"]),
        (StubCommands(["--no-deps torch==2.13.0+cpu"]), ["pip", "list", "pytorch"]),
        (StubCommands(["--no-deps torch==2.13.0+cpu"], offered="2.12.0+cpu"), ["pip", "list", "any"]),
        (StubCommands(["--no-deps torch==2.13.0+cpu", "index versions"]), ["pip", "list", "any"]),
        (StubCommands(["torch==2.13.0+cpu"]), ["pip", "list", "pytorch", "any"]),
    ],
)
def test_torch_is_taken_from_the_first_source_that_has_it(
    home: Path, able_machine: None, commands: StubCommands, sources: list[str]
) -> None:
    _, said = _install(home, commands)

    assert commands.torch() == sources
    assert any("warning" in line for line in said) == ("any" in sources)
    for line, timeout_s in commands.commands:
        assert timeout_s <= (20 if "index versions" in line else 1200)


def test_an_installation_is_made_once_and_found(
    home: Path, environments: EngineEnvironments, able_machine: None
) -> None:
    path, _ = _install(home, StubCommands())
    second = StubCommands()

    assert _install(home, second)[0] == path
    assert second.commands == []
    assert [(e.engine, e.version) for e in environments.installed()] == [("vllm", "0.32.0")]
    metadata = path / "lib/python3.11/site-packages/vllm-0.32.0+cpu.dist-info/METADATA"
    assert "Name: vllm\nVersion: 0.32.0+cpu\n" in metadata.read_text()


def test_a_failed_installation_is_told_and_made_afresh(
    home: Path, environments: EngineEnvironments, able_machine: None
) -> None:
    with pytest.raises(InputError, match="no such thing"):
        _install(home, StubCommands(["-r "]))
    assert environments.installed() == ()

    (home / "vllm-0.32.0/left-over").touch()
    path, _ = _install(home, StubCommands())
    assert not (path / "left-over").exists()
    assert environments.installed()


def test_an_installation_of_another_lock_is_replaced(home: Path, able_machine: None) -> None:
    path, _ = _install(home, StubCommands())
    (path / COMPLETE).write_text("the hash of an older list")
    again = StubCommands()
    _install(home, again)

    assert again.commands
    assert (path / COMPLETE).read_text() != "the hash of an older list"


def test_a_second_installation_waits_for_the_first(home: Path, able_machine: None) -> None:
    entered, may_end = threading.Event(), threading.Event()

    class SlowCommands(StubCommands):
        def __call__(self, command: Sequence[str], timeout_s: float) -> CommandResult:
            entered.set()
            assert may_end.wait(60)
            return super().__call__(command, timeout_s)

    first = threading.Thread(target=_install, args=(home, SlowCommands()))
    first.start()
    assert entered.wait(60)
    second, said = StubCommands(), []

    def echo(line: str) -> None:
        said.append(line)
        may_end.set()

    Installer(home=home, echo=echo, run=second).install("vllm")
    first.join(60)
    assert "waiting" in said[0]
    assert "is installed" in said[1]
    assert second.commands == []


def test_a_lock_that_is_never_released_is_an_error(home: Path, able_machine: None) -> None:
    raised: list[InputError] = []

    class Nested(StubCommands):
        def __call__(self, command: Sequence[str], timeout_s: float) -> CommandResult:
            if not raised:
                with pytest.raises(InputError, match="still locked") as error:
                    Installer(home=home, echo=print, run=self, lock_timeout_s=0.0).install("vllm")
                raised.append(error.value)
            return super().__call__(command, timeout_s)

    _install(home, Nested())
    assert raised


def test_everything_the_machine_lacks_is_told_before_anything_is_done(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_install, "missing_packages", lambda: ("python3-venv", "libnuma1"))
    monkeypatch.setattr(engine_install, "_FREE_BYTES", 10**18)
    commands = StubCommands()

    with pytest.raises(InputError) as raised:
        _install(home, commands)
    assert "sudo apt-get install -y python3-venv libnuma1" in str(raised.value)
    assert "GB are needed" in str(raised.value)
    assert commands.commands == []
    assert not home.exists()


def test_an_unknown_engine_is_refused(home: Path) -> None:
    with pytest.raises(InputError, match="known: vllm"):
        Installer(home=home, echo=print).install("abacus")


def test_a_command_past_its_deadline_is_killed_with_its_children(tmp_path: Path) -> None:
    # The child holds the output open: only when it is gone too does the call come back.
    result = run_command(["sh", "-c", "echo begun; sleep 600 & wait"], 1.0)

    assert result.code == -9
    assert result.output.startswith("begun\n")
    assert "not done after" in result.output


def test_a_command_reads_nothing_and_tells_both_outputs() -> None:
    assert run_command(["sh", "-c", "cat; echo out; echo err >&2; exit 4"], 60.0) == (4, "out\nerr\n")
