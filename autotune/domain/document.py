"""The answers as plain data: what ``--json`` prints, and what pipelines read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autotune.domain.recommendation import Recommendation, Standing
from autotune.domain.records import StudyRow, TrialRow
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
    "launches",
)
"""Keys that are null where figures are withheld."""


def recommendation_document(study: str, recommendations: Sequence[Recommendation]) -> dict[str, Any]:
    """Per SLA the recommended configuration with its figures, and the defaults' beside it."""
    return {"study": study, "slas": [_sla(recommendation) for recommendation in recommendations]}


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
    }


def _sla(recommendation: Recommendation) -> dict[str, Any]:
    best = recommendation.best
    return {
        "name": recommendation.sla.name,
        "contract": recommendation.sla.describe(),
        "trial": best.candidate.row.number if best else None,
        "configuration": best.candidate.row.config.words if best else None,
        "command": best.candidate.command if best else None,
        **_figures(best),
        "reason": recommendation.reason or None,
        "baseline": _reference(recommendation.defaults, "the engine's defaults", recommendation),
        "production": _reference(recommendation.baseline, "production's configuration", recommendation)
        if recommendation.has_baseline
        else None,
    }


def _reference(standing: Standing | None, who: str, recommendation: Recommendation) -> dict[str, Any]:
    sla = recommendation.sla.name
    return {
        "trial": standing.candidate.row.number if standing else None,
        "configuration": standing.candidate.row.config.words if standing else None,
        "command": standing.candidate.command if standing else None,
        **_figures(standing),
        "reason": None if standing else f"{who} met {sla} at no measured load",
    }


def _figures(standing: Standing | None) -> dict[str, Any]:
    if standing is None:
        return dict.fromkeys(FIGURES)
    figures = standing.figures
    return {
        **_level(figures),
        "capacity_rps": standing.capacity_rps,
        "operating_rps": figures.rate_rps,
        "launches": 2 if standing.confirmed else 1,
    }


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
        "ttft_s": {f"p{p}": value for p, value in figures.ttft_s.items()},
        "tpot_s": {f"p{p}": value for p, value in figures.tpot_s.items()},
    }


def _pair(interval: Interval) -> list[float]:
    return [interval.low, interval.high]
