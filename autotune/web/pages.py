"""The pages: plain HTML from the server, made live and movable by one small script."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import parse_qs

import jinja2
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from autotune import __version__
from autotune.adapters.store.journal import read_journal
from autotune.domain.judging.scoring import SlaVerdict
from autotune.domain.recommending.spending import spent_on
from autotune.domain.studies.records import StudyStatus, TrialState
from autotune.web import charts, insight_charts, trial_charts
from autotune.web.api import Limit, Number, Offset, StudyName, study_item
from autotune.web.compare import compare_studies, compare_trials
from autotune.web.formats import FILTERS
from autotune.web.logs import log_page
from autotune.web.security import SESSION_COOKIE, ServeOptions, same, session_of
from autotune.web.sliders import sliders_of
from autotune.web.trial_view import level_rows, words_table
from autotune.web.views import (
    Gallery,
    NotThereError,
    cost_known,
    failures,
    incumbents,
    power_remark,
)

PAGE_WAIT_S = 1.0
"""How long a page waits for launches to be read; the rest is fetched by the page itself."""
A_PAGE = 50
JOURNAL_LINES = 12
Words = Annotated[str | None, Query(max_length=200)]


def environment() -> jinja2.Environment:
    """Templates, everything in them escaped unless it is said to be markup."""
    found = jinja2.Environment(
        loader=jinja2.PackageLoader("autotune.web", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(FILTERS)
    found.globals.update(version=__version__, measures=list(charts.Measure), colours=list(charts.Colour))
    return found


class Pages:
    """Routes of the pages."""

    def __init__(self, gallery: Gallery, options: ServeOptions) -> None:
        self._gallery, self._options = gallery, options
        self._catalog = gallery.reader.store.catalog
        self._templates = environment()
        self.router = APIRouter(default_response_class=HTMLResponse)
        self._add_routes()

    def error(self, status: int, error: str, remedy: str) -> Response:
        """A page that says what is wrong."""
        return self._show("error.html", status=status, error=error, remedy=remedy, code=status)

    def _add_routes(self) -> None:
        routes: Mapping[str, Callable[..., Response]] = {
            "/": self.studies,
            "/studies/{study}": self.study,
            "/studies/{study}/parts/answers": self.answers,
            "/studies/{study}/parts/live": self.live,
            "/studies/{study}/trials": self.trials,
            "/studies/{study}/insight": self.insight,
            "/studies/{study}/trials/{number}": self.trial,
            "/studies/{study}/trials/{number}/log": self.log,
            "/compare": self.compare,
            "/login": self.login,
        }
        for path, endpoint in routes.items():
            self.router.add_api_route(path, endpoint, methods=["GET", "HEAD"], response_model=None)
        self.router.add_api_route("/login", self.enter, methods=["POST"], response_model=None)

    def studies(self, offset: Offset = 0) -> Response:
        """Studies at a glance."""
        rows = self._catalog.some_studies(offset=offset, limit=A_PAGE)
        states = self._catalog.states([row.name for row in rows])
        items = [study_item(row, states[row.name]) for row in rows]
        return self._show(
            "studies.html",
            items=items,
            total=self._catalog.count_studies(),
            offset=offset,
            page=A_PAGE,
            storage=_without_password(self._gallery.reader.store.url),
        )

    def study(self, study: StudyName) -> Response:
        """A study: the answers, the picture, the sliders."""
        answers, live = self._answers(study), self._live(study)
        sliders = [sliders_of(sla) for sla in live["spec"].slas]
        return self._show("study.html", sliders=sliders, **(live | answers))

    def answers(self, study: StudyName) -> Response:
        """The part of a study's page that changes as launches are read."""
        return self._show("parts/answers.html", **self._answers(study))

    def live(self, study: StudyName) -> Response:
        """The part of a study's page that changes while it runs."""
        return self._show("parts/live.html", **self._live(study))

    def trials(
        self, study: StudyName, offset: Offset = 0, state: TrialState | None = None, limit: Limit = A_PAGE
    ) -> Response:
        """The trials of a study."""
        row, spec = self._gallery.study(study)
        states = self._catalog.states([study])[study]
        total = sum(states.values()) if state is None else states.get(state, 0)
        return self._show(
            "trials.html",
            row=row,
            spec=spec,
            defaults=spec.default_config(),
            rows=self._catalog.some_trials(study, offset=offset, limit=limit, state=state),
            states=states,
            state=state,
            total=total,
            offset=offset,
            page=limit,
        )

    def insight(self, study: StudyName) -> Response:
        """What mattered, what failed and why."""
        row, spec = self._gallery.study(study)
        rows = self._catalog.trials(study)
        reader = self._gallery.reader
        shares = {sla.name: reader.importances(study, i) for i, sla in enumerate(spec.slas)}
        known = {sla: found for sla, found in shares.items() if found}
        links = {r.number: f"/studies/{study}/trials/{r.number}" for r in rows}
        searched = [r for r in rows if r.final_of is None and r.state is TrialState.MEASURED]
        words = list(dict.fromkeys(w for r in searched for w in r.config.words if _varies(w, searched)))[:6]
        return self._show(
            "insight.html",
            row=row,
            spec=spec,
            defaults=spec.default_config(),
            shares=known,
            late=[sla for sla, found in shares.items() if found is None],
            importance=insight_charts.importance_bars(known) if known else None,
            slices={s.name: insight_charts.slices(searched, s.name, words, links) for s in spec.slas}
            if words
            else {},
            failures=failures(rows),
            predicted=[r for r in searched if r.predicted],
            predictions=insight_charts.predictions(searched, links),
        )

    def trial(self, study: StudyName, number: Number) -> Response:
        """One trial."""
        row, spec = self._gallery.study(study)
        trial = self._gallery.trial(study, number)
        reader = self._gallery.reader
        record = reader.record(study, number) if trial.state is TrialState.MEASURED else None
        curve = record.curve if record else ()
        return self._show(
            "trial.html",
            row=row,
            spec=spec,
            trial=trial,
            record=record,
            words=words_table(spec, trial.config),
            levels=level_rows(curve, spec.slas, spec),
            latencies=trial_charts.latencies(curve, spec.slas) if curve else None,
            timeline=trial_charts.timeline(curve) if curve else None,
            logs=list(reader.logs(study, number)),
        )

    def log(
        self, study: StudyName, number: Number, file: Words = None, at: Offset = 0, find: Words = None
    ) -> Response:
        """A page of a trial's log."""
        row, spec = self._gallery.study(study)
        trial = self._gallery.trial(study, number)
        files = self._gallery.reader.logs(study, number)
        if not files:
            raise NotThereError(f"trial {number} left no log here; the logs lie beside the storage")
        name = file if file is not None else next(iter(files))
        if name not in files:
            raise NotThereError("there is no such log; the trial's page names those there are")
        shown = log_page(files[name], offset=at, find=find or "")
        return self._show(
            "log.html",
            row=row,
            spec=spec,
            trial=trial,
            files=list(files),
            name=name,
            log=shown,
            find=find or "",
        )

    def compare(self, a: Words = None, b: Words = None) -> Response:
        """Two trials, STUDY:NUMBER each, or two studies."""
        if not a or not b:
            rows = self._catalog.some_studies(offset=0, limit=200)
            return self._show("compare.html", a=a or "", b=b or "", names=[r.name for r in rows], found=None)
        trials = [part for part in (a, b) if ":" in part]
        compare = compare_trials if len(trials) == 2 else compare_studies  # noqa: PLR2004 - both
        found = compare(self._gallery, a, b)
        return self._show("compare.html", a=a, b=b, names=[], found=found)

    def login(self) -> Response:
        """Where a browser gives the token."""
        return self._show("login.html", wrong=False)

    async def enter(self, request: Request) -> Response:
        """Take the token, and remember it for this browser's session."""
        form = parse_qs((await request.body()).decode(errors="replace"), max_num_fields=5)
        token = form.get("token", [""])[0].strip()
        if not self._options.token or not same(token, self._options.token):
            return self._show("login.html", wrong=True, code=401)
        entered = RedirectResponse("/", status_code=303)
        session = session_of(self._options.token)
        entered.set_cookie(SESSION_COOKIE, session, httponly=True, samesite="strict")
        return entered

    def _answers(self, study: str) -> dict[str, Any]:
        digested = self._gallery.digested(study, wait_s=PAGE_WAIT_S)
        found = self._gallery.recommendations(digested)
        document = self._gallery.document(digested, found)
        return {
            "name": study,
            "remark": power_remark(digested),
            "digested": digested,
            "found": list(zip(found, document["slas"], strict=True)),
            "defaults": digested.study.default_config(),
            "cost_known": cost_known(digested),
            "series": self._gallery.series(digested),
        }

    def _live(self, study: str) -> dict[str, Any]:
        row, spec = self._gallery.study(study)
        rows = self._catalog.trials(study)
        digested = self._gallery.digested(study, wait_s=0.0)
        return {
            "row": row,
            "spec": spec,
            "running": [r for r in rows if r.state is TrialState.RUNNING],
            "is_live": row.status is StudyStatus.RUNNING,
            "bars": self._gallery.budget_bars(row, spec),
            "leaders": incumbents(rows, spec),
            "defaults": spec.default_config(),
            "spent": spent_on(rows, digested.candidates),
            "reading": digested.pending,
            "remark": power_remark(digested),
            "journal": read_journal(self._gallery.reader.store.study_logs(study), most=JOURNAL_LINES),
            "states": self._catalog.states([study])[study],
            "now": datetime.now(UTC).isoformat(timespec="seconds"),  # noqa: TID251 - for people to read
        }

    def _show(self, template: str, *, code: int = 200, **values: Any) -> Response:
        values.setdefault("verdicts", SlaVerdict)
        text = self._templates.get_template(template).render(**values, token=bool(self._options.token))
        return HTMLResponse(text, status_code=code)


def _varies(word: str, rows: Any) -> bool:
    return len({json.dumps(r.config.words.get(word), default=str) for r in rows}) > 1


def _without_password(url: str) -> str:
    """A storage URL for people to see."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rsplit('@', 1)[-1]}"
