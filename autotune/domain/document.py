"""The answers as plain data: what ``--json`` prints, and what pipelines read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from autotune.domain.ledger import Figure, Ledger
from autotune.domain.recommendation import Recommendation, Standing, quality_of
from autotune.domain.records import LaunchRecord, StudyRow, TrialRow
from autotune.domain.scoring import LevelScore
from autotune.domain.stats import Interval

FIGURES = (
    "goodput_tok_per_s",
    "goodput_tok_per_s_interval",
    "mean_power_w",
    "power_basis",
    "power_source",
    "energy_verdict",
    "energy_reasons",
    "tokens_per_joule",
    "tokens_per_joule_interval",
    "tok_per_s_per_mw",
    "attainment",
    "attainment_interval",
    "sla_verdict",
    "requests",
    "window_s",
    "ttft_s",
    "tpot_s",
    "capacity_rps",
    "operating_rps",
    "window_ended",
    "steady",
    "launches",
    "node",
    "quality",
    "ledger",
)
"""Keys that are null where figures are withheld."""


Ledgers = Callable[[Standing], Ledger]
"""Draws up the ledger of a standing."""


def recommendation_document(
    study: str, recommendations: Sequence[Recommendation], ledger: Ledgers
) -> dict[str, Any]:
    """Per SLA the recommended configuration with its figures, and the defaults' beside it."""
    return {"study": study, "slas": [_sla(recommendation, ledger) for recommendation in recommendations]}


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
        "quality": row.quality,
    }


def _sla(recommendation: Recommendation, ledger: Ledgers) -> dict[str, Any]:
    best = recommendation.best
    return {
        "name": recommendation.sla.name,
        "contract": recommendation.sla.describe(),
        "trial": best.candidate.row.number if best else None,
        "configuration": best.candidate.row.config.words if best else None,
        "command": best.candidate.row.command if best else None,
        **_figures(best, ledger),
        "reason": recommendation.reason or None,
        "baseline": _reference(recommendation.defaults, "the engine's defaults", recommendation, ledger),
        "production": _reference(
            recommendation.baseline, "production's configuration", recommendation, ledger
        )
        if recommendation.has_baseline
        else None,
    }


def _reference(
    standing: Standing | None, who: str, recommendation: Recommendation, ledger: Ledgers
) -> dict[str, Any]:
    sla = recommendation.sla.name
    return {
        "trial": standing.candidate.row.number if standing else None,
        "configuration": standing.candidate.row.config.words if standing else None,
        "command": standing.candidate.row.command if standing else None,
        **_figures(standing, ledger),
        "reason": None if standing else f"{who} met {sla} at no measured load",
    }


def _figures(standing: Standing | None, ledger: Ledgers) -> dict[str, Any]:
    if standing is None:
        return dict.fromkeys(FIGURES)
    figures = standing.figures
    return {
        **_level(figures),
        "capacity_rps": standing.capacity_rps,
        "operating_rps": figures.rate_rps,
        "launches": 2 if standing.confirmed else 1,
        "node": standing.launch.node or None,
        "quality": quality_document(standing.candidate.launch),
        "ledger": _ledger(ledger(standing)),
    }


def quality_document(record: LaunchRecord) -> dict[str, Any]:
    """The verdict on a launch's precision, with its figures; null for what is not finite."""
    verdict = quality_of(record)
    precision = asdict(verdict.precision)
    return {
        "state": verdict.state,
        "precision": {**precision, "other": list(verdict.precision.other)},
        "judged_in": verdict.judged_in,
        "reference": verdict.reference,
        "known_prompts": verdict.known or None,
        "figures": [
            {
                "setting": figure.setting,
                "measure": figure.measure,
                "unit": figure.measure.unit,
                "value": _finite(figure.value),
                "reference_against_itself": _finite(figure.own),
                "at_most": _finite(figure.threshold),
                "passed": figure.passed,
            }
            for figure in verdict.figures
        ],
        "reasons": list(verdict.reasons),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _ledger(ledger: Ledger) -> dict[str, Any]:
    return {
        "devices": ledger.devices,
        "ranking": ledger.ranking,
        "idle_share": ledger.idle_share,
        "pue": ledger.pue,
        "currency": ledger.currency,
        "accelerator_hour": ledger.accelerator_hour,
        "rental_per_mtok": _figure(ledger.rental_per_mtok),
        "bases": [
            {
                "basis": line.basis,
                "power_w": line.power_w,
                "facility_w": line.facility_w,
                "tok_per_s_per_mw": _figure(line.tok_per_s_per_mw),
                "tok_per_s_per_facility_mw": _figure(line.tok_per_s_per_facility_mw),
                "energy_per_mtok": _figure(line.energy_per_mtok),
            }
            for line in ledger.lines
        ],
        "remarks": list(ledger.remarks),
    }


def _figure(figure: Figure | None) -> dict[str, Any] | None:
    """A figure and its interval; null for an end that is not finite, for JSON has no infinity."""
    if figure is None:
        return None
    ends = [_finite(end) for end in (figure.interval.low, figure.interval.high)]
    return {"value": figure.value, "interval": ends}


def _level(figures: LevelScore) -> dict[str, Any]:
    measurable = figures.tokens_per_joule > 0
    return {
        "goodput_tok_per_s": figures.goodput_tok_per_s,
        "goodput_tok_per_s_interval": _pair(figures.goodput_interval),
        "mean_power_w": figures.mean_power_w if measurable else None,
        "power_basis": figures.power_basis,
        "power_source": figures.power_source,
        "energy_verdict": figures.energy_verdict,
        "energy_reasons": list(figures.energy_reasons),
        "tokens_per_joule": figures.tokens_per_joule if measurable else None,
        "tokens_per_joule_interval": _pair(figures.tokens_per_joule_interval) if measurable else None,
        "tok_per_s_per_mw": figures.tok_per_s_per_mw if measurable else None,
        "attainment": figures.attainment,
        "attainment_interval": _pair(figures.attainment_interval),
        "sla_verdict": figures.verdict,
        "requests": figures.requests,
        "window_s": figures.window_s,
        "window_ended": figures.ended,
        "steady": figures.steady,
        "ttft_s": {f"p{p}": value for p, value in figures.ttft_s.items()},
        "tpot_s": {f"p{p}": value for p, value in figures.tpot_s.items()},
    }


def _pair(interval: Interval) -> list[float]:
    return [interval.low, interval.high]
