"""RAPL over a powercap tree in a temporary folder, as the kernel lays it out."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.adapters.power.rapl import RaplPowerMeter, _Counted, _device_power, _Zone, available
from autotune.domain.basics.errors import BenchError
from autotune.domain.hardware.hardware import Device, DeviceKind
from autotune.domain.measuring.power import (
    EnergyVerdict,
    PowerBasis,
    PowerScope,
    PowerTrace,
    Window,
    energy_in,
    integrate_j,
)

CORES = (Device(DeviceKind.CPU, 0, "Fake core", "core-0", 1 << 30),)
RANGE_UJ = 262_143_328_850
NOBODY = 65534


@dataclass(frozen=True)
class Tree:
    """``/sys/class/powercap`` of a machine with two packages, flat as the kernel's links make it."""

    root: Path

    def put(self, zone: str, name: str, energy_uj: int, range_uj: int = RANGE_UJ) -> None:
        folder = self.root / zone
        folder.mkdir()
        (folder / "name").write_text(f"{name}\n")
        (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
        self.count(zone, energy_uj)

    def count(self, zone: str, energy_uj: int | str) -> None:
        fresh = self.root / "fresh"
        fresh.write_text(f"{energy_uj}\n")
        fresh.replace(self.root / zone / "energy_uj")


@pytest.fixture
def tree() -> Iterator[Tree]:
    # Not pytest's own folder: only this user may enter that, and a test becomes another.
    root = Path(tempfile.mkdtemp())
    root.chmod(0o755)
    made = Tree(root)
    (root / "intel-rapl").mkdir()
    made.put("intel-rapl:0", "package-0", 5_000_000)
    made.put("intel-rapl:0:0", "core", 1_000_000)
    made.put("intel-rapl:0:1", "dram", 7_000_000)
    made.put("intel-rapl:1", "package-1", 9_000_000)
    made.put("intel-rapl:2", "psys", 90_000_000)
    made.put("intel-rapl-mmio:0", "package-0", 5_000_000)
    yield made
    shutil.rmtree(root)


def recorded(tree: Tree, **then: int | str) -> PowerTrace:
    """The trace over a window of 50 ms, after which the counters stand as told."""
    with RaplPowerMeter(root=tree.root, period_s=60).window(CORES) as recording:
        time.sleep(0.05)
        for zone, energy_uj in then.items():
            tree.count(zone.replace("_", ":").replace("rapl", "intel-rapl"), energy_uj)
        return recording.trace()


def joules(trace: PowerTrace) -> dict[str, float]:
    return {d.uid: integrate_j(d, Window(d.time_s[0], d.time_s[-1])) for d in trace.devices}


def test_packages_and_their_memory_are_counted_once_and_nothing_twice(tree: Tree) -> None:
    trace = recorded(tree, rapl_0=6_000_000, rapl_0_0=1_900_000, rapl_0_1=7_250_000, rapl_1=9_500_000)
    assert joules(trace) == pytest.approx({"package-0": 1.0, "package-0/dram": 0.25, "package-1": 0.5})
    assert trace.reserved == ("package-0", "package-0/dram", "package-1")
    assert trace.basis is PowerBasis.HOST
    assert trace.scope is PowerScope.PACKAGE


def test_a_counter_that_wraps_runs_on(tree: Tree) -> None:
    tree.count("intel-rapl:1", RANGE_UJ - 400_000)
    assert joules(recorded(tree, rapl_1=100_000))["package-1"] == pytest.approx(0.5)


def test_a_counter_that_was_set_back_did_not_wrap(tree: Tree) -> None:
    tree.count("intel-rapl:1", 100_000_000_000)
    with pytest.raises(BenchError, match=r"counter of package-1 was set back.*reloads its module"):
        recorded(tree, rapl_1=0)


@given(
    steps=st.lists(st.tuples(st.floats(1e-5, 2.0), st.floats(0, 1000)), min_size=1, max_size=30),
    start_j=st.floats(0, 262_000),
)
def test_integrated_power_is_what_was_counted_over_any_wraps_and_spacing(
    steps: list[tuple[float, float]], start_j: float
) -> None:
    zone = _Zone("package-0", Path("unread"), RANGE_UJ / 1e6)
    at_s = np.cumsum([0.0, *(dt for dt, _ in steps)])
    true_j = start_j + np.cumsum([0.0, *(dt * watts for dt, watts in steps)])
    counted = [_Counted(t, e % zone.range_j) for t, e in zip(at_s, true_j, strict=True)]
    device = _device_power(zone, counted)
    window = Window(at_s[0], at_s[-1])
    assert integrate_j(device, window) == pytest.approx(true_j[-1] - true_j[0], abs=1e-3)
    energy = energy_in(PowerTrace(basis=PowerBasis.HOST, source="", period_s=2, devices=(device,)), window)
    assert energy.verdict is EnergyVerdict.CONSISTENT


def test_samples_cover_the_window_while_it_lasts(tree: Tree) -> None:
    with RaplPowerMeter(root=tree.root, period_s=0.005).window(CORES) as recording:
        start_s = time.monotonic()
        time.sleep(0.05)
        end_s = time.monotonic()
    energy = energy_in(recording.trace(), Window(start_s, end_s))
    assert not [reason for reason in energy.reasons if reason.startswith(("not-covered", "no-device"))]
    assert all(d.time_s[0] <= start_s and d.time_s[-1] >= end_s for d in recording.trace().devices)


def test_a_tree_that_vanishes_in_the_window_is_a_bench_error(tree: Tree) -> None:
    with RaplPowerMeter(root=tree.root, period_s=60).window(CORES) as recording:
        shutil.rmtree(tree.root / "intel-rapl:1")
        with pytest.raises(BenchError, match=r"meter lost.*intel-rapl:1.*No such file.*intel_rapl_msr"):
            recording.trace()


def test_a_counter_that_is_no_number_is_a_bench_error(tree: Tree) -> None:
    with pytest.raises(BenchError, match=r"intel-rapl:0/energy_uj holds 'garbage'"):
        recorded(tree, rapl_0="garbage")


@contextmanager
def another_user() -> Iterator[None]:
    """Give up root for the length of a block: root may read what nobody else may."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def test_counters_that_only_root_may_read_are_not_available_and_the_remedy_is_told(tree: Tree) -> None:
    assert available(tree.root) == ""
    os.chmod(tree.root / "intel-rapl:0" / "energy_uj", 0 if os.geteuid() else 0o400)  # noqa: PTH101
    with another_user():
        assert "CVE-2020-8694" in available(tree.root)
        assert "chmod a+r" in available(tree.root)
        with (
            pytest.raises(BenchError, match="not readable"),
            RaplPowerMeter(root=tree.root).window(CORES),
        ):
            pass


def test_a_machine_without_counters_says_so(tmp_path: Path) -> None:
    assert "no RAPL counters" in available(tmp_path)
    assert "no RAPL counters" in available(tmp_path / "nowhere")
