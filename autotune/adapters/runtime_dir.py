"""Where the tuners of one machine find one another's leases and engines."""

from __future__ import annotations

from pathlib import Path

import platformdirs


def default_runtime_dir() -> Path:
    """Return the directory of this user, on this machine, since it started; it need not exist.

    Homes are shared over networks and outlive restarts, process ids do neither: the boot id keeps them apart.
    """
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return Path(platformdirs.user_state_dir("autotune")) / f"boot-{boot_id}"
