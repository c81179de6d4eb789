"""Provisioned watts: the table's constants over whatever window."""

from __future__ import annotations

import time

import pytest

from autotune.adapters.devices.accelerators import read_accelerators
from autotune.adapters.power.provisioned import ProvisionedPowerMeter
from autotune.domain.basics.errors import InputError
from autotune.domain.hardware.hardware import Device, DeviceKind
from autotune.domain.measuring.power import EnergyVerdict, PowerBasis, Window, energy_in


def gpu(index: int, name: str = "NVIDIA H200") -> Device:
    return Device(DeviceKind.CUDA, index, name, f"GPU-{index}", 141 << 30)


def test_every_device_held_counts_with_its_all_in_watts() -> None:
    with ProvisionedPowerMeter(read_accelerators()).window([gpu(0), gpu(1)]) as recording:
        start_s = time.monotonic()
        time.sleep(0.02)
        window = Window(start_s, time.monotonic())
        trace = recording.trace()
    energy = energy_in(trace, window)
    assert trace.basis is PowerBasis.PROVISIONED
    assert energy.mean_w == pytest.approx(2 * 1370)
    assert energy.verdict is EnergyVerdict.UNCHECKED


def test_an_accelerator_of_no_known_constant_is_refused() -> None:
    meter = ProvisionedPowerMeter(read_accelerators())
    with pytest.raises(InputError, match="GeForce"), meter.window([gpu(0, "NVIDIA GeForce RTX 3060")]):
        pass
