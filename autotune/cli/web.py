"""``autotune serve`` and ``autotune report``: the pages, live or as one file."""

from __future__ import annotations

import gc
import importlib
import os
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer
from rich.console import Console

from autotune import wiring
from autotune.domain.basics.errors import InputError, InputProblem

TOKEN_VARIABLE = "AUTOTUNE_TOKEN"  # noqa: S105 - a variable's name
Storage = Annotated[str | None, typer.Option(help="SQLAlchemy URL; sqlite:///studies.db if not given.")]


def serve(
    storage: Storage = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free one.")] = 8080,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than this machine need a token.")
    ] = ("127.0.0.1"),
    token_file: Annotated[
        Path | None, typer.Option(help=f"File with the bearer token; else ${TOKEN_VARIABLE}.")
    ] = None,
    allow_write: Annotated[
        bool, typer.Option("--allow-write", help="Let Optuna's dashboard change and delete studies.")
    ] = False,
) -> None:
    """Show studies in a browser, and answer pipelines over HTTP: read-only, on this machine alone.

    Pages at /, the API at /api/v1, Optuna's own dashboard at /dashboard, Prometheus metrics at /metrics.
    """
    app, security, uvicorn = (_web(name) for name in ("autotune.web.app", "autotune.web.security", "uvicorn"))
    options = security.ServeOptions(
        host=host, port=port, token=_token(token_file), allow_write=allow_write
    ).checked()
    store = wiring.open_store(storage or wiring.DEFAULT_STORAGE)
    application = app.create_app(store, options)
    shown = f"[{host}]" if ":" in host else host
    if port:
        Console().print(f"serving {store.url} on http://{shown}:{port} (Ctrl-C ends it)", soft_wrap=True)
    # What is loaded stays loaded; to search it for garbage would hold a request up for a fifth of a second.
    gc.freeze()
    uvicorn.run(
        application,
        host=host,
        port=port,
        log_level="info" if not port else "warning",
        timeout_graceful_shutdown=5,
        server_header=False,
        limit_concurrency=200,
        h11_max_incomplete_event_size=32 * 1024,
    )


def report(
    study_name: Annotated[str, typer.Argument(metavar="STUDY", help="A study's name.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path("report.html"),
    storage: Storage = None,
) -> None:
    """Write a study's answers and pictures into one HTML file that works offline and prints well."""
    writer = _web("autotune.web.report")
    text = writer.report(wiring.read_store(storage or wiring.DEFAULT_STORAGE), study_name)
    if not output.parent.is_dir():
        raise InputError(InputProblem(str(output), "its folder is not there", "make it, or name another"))
    output.write_text(text, encoding="utf-8")
    size_mb = len(text.encode()) / 1e6
    Console(soft_wrap=True, highlight=False).print(f"{output}: {size_mb:.1f} MB, open it in any browser")


def _web(module: str) -> ModuleType:
    """A module that needs the extra; raises InputError with the remedy where it is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        if (missing.name or "").startswith("autotune"):
            raise
        what = f"need {missing.name}, which is not installed"
        remedy = "pip install 'autotune-inference[web]'"
        raise InputError(InputProblem("the pages", what, remedy)) from missing


def _token(file: Path | None) -> str:
    if file is None:
        return os.environ.get(TOKEN_VARIABLE, "").strip()
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as unread:
        remedy = "name a file that holds the token alone"
        raise InputError(InputProblem(f"--token-file {file}", str(unread), remedy)) from unread
    if not token:
        what = "is empty"
        raise InputError(InputProblem(f"--token-file {file}", what, "make one: openssl rand -hex 24 > FILE"))
    return token
