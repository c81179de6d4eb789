"""The HTTP API, version 1: what pipelines read. Errors are ``{"error": ..., "remedy": ...}``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Header, HTTPException, Query, Response
from fastapi import Path as PathParam
from pydantic import BaseModel, ConfigDict, Field

from autotune.domain.judging.sla import Sla
from autotune.domain.recommending.document import trial_document
from autotune.domain.recommending.picture import Point
from autotune.domain.studies.records import StudyRow, TrialState
from autotune.domain.studies.study import StudySpec
from autotune.web import charts
from autotune.web.views import Gallery, NotThereError
from autotune.wiring.reading import Digested
from autotune.wiring.store import study_of

READ_WAIT_S = 20.0
"""How long a request waits for launches to be read from the archive; then it is told to come again."""
MOST_A_PAGE = 500
MOST_SLAS = 20

StudyName = Annotated[str, PathParam(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
Number = Annotated[int, PathParam(ge=0, lt=2**31)]
Offset = Annotated[int, Query(ge=0, lt=2**31)]
Limit = Annotated[int, Query(ge=1, le=MOST_A_PAGE)]
Text = Annotated[str, Query(min_length=1, max_length=300)]


class Problem(BaseModel):
    """Why a request was refused, and what to do."""

    error: str
    remedy: str = ""


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ScoreRequest(_Asked):
    """An SLA to score on what was measured, as study files write it."""

    sla: Sla


class PictureRequest(_Asked):
    """Which picture to draw; ``slas`` in place of the study's own."""

    measure: charts.Measure = charts.Measure.PER_MW
    colour: charts.Colour = charts.Colour.CONFIGURATION
    focus: Annotated[str | None, Field(max_length=100)] = None
    slas: Annotated[tuple[Sla, ...] | None, Field(min_length=1, max_length=MOST_SLAS)] = None


class StudyItem(BaseModel):
    """A study in a list."""

    study: str
    status: str
    model: str
    engines: list[str]
    slas: list[str]
    started_at: str
    spent_s: float
    trials: dict[str, int]


class Studies(BaseModel):
    """A page of studies."""

    total: int
    offset: int
    studies: list[StudyItem]


class Trials(BaseModel):
    """A page of a study's trials."""

    study: str
    total: int
    offset: int
    trials: list[dict[str, Any]]


class Curves(BaseModel):
    """Points of every configuration; ``pending_launches`` are still to be read."""

    study: str
    pending_launches: int
    curves: list[dict[str, Any]]


_REFUSALS: dict[int | str, dict[str, Any]] = {
    code: {"model": Problem, "description": why}
    for code, why in {404: "Not there", 422: "Not understood", 503: "Come again"}.items()
}


def api(gallery: Gallery) -> APIRouter:
    """Routes of the API."""
    router = APIRouter(prefix="/api/v1", responses=_REFUSALS)
    _lists(router, gallery)
    _answers(router, gallery)
    _pictures(router, gallery)
    return router


def _lists(router: APIRouter, gallery: Gallery) -> None:
    catalog = gallery.reader.store.catalog

    @router.get("/studies", tags=["studies"])
    def studies(offset: Offset = 0, limit: Limit = 50) -> Studies:
        """List studies, newest first."""
        rows = catalog.some_studies(offset=offset, limit=limit)
        states = catalog.states([row.name for row in rows])
        items = [study_item(row, states[row.name]) for row in rows]
        return Studies(total=catalog.count_studies(), offset=offset, studies=items)

    @router.get("/studies/{study}", tags=["studies"])
    def one_study(study: StudyName) -> dict[str, Any]:
        """Show a study: where it stands, and its file as it was resolved."""
        row, _ = gallery.study(study)
        item = study_item(row, catalog.states([row.name])[row.name])
        return {**item.model_dump(), "file": json.loads(row.spec)}

    @router.get("/studies/{study}/trials", tags=["trials"])
    def trials(
        study: StudyName, offset: Offset = 0, limit: Limit = 50, state: TrialState | None = None
    ) -> Trials:
        """List a study's trials, by number."""
        gallery.study(study)
        counts = catalog.states([study])[study]
        rows = catalog.some_trials(study, offset=offset, limit=limit, state=state)
        return Trials(
            study=study,
            total=sum(counts.values()) if state is None else counts.get(state, 0),
            offset=offset,
            trials=[trial_document(row) for row in rows],
        )

    @router.get("/studies/{study}/trials/{number}", tags=["trials"])
    def trial(study: StudyName, number: Number) -> dict[str, Any]:
        """Show one trial."""
        return trial_document(gallery.trial(study, number))


def _answers(router: APIRouter, gallery: Gallery) -> None:
    @router.get("/studies/{study}/recommendation", tags=["recommendations"])
    def of_study(
        study: StudyName, response: Response, if_none_match: Annotated[str | None, Header()] = None
    ) -> Any:
        """Recommend a configuration for each of the study's SLAs."""
        digested = _whole(gallery.digested(study, wait_s=READ_WAIT_S))
        document = gallery.document(digested, gallery.recommendations(digested))
        return _tagged(document, response, if_none_match)

    @router.get("/recommendation", tags=["recommendations"])
    def by_model(
        model: Text,
        response: Response,
        hardware: Annotated[str | None, Query(min_length=1, max_length=300)] = None,
        sla: Annotated[str | None, Query(min_length=1, max_length=300)] = None,
        if_none_match: Annotated[str | None, Header()] = None,
    ) -> Any:
        """Recommend for a model: of the newest study that has an answer on this hardware.

        ``model`` is the study's own name for it, or its last part; ``hardware`` a part of the device's name.
        """
        for row, spec in _studies_of(gallery, model):
            digested = _whole(gallery.digested(row.name, wait_s=READ_WAIT_S))
            slas = [s for s in spec.slas if sla in {None, s.name}]
            found = [
                r
                for r in (gallery.recommendations(digested, slas) if slas else [])
                if r.best and (hardware or "").casefold() in r.best.launch.device.casefold()
            ]
            if found:
                document = {"model": spec.model, **gallery.document(digested, found)}
                return _tagged(document, response, if_none_match)
        raise NotThereError("no study has an answer for this model, hardware and SLA")

    @router.post("/studies/{study}/score", tags=["recommendations"])
    def score(study: StudyName, asked: ScoreRequest) -> dict[str, Any]:
        """Recommend for another SLA from what was measured; no engine is needed."""
        digested = _whole(gallery.digested(study, wait_s=READ_WAIT_S))
        return gallery.document(digested, gallery.recommendations(digested, [asked.sla]))


def _pictures(router: APIRouter, gallery: Gallery) -> None:
    @router.get("/studies/{study}/curves", tags=["curves"])
    def curves(study: StudyName) -> Curves:
        """Return each configuration's points: interactivity against tok/s/MW, cost, tok/s per device."""
        digested = gallery.digested(study, wait_s=READ_WAIT_S)
        return Curves(
            study=study,
            pending_launches=digested.pending,
            curves=[curve_document(series) for series in gallery.series(digested)],
        )

    @router.get("/studies/{study}/trials/{number}/curve", tags=["curves"])
    def curve(study: StudyName, number: Number) -> dict[str, Any]:
        """Return one trial's points."""
        gallery.trial(study, number)
        digested = _whole(gallery.digested(study, wait_s=READ_WAIT_S))
        found = [s for s in gallery.series(digested) if s.trial == number]
        if not found:
            raise NotThereError(f"trial {number} was not measured as a configuration of its own")
        return curve_document(found[0])

    @router.post("/studies/{study}/picture", tags=["curves"])
    def picture(study: StudyName, asked: PictureRequest) -> dict[str, Any]:
        """Draw the picture for Plotly: ``figure`` has data and layout."""
        digested = gallery.digested(study, wait_s=READ_WAIT_S)
        figure = gallery.picture(
            digested, measure=asked.measure, colour=asked.colour, slas=asked.slas, focus=asked.focus
        )
        return {"pending_launches": digested.pending, "figure": figure}


def study_item(row: StudyRow, states: Mapping[TrialState, int]) -> StudyItem:
    """A study as a list shows it; its file is read as it lies, which is quicker than to check it again."""
    file = json.loads(row.spec)
    return StudyItem(
        study=row.name,
        status=row.status,
        model=file.get("model", ""),
        engines=[engine["name"] for engine in file.get("engines", ())],
        slas=[sla["name"] for sla in file.get("slas", ())],
        started_at=row.started_at,
        spent_s=row.spent_s,
        trials={str(state): count for state, count in states.items()},
    )


def curve_document(series: charts.Series) -> dict[str, Any]:
    """A configuration's points as plain data."""
    config = series.config
    return {
        "trial": series.trial,
        "configuration": {"engine": config.engine, **config.words},
        "points": [_point_document(point) for point in series.points],
    }


def _point_document(point: Point) -> dict[str, Any]:
    def figure(value: Any) -> dict[str, Any] | None:
        if value is None:
            return None
        ends = [end if end < float("inf") else None for end in (value.interval.low, value.interval.high)]
        return {"value": value.value, "interval": ends}

    return {
        "load": point.load,
        "workload": point.workload,
        "rate_rps": point.rate_rps,
        "open_loop": point.open_loop,
        "final_launch": point.final,
        "requests": point.requests,
        "interactivity_tok_per_s": figure(point.interactivity),
        "output_tok_per_s": figure(point.throughput),
        "output_tok_per_s_per_device": figure(point.per_device),
        "output_tok_per_s_per_mw": figure(point.per_mw),
        "cost_per_mtok": figure(point.cost),
        "ttft_p95_s": point.ttft_p95_s,
        "verdicts": dict(point.verdicts),
        "oversaturated": point.oversaturated,
    }


def _studies_of(gallery: Gallery, model: str) -> Sequence[tuple[StudyRow, StudySpec]]:
    """Studies of a model, newest first, finished ones before the others."""
    wanted, found = model.casefold(), []
    for row in gallery.reader.store.catalog.studies():
        name = str(json.loads(row.spec).get("model", "")).casefold()
        if wanted in {name, name.rsplit("/", 1)[-1]}:
            found.append((row, study_of(row)))
    return sorted(found, key=lambda pair: pair[0].status != "finished")


def _whole(digested: Digested) -> Digested:
    """Raise 503 where launches are still to be read: an answer from a part would change unasked."""
    if digested.pending:
        raise HTTPException(
            503, f"{digested.pending} launches are still being read", headers={"Retry-After": "5"}
        )
    return digested


def _tagged(document: dict[str, Any], response: Response, if_none_match: str | None) -> Any:
    """The document with its ETag, or 304 where the client has it."""
    body = json.dumps(document, sort_keys=True, allow_nan=False).encode()
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    given = {each.strip().removeprefix("W/") for each in (if_none_match or "").split(",")}
    if tag in given or "*" in given:
        return Response(status_code=304, headers={"ETag": tag})
    response.headers["ETag"] = tag
    return document
