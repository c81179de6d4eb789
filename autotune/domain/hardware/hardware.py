"""Devices a study may use, and what is known of each without running anything on it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class DeviceKind(StrEnum):
    """Families of devices that engines are built for."""

    CPU = "cpu"
    CUDA = "cuda"
    ROCM = "rocm"
    REMOTE = "remote"
    """Accelerators behind a URL: counted and priced, never seen."""


VECTORS = frozenset({"avx512f", "amx_tile"})
"""Instruction sets of x86 cores, as Linux names them, that some kernels need."""


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU, or one CPU core where engines run on cores; ``memory_bytes`` is its share.

    ``compute_capability`` is NVIDIA's, (9, 0) for Hopper, or the numbers of AMD's gfx target, (9, 4, 2);
    empty where unknown. Devices of one ``island`` reach each other without leaving it (NVLink, xGMI); -1
    where unknown. ``numa_node`` is the host memory it is next to, -1 where unknown. ``instructions`` are
    those of VECTORS that a core has; None where unknown.
    """

    kind: DeviceKind
    index: int
    name: str
    uid: str
    memory_bytes: int
    driver: str = ""
    compute_capability: tuple[int, ...] = ()
    island: int = -1
    numa_node: int = -1
    instructions: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Hardware:
    """The devices at hand: all of one kind, in index order."""

    kind: DeviceKind
    devices: tuple[Device, ...]

    @property
    def count(self) -> int:
        """Number of devices."""
        return len(self.devices)

    def describe(self) -> str:
        """One line for people: ``8 x NVIDIA H200``, ``2 cores of Intel Xeon``."""
        name = self.devices[0].name if self.devices else "none"
        return f"{self.count} {'cores of' if self.kind is DeviceKind.CPU else 'x'} {name}"
