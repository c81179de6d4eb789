"""The application: API, pages, metrics, and Optuna's dashboard on the same store, behind one guard."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import optuna_dashboard
from a2wsgi import WSGIMiddleware
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from autotune import __version__
from autotune.adapters.devices.accelerators import read_accelerators
from autotune.domain.basics.errors import AutotuneError, InputError
from autotune.web.api import api
from autotune.web.metrics import CONTENT_TYPE, Metrics
from autotune.web.pages import Pages
from autotune.web.security import API, Guard, ServeOptions
from autotune.web.views import Gallery, NotThereError
from autotune.wiring.reading import StudyReader
from autotune.wiring.store import Store

PLOTLY = Path(str(files("plotly"))) / "package_data" / "plotly.min.js"
_LOG = logging.getLogger("autotune.web")


def create_app(store: Store, options: ServeOptions | None = None) -> ASGIApp:
    """Everything that ``autotune serve`` answers with, guarded; raises InputError for unsafe options."""
    options = (options or ServeOptions()).checked()
    reader = StudyReader(store)
    dashboard: Any = WSGIMiddleware(optuna_dashboard.wsgi(reader.storage, store.artifacts))
    return Guard(bare_app(reader, options), dashboard=dashboard, options=options)


def bare_app(reader: StudyReader, options: ServeOptions) -> FastAPI:
    """The application without its guard, whose OpenAPI document is ``/api/v1/openapi.json``."""
    store = reader.store
    gallery = Gallery(reader, read_accelerators())
    metrics = Metrics(store.catalog)
    pages = Pages(gallery, options)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(reader.close)

    app = FastAPI(
        title="autotune",
        version=__version__,
        description="Studies, trials, curves and recommendations of a store; nothing here changes them.",
        openapi_url=f"{API}/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.middleware("http")(metrics.observe)
    app.include_router(api(gallery))
    app.include_router(pages.router, include_in_schema=False)

    @app.get("/healthz", tags=["health"])
    def health() -> dict[str, str]:
        """Answer whether the store can be read."""
        store.catalog.count_studies()
        return {"status": "ok", "version": __version__}

    @app.get("/metrics", include_in_schema=False)
    def scrape() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/assets/plotly.min.js", include_in_schema=False)
    def plotly() -> FileResponse:
        kept = {"cache-control": "public, max-age=31536000, immutable"}
        return FileResponse(PLOTLY, media_type="text/javascript", headers=kept)

    app.mount("/assets", StaticFiles(packages=[("autotune.web", "static")]))
    _handle_errors(app, pages)
    return app


def _handle_errors(app: FastAPI, pages: Pages) -> None:
    """Every refusal says what and what to do, as JSON or as a page; nothing of the inside is shown."""

    def answer(request: Request, status: int, error: str, remedy: str = "") -> Response:
        if request.url.path.startswith(API):
            return JSONResponse({"error": error, "remedy": remedy}, status_code=status)
        if request.url.path.startswith("/healthz"):
            return PlainTextResponse(error, status_code=status)
        return pages.error(status, error, remedy)

    @app.exception_handler(NotThereError)
    def not_there(request: Request, missing: NotThereError) -> Response:
        return answer(request, 404, str(missing))

    @app.exception_handler(InputError)
    def wrong(request: Request, problem: InputError) -> Response:
        first = problem.problems[0]
        return answer(request, 422, f"{first.where}: {first.what}", first.remedy)

    @app.exception_handler(AutotuneError)
    def broken(request: Request, problem: AutotuneError) -> Response:
        return answer(request, 503, str(problem))

    @app.exception_handler(RequestValidationError)
    def refused(request: Request, problem: RequestValidationError) -> Response:
        told = "; ".join(_told(error) for error in problem.errors()[:5])
        return answer(request, 422, told, f"{API}/openapi.json says what is taken")

    @app.exception_handler(HTTPException)
    def http(request: Request, problem: HTTPException) -> Response:
        said = answer(request, problem.status_code, str(problem.detail))
        said.headers.update(problem.headers or {})
        return said

    @app.exception_handler(Exception)
    def unforeseen(request: Request, problem: Exception) -> Response:
        _LOG.error("%s %s failed", request.method, request.url.path, exc_info=problem)
        return answer(request, 500, "something broke here; the server's log says what")


def _told(error: Mapping[str, Any]) -> str:
    """Where and what, without what was sent: it may be large, or markup."""
    place: Sequence[Any] = error.get("loc", ())
    return f"{'.'.join(str(part)[:60] for part in place)}: {error.get('msg', '')}"[:300]
