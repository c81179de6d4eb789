"""Power of a whole node by IPMI's DCMI extension, asked through ``ipmitool``.

Facts: DCMI 1.5, "Get Power Reading"; `ipmitool dcmi power reading` prints it in words and whole watts. Some
controllers (OpenBMC) say that the reading is deactivated and give true figures; others then give 0.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from autotune.adapters.power.reading import Reading, Recording, device_power
from autotune.adapters.power.sampling import Sampling
from autotune.domain.basics.errors import BenchError
from autotune.domain.hardware.hardware import Device
from autotune.domain.measuring.power import PowerBasis, PowerScope, PowerTrace

PERIOD_S = 2.0
TIMEOUT_S = 4.0
"""Under the 5 s after which sampling gives a meter up, so that the error names the command."""
ASK = ("dcmi", "power", "reading")
INSTANT = re.compile(r"^\s*Instantaneous power reading\s*:\s*(\d+)\s+Watts\s*$", re.MULTILINE)
UID = "node"


class IpmiPowerMeter:
    """PowerMeter on basis ``host``, scope ``node``: power at the node's supplies, its GPUs included.

    ``command`` is how ipmitool is called: this machine's own controller needs no more; for another's it is
    ``ipmitool -I lanplus -H HOST -U USER -E``, with the password in the environment as IPMI_PASSWORD.
    """

    def __init__(
        self,
        *,
        command: Sequence[str] = ("ipmitool",),
        period_s: float = PERIOD_S,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._command = (*command, *ASK)
        self._period_s = period_s
        self._timeout_s = timeout_s

    @contextmanager
    def window(self, devices: Sequence[Device]) -> Iterator[Recording[Reading]]:  # noqa: ARG002 - the node is one
        """Record for the length of a ``with`` block; raises BenchError where no power is told."""
        with Sampling(self._read, self._period_s) as sampling:
            yield Recording(sampling.samples, self._trace)

    def _trace(self, readings: Sequence[Reading]) -> PowerTrace:
        return PowerTrace(
            basis=PowerBasis.HOST,
            source="IPMI DCMI instantaneous power reading",
            period_s=self._period_s,
            devices=(device_power(UID, readings),),
            scope=PowerScope.NODE,
            reserved=(UID,),
        )

    def _read(self) -> Reading:
        asked_s = time.monotonic()
        text = self._run()
        at_s = (asked_s + time.monotonic()) / 2
        found = INSTANT.search(text)
        if found is None or int(found[1]) == 0:
            raise BenchError(
                f"`{' '.join(self._command)}` told no power: {text.strip()[:200]!r}; "
                "this controller may not measure it, or its power reading must be activated there"
            )
        return Reading(at_s=at_s, power_w=float(found[1]))

    def _run(self) -> str:
        """Run the command; raises BenchError unless it succeeds in time."""
        what = f"power meter lost: `{' '.join(self._command)}`"
        try:
            done = subprocess.run(
                self._command,
                capture_output=True,
                check=True,
                stdin=subprocess.DEVNULL,
                timeout=self._timeout_s,
            )
        except FileNotFoundError as error:
            raise BenchError(f"{what}: there is no such command; install the package ipmitool") from error
        except subprocess.TimeoutExpired as error:
            raise BenchError(f"{what} took more than {self._timeout_s:g} s; is the controller up?") from error
        except subprocess.CalledProcessError as error:
            told = error.stderr.decode(errors="replace").strip()[:200]
            raise BenchError(
                f"{what} ended with {error.returncode}: {told}; this machine's own controller may be "
                "asked only by root or the owner of /dev/ipmi0, and needs the module ipmi_devintf"
            ) from error
        except OSError as error:
            raise BenchError(f"{what}: {error.strerror}") from error
        return done.stdout.decode(errors="replace")
