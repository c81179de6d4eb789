"""The whole command on a fake engine: real processes, real HTTP, a real database."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from fake_environment import MOCK_ENGINE, REFUSED, VERSION
from ruamel.yaml import YAML
from small_study import Autotune, make_folder, own_env, runner
from typer.testing import CliRunner

from autotune.cli.app import app
from autotune.domain.basics.errors import InputError

pytestmark = pytest.mark.alone


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path)


@pytest.fixture
def autotune(folder: Path) -> Autotune:
    return runner(folder)


@pytest.fixture
def no_engine_left() -> Iterator[None]:
    yield
    assert not mock_engines()


def mock_engines() -> list[psutil.Process]:
    running = psutil.process_iter(["cmdline"])
    return [p for p in running if str(MOCK_ENGINE) in (p.info["cmdline"] or [])]


def trials(autotune: Autotune) -> list[dict[str, Any]]:
    shown: list[dict[str, Any]] = json.loads(autotune("show", "small", "--json").stdout)["trials"]
    return shown


@pytest.mark.usefixtures("no_engine_left")
def test_a_study_recommends_a_configuration_per_sla(finished: Path, engine: Path) -> None:
    autotune, printed = runner(finished), (finished / "printed.txt").read_text()
    assert "vllm serve" in printed
    assert "estimated" in printed

    shown = trials(autotune)
    launched = [t for t in shown if t["state"] in {"measured", "infeasible"}]
    assert len(launched) <= 6
    assert shown[0]["purpose"] == "defaults"
    refused = next(t for t in shown if t["configuration"].get("block_size") == 16)
    assert refused["state"] == "rejected"
    assert "no multiple of 32" in refused["failure_line"]
    died = next(t for t in shown if t["configuration"].get("pipeline_parallel") == 2)
    assert died["state"] == "infeasible"
    assert died["failure_class"] == "died at first request"
    assert "EngineDeadError" in Path(died["log"]).read_text()
    searched = [json.dumps(t["configuration"]) for t in shown if t["final_of"] is None]
    assert len(set(searched)) == len(searched)

    document = json.loads(autotune("recommend", "small", "--json").stdout)
    assert document["study"] == "small"
    assert [sla["name"] for sla in document["slas"]] == ["interactive", "bulk"]
    for sla in document["slas"]:
        assert sla["goodput_tok_per_s"] > 0
        low, high = sla["tokens_per_joule_interval"]
        assert low <= sla["tokens_per_joule"] <= high
        assert sla["power_basis"] == "estimated"
        assert sla["baseline"]["goodput_tok_per_s"] > 0
        assert sla["launches"] == 2

    again = autotune("tune", "small.yaml", "--engine", f"vllm={engine}").stdout
    assert "trial 0 (defaults)" not in again
    assert trials(autotune) == shown


def test_new_slas_are_scored_from_the_archive(finished: Path) -> None:
    autotune = runner(finished)
    (finished / "loose.yaml").write_text("slas: [{name: loose, attainment: 0.5, slos: {e2e: 10s}}]")
    document = json.loads(autotune("recommend", "small", "--sla", "loose.yaml", "--json").stdout)
    assert [sla["name"] for sla in document["slas"]] == ["loose"]
    assert document["slas"][0]["goodput_tok_per_s"] > 0

    (finished / "strict.yaml").write_text("slas: [{name: strict, attainment: 0.99, slos: {ttft: 1us}}]")
    strict = json.loads(autotune("recommend", "small", "--sla", "strict.yaml", "--json", code=1).stdout)
    assert strict["slas"][0]["configuration"] is None
    assert strict["slas"][0]["reason"] == "no configuration met strict at any measured load"


def within(folder: Path, *arguments: str) -> str:
    """What a command that starts nothing prints; run in this process, for Python takes longer to start."""
    done = CliRunner().invoke(app, [*arguments, "--storage", f"sqlite:///{folder}/studies.db"])
    if isinstance(done.exception, InputError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def recommended(folder: Path) -> dict[str, Any]:
    """The document of the finished study as it is written to files, YAML and JSON alike."""
    fleet = ("--peak-rate", "1000", "--daily-curve", "0,0.5,1")
    within(folder, "recommend", "small", "-o", str(folder / "rec.yaml"), *fleet)
    within(folder, "recommend", "small", "-o", str(folder / "rec.json"))
    read: dict[str, Any] = YAML(typ="safe").load((folder / "rec.yaml").read_text())
    plain = json.loads((folder / "rec.json").read_text())
    assert [sla["fleet"]["replicas_n_plus_1"] > 1 for sla in read["slas"]] == [True, True]
    for sla in (*read["slas"], *plain["slas"]):
        for key in ("fleet", "fleet_reason", "withheld"):
            del sla[key]
    assert read == plain
    return read


@pytest.mark.usefixtures("no_engine_left")
def test_a_contract_is_written_exported_and_verified(finished: Path) -> None:
    autotune, document = runner(finished), recommended(finished)
    assert document["slas"][0]["fingerprint"]["engine_version"] == VERSION
    script, contract = finished / "serve.sh", str(finished / "rec.yaml")
    export = ("--sla", "interactive", "--form", "shell")
    within(finished, "export", contract, *export, "-o", str(script))
    assert "vllm serve" in script.read_text()
    assert os.access(script, os.X_OK)
    assert within(finished, "export", "small", *export).strip() == script.read_text().strip()
    with pytest.raises(InputError, match="name one of: interactive, bulk"):
        within(finished, "export", contract, "--form", "lws")

    assert "interactive: holds" in autotune("verify", "rec.yaml", "--sla", "interactive").stdout

    # A bound below what was measured: the pipeline is told which one.
    broken = (finished / "rec.yaml").read_text().replace("ttft: 0.06s", "ttft: 0.001s")
    (finished / "broken.yaml").write_text(broken)
    told = autotune("verify", "broken.yaml", "--sla", "interactive", "--json", code=1)
    verdict = json.loads(told.stdout)
    assert verdict["outcome"] == "broken"
    (sla,) = verdict["slas"]
    assert [slo["slo"].partition("<=")[0] for slo in sla["slos"] if slo["kept"] < slo["promised"]] == ["ttft"]
    assert sla["reasons"][0].startswith("ttft<=1ms: p80 is ")


@pytest.mark.usefixtures("no_engine_left")
def test_an_artifact_that_does_not_serve_is_broken(finished: Path) -> None:
    recommended(finished)
    text = (finished / "rec.json").read_text()
    (finished / "dies.json").write_text(text.replace('"serve"', '"serve", "--mock-fail", "unknown-flag"'))
    dies = runner(finished)("verify", "dies.json", "--sla", "bulk", code=1).stdout
    assert "does not serve: refused arguments" in dies


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("old.json", '{"schema_version": "0"}', "this package reads '1'"),
        ("odd.yaml", "a: [1", "is no YAML"),
        ("odd.json", "[1]", "is no recommendation document"),
        ("odd.json", '{"schema_version": "1"}', "study: Field required"),
    ],
)
def test_what_is_no_contract_is_told(tmp_path: Path, name: str, text: str, told: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=told):
        within(tmp_path, "export", str(tmp_path / name), "--form", "shell")


def test_a_study_that_drifted_nowhere_and_results_of_others(finished: Path) -> None:
    same = json.loads(within(finished, "drift", "small", "small", "--json"))
    assert (same["tune_again"], [sla["change"] for sla in same["slas"]]) == (False, ["same", "same"])
    results = [str(path) for path in sorted((Path(__file__).parents[1] / "data" / "imported").glob("*.json"))]
    assert "measured by others, not ranked" in within(finished, "import", *results, "--study", "small")
    shown = json.loads(within(finished, "show", "small", "--json"))
    assert len(shown["observations"]) == 5
    assert not any(each["ranked"] for each in shown["observations"])
    with pytest.raises(InputError, match="known: small"):
        within(finished, "import", *results, "--study", "other")


def started(folder: Path, engine: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "autotune", "tune", "small.yaml", "--engine", f"vllm={engine}"],
        cwd=folder,
        env=own_env(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def budget(folder: Path, *, launches: int) -> None:
    """Allow the study so many launches, whatever it was allowed before."""
    study = folder / "small.yaml"
    study.write_text(re.sub(r"launches: \d+", f"launches: {launches}", study.read_text()))


def wait_for(process: subprocess.Popen[str], *lines: str) -> None:
    """Read what it prints until each of some lines has come, in any order."""
    assert process.stdout is not None
    seen, missing = [], set(lines)
    for text in process.stdout:
        seen.append(text)
        missing -= {line for line in missing if line in text}
        if not missing:
            return
    raise AssertionError("".join(seen))


def gone(deadline_s: float = 15.0) -> bool:
    until = time.monotonic() + deadline_s
    while mock_engines() and time.monotonic() < until:
        time.sleep(0.05)
    return not mock_engines()


def stop(folder: Path, engine: Path, number: int) -> tuple[int, str]:
    """Start a study, signal it while it loads an engine; returns its exit code and what it printed then."""
    with started(folder, engine) as process:
        wait_for(process, "loading")
        process.send_signal(number)
        rest, _ = process.communicate(timeout=30)
    return process.returncode, rest


def test_sigterm_stops_engine_and_study(autotune: Autotune, engine: Path, folder: Path) -> None:
    code, rest = stop(folder, engine, signal.SIGTERM)
    assert code == 143, rest
    assert gone(0.0)
    assert [t["state"] for t in trials(autotune)] == ["bench_error"]


def test_ctrl_c_stops_cleanly_and_resume_goes_on(autotune: Autotune, engine: Path, folder: Path) -> None:
    budget(folder, launches=3)
    code, rest = stop(folder, engine, signal.SIGINT)
    assert code == 130, rest
    assert "autotune resume small" in rest
    assert gone(0.0)

    autotune("resume", "small")
    shown = trials(autotune)
    assert [t["failure_class"] for t in shown].count("interrupted") == 1
    assert sum(t["purpose"] == "defaults" and t["state"] == "measured" for t in shown) == 1


def test_kill_9_leaves_no_engine_and_no_trial_running(autotune: Autotune, engine: Path, folder: Path) -> None:
    with started(folder, engine) as process:
        wait_for(process, "trial 2")
        wait_for(process, "loading")
        assert mock_engines()
        process.kill()
    assert gone()
    before = trials(autotune)
    assert before[-1]["state"] == "running"

    autotune("resume", "small")
    shown = trials(autotune)
    assert not [t for t in shown if t["state"] == "running"]
    assert [t for t in shown if t["state"] == "measured"][:1] == before[:1]
    assert any(t["purpose"] == "final" for t in shown)


def test_two_engines_at_once_are_two_trials_and_leave_nothing(
    autotune: Autotune, engine: Path, folder: Path
) -> None:
    study = YAML(typ="safe", pure=True).load(folder / "small.yaml")
    del study["try_first"]
    study |= {"at_once": 2, "space": {"dimensions": {"max_num_seqs": ["default", 2, 4, 8]}}}
    study |= {"fill_node": True, "hardware": {"cpus": 2}}
    YAML().dump(study, folder / "small.yaml")
    with started(folder, engine) as process:
        wait_for(process, "trial 1: loading", "trial 2: loading")
        assert len(mock_engines()) == 2
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert gone(0.0)

    autotune("resume", "small")
    assert gone(0.0)
    shown = trials(autotune)
    searched = [t for t in shown if t["purpose"] == "search" and t["state"] == "measured"]
    assert len({t["configuration"].get("max_num_seqs") for t in searched}) >= 2
    assert not [t for t in shown if t["state"] == "running"]
    finals = [t for t in shown if t["purpose"] == "final"]
    assert finals
    assert all(t["state"] == "measured" for t in finals)
    copies = list((folder / "studies-artifacts" / "logs" / "small").glob("*/copy-1/*.log"))
    assert len(copies) == len(finals)


def test_a_finished_study_goes_on_with_a_larger_budget_and_with_nothing_else(
    autotune: Autotune, engine: Path, folder: Path
) -> None:
    budget(folder, launches=4)
    autotune("tune", "small.yaml", "--engine", f"vllm={engine}")
    before = trials(autotune)

    budget(folder, launches=9)
    autotune("tune", "small.yaml", "--engine", f"vllm={engine}")
    after = trials(autotune)
    assert after[: len(before)] == before
    assert any(t["purpose"] == "search" for t in after[len(before) :])

    study = folder / "small.yaml"
    study.write_text(study.read_text().replace("ttft: 60ms", "ttft: 70ms"))
    refused = autotune("tune", "small.yaml", "--engine", f"vllm={engine}", code=2)
    assert "is in sqlite:///studies.db already, and differs in: slas" in refused.stderr


def test_one_study_is_not_run_twice_at_once(autotune: Autotune, engine: Path, folder: Path) -> None:
    with started(folder, engine) as process:
        wait_for(process, "loading")
        refused = autotune("tune", "small.yaml", "--engine", f"vllm={engine}", code=2)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert "is being run by process" in refused.stderr


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        (("budget:", "bugdet:"), "small.yaml:22: bugdet: unknown key\n    remedy: did you mean 'budget'?"),
        (("ttft: 60ms", "ttft: 60"), "60 is no duration"),
        (("[default, 2, 4]", "{ low: 8, high: 4 }"), "the range is empty: low 8 is above high 4"),
        (("pipeline_parallel: [default, 2]", "tensor_parallel: [64]"), "64 is more than the 2 cores"),
    ],
)
def test_wrong_input_is_told_and_starts_nothing(
    autotune: Autotune, engine: Path, folder: Path, mistake: tuple[str, str], told: str
) -> None:
    study = folder / "small.yaml"
    study.write_text(study.read_text().replace(*mistake))
    refused = autotune("tune", "small.yaml", "--engine", f"vllm={engine}", code=2)
    assert told in refused.stderr
    assert "small.yaml:" in refused.stderr
    assert not (folder / "studies.db").exists()


def test_a_missing_engine_is_told_with_its_remedy(autotune: Autotune) -> None:
    assert "autotune engines install vllm" in autotune("tune", "small.yaml", code=2).stderr


def test_validate_says_what_would_be_refused(autotune: Autotune, engine: Path, folder: Path) -> None:
    with (folder / "small.yaml").open("a") as study:
        study.write("requirements: { most_gpus: 1 }\n")
    verdict = json.loads(autotune("validate", "small.yaml", "--engine", f"vllm={engine}", "--json").stdout)
    assert verdict["checked"] == 13
    assert verdict["refused"] == [
        {"why": "needs 2 devices (TP x PP x DP), 1 may be used [devices]", "configurations": 6},
        {
            "why": "block_size 16 is no multiple of 32, which vLLM wants on a CPU [block-size]",
            "configurations": 3,
        },
    ]
    told = f"vllm {VERSION} itself: {REFUSED}"
    assert verdict["engine"] == {
        "asked": 4,
        "complete": True,
        "refused": [{"why": told, "configurations": 1}],
    }
    assert verdict["accepted"] == 3

    shown = autotune("validate", "small.yaml", "--engine", f"vllm={engine}", "--most-asked", "2")
    assert "asked the engine itself about 2, spread over the 4" in shown.stdout
    on_paper = autotune("validate", "small.yaml", "--engine", f"vllm={engine}", "--no-engine", "--json")
    assert json.loads(on_paper.stdout)["accepted"] == 4


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("trace: none.csv, longest: 64", "none.csv: cannot be read"),
        ("trace: pairs.csv, longest: 64", "pairs.csv: holds lengths alone"),
        ("lengths: pairs.csv, longest: 8", "raise longest of workload 'chat'"),
        ("input_tokens: 16, output_tokens: 8, prompts: { text: none.txt }", "none.txt: cannot be read"),
        ("input_tokens: 16, output_tokens: 8, prompts: { text: short.txt }", "text would repeat itself"),
    ],
)
def test_validate_opens_the_files_of_workloads(
    autotune: Autotune, engine: Path, folder: Path, source: str, told: str
) -> None:
    (folder / "pairs.csv").write_text("input_length,output_length\n16,8\n")
    (folder / "short.txt").write_text("too short")
    study = folder / "small.yaml"
    study.write_text(study.read_text().replace("input_tokens: 16, output_tokens: 8", source))
    refused = autotune("validate", "small.yaml", "--engine", f"vllm={engine}", code=2)
    assert "small.yaml:10: workloads.0: " in refused.stderr
    assert told in refused.stderr


def test_every_command_has_help_with_an_example() -> None:
    commands = [
        "tune",
        "resume",
        "recommend",
        "show",
        "validate",
        "schema",
        "export",
        "verify",
        "drift",
        "import",
    ]
    groups = [
        ["engines", "install"],
        ["engines", "bundle"],
        ["engines", "list"],
        ["engines", "check"],
        ["models", "make"],
    ]
    for command in [[name] for name in commands] + groups:
        assert "Example" in CliRunner().invoke(app, [*command, "--help"]).stdout, command


def test_show_names_the_studies_it_knows_and_makes_none(
    autotune: Autotune, engine: Path, folder: Path
) -> None:
    assert json.loads(autotune("show", "--json").stdout) == {"studies": []}
    assert "known: none yet" in autotune("show", "no-such-study", code=2).stderr
    assert not list(folder.rglob("*.db"))
