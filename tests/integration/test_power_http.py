"""Node totals over Redfish and by ipmitool, against a real HTTP server and a real child process."""

from __future__ import annotations

import base64
import shutil
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from power_servers import Script, self_signed, serving

from autotune.adapters.power.http_reader import HttpReader
from autotune.adapters.power.ipmi import IpmiPowerMeter
from autotune.adapters.power.redfish import RedfishAccess, RedfishPowerMeter
from autotune.domain.basics.errors import BenchError, InputError
from autotune.domain.measuring.power import EnergyVerdict, PowerBasis, PowerScope, Window, energy_in

CHASSIS = "/redfish/v1/Chassis"


def link(path: str) -> dict[str, str]:
    return {"@odata.id": path}


def controller(*chassis: str) -> Script:
    """A controller with nothing but its chassis."""
    members = [link(f"{CHASSIS}/{name}") for name in chassis]
    pages: dict[str, object] = {
        "/redfish/v1/": {"RedfishVersion": "1.18.0", "Chassis": link(CHASSIS)},
        CHASSIS: {"Members": members, "Members@odata.count": len(members)},
    }
    pages |= {f"{CHASSIS}/{name}": {"Id": name} for name in chassis}
    return Script(pages)


def tell(script: Script, path: str, resource: object, **chassis_links: object) -> Script:
    """Put a resource of a chassis there, and into the chassis what links to it."""
    script.pages[path] = resource
    chassis = "/".join(path.split("/")[:5])
    script.pages[chassis] = {**script.pages[chassis], **chassis_links}  # type: ignore[dict-item]
    return script


def newer(script: Script, watts: object, name: str = "Self") -> Script:
    path = f"{CHASSIS}/{name}/EnvironmentMetrics"
    page = {"PowerWatts": {"DataSourceUri": f"{CHASSIS}/{name}/Sensors/Power", "Reading": watts}}
    return tell(script, path, page, EnvironmentMetrics=link(path))


def older(script: Script, watts: object, name: str = "Self") -> Script:
    path = f"{CHASSIS}/{name}/Power"
    page = {"PowerControl": [{"MemberId": "0", "PowerConsumedWatts": watts, "PowerCapacityWatts": 2000}]}
    return tell(script, path, page, Power=link(path))


def supplies(script: Script, *watts: object) -> Script:
    base = f"{CHASSIS}/Self/PowerSubsystem"
    bays = [link(f"{base}/PowerSupplies/{bay}") for bay in range(len(watts))]
    for bay, told in enumerate(watts):
        path = f"{base}/PowerSupplies/{bay}"
        script.pages[path] = {"Id": str(bay), "Metrics": link(f"{path}/Metrics")}
        script.pages[f"{path}/Metrics"] = {"InputPowerWatts": {"Reading": told}}
    script.pages[f"{base}/PowerSupplies"] = {"Members": bays}
    return tell(script, base, {"PowerSupplies": link(f"{base}/PowerSupplies")}, PowerSubsystem=link(base))


def watts_told(script: Script, **access: object) -> set[float]:
    with serving(script), meter(script, **access).window([]) as recording:
        return set(recording.trace().devices[0].power_w)


def meter(script: Script, period_s: float = 60, **access: object) -> RedfishPowerMeter:
    return RedfishPowerMeter(RedfishAccess(url=script.url, **access), period_s=period_s)  # type: ignore[arg-type]


def test_a_window_is_covered_and_unchecked_and_says_what_it_covers() -> None:
    with (
        serving(newer(controller("Self"), 812.5)) as script,
        meter(script, period_s=0.5).window([]) as recording,
    ):
        start_s = time.monotonic()
        time.sleep(0.1)
        end_s = time.monotonic()
        trace = recording.trace()
    energy = energy_in(trace, Window(start_s, end_s))
    assert energy.joules == pytest.approx(812.5 * (end_s - start_s))
    assert energy.verdict is not EnergyVerdict.CONSISTENT
    assert trace.basis is PowerBasis.HOST
    assert trace.scope is PowerScope.NODE
    assert trace.reserved == ("127.0.0.1",)
    assert trace.source == f"Redfish: {CHASSIS}/Self/EnvironmentMetrics PowerWatts.Reading"
    assert len(script.connections) == 1


def test_the_older_schema_is_read_where_the_newer_is_missing() -> None:
    assert watts_told(older(controller("Self"), 590)) == {590.0}


def test_the_newer_schema_is_preferred() -> None:
    assert watts_told(older(newer(controller("Self"), 600), 590)) == {600.0}


def test_a_newer_schema_without_a_reading_falls_back_to_the_older() -> None:
    assert watts_told(older(newer(controller("Self"), None), 590)) == {590.0}


def test_supplies_are_added_up_and_an_empty_bay_is_left_out() -> None:
    assert watts_told(supplies(controller("Self"), 300.5, 290, None)) == {590.5}


def test_links_to_what_is_not_there_are_passed_over() -> None:
    script = older(newer(controller("Self"), 600), 590)
    del script.pages[f"{CHASSIS}/Self/EnvironmentMetrics"]
    assert watts_told(script) == {590.0}


def test_a_chassis_inside_another_is_not_counted_beside_it() -> None:
    script = newer(newer(controller("Self", "GPU_0"), 900), 400, "GPU_0")
    script.pages[f"{CHASSIS}/GPU_0"] |= {"Links": {"ContainedBy": link(f"{CHASSIS}/Self")}}  # type: ignore[operator]
    assert watts_told(script) == {900.0}
    assert watts_told(script, chassis="GPU_0") == {400.0}


def test_two_nodes_in_one_controller_must_be_told_apart() -> None:
    script = newer(newer(controller("Left", "Right"), 900, "Left"), 400, "Right")
    with pytest.raises(BenchError, match=r"Chassis/Left, .*Chassis/Right; name the one"):
        watts_told(script)
    assert watts_told(script, chassis="Right") == {400.0}


def test_a_controller_that_tells_no_power_says_so() -> None:
    with pytest.raises(BenchError, match="tell their power: none"):
        watts_told(controller("Self"))


@pytest.mark.parametrize("watts", ["600 W", True, -1, {}, None])
def test_a_reading_that_is_no_power_is_none(watts: object) -> None:
    with pytest.raises(BenchError, match="none"):
        watts_told(newer(controller("Self"), watts))


def test_a_reading_that_ends_in_the_window_is_a_bench_error() -> None:
    with serving(newer(controller("Self"), 600)) as script, meter(script).window([]) as recording:
        newer(script, None)
        with pytest.raises(BenchError, match="tells no power any more"):
            recording.trace()


def test_garbage_is_a_bench_error_that_shows_it() -> None:
    with serving(newer(controller("Self"), 600)) as script, meter(script).window([]) as recording:
        script.pages[f"{CHASSIS}/Self/EnvironmentMetrics"] = b"<html>login</html>"
        with pytest.raises(BenchError, match=r"not JSON: b'<html>"):
            recording.trace()


def test_a_controller_that_vanishes_in_the_window_is_a_bench_error() -> None:
    with ExitStack() as stack:
        with serving(newer(controller("Self"), 600)) as script:
            recording = stack.enter_context(meter(script).window([]))
            # The server's threads outlive it for as long as a connection is kept: let this one be the last.
            script.closing = True
            recording.trace()
        with pytest.raises(BenchError, match=r"meter lost: no answer from 127\.0\.0\.1.*reachable"):
            recording.trace()


@pytest.mark.parametrize("fault", ["delay_s", "drip_s"])
def test_a_slow_controller_is_a_bench_error_by_its_deadline(fault: str) -> None:
    with (
        serving(newer(controller("Self"), 600)) as script,
        meter(script, timeout_s=0.2).window([]) as recording,
    ):
        setattr(script, fault, 0.5 if fault == "delay_s" else 0.05)
        with pytest.raises(BenchError, match=r"answers within 0\.2 s"):
            recording.trace()


def test_an_answer_that_is_cut_off_is_a_bench_error() -> None:
    with serving(newer(controller("Self"), 600)) as script, meter(script).window([]) as recording:
        script.cut = True
        with pytest.raises(BenchError, match=r"IncompleteRead"):
            recording.trace()


@pytest.mark.parametrize("end", ["closing", "hang_up"])
def test_a_connection_that_the_server_ended_is_made_again(end: str) -> None:
    """Announced or not: the latter shows only when the next request finds nobody."""
    with serving(newer(controller("Self"), 600)) as script, meter(script).window([]) as recording:
        setattr(script, end, True)
        for _ in range(3):
            assert set(recording.trace().devices[0].power_w) == {600.0}
    assert len(script.connections) >= 3


def test_credentials_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_BMC_USER", "tuner")
    monkeypatch.setenv("TEST_BMC_PASSWORD", "pass:word")
    script = newer(controller("Self"), 600)
    script.authorization = f"Basic {base64.b64encode(b'tuner:pass:word').decode()}"
    known = {"user_variable": "TEST_BMC_USER", "password_variable": "TEST_BMC_PASSWORD"}
    assert watts_told(script, **known) == {600.0}
    with pytest.raises(BenchError, match=r"status 401; see that user and password"):
        watts_told(script)


def test_credentials_that_are_not_there_are_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_BMC_USER", raising=False)
    with pytest.raises(InputError, match="TEST_BMC_USER"):
        RedfishPowerMeter(RedfishAccess(url="https://node", user_variable="TEST_BMC_USER"))


def test_a_password_never_crosses_the_network_in_the_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_BMC_USER", "tuner")
    monkeypatch.setenv("TEST_BMC_PASSWORD", "word")
    known = {"user_variable": "TEST_BMC_USER", "password_variable": "TEST_BMC_PASSWORD"}
    with pytest.raises(InputError, match="unencrypted"):
        RedfishPowerMeter(RedfishAccess(url="http://node.example", **known))


@pytest.mark.parametrize("url", ["ftp://node", "node", "https://", "https://root:secret@node"])
def test_a_url_that_is_none_or_holds_a_password_is_an_input_error(url: str) -> None:
    with pytest.raises(InputError) as caught:
        RedfishPowerMeter(RedfishAccess(url=url))
    assert "secret" not in str(caught.value)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
def test_certificates_are_verified_unless_told_not_to(tmp_path: Path) -> None:
    certificate = self_signed(tmp_path)
    with serving(newer(controller("Self"), 600), certificate) as script:
        with pytest.raises(BenchError, match=r"(?i)certificate verify failed"), meter(script).window([]):
            pass
        with meter(script, ca_file=certificate).window([]) as recording:
            assert set(recording.trace().devices[0].power_w) == {600.0}
        with meter(script, verify=False).window([]) as recording:
            assert set(recording.trace().devices[0].power_w) == {600.0}


def test_certificates_that_cannot_be_read_are_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no certificates"):
        HttpReader("https://node", ca_file=tmp_path / "none.pem")


def test_an_answer_is_stamped_midway_on_our_own_clock() -> None:
    script = Script({"/": {}}, delay_s=0.2)
    with serving(script), HttpReader(script.url) as reader:
        before_s = time.monotonic()
        answer = reader.get("/")
        after_s = time.monotonic()
    assert answer.round_trip_s >= 0.2
    assert before_s + 0.1 <= answer.at_s <= after_s - 0.1


POWER_READING = """
    Instantaneous power reading:                   {watts} Watts
    Minimum during sampling period:                175 Watts
    Maximum during sampling period:                242 Watts
    Average power reading over sample period:      190 Watts
    IPMI timestamp:                           Sun Mar  6 15:13:42 2022
    Sampling period:                          00123893 Seconds.
    Power reading state is:                   {state}

"""


@pytest.fixture
def ipmitool(tmp_path: Path) -> Path:
    """A command that prints the file beside it, or does what else that says."""
    command = tmp_path / "ipmitool"
    command.write_text('#!/bin/sh\n[ "$*" = "dcmi power reading" ] || exit 9\n. "$(dirname "$0")/does"\n')
    command.chmod(0o755)
    say(command, "197")
    return command


def say(command: Path, watts: str, state: str = "activated") -> None:
    (command.parent / "told").write_text(POWER_READING.format(watts=watts, state=state))
    does(command, f"cat '{command.parent}/told'")


def does(command: Path, script: str) -> None:
    fresh = command.parent / "fresh"
    fresh.write_text(script)
    fresh.replace(command.parent / "does")


def ipmi(command: Path, **limits: float) -> IpmiPowerMeter:
    return IpmiPowerMeter(command=(str(command),), **{"period_s": 60, **limits})


def test_ipmi_tells_the_power_of_the_node(ipmitool: Path) -> None:
    with ipmi(ipmitool).window([]) as recording:
        say(ipmitool, "203", state="deactivated")
        trace = recording.trace()
    assert list(trace.devices[0].power_w) == [197.0, 203.0]
    assert (trace.basis, trace.scope) == (PowerBasis.HOST, PowerScope.NODE)


@pytest.mark.parametrize(
    "text", ["", "DCMI request failed", POWER_READING.format(watts=0, state="deactivated")]
)
def test_ipmi_that_tells_no_power_is_a_bench_error(ipmitool: Path, text: str) -> None:
    with ipmi(ipmitool).window([]) as recording:
        (ipmitool.parent / "told").write_text(text)
        with pytest.raises(BenchError, match=r"(?s)told no power.*activated there"):
            recording.trace()


def test_ipmi_that_fails_shows_what_it_said(ipmitool: Path) -> None:
    with ipmi(ipmitool).window([]) as recording:
        does(ipmitool, "echo 'Could not open device at /dev/ipmi0' >&2; exit 1")
        with pytest.raises(BenchError, match=r"ended with 1: Could not open device.*root"):
            recording.trace()


def test_ipmi_that_hangs_is_ended_by_its_deadline(ipmitool: Path) -> None:
    with ipmi(ipmitool, timeout_s=0.2).window([]) as recording:
        does(ipmitool, "exec sleep 600")
        with pytest.raises(BenchError, match=r"took more than 0\.2 s"):
            recording.trace()


def test_ipmi_without_its_command_names_the_package(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="install the package ipmitool"), ipmi(tmp_path / "none").window([]):
        pass


def test_no_thread_of_a_meter_is_left() -> None:
    assert not any(thread.name == "power meter" for thread in threading.enumerate())
