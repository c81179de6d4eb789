"""Scripts for users' own GPUs, as far as they run without one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from standin.nvml import build_standin, standin_env

pytestmark = pytest.mark.alone

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
VARYING = "".join(f"{i / 10} 0 power_w={400 + 40 * (i % 3)}\n" for i in range(200))


def meters(tmp_path: Path, load: str, windows: str) -> subprocess.CompletedProcess[str]:
    """The script over a stand-in for the driver whose power steps ten times a second."""
    library, scenario = build_standin(tmp_path), tmp_path / "scenario.txt"
    scenario.write_text(VARYING)
    command = [sys.executable, str(SCRIPTS / "gpu_meters.py"), "--load", load, "--windows", windows]
    return subprocess.run(
        [*command, "--settle", "0.2", "--to", str(tmp_path / "out")],
        env=standin_env(library, scenario),
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_meters_of_a_gpu_are_compared_in_windows_of_several_lengths(tmp_path: Path) -> None:
    done = meters(tmp_path, "sleep 60", "1,2")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "meters.json").read_text())
    assert (tmp_path / "out" / "trace-coming-and-going.npz").is_file()
    for load in ("idle", "steady", "coming and going"):
        assert 400 <= found[load]["mean_w"] <= 480
        assert found[load]["power_changes_every_s"] == pytest.approx(0.1, abs=0.02)
        for row in found[load]["windows"]:
            # A machine that is busy elsewhere may leave the meter unread for a while, and is told of.
            assert all(reason.startswith("gap:") for reason in row["reasons"])
            assert row["counted_j"] == pytest.approx(row["integrated_j"], rel=0.05)


def test_a_load_that_ends_by_itself_is_said(tmp_path: Path) -> None:
    done = meters(tmp_path, "false", "0.2")
    assert done.returncode == 1
    assert "the load ended with exit code 1" in done.stderr
