"""Provisioned power: what a data centre reserves for each accelerator, a constant and no reading."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from autotune.domain.basics.errors import InputError, InputProblem
from autotune.domain.hardware.accelerators import AcceleratorTable
from autotune.domain.hardware.hardware import Device
from autotune.domain.measuring.power import DevicePower, PowerBasis, PowerTrace


class ProvisionedPowerMeter:
    """PowerMeter on basis ``provisioned``: the table's all-in watts for as long as a device is held."""

    def __init__(self, accelerators: AcceleratorTable) -> None:
        self._accelerators = accelerators

    @contextmanager
    def window(self, devices: Sequence[Device]) -> Iterator[ProvisionedRecording]:
        """Hold devices for the length of a ``with`` block; raises InputError for one of no known constant."""
        watts = []
        for device in devices:
            known = self._accelerators.find(device.name)
            if known is None:
                what = f"the all-in watts of {device.name} are not in the table"
                raise InputError(InputProblem("power.basis", what, "write `basis: gpu`"))
            watts.append(known.all_in_kw * 1e3)
        yield ProvisionedRecording(tuple(devices), tuple(watts), time.monotonic())


@dataclass(frozen=True, slots=True)
class ProvisionedRecording:
    """PowerRecording of a window, under way or over."""

    devices: tuple[Device, ...]
    watts: tuple[float, ...]
    started_s: float

    def trace(self) -> PowerTrace:
        """The constants from the start until now."""
        time_s = np.array([self.started_s, time.monotonic()])
        none = np.zeros(0)
        return PowerTrace(
            basis=PowerBasis.PROVISIONED,
            source="constant: all-in watts per accelerator, from the table of accelerators",
            period_s=float(time_s[1] - time_s[0]),
            reserved=tuple(device.uid for device in self.devices),
            devices=tuple(
                DevicePower(
                    uid=device.uid,
                    time_s=time_s,
                    power_w=np.full(2, watts),
                    counter_time_s=none,
                    counter_j=none,
                )
                for device, watts in zip(self.devices, self.watts, strict=True)
            ),
        )
