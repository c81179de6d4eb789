"""Figures, ledgers and verdicts as parts of the contract."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from autotune.domain.judging.ledger import Ledger
from autotune.domain.judging.scoring import LevelScore
from autotune.domain.measuring.stats import Figure, Interval
from autotune.domain.recommending.contract import (
    BasisFigures,
    Ends,
    Estimate,
    LedgerPart,
    Precision,
    Quality,
    QualityMeasure,
)
from autotune.domain.recommending.recommendation import quality_of
from autotune.domain.studies.records import LaunchRecord


def quality_part(record: LaunchRecord) -> Quality:
    """The verdict on a launch's precision, with its figures; null for what is not finite."""
    verdict = quality_of(record)
    return Quality(
        state=verdict.state,
        precision=Precision(**asdict(verdict.precision)),
        judged_in=verdict.judged_in,
        reference=verdict.reference,
        known_prompts=verdict.known or None,
        figures=tuple(
            QualityMeasure(
                setting=figure.setting,
                measure=figure.measure,
                unit=figure.measure.unit,
                value=_finite(figure.value),
                reference_against_itself=_finite(figure.own),
                at_most=_finite(figure.threshold),
                passed=figure.passed,
                task=figure.task or None,
            )
            for figure in verdict.figures
        ),
        reasons=verdict.reasons,
    )


def ledger_part(ledger: Ledger) -> LedgerPart:
    """Watts and money on every basis that is known."""
    return LedgerPart(
        devices=ledger.devices,
        ranking=ledger.ranking,
        idle_share=ledger.idle_share,
        pue=ledger.pue,
        currency=ledger.currency,
        accelerator_hour=ledger.accelerator_hour,
        rental_per_mtok=_estimate(ledger.rental_per_mtok) if ledger.rental_per_mtok else None,
        bases=tuple(
            BasisFigures(
                basis=line.basis,
                power_w=line.power_w,
                facility_w=line.facility_w,
                tok_per_s_per_mw=_estimate(line.tok_per_s_per_mw),
                tok_per_s_per_facility_mw=_estimate(line.tok_per_s_per_facility_mw),
                energy_per_mtok=_estimate(line.energy_per_mtok) if line.energy_per_mtok else None,
            )
            for line in ledger.lines
        ),
        remarks=ledger.remarks,
    )


def level_part(figures: LevelScore) -> dict[str, Any]:
    """Keys of ``Figures`` that one level has; null for joules that were not measured."""
    measurable = figures.tokens_per_joule > 0
    return {
        "goodput_tok_per_s": figures.goodput_tok_per_s,
        "goodput_tok_per_s_interval": ends(figures.goodput_interval),
        "mean_power_w": figures.mean_power_w if measurable else None,
        "power_basis": figures.power_basis,
        "power_source": figures.power_source,
        "energy_verdict": figures.energy_verdict,
        "energy_reasons": figures.energy_reasons,
        "tokens_per_joule": figures.tokens_per_joule if measurable else None,
        "tokens_per_joule_interval": ends(figures.tokens_per_joule_interval) if measurable else None,
        "tok_per_s_per_mw": figures.tok_per_s_per_mw if measurable else None,
        "attainment": figures.attainment,
        "attainment_interval": ends(figures.attainment_interval),
        "sla_verdict": figures.verdict,
        "requests": figures.requests,
        "window_s": figures.window_s,
        "window_ended": figures.ended,
        "steady": figures.steady,
        "ttft_s": {f"p{p}": value for p, value in figures.ttft_s.items()},
        "tpot_s": {f"p{p}": value for p, value in figures.tpot_s.items()},
    }


def _estimate(figure: Figure) -> Estimate:
    return Estimate(value=figure.value, interval=ends(figure.interval))


def ends(interval: Interval) -> Ends:
    """An interval's ends; null for one that is not finite, for JSON has no infinity."""
    return _finite(interval.low), _finite(interval.high)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
