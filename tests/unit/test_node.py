"""What a node's state says against measuring on it, and which faults came with a launch."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.domain.hardware.node import (
    APPLICATION_XIDS,
    DeviceHealth,
    NodeState,
    XidCount,
    describe,
    faults,
    new_faults,
    read_node_state,
    warnings,
)

GPU = DeviceHealth(
    uid="GPU-a",
    pci="0000:3b:00",
    temperature_c=34,
    ecc_corrected=2,
    ecc_uncorrected=0,
    remap_pending=False,
    remap_failed=False,
    recovery="none",
    nvlinks_up=18,
    nvlinks=18,
    nvlink_errors=5,
    nvlink_recoveries=0,
    pcie_generation=1,
    pcie_generation_max=5,
    pcie_width=16,
    pcie_width_max=16,
    sm_clock_mhz=345,
    sm_clock_max_mhz=1980,
    power_limit_w=700,
    power_limit_default_w=700,
    mig=False,
)
OTHER = replace(GPU, uid="GPU-b", pci="0000:4c:00")
SOUND = NodeState(
    node="box-12345678",
    boot_id="boot-1",
    kernel="6.1.0",
    devices=(GPU, OTHER),
    cores=64,
    load_1min=0.4,
    busy_share=0.01,
    steal_share=0.0,
    memory_available_bytes=64 << 30,
    xids=(),
)
FALLEN_OFF = XidCount("0000:3b:00", 79, 1, 100.0)


def with_gpu(state: NodeState = SOUND, **changes: Any) -> NodeState:
    return replace(state, devices=(replace(state.devices[0], **changes), *state.devices[1:]))


def codes(reasons: tuple[str, ...]) -> list[str]:
    return [reason.split(": ")[0] for reason in reasons]


def test_a_sound_idle_node_is_neither_refused_nor_remarked_upon() -> None:
    assert faults(SOUND) == warnings(SOUND) == new_faults(SOUND, SOUND) == ()


def test_what_a_gpu_does_not_say_is_held_against_nobody() -> None:
    mute = replace(SOUND, devices=(DeviceHealth(uid="GPU-a"), DeviceHealth(uid="GPU-b")))
    assert faults(mute) == warnings(mute) == new_faults(mute, SOUND) == new_faults(SOUND, mute) == ()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"ecc_uncorrected": 3}, "ecc-uncorrected:GPU-a"),
        ({"remap_pending": True}, "remap-pending:GPU-a"),
        ({"remap_failed": True}, "remap-failed:GPU-a"),
        ({"recovery": "gpu-reset"}, "recovery-needed:GPU-a"),
        ({"nvlinks_up": 17}, "nvlink-down:GPU-a"),
    ],
)
def test_faults_refuse_a_node_and_break_a_launch_that_they_came_with(
    changes: dict[str, Any], code: str
) -> None:
    assert codes(faults(with_gpu(**changes))) == [code]
    assert codes(new_faults(SOUND, with_gpu(**changes))) == [code]
    # What was there before the launch is not its doing.
    assert new_faults(with_gpu(**changes), with_gpu(**changes)) == ()
    assert new_faults(with_gpu(**changes), SOUND) == ()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"power_limit_w": 500}, "power-cap:GPU-a"),
        ({"pcie_width": 8}, "pcie-narrow:GPU-a"),
        ({"mig": True}, "mig:GPU-a"),
        ({"nvlinks_up": 0}, "nvlink-none:GPU-a"),
    ],
)
def test_what_makes_a_gpu_unlike_others_is_told_and_not_refused(changes: dict[str, Any], code: str) -> None:
    assert codes(warnings(with_gpu(**changes))) == [code]
    assert faults(with_gpu(**changes)) == ()


def test_cards_that_are_bridged_by_some_of_their_links_are_not_broken() -> None:
    bridged = replace(SOUND, devices=(replace(GPU, nvlinks_up=12), replace(OTHER, nvlinks_up=12)))
    assert faults(bridged) == ()
    assert codes(warnings(bridged)) == ["nvlink-partial:GPU-a", "nvlink-partial:GPU-b"]


def test_a_raised_power_limit_and_an_idle_pcie_link_are_nothing_to_remark_upon() -> None:
    assert warnings(with_gpu(power_limit_w=750, pcie_generation=1)) == ()


@pytest.mark.parametrize(
    ("changes", "code"), [({"busy_share": 0.3}, "busy"), ({"steal_share": 0.05}, "steal")]
)
def test_a_machine_that_others_use_is_told(changes: dict[str, Any], code: str) -> None:
    shared = replace(SOUND, **changes)
    assert codes(warnings(shared)) == [code]
    assert faults(shared) == ()


def test_an_unreadable_kernel_log_is_told_where_there_are_gpus() -> None:
    assert codes(warnings(replace(SOUND, xids=None))) == ["xid-unknown"]
    assert warnings(replace(SOUND, xids=None, devices=())) == ()


def test_an_old_xid_refuses_a_gpu_only_while_its_driver_cannot_say_that_it_recovered() -> None:
    logged = replace(SOUND, xids=(FALLEN_OFF,))
    assert faults(logged) == ()
    assert codes(warnings(logged)) == ["xid-79:0000:3b:00"]
    older_driver = with_gpu(logged, recovery=None)
    assert codes(faults(older_driver)) == ["xid-79:0000:3b:00"]
    assert warnings(older_driver) == ()


def test_an_xid_that_came_with_a_launch_is_the_nodes() -> None:
    assert codes(new_faults(SOUND, replace(SOUND, xids=(FALLEN_OFF,)))) == ["xid-79:0000:3b:00"]


def test_an_xid_is_new_by_its_time_because_old_lines_vanish_from_the_log() -> None:
    before = replace(SOUND, xids=(XidCount("0000:3b:00", 94, 3, 50.0),))
    assert new_faults(before, replace(SOUND, xids=(XidCount("0000:3b:00", 94, 2, 50.0),))) == ()
    after = replace(SOUND, xids=(XidCount("0000:3b:00", 94, 1, 90.0),))
    assert codes(new_faults(before, after)) == ["xid-94:0000:3b:00"]


@pytest.mark.parametrize("code", sorted(APPLICATION_XIDS))
def test_an_xid_that_a_program_provoked_is_the_configurations(code: int) -> None:
    provoked = with_gpu(replace(SOUND, xids=(XidCount("0000:3b:00", code, 1, 5.0),)), recovery=None)
    assert faults(provoked) == warnings(provoked) == new_faults(SOUND, provoked) == ()


def test_xids_of_gpus_that_the_launch_does_not_hold_are_not_its_own() -> None:
    elsewhere = replace(SOUND, xids=(XidCount("0000:ff:00", 79, 1, 5.0),))
    assert faults(elsewhere) == warnings(elsewhere) == new_faults(SOUND, elsewhere) == ()


def test_a_log_that_could_not_be_read_before_tells_nothing_new_after() -> None:
    assert new_faults(replace(SOUND, xids=None), replace(SOUND, xids=(FALLEN_OFF,))) == ()


def test_errors_that_the_hardware_corrected_break_no_launch_and_links_trained_again_do() -> None:
    assert new_faults(SOUND, with_gpu(ecc_corrected=9, nvlink_errors=99)) == ()
    assert codes(new_faults(SOUND, with_gpu(nvlink_recoveries=1))) == ["nvlink-recovery:GPU-a"]


def test_a_reboot_is_told_as_such() -> None:
    assert codes(new_faults(with_gpu(ecc_corrected=9), replace(SOUND, boot_id="boot-2"))) == ["rebooted"]


def test_states_of_two_nodes_are_not_compared() -> None:
    with pytest.raises(ValueError, match="different nodes"):
        new_faults(SOUND, replace(SOUND, node="another"))


def test_a_line_for_people() -> None:
    line = describe(replace(SOUND, idle_power_w=151.6))
    assert line.splitlines() == [line]
    for part in ("box-12345678", "GPU-a 34 °C, limit 700 W", "18 NVLinks", "idle 152 W", "64 GiB free"):
        assert part in line
    assert "None" not in describe(replace(SOUND, devices=(DeviceHealth(uid="GPU-a"),)))


counts = st.none() | st.integers(0, 2**40)
numbers = st.floats(0, 1e12)
healths = st.builds(
    DeviceHealth,
    uid=st.text(),
    temperature_c=st.none() | numbers,
    ecc_uncorrected=counts,
    remap_pending=st.none() | st.booleans(),
    recovery=st.none() | st.sampled_from(["none", "gpu-reset"]),
    nvlinks_up=counts,
    nvlink_recoveries=counts,
    power_limit_w=st.none() | numbers,
)
states = st.builds(
    NodeState,
    node=st.text(),
    boot_id=st.text(),
    kernel=st.text(),
    devices=st.lists(healths, max_size=3, unique_by=lambda gpu: gpu.uid).map(tuple),
    cores=st.integers(1, 1024),
    load_1min=numbers,
    busy_share=st.floats(0, 1),
    steal_share=st.floats(0, 1),
    memory_available_bytes=st.integers(0, 2**50),
    xids=st.none()
    | st.lists(
        st.builds(XidCount, st.text(), st.integers(1, 200), st.integers(1, 9), numbers), max_size=3
    ).map(tuple),
    idle_power_w=st.none() | numbers,
)


@given(states)
def test_survives_json(state: NodeState) -> None:
    assert read_node_state(json.loads(json.dumps(asdict(state)))) == state


@given(states)
def test_nothing_is_new_where_nothing_changed(state: NodeState) -> None:
    assert new_faults(state, state) == ()


def test_json_of_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match="boot_id"):
        read_node_state({"node": "box"})
