"""DCGM exporters on other hosts, against a real HTTP server that refreshes as the exporter does.

The text is laid out as dcgm-exporter 4.x writes it; it has not run against a real exporter.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from power_servers import Script, serving

from autotune.adapters.power.dcgm import (
    DcgmPowerMeter,
    _Fields,
    _fields,
    _readings,
    _refresh_period_s,
    _Scrape,
)
from autotune.adapters.power.reading import device_power
from autotune.domain.basics.errors import BenchError, InputError
from autotune.domain.hardware.hardware import Device, DeviceKind
from autotune.domain.measuring.power import (
    EnergyVerdict,
    PowerBasis,
    PowerTrace,
    Slowdown,
    Window,
    energy_in,
)

GPUS = tuple(Device(DeviceKind.CUDA, i, "Fake H200", f"GPU-{i}", 1 << 30) for i in range(2))
USAGE = "DCGM_FI_DEV_POWER_USAGE"
ENERGY = "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"


def exposition(gpus: dict[str, dict[str, float]]) -> bytes:
    """What an exporter answers for these GPUs and fields."""
    lines = ["# a comment", "# HELP go_goroutines Number of goroutines.", "go_goroutines 12"]
    for name in dict.fromkeys(name for fields in gpus.values() for name in fields):
        kind = "counter" if name == ENERGY else "gauge"
        lines += [f"# HELP {name} A field (in its unit).", f"# TYPE {name} {kind}"]
        for number, (uid, fields) in enumerate(gpus.items()):
            if name in fields:
                labels = (
                    f'gpu="{number}",UUID="{uid}",pci_bus_id="00000000:1B:00.0",device="nvidia{number}",'
                    'modelName="NVIDIA H200",Hostname="node-7",DCGM_FI_DRIVER_VERSION="580.65.06"'
                )
                lines.append(f"{name}{{{labels}}} {fields[name]}")
    return "\n".join([*lines, ""]).encode()


def snapshot(energy_mj: float = 1e9, **extra: float) -> dict[str, dict[str, float]]:
    more = {f"DCGM_FI_DEV_{name}": value for name, value in extra.items()}
    return {
        f"GPU-{i}": {USAGE: 100.5 * (i + 1), ENERGY: energy_mj, "DCGM_FI_DEV_GPU_TEMP": 61, **more}
        for i in range(2)
    }


@contextmanager
def exporter(gpus: dict[str, dict[str, float]]) -> Iterator[Script]:
    with serving(Script({"/metrics": exposition(gpus)})) as script:
        script.url += "/metrics"
        yield script


def put(script: Script, gpus: dict[str, dict[str, float]]) -> None:
    script.pages["/metrics"] = exposition(gpus)


def meter(*scripts: Script, **limits: float) -> DcgmPowerMeter:
    return DcgmPowerMeter([script.url for script in scripts], **{"period_s": 60, **limits})


def test_power_and_conditions_are_read_and_only_what_was_refreshed_is_counted() -> None:
    with exporter(snapshot()) as script, meter(script).window(GPUS) as recording:
        recording.trace()
        put(script, snapshot(2e9, SM_CLOCK=1980, ENFORCED_POWER_LIMIT=700))
        recording.trace()
        put(script, snapshot(3e9, SM_CLOCK=1980, ENFORCED_POWER_LIMIT=700))
        recording.trace()
        trace = recording.trace()
    first, second = trace.devices
    assert trace.basis is PowerBasis.GPU
    assert trace.source == f"DCGM exporter ({USAGE})"
    assert trace.reserved == ("GPU-0", "GPU-1")
    # The first snapshot's age is not known, the last one is held: power stands for both, a count for neither.
    assert list(first.power_w) == [100.5] * 4
    assert list(second.power_w) == [201.0] * 4
    assert list(first.counter_j) == [2e6, 3e6]
    assert list(first.conditions.temperature_c) == [61.0] * 4
    assert list(first.conditions.clock_mhz[1:]) == [1980.0] * 3
    assert list(first.conditions.power_limit_w[1:]) == [700.0] * 3


def test_instant_power_is_preferred_and_newer_names_are_known() -> None:
    gpus = {"GPU-0": {USAGE: 300.0, "DCGM_FI_DEV_POWER_USAGE_INSTANT": 310.0}}
    with exporter(gpus) as script, meter(script).window(GPUS[:1]) as recording:
        assert set(recording.trace().devices[0].power_w) == {310.0}
    gpus = {"GPU-0": {"DCGM_FI_DEV_BOARD_POWER_WATTS": 305.0, "DCGM_FI_DEV_GPU_TEMP_CELSIUS": 50}}
    with exporter(gpus) as script, meter(script).window(GPUS[:1]) as recording:
        assert set(recording.trace().devices[0].power_w) == {305.0}
        assert set(recording.trace().devices[0].conditions.temperature_c) == {50.0}


@pytest.mark.parametrize(
    ("reasons", "slowdown"),
    [
        (0x01, Slowdown.NONE),
        (0x04, Slowdown.POWER_CAP),
        (0x08, Slowdown.HARDWARE),
        (0x20, Slowdown.THERMAL),
        (0x44, Slowdown.THERMAL | Slowdown.POWER_CAP),
        (0x80, Slowdown.HARDWARE),
    ],
)
def test_reasons_of_a_slow_clock_are_told(reasons: int, slowdown: Slowdown) -> None:
    with (
        exporter(snapshot(CLOCK_THROTTLE_REASONS=reasons)) as script,
        meter(script).window(GPUS) as recording,
    ):
        assert set(recording.trace().devices[0].conditions.slowdown) == {slowdown}


def test_gpus_of_two_hosts_are_found_at_their_exporters() -> None:
    left = {"GPU-0": {USAGE: 300.0}}
    right = {"GPU-1": {USAGE: 400.0}}
    with exporter(left) as one, exporter(right) as two, meter(one, two).window(GPUS) as recording:
        trace = recording.trace()
    assert [set(device.power_w) for device in trace.devices] == [{300.0}, {400.0}]


def test_mig_instances_do_not_multiply_their_gpu() -> None:
    text = "\n".join(
        f'{USAGE}{{gpu="0",UUID="GPU-0",GPU_I_PROFILE="1g.18gb",GPU_I_ID="{i}"}} 333' for i in range(7)
    )
    assert _fields(text) == {"GPU-0": {USAGE: 333.0}}


def scrapes(
    *, refresh_s: float, scrape_s: float, until_s: float, stalls_at_s: float = np.inf
) -> list[_Scrape]:
    """Scrapes of a GPU whose power goes up and down, as an exporter of this refresh shows them."""
    found = []
    for at_s in np.arange(0.0, until_s, scrape_s):
        taken_s = refresh_s * np.floor((min(at_s, stalls_at_s) + 0.37 * refresh_s) / refresh_s)
        gpu: _Fields = {USAGE: 300 + 20 * np.sin(taken_s / 20), ENERGY: 1e9 + energy_mj(taken_s)}
        found.append(_Scrape(float(at_s), {"GPU-0": gpu}))
    return found


def energy_mj(at_s: float) -> float:
    return float(1e3 * (300 * at_s - 400 * (np.cos(at_s / 20) - 1)))


def judged(
    found: list[_Scrape], window: Window, least_period_s: float
) -> tuple[EnergyVerdict, tuple[str, ...], float]:
    trace = PowerTrace(
        basis=PowerBasis.GPU,
        source="",
        period_s=max(least_period_s, _refresh_period_s(found)),
        devices=(device_power("GPU-0", _readings("GPU-0", found)),),
    )
    energy = energy_in(trace, window)
    return energy.verdict, energy.reasons, energy.joules


@given(refresh_s=st.floats(0.5, 10.0), share=st.floats(0.05, 0.3))
def test_the_refresh_period_is_seen_and_energy_comes_out_right(refresh_s: float, share: float) -> None:
    found = scrapes(refresh_s=refresh_s, scrape_s=share * refresh_s, until_s=150)
    assert _refresh_period_s(found) == pytest.approx(refresh_s, abs=share * refresh_s)
    verdict, reasons, joules = judged(found, Window(30, 130), share * refresh_s)
    assert (verdict, reasons) == (EnergyVerdict.CONSISTENT, ())
    assert joules == pytest.approx((energy_mj(130) - energy_mj(30)) / 1e3, rel=0.02)


def test_an_exporter_that_stalls_leaves_a_gap() -> None:
    found = scrapes(refresh_s=1.0, scrape_s=0.25, until_s=100, stalls_at_s=60.0)
    assert judged(found, Window(20, 50), 0.25)[:2] == (EnergyVerdict.CONSISTENT, ())
    assert "gap:GPU-0" in judged(found, Window(20, 80), 0.25)[1]


def test_an_exporter_too_slow_for_the_window_leaves_a_gap() -> None:
    """The default of 30 s shows at most one new snapshot in 25 s: nothing is known of what lay between."""
    found = scrapes(refresh_s=30.0, scrape_s=0.25, until_s=25)
    assert "gap:GPU-0" in judged(found, Window(1, 24), 0.25)[1]


def test_a_counter_that_was_reset_is_left_out() -> None:
    found = scrapes(refresh_s=1.0, scrape_s=0.25, until_s=20)
    found[40:] = [
        _Scrape(s.at_s, {uid: {**fields, ENERGY: fields[ENERGY] - 1e9} for uid, fields in s.gpus.items()})
        for s in found[40:]
    ]
    assert judged(found, Window(5, 15), 0.25)[0] is EnergyVerdict.UNCHECKED


def test_samples_come_from_our_clock_while_the_window_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(Script, "body", lambda self, path: exposition(snapshot(1e9 + 1e3 * next(ticks))))
    with exporter({}) as script, meter(script, period_s=0.01).window(GPUS) as recording:
        start_s = time.monotonic()
        while next(ticks) < 20:
            time.sleep(0.01)
        end_s = time.monotonic()
        trace = recording.trace()
    device = trace.devices[0]
    assert device.time_s[0] <= start_s
    assert device.time_s[-1] >= end_s
    assert (np.diff(device.time_s) > 0).all()
    assert trace.period_s >= 0.01


def test_a_gpu_that_no_exporter_tells_of_is_named_with_those_that_are() -> None:
    stranger = Device(DeviceKind.CUDA, 7, "Fake", "GPU-7", 1)
    with (
        exporter(snapshot()) as script,
        pytest.raises(BenchError, match="tells of GPU-7, only of: GPU-0, GPU-1"),
        meter(script).window([stranger]),
    ):
        pass


def test_a_gpu_that_vanishes_in_the_window_is_a_bench_error() -> None:
    with exporter(snapshot()) as script, meter(script).window(GPUS) as recording:
        put(script, {"GPU-0": {USAGE: 100.5}})
        with pytest.raises(BenchError, match=r"tells no power of GPU-1.*nvidia-smi"):
            recording.trace()


@pytest.mark.parametrize("power_w", [140737488355328.0, float("nan"), -1.0])
def test_a_blank_value_is_no_power(power_w: float) -> None:
    gpus = {"GPU-0": {USAGE: power_w}}
    with exporter(gpus) as script, meter(script).window(GPUS[:1]) as recording:  # noqa: SIM117
        with pytest.raises(BenchError, match="tells no power"):
            recording.trace()


@pytest.mark.parametrize(
    "body", [b"<html>login</html>", b'X{gpu="0" 5', b"\xff\xfe", b"DCGM_FI_DEV_POWER_USAGE{"]
)
def test_garbage_is_a_bench_error_that_shows_it(body: bytes) -> None:
    with exporter(snapshot()) as script, meter(script).window(GPUS) as recording:
        script.pages["/metrics"] = body
        with pytest.raises(BenchError, match="not in Prometheus' text format"):
            recording.trace()


@given(text=st.text(st.characters(codec="ascii"), max_size=60))
def test_no_text_gets_past_the_errors_that_are_caught(text: str) -> None:
    with suppress(ValueError, LookupError):
        _fields(f"{USAGE}{{{text}")


def test_an_exporter_that_fails_vanishes_or_is_slow_is_a_bench_error() -> None:
    with exporter(snapshot()) as script, meter(script, timeout_s=0.2).window(GPUS) as recording:
        script.status = 503
        with pytest.raises(BenchError, match="status 503"):
            recording.trace()
    with exporter(snapshot()) as script, meter(script, timeout_s=0.2).window(GPUS) as recording:
        script.delay_s = 0.5
        with pytest.raises(BenchError, match=r"no answer .*within 0\.2 s"):
            recording.trace()
    with pytest.raises(BenchError, match="no answer"), meter(script).window(GPUS):
        pass


def test_a_url_that_is_none_is_an_input_error() -> None:
    with pytest.raises(InputError, match="not http"):
        DcgmPowerMeter(["node:9400"])
