"""What a study has spent: launches, accelerator-hours, energy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autotune.domain.measuring.digest import LevelDigest
from autotune.domain.measuring.power import EnergyVerdict, PowerBasis
from autotune.domain.recommending.recommendation import Candidate
from autotune.domain.studies.budget import was_judged
from autotune.domain.studies.records import TrialRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """Launches, device-hours, and kWh by the meter that ranks; None where no level had a valid reading.

    The meter runs in load levels: while engines start, devices are taken to draw their idle power, or the
    levels' where that is not known; in launches that left no level, what the others drew on average.
    """

    launches: int
    accelerator_hours: float
    energy_kwh: float | None
    power_basis: PowerBasis | None

    def describe(self) -> str:
        """One line for people."""
        text = f"spent: {self.launches} launches, {self.accelerator_hours:.3g} accelerator-hours"
        if self.energy_kwh is None:
            return f"{text}, energy unknown"
        return f"{text}, {self.energy_kwh:.3g} kWh ({self.power_basis})"


def spent_on(rows: Sequence[TrialRow], candidates: Sequence[Candidate]) -> Spending:
    """Add up a study's trials, from its candidates' launches."""
    by_number = {record.number: (record, levels) for each in candidates for record, levels in each.launches}
    joules, metered_s, basis = 0.0, 0.0, None
    for row in rows:
        if row.number not in by_number:
            continue
        record, levels = by_number[row.number]
        watts = _load_power_w(levels)
        if watts is None:
            continue
        idle_w = record.before.idle_power_w if record.before and record.before.idle_power_w else watts
        total_s = max(row.total_s, record.load_s)
        joules += watts * record.load_s + idle_w * (total_s - record.load_s)
        metered_s += total_s
        basis = levels[0].power_basis
    if metered_s:
        joules *= max(sum(row.total_s for row in rows) / metered_s, 1.0)
    return Spending(
        launches=sum(was_judged(row) for row in rows),
        accelerator_hours=sum(row.total_s * row.config.devices for row in rows) / 3600,
        energy_kwh=joules / 3.6e6 if basis else None,
        power_basis=basis,
    )


def _load_power_w(levels: Sequence[LevelDigest]) -> float | None:
    """Mean watts over the windows of a launch's levels."""
    read = [(level.energy, level.window.length_s) for level in levels]
    valid = [(e.mean_w, s) for e, s in read if e.verdict is not EnergyVerdict.INVALID and e.mean_w > 0]
    seconds = sum(s for _, s in valid)
    return sum(watts * s for watts, s in valid) / seconds if seconds else None
