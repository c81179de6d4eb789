"""What pages and API show of studies, put together from rows and digests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autotune.domain.basics.errors import InputError, InputProblem
from autotune.domain.basics.quantities import show_duration
from autotune.domain.hardware.accelerators import AcceleratorTable
from autotune.domain.judging.sla import Sla
from autotune.domain.measuring.power import PowerBasis
from autotune.domain.recommending.picture import points_of, regions
from autotune.domain.recommending.recommendation import Recommendation, recommend
from autotune.domain.studies import budget
from autotune.domain.studies.records import StudyRow, StudyStatus, TrialRow, TrialState
from autotune.domain.studies.study import StudySpec
from autotune.web import charts
from autotune.wiring.reading import Digested, StudyReader
from autotune.wiring.recommendations import document_of
from autotune.wiring.store import Results, study_of

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class NotThereError(Exception):
    """A study, a trial or a log that is not there; its text is for the user."""


@dataclass(frozen=True, slots=True)
class Bar:
    """How much of one bound of a budget is spent."""

    name: str
    share: float
    text: str


@dataclass(frozen=True, slots=True)
class Gallery:
    """Studies of a store, as they are shown; raises NotThereError for what is not there."""

    reader: StudyReader
    accelerators: AcceleratorTable

    def study(self, name: str) -> tuple[StudyRow, StudySpec]:
        """A study's row and its file."""
        row = self.reader.store.catalog.study(name) if NAME.fullmatch(name) else None
        if row is None:
            raise NotThereError("there is no such study; the list of studies names those there are")
        return row, study_of(row)

    def trial(self, name: str, number: int) -> TrialRow:
        """A trial's row."""
        self.study(name)
        row = self.reader.store.catalog.trial(name, number) if 0 <= number < 2**31 else None
        if row is None:
            raise NotThereError(f"study {name} has no trial {number}")
        return row

    def digested(self, name: str, *, wait_s: float) -> Digested:
        """A study's candidates as far as they are read."""
        self.study(name)
        return self.reader.digested(name, wait_s=wait_s)

    def recommendations(self, digested: Digested, slas: Sequence[Sla] | None = None) -> list[Recommendation]:
        """The answer for each SLA, the study's own unless others are given; raises InputError."""
        study = digested.study
        for sla in slas or ():
            if sla.workload is not None and sla.workload not in study.workload_names:
                known = ", ".join(study.workload_names)
                raise InputError(
                    InputProblem(f"SLA {sla.name}", "its workload is not of this study", f"known: {known}")
                )
        return [recommend(study, sla, digested.candidates) for sla in slas or study.slas]

    def document(self, digested: Digested, found: Sequence[Recommendation]) -> dict[str, Any]:
        """Recommendations as pipelines read them."""
        row, study = self.study(digested.study.name)
        document = document_of(
            Results(study, digested.rows, digested.candidates), found, measured_at=row.started_at
        )
        return {
            **document.model_dump(mode="json"),
            "pending_launches": digested.pending,
            "lost_launches": {str(n): why for n, why in digested.lost.items()},
        }

    def series(
        self, digested: Digested, slas: Sequence[Sla] | None = None, *, source: str = ""
    ) -> list[charts.Series]:
        """Every configuration with its points."""
        study, defaults = digested.study, digested.study.default_config()
        return [
            charts.Series(
                trial=c.row.number,
                config=c.row.config,
                label=c.row.config.label(defaults),
                link=f"/studies/{study.name}/trials/{c.row.number}",
                points=points_of(c, study, self.accelerators, slas),
                source=source,
            )
            for c in digested.candidates
        ]

    def picture(
        self,
        digested: Digested,
        *,
        measure: charts.Measure,
        colour: charts.Colour,
        slas: Sequence[Sla] | None = None,
        focus: str | None = None,
    ) -> charts.Chart:
        """The picture of a study, for its own SLAs unless others are given."""
        found = self.recommendations(digested, slas)
        return charts.picture(
            self.series(digested, slas),
            regions(slas or digested.study.slas),
            measure=measure,
            colour=colour,
            focus=focus,
            winners={r.sla.name: r.best.candidate.row.number for r in found if r.best},
            remark=power_remark(digested) if measure is charts.Measure.PER_MW else "",
            currency=digested.study.power.prices.currency,
        )

    def budget_bars(self, row: StudyRow, study: StudySpec) -> list[Bar]:
        """What is spent of each bound of the budget."""
        rows = self.reader.store.catalog.trials(row.name)
        wall_s = row.spent_s
        if row.status is StudyStatus.RUNNING:
            # The row learns of it when the study ends; trials know what they took.
            wall_s = max(wall_s, sum(each.total_s for each in rows))
        spend, bounds = budget.spent(rows, study, wall_s), study.budget
        bars = []
        if bounds.launches:
            bars.append(
                Bar("launches", spend.launches / bounds.launches, f"{spend.launches} of {bounds.launches}")
            )
        if bounds.wall_time:
            text = f"{show_duration(spend.wall_s)} of {show_duration(bounds.wall_time)}"
            bars.append(Bar("wall time", spend.wall_s / bounds.wall_time, text))
        if bounds.accelerator_hours:
            hours = spend.device_s / 3600
            bars.append(
                Bar(
                    "device-hours",
                    hours / bounds.accelerator_hours,
                    f"{hours:.3g} of {bounds.accelerator_hours:g}",
                )
            )
        return bars


def cost_known(digested: Digested) -> bool:
    """Whether the study says what an hour or a kWh costs."""
    prices = digested.study.power.prices
    return bool(prices.accelerator_hour or prices.market or prices.electricity_per_kwh)


def power_remark(digested: Digested) -> str:
    """What must stand on a picture whose watts no meter read; empty where one did."""
    levels = [level for c in digested.candidates for level in c.levels]
    bases = {level.power_basis for level in levels}
    if PowerBasis.ESTIMATED in bases:
        return "watts are a model's estimate, not a meter's: goodput ranks, not tok/s/MW"
    if bases == {PowerBasis.NONE}:
        return "nothing is known of the watts"
    return f"power basis: {', '.join(sorted(bases))}" if bases else ""


def incumbents(rows: Sequence[TrialRow], study: StudySpec) -> dict[str, TrialRow | None]:
    """The trial that leads for each SLA, by the objectives of the search; None where none kept it."""
    judged = [row for row in rows if row.state is TrialState.MEASURED and row.final_of is None]
    leaders: dict[str, TrialRow | None] = {}
    for sla in study.slas:
        best = max(judged, key=lambda row: row.objectives.get(sla.name, 0.0), default=None)
        leaders[sla.name] = best if best and best.objectives.get(sla.name, 0.0) > 0 else None
    return leaders


def failures(rows: Sequence[TrialRow]) -> dict[str, list[TrialRow]]:
    """Trials that did not run, by the class of their failure, the most frequent first."""
    found: dict[str, list[TrialRow]] = {}
    for row in rows:
        if row.state not in {TrialState.MEASURED, TrialState.RUNNING}:
            found.setdefault(row.failure_class or str(row.state), []).append(row)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))
