"""A study as one HTML file: styles, scripts and data are in it, nothing is fetched."""

from __future__ import annotations

from importlib.resources import files

from markupsafe import Markup

from autotune.adapters.devices.accelerators import read_accelerators
from autotune.domain.studies.records import TrialState
from autotune.web import charts, insight_charts, trial_charts
from autotune.web.app import PLOTLY
from autotune.web.pages import environment
from autotune.web.trial_view import level_rows, words_table
from autotune.web.views import Gallery, cost_known, failures, power_remark
from autotune.wiring.reading import StudyReader
from autotune.wiring.store import Store

READ_DEADLINE_S = 600.0


def report(store: Store, name: str) -> str:
    """The whole page; raises InputError for no such study."""
    store.study(name)
    reader = StudyReader(store)
    try:
        return _report(Gallery(reader, read_accelerators()), name)
    finally:
        reader.close()


def _report(gallery: Gallery, name: str) -> str:
    reader = gallery.reader
    row, spec = gallery.study(name)
    digested = gallery.digested(name, wait_s=READ_DEADLINE_S)
    found = gallery.recommendations(digested)
    measures = [m for m in charts.Measure if m is not charts.Measure.COST or cost_known(digested)]
    pictures = {
        measure: gallery.picture(digested, measure=measure, colour=charts.Colour.CONFIGURATION)
        for measure in measures
    }
    rows = digested.rows
    shares = {s.name: reader.importances(name, i) or {} for i, s in enumerate(spec.slas)}
    known = {sla: by_word for sla, by_word in shares.items() if by_word}
    document = gallery.document(digested, found)
    return (
        environment()
        .get_template("report.html")
        .render(
            name=name,
            row=row,
            spec=spec,
            digested=digested,
            found=list(zip(found, document["slas"], strict=True)),
            defaults=spec.default_config(),
            remark=power_remark(digested),
            series=gallery.series(digested),
            pictures=pictures,
            measures_shown=measures,
            rows=rows,
            importance=insight_charts.importance_bars(known) if known else None,
            failures=failures(rows),
            trials=[_trial(gallery, name, number) for number in _winners(found)],
            bars=gallery.budget_bars(row, spec),
            measured=sum(r.state is TrialState.MEASURED for r in rows),
            css=Markup(_asset("page.css")),  # noqa: S704 - ours
            page_js=Markup(_asset("page.js")),  # noqa: S704 - ours
            plotly_js=Markup(PLOTLY.read_text(encoding="utf-8").replace("</script", "<\\/script")),  # noqa: S704
        )
    )


def _winners(found: object) -> list[int]:
    numbers = [r.best.launch.number for r in found if r.best]  # type: ignore[attr-defined]
    return list(dict.fromkeys(numbers))


def _trial(gallery: Gallery, name: str, number: int) -> dict[str, object]:
    """What the report shows of a launch that a recommendation rests on."""
    _, spec = gallery.study(name)
    record = gallery.reader.record(name, number)
    return {
        "number": number,
        "label": record.config.label(spec.default_config()),
        "words": words_table(spec, record.config),
        "levels": level_rows(record.curve, spec.slas, spec),
        "latencies": trial_charts.latencies(record.curve, spec.slas),
        "timeline": trial_charts.timeline(record.curve),
    }


def _asset(name: str) -> str:
    return files("autotune.web").joinpath("static", name).read_text(encoding="utf-8")
