"""Two trials or two studies side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from autotune.domain.recommending.picture import regions
from autotune.web import charts
from autotune.web.trial_view import words_table
from autotune.web.views import Gallery, NotThereError
from autotune.wiring.reading import Digested

WAIT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Rows of (what, one, other, whether they differ), and one picture of both."""

    titles: tuple[str, str]
    links: tuple[str, str]
    tables: dict[str, list[tuple[str, str, str, bool]]]
    picture: charts.Chart
    remarks: tuple[str, ...]


def compare_trials(gallery: Gallery, a: str, b: str) -> Comparison:
    """Two trials, named STUDY:NUMBER; raises NotThereError."""
    sides = [_trial_side(gallery, each) for each in (a, b)]
    words = [{w.name: w.value for w in side["words"]} for side in sides]
    names = list(dict.fromkeys(name for side in words for name in side))
    tables = {
        "Configuration": [_row(n, *(side.get(n, "engine's default") for side in words)) for n in names],
        "What it is worth": _facts(sides),
    }
    picture = charts.picture(
        [series for side in sides for series in side["series"]],
        regions(sides[0]["slas"]),
        measure=_measure([side["digested"] for side in sides]),
        colour=charts.Colour.CONFIGURATION,
    )
    return Comparison(
        titles=(sides[0]["title"], sides[1]["title"]),
        links=(sides[0]["link"], sides[1]["link"]),
        tables=tables,
        picture=picture,
        remarks=_remarks([side["digested"] for side in sides]),
    )


def compare_studies(gallery: Gallery, a: str, b: str) -> Comparison:
    """Two studies by name, of two engine versions say; raises NotThereError."""
    both = [gallery.digested(name, wait_s=WAIT_S) for name in (a, b)]
    found = [gallery.document(each, gallery.recommendations(each)) for each in both]
    by_sla = [{sla["name"]: sla for sla in document["slas"]} for document in found]
    tables = {"Study": [_row(*each) for each in _study_facts(both)]}
    for name in dict.fromkeys(name for side in by_sla for name in side):
        one, other = (side.get(name) for side in by_sla)
        tables[f"SLA {name}"] = [
            _row(title, _shown(one, key), _shown(other, key)) for title, key in _ANSWER_ROWS.items()
        ]
    series = [s for each in both for s in gallery.series(each, source=f"{each.study.name} · ")]
    return Comparison(
        titles=(a, b),
        links=(f"/studies/{a}", f"/studies/{b}"),
        tables=tables,
        picture=charts.picture(
            series, regions(both[0].study.slas), measure=_measure(both), colour=charts.Colour.CONFIGURATION
        ),
        remarks=_remarks(both),
    )


_ANSWER_ROWS = {
    "contract": "contract",
    "recommended trial": "trial",
    "configuration": "configuration",
    "goodput, tok/s": "goodput_tok_per_s",
    "its 90 % interval": "goodput_tok_per_s_interval",
    "good tok/s/MW": "tok_per_s_per_mw",
    "power basis": "power_basis",
    "capacity, req/s": "capacity_rps",
    "attainment": "attainment",
    "reason": "reason",
}


def _trial_side(gallery: Gallery, name: str) -> dict[str, Any]:
    study, _, number = name.partition(":")
    if not number.isdecimal() or len(number) > 9:  # noqa: PLR2004 - digits of any trial's number
        raise NotThereError("a trial is named STUDY:NUMBER, two of them or two studies are compared")
    row = gallery.trial(study, int(number))
    digested = gallery.digested(study, wait_s=WAIT_S)
    own = row.final_of if row.final_of is not None else row.number
    return {
        "title": f"{study}, trial {row.number}",
        "link": f"/studies/{study}/trials/{row.number}",
        "row": row,
        "digested": digested,
        "slas": digested.study.slas,
        "words": words_table(digested.study, row.config),
        "series": [s for s in gallery.series(digested, source=f"{study} · ") if s.trial == own],
    }


def _facts(sides: list[dict[str, Any]]) -> list[tuple[str, str, str, bool]]:
    one, other = (side["row"] for side in sides)
    facts = [
        _row("state", one.state, other.state),
        _row("failure", one.failure_class or "-", other.failure_class or "-"),
        _row("launch, s", f"{one.launch_s:.3g}", f"{other.launch_s:.3g}"),
    ]
    for sla in dict.fromkeys([*one.objectives, *other.objectives]):
        values = (f"{row.objectives[sla]:.4g}" if sla in row.objectives else "-" for row in (one, other))
        facts.append(_row(f"objective for {sla}", *values))
    return facts


def _study_facts(both: list[Digested]) -> list[tuple[str, str, str]]:
    def versions(digested: Digested) -> str:
        found = {f"{k} {v}" for c in digested.candidates for k, v in c.launch.versions.items()}
        return ", ".join(sorted(found)) or "-"

    def devices(digested: Digested) -> str:
        found = {f"{c.launch.device_count} x {c.launch.device}" for c in digested.candidates}
        return ", ".join(sorted(found)) or "-"

    one, other = both
    return [
        ("model", one.study.model, other.study.model),
        ("versions", versions(one), versions(other)),
        ("devices", devices(one), devices(other)),
        ("configurations measured", str(len(one.candidates)), str(len(other.candidates))),
    ]


def _row(what: str, one: Any, other: Any) -> tuple[str, str, str, bool]:
    return what, str(one), str(other), one != other


def _shown(answer: dict[str, Any] | None, key: str) -> str:
    value = answer.get(key) if answer else None
    if value is None:
        return "-"
    if isinstance(value, list):
        return " to ".join(f"{each:.4g}" for each in value)
    if isinstance(value, dict):
        return " ".join(f"{k}={v}" for k, v in value.items()) or "engine defaults"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _measure(both: list[Digested]) -> charts.Measure:
    """Watts where both were measured on one basis, else devices: bases are never compared."""
    return charts.Measure.PER_MW if len(_bases(both)) == 1 else charts.Measure.PER_DEVICE


def _bases(both: list[Digested]) -> set[str]:
    return {level.power_basis for each in both for c in each.candidates for level in c.levels}


def _remarks(both: list[Digested]) -> tuple[str, ...]:
    bases, remarks = _bases(both), []
    if len(bases) > 1:
        remarks.append(f"power bases differ ({', '.join(sorted(bases))}): watts are not compared")
    nodes = {c.launch.node for each in both for c in each.candidates}
    if len(nodes) > 1:
        remarks.append("they ran on different nodes: differences may be the machines'")
    if any("estimated" in base for base in bases):
        remarks.append("watts are a model's estimate, not a meter's")
    return tuple(remarks)
