"""Whether a deployment keeps the contract of a recommendation: what was measured, against what it says."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from autotune.domain.basics.quantities import show_duration
from autotune.domain.judging.scoring import LevelScore, SlaVerdict, is_same_rate, open_levels, score_level
from autotune.domain.judging.sla import Metric, Sla, keeping_requests, show_slo
from autotune.domain.launches.launch import Failure, Reaction
from autotune.domain.measuring.measurement import Measurement
from autotune.domain.measuring.power import PowerBasis
from autotune.domain.measuring.stats import BLOCKS, Interval, proportion_interval, requests_to_show
from autotune.domain.recommending.contract import Ends, SlaAnswer
from autotune.domain.studies.records import LaunchRecord


class Outcome(StrEnum):
    """What a verification ends with."""

    HOLDS = "holds"
    BROKEN = "broken"
    NOT_JUDGED = "could not be judged"


@dataclass(frozen=True, slots=True, kw_only=True)
class SloFinding:
    """One SLO at the operating point: the share of requests that kept it, and its percentile with interval.

    ``value`` and ``interval`` are in seconds (interactivity: tok/s/user), at the promised percentile.
    """

    slo: str
    promised: float
    kept: float
    kept_interval: Interval
    value: float
    interval: Interval
    unit: str

    @property
    def broken(self) -> bool:
        """Whether fewer requests kept it than were promised to."""
        return self.kept < self.promised

    def __str__(self) -> str:
        low, high = (self._shown(end) for end in (self.interval.low, self.interval.high))
        return (
            f"{self.slo}: p{self.promised * 100:.4g} is {self._shown(self.value)} [{low}, {high}]; kept by "
            f"{self.kept:.1%} of requests, promised {self.promised:.4g}"
        )

    def _shown(self, value: float) -> str:
        if math.isinf(value):
            return "unanswered"
        return show_duration(value) if self.unit == "s" else f"{value:.4g} {self.unit}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureFinding:
    """A figure of the contract measured again; ``broken`` where its interval lies wholly below the other."""

    figure: str
    promised: float
    promised_interval: Ends
    value: float
    interval: Interval
    broken: bool

    def __str__(self) -> str:
        low, high = self.promised_interval
        ends = f"[{'-' if low is None else f'{low:.4g}'}, {'-' if high is None else f'{high:.4g}'}]"
        now = f"{self.value:.4g} [{self.interval.low:.4g}, {self.interval.high:.4g}]"
        return f"{self.figure}: {now}, in the contract {self.promised:.4g} {ends}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """The verdict for one SLA: its findings, the reasons that decided, and what to know beside them."""

    sla: str
    outcome: Outcome
    reasons: tuple[str, ...] = ()
    slos: tuple[SloFinding, ...] = ()
    figures: tuple[FigureFinding, ...] = ()
    remarks: tuple[str, ...] = ()
    rate_rps: float | None = None
    requests: int = 0
    window_s: float = 0.0


def worst(verifications: Sequence[Verification]) -> Outcome:
    """The outcome of several: broken before not judged, before holds."""
    outcomes = {each.outcome for each in verifications}
    order = (Outcome.BROKEN, Outcome.NOT_JUDGED)
    return next((each for each in order if each in outcomes), Outcome.HOLDS)


def verification_document(found: Sequence[Verification]) -> dict[str, Any]:
    """Verdicts as plain data; null for what is not finite, for JSON has no infinity."""
    return {"outcome": worst(found), "slas": [_plain(asdict(each)) for each in found]}


def not_judged(answer: SlaAnswer, why: str) -> Verification:
    """Nothing could be said of an SLA."""
    return Verification(sla=answer.name, outcome=Outcome.NOT_JUDGED, reasons=(why,))


def requests_wanted(sla: Sla) -> int:
    """Fewest requests with which an SLA can be shown to hold."""
    return max(requests_to_show(share) for _, share in sla.goals())


def judge(answer: SlaAnswer, record: LaunchRecord) -> Verification:
    """Compare what a launch at the operating point showed with the contract for one SLA."""
    rate_rps = answer.operating_rps or 0.0
    levels = open_levels(record.curve, answer.workload)
    measured = next((m for m in levels if is_same_rate(m.level.rate_rps or 0.0, rate_rps)), None)
    if measured is None:
        return _without_level(answer, record.failure)
    score = score_level(measured, answer.sla)
    slos = tuple(slo_findings(measured, answer.sla))
    figures, remarks = _figures(answer, record, score)
    broken = [str(each) for each in slos if each.broken]
    if score.verdict is SlaVerdict.MISSED and not broken:
        worst_kept = min(slos, key=lambda each: each.kept)
        share = f"{score.attainment:.1%} of requests kept all SLOs together"
        broken = [f"{share}, most often broken: {worst_kept}"]
    if score.oversaturated:
        broken.append(f"the queue only grew at {rate_rps:.3g} req/s: it carries less than the contract says")
    # Where SLOs are broken fewer tokens are good: that says nothing more.
    broken = broken or [str(each) for each in figures if each.broken]
    if record.failure is not None:
        broken.append(f"it failed afterwards: {record.failure.failure_class}: {record.failure.line}")
    outcome = Outcome.BROKEN if broken else Outcome.HOLDS
    if not broken and score.verdict is SlaVerdict.NOT_SHOWN:
        low = score.attainment_interval.low
        what = f"{score.requests} requests show no more than an attainment above {low:.3f}"
        outcome, broken = Outcome.NOT_JUDGED, [f"{what}; lengthen the window: --window"]
    return Verification(
        sla=answer.name,
        outcome=outcome,
        reasons=tuple(broken),
        slos=slos,
        figures=figures,
        remarks=(*remarks, *_differences(answer, record)),
        rate_rps=score.rate_rps,
        requests=score.requests,
        window_s=score.window_s,
    )


def slo_findings(measured: Measurement, sla: Sla) -> Iterator[SloFinding]:
    """Every SLO of an SLA by itself.

    A percentile's interval is that of the share of requests up to it, read back from their distribution
    (Woodruff 1952).
    """
    requests, window = measured.requests, measured.window
    due = measured.due_in_window
    offered = window.sums(requests.due_s, blocks=BLOCKS)
    for bounds, share in sla.goals():
        for metric, bound in bounds:
            keeps = keeping_requests(requests, ((metric, bound),))
            kept = window.sums(requests.due_s[keeps], blocks=BLOCKS)
            # A request that never ended is beyond every bound.
            beyond = 0.0 if metric is Metric.INTERACTIVITY else np.inf
            values = np.where(requests.ok, metric.of(requests), beyond)[due]
            values = values[~np.isnan(values)]
            at = 1 - share if metric is Metric.INTERACTIVITY else share
            value = _quantile(values, at)
            upto = window.sums(requests.due_s[requests.ok & (metric.of(requests) <= value)], blocks=BLOCKS)
            ends = proportion_interval(upto, offered)
            yield SloFinding(
                slo=show_slo(metric, bound),
                promised=share,
                kept=float(kept.sum() / max(offered.sum(), 1)),
                kept_interval=proportion_interval(kept, offered),
                value=value,
                interval=Interval(_quantile(values, ends.low), _quantile(values, ends.high)),
                unit="tok/s/user" if metric is Metric.INTERACTIVITY else "s",
            )


def _plain(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_plain(each) for each in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def _quantile(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]], share: float) -> float:
    """The value that a share of all are at or below; NaN of none."""
    if not len(values):
        return float("nan")
    return float(np.quantile(values, min(max(share, 0.0), 1.0), method="inverted_cdf"))


def _without_level(answer: SlaAnswer, failure: Failure | None) -> Verification:
    if failure is None:
        return not_judged(answer, "its operating point was not measured")
    what = f"{failure.failure_class} while {failure.phase}: {failure.line}"
    if failure.reaction is Reaction.INFEASIBLE:
        reasons = (f"it does not serve: {what}",)
        return Verification(sla=answer.name, outcome=Outcome.BROKEN, reasons=reasons)
    return not_judged(answer, what)


def _figures(
    answer: SlaAnswer, record: LaunchRecord, score: LevelScore
) -> tuple[tuple[FigureFinding, ...], tuple[str, ...]]:
    """Goodput and good tokens per joule against the contract's, where they can be compared."""
    told = answer.fingerprint
    if told and record.device and (record.device, record.device_count) != (told.device, told.device_count):
        here = f"{record.device_count} x {record.device}"
        there = f"{told.device_count} x {told.device}"
        return (), (f"figures are not compared: the contract's are of {there}, these of {here}",)
    findings = [
        _finding(
            "goodput_tok_per_s",
            answer.goodput_tok_per_s,
            answer.goodput_tok_per_s_interval,
            score.goodput_tok_per_s,
            score.goodput_interval,
        )
    ]
    remarks: tuple[str, ...] = ()
    if score.power_basis is answer.power_basis and score.power_basis.ranks and score.tokens_per_joule > 0:
        findings.append(
            _finding(
                "tokens_per_joule",
                answer.tokens_per_joule,
                answer.tokens_per_joule_interval,
                score.tokens_per_joule,
                score.tokens_per_joule_interval,
            )
        )
    elif score.power_basis is not PowerBasis.ESTIMATED and score.goodput_tok_per_s > 0:
        basis = f"{score.power_basis} here, {answer.power_basis} in the contract"
        remarks = (f"joules are not compared: {', '.join(score.energy_reasons) or basis}",)
    return tuple(each for each in findings if each), remarks


def _finding(
    figure: str, promised: float | None, ends: Ends | None, value: float, interval: Interval
) -> FigureFinding | None:
    if promised is None or ends is None:
        return None
    broken = ends[0] is not None and interval.high < ends[0]
    return FigureFinding(
        figure=figure,
        promised=promised,
        promised_interval=ends,
        value=value,
        interval=interval,
        broken=broken,
    )


def _differences(answer: SlaAnswer, record: LaunchRecord) -> Iterator[str]:
    """What is not as it was when the contract was measured."""
    told = answer.fingerprint
    if told is None:
        return
    now = record.versions
    for what, was, here in (
        (told.engine, told.engine_version, now.get(told.engine, "")),
        ("driver", told.driver, now.get("driver", "")),
        ("node", told.node, record.node),
    ):
        if was and here and was != here:
            yield f"{what}: {here}, in the contract {was}"
