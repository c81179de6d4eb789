"""The answers as plain data: what ``--json`` prints, and what pipelines read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from autotune.domain.basics.errors import InfeasibleConfigError, InputError
from autotune.domain.basics.evidence import EvidenceLevel
from autotune.domain.judging.ledger import Ledger
from autotune.domain.judging.scoring import is_same_rate, open_levels, score_level
from autotune.domain.launches.deployment import Deployment, public_words
from autotune.domain.measuring.digest import LevelDigest
from autotune.domain.measuring.power import PowerBasis
from autotune.domain.recommending.comparison import advantage
from autotune.domain.recommending.contract import (
    Beaten,
    DeviceFacts,
    Expiry,
    Figures,
    Fingerprint,
    LoadLimit,
    Measuring,
    RecommendationDocument,
    SlaAnswer,
    Spent,
    UnmetSla,
)
from autotune.domain.recommending.contract_parts import ends, ledger_part, level_part, quality_part
from autotune.domain.recommending.exports.shell import command_lines
from autotune.domain.recommending.fleet import Demand, FleetPlan, Replica, plan_fleet
from autotune.domain.recommending.recommendation import Candidate, Recommendation, Standing
from autotune.domain.recommending.relaxation import unmet
from autotune.domain.recommending.spending import Spending
from autotune.domain.studies.records import LaunchRecord, StudyRow, TrialRow
from autotune.domain.studies.study import StudySpec

VALID_DAYS = 90
"""A contract ends by itself: drivers, engines and machines change."""

Ledgers = Callable[[Standing], Ledger]
"""Draws up the ledger of a standing."""

Deploy = Callable[[Candidate], Deployment]
"""Writes a candidate as a deployment; raises InfeasibleConfigError, InputError with why it cannot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a document says beside the figures; ``measured_at`` is ISO 8601, ``demand`` sizes a fleet."""

    ledger: Ledgers
    deploy: Deploy
    candidates: Sequence[Candidate] = ()
    measured_at: str | None = None
    valid_days: int = VALID_DAYS
    demand: Demand | None = None
    model_revision: str | None = None
    spent: Spending | None = None


def recommendation_document(
    study: StudySpec, recommendations: Sequence[Recommendation], around: Surroundings
) -> RecommendationDocument:
    """Per SLA the recommended configuration with its figures, what it beat, and what it depends on."""
    return RecommendationDocument(
        study=study.name,
        measured_at=around.measured_at,
        spent=Spent(**asdict(around.spent)) if around.spent else None,
        measuring=Measuring(
            workloads=study.workloads,
            measurement=study.measurement,
            prices=study.power.prices,
            environment=next((e.environment for e in study.engines), None),
            seed=study.seed,
        ),
        slas=tuple(_Answer(study, each, around).document() for each in recommendations),
    )


def studies_document(rows: Sequence[StudyRow]) -> dict[str, Any]:
    """Every study of a storage."""
    return {
        "studies": [
            {"study": r.name, "status": r.status, "started_at": r.started_at, "spent_s": r.spent_s}
            for r in rows
        ]
    }


def trials_document(study: str, rows: Sequence[TrialRow]) -> dict[str, Any]:
    """Every trial of a study with its state and, where it failed, why."""
    return {"study": study, "trials": [trial_document(row) for row in rows]}


def trial_document(row: TrialRow) -> dict[str, Any]:
    """One trial."""
    return {
        "number": row.number,
        "purpose": row.purpose,
        "final_of": row.final_of,
        "state": row.state,
        "configuration": row.config.words,
        "command": row.command or None,
        "failure_class": row.failure_class,
        "failure_line": row.failure_line,
        "log": row.log_path,
        "launch_s": row.launch_s,
        "load_s": row.load_s,
        "total_s": row.total_s,
        "objectives": dict(row.objectives),
        "predicted": dict(row.predicted),
        "quality": row.quality,
    }


@dataclass(frozen=True, slots=True)
class _Answer:
    """Writes the answer for one SLA."""

    study: StudySpec
    found: Recommendation
    around: Surroundings

    def document(self) -> SlaAnswer:
        """The whole answer."""
        found, best, study = self.found, self.found.best, self.study
        deployment, no_deployment = self._deployment(best)
        fleet, no_fleet = self._fleet(best)
        workload = study.workload_of(found.sla)
        answer = SlaAnswer(
            name=found.sla.name,
            contract=found.sla.describe(),
            sla=found.sla,
            workload=workload,
            evidence=EvidenceLevel.RAN if best else None,
            **self._figures(best),
            reason=found.reason or None,
            deployment=deployment,
            deployment_reason=no_deployment,
            baseline=self._reference(found.defaults, "the engine's defaults"),
            production=self._reference(found.baseline, "production's configuration")
            if found.has_baseline
            else None,
            beats=tuple(self._beaten(best)) if best else (),
            load=self._load(best) if best else None,
            fleet=fleet,
            fleet_reason=no_fleet,
            fingerprint=self._fingerprint(best.launch, workload) if best else None,
            expires=self._expiry() if best else None,
            unmet=self._unmet(),
        )
        return answer.model_copy(update={"withheld": tuple(_withheld(answer))})

    def _unmet(self) -> UnmetSla | None:
        found = self.found
        why = unmet(self.study, found.sla, self.around.candidates) if found.met_by_none else None
        return UnmetSla.model_validate(asdict(why)) if why else None

    def _reference(self, standing: Standing | None, who: str) -> Figures:
        missing = f"{who} met {self.found.sla.name} at no measured load"
        return Figures(**self._figures(standing), reason=None if standing else missing)

    def _figures(self, standing: Standing | None) -> dict[str, Any]:
        if standing is None:
            return {}
        row, figures = standing.candidate.row, standing.figures
        deployment, _ = self._deployment(standing)
        return {
            "trial": row.number,
            "engine": row.config.engine,
            "configuration": public_words(row.config),
            "command": command_lines(deployment) if deployment else None,
            **level_part(figures),
            "capacity_rps": standing.capacity_rps,
            "operating_rps": figures.rate_rps,
            "launches": 2 if standing.confirmed else 1,
            "node": standing.launch.node or None,
            "quality": quality_part(standing.candidate.launch),
            "ledger": ledger_part(self.around.ledger(standing)),
        }

    def _deployment(self, standing: Standing | None) -> tuple[Deployment | None, str | None]:
        if standing is None:
            return None, self.found.reason or "nothing is recommended"
        try:
            return self.around.deploy(standing.candidate), None
        except (InfeasibleConfigError, InputError) as refused:
            return None, str(refused)

    def _beaten(self, best: Standing) -> Iterator[Beaten]:
        """What the best is compared with, itself left out."""
        found = self.found
        yield from self._against("engine defaults", best, found.defaults)
        if found.has_baseline:
            yield from self._against("production", best, found.baseline)
        second = found.runner_up
        if second is not None and second.candidate.row.number not in self._reference_numbers():
            yield from self._against("runner-up", best, second)

    def _reference_numbers(self) -> set[int]:
        references = (self.found.defaults, self.found.baseline)
        return {each.candidate.row.number for each in references if each}

    def _against(
        self,
        who: Literal["engine defaults", "production", "runner-up"],
        best: Standing,
        other: Standing | None,
    ) -> Iterator[Beaten]:
        if other is not None and other.candidate.row.number == best.candidate.row.number:
            return
        found = advantage(best, other) if other else None
        reason = None
        if other is None:
            reason = f"met {self.found.sla.name} at no measured load"
        elif found is None:
            reason = "ranked on another power basis, or worth nothing"
        yield Beaten.model_validate(
            {
                "who": who,
                "trial": other.candidate.row.number if other else None,
                "configuration": public_words(other.candidate.row.config) if other else None,
                "measure": found.measure if found else None,
                "ratio": found.ratio if found else None,
                "ratio_interval": ends(found.interval) if found else None,
                "shown": found.shown if found else None,
                "reason": reason,
            }
        )

    def _load(self, best: Standing) -> LoadLimit:
        devices = best.launch.device_count
        at = _level_at(best, self.study.workload_of(self.found.sla))
        return LoadLimit(
            capacity_rps=best.capacity_rps,
            operating_rps=best.figures.rate_rps,
            headroom=self.study.measurement.headroom,
            operating_rps_per_device=best.figures.rate_rps / devices,
            devices_per_replica=devices,
            concurrency=at.counters.get("requests_running") if at else None,
        )

    def _fleet(self, best: Standing | None) -> tuple[FleetPlan | None, str | None]:
        if best is None:
            return None, "nothing is recommended"
        if self.around.demand is None:
            return None, "no demand was given: say --peak-rate, and --daily-curve"
        plan = plan_fleet(_replica(best, self.study, self.found), self.around.demand)
        basis = f"power basis {best.figures.power_basis}; PUE is not counted"
        return plan.model_copy(update={"remarks": (*plan.remarks, basis)}), None

    def _fingerprint(self, launch: LaunchRecord, workload: str) -> Fingerprint:
        versions, engine = launch.versions, launch.config.engine
        before = launch.before
        return Fingerprint(
            model=launch.model,
            model_revision=self.around.model_revision,
            engine=engine,
            engine_version=versions.get(engine, ""),
            device=launch.device,
            device_count=launch.device_count,
            driver=versions.get("driver", ""),
            topology=tuple(
                DeviceFacts(
                    uid=device.uid,
                    power_limit_w=device.power_limit_w,
                    nvlinks_up=device.nvlinks_up,
                    pcie_generation=device.pcie_generation_max,
                    pcie_width=device.pcie_width,
                )
                for device in (before.devices if before else ())
            ),
            node=launch.node,
            kernel=versions.get("kernel", ""),
            workload=workload,
            workload_sha256=_sha256(self.study.workload(workload).model_dump_json()),
            study=self.study.name,
            study_sha256=versions.get("study_sha256") or _sha256(self.study.model_dump_json()),
            package=versions.get("autotune", ""),
        )

    def _expiry(self) -> Expiry | None:
        if self.around.measured_at is None:
            return None
        at = datetime.fromisoformat(self.around.measured_at) + timedelta(days=self.around.valid_days)
        return Expiry(
            at=at.isoformat(timespec="seconds"),
            on_change_of=("engine_version", "driver", "device", "device_count", "model_revision", "workload"),
        )


def _withheld(answer: SlaAnswer) -> Iterator[str]:
    """What a reader may look for and does not find, each with its reason."""
    if answer.trial is None:
        yield f"a recommendation: {answer.reason}"
        return
    if answer.tokens_per_joule is None:
        reasons = ", ".join(answer.energy_reasons or ()) or f"power basis {answer.power_basis}"
        yield f"tokens_per_joule: {reasons}"
    elif answer.power_basis is PowerBasis.ESTIMATED:
        yield "a ranking by joules: the watts are a model's, so goodput ranks"
    if answer.deployment is None:
        yield f"deployment: {answer.deployment_reason}"
    if answer.fleet is None:
        yield f"fleet: {answer.fleet_reason}"
    if answer.fingerprint and answer.fingerprint.model_revision is None:
        yield "model_revision: the study pins none"
    if answer.expires is None:
        yield "expires: it is not known when the study was measured"


def _level_at(standing: Standing, workload: str) -> LevelDigest | None:
    levels = open_levels(standing.levels, workload)
    rate_rps = standing.figures.rate_rps
    return next((m for m in levels if is_same_rate(m.level.rate_rps or 0.0, rate_rps)), None)


def _replica(best: Standing, study: StudySpec, found: Recommendation) -> Replica:
    """What one replica carries and draws, by every level of both launches whose energy is valid."""
    both, workload = (best.candidate.levels, best.candidate.final_levels), study.workload_of(found.sla)
    scored = [score_level(m, found.sla) for levels in both for m in open_levels(levels, workload)]
    before = best.launch.before
    return Replica(
        operating_rps=best.figures.rate_rps,
        devices=best.launch.device_count,
        levels=tuple((s.rate_rps, s.mean_power_w) for s in scored if s.tokens_per_joule > 0),
        idle_w=before.idle_power_w if before else None,
    )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
