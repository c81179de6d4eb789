"""``autotune engines``: install, list and check the engines that studies launch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autotune import wiring
from autotune.adapters.engines.environments import EngineEnvironments, engines_home
from autotune.adapters.engines.install import install_engine
from autotune.cli import render

app = typer.Typer(help="Install, list and check engines; each lives in an environment of its own.")

EngineName = Annotated[str, typer.Argument(metavar="ENGINE", help="Engine id, such as vllm.")]
At = Annotated[Path | None, typer.Option(help="Virtual environment to look into.")]
Storage = Annotated[str, typer.Option(help="SQLAlchemy URL of the studies that count as run.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


@app.command(epilog="Example: autotune engines install vllm")
def install(
    engine: EngineName,
    home: Annotated[Path | None, typer.Option(help="Folder to install under.")] = None,
) -> None:
    """Install an engine's CPU build into an environment of its own (2.5 GB), unless it is there."""
    install_engine(engine, home=home or engines_home(), echo=typer.echo)
    # Asking the parser now spares the first study the wait.
    EngineEnvironments(home).find(wiring.launcher_of(engine), None)


@app.command("list", epilog="Example: autotune engines list --json")
def list_engines(storage: Storage = wiring.DEFAULT_STORAGE, as_json: Json = False) -> None:
    """List every engine that a launcher knows, installed or not, and how far each was tried here.

    ran: measured in a study of the storage, in this version; checked: its own parser answers; rendered:
    written from documentation alone.
    """
    statuses = wiring.engine_statuses(wiring.versions_run(wiring.read_store(storage)))
    if as_json:
        render.print_json([render.engine_document(status) for status in statuses])
    else:
        render.wide_console().print(render.engines(statuses))


@app.command(epilog="Example: autotune engines recipes --engine vllm --json")
def recipes(
    engine: Annotated[str | None, typer.Option(help="Of this engine alone.")] = None, as_json: Json = False
) -> None:
    """Write the commands of the recipes for large models, each with the evidence that it rests on."""
    written = [each for each in wiring.written_recipes() if engine in {None, each.recipe.engine}]
    if as_json:
        render.print_json([render.recipe_document(each) for each in written])
    else:
        render.print_plain(render.recipes_markdown(written))


@app.command(epilog="Example: autotune engines check vllm --at /path/to/venv")
def check(engine: EngineName, at: At = None, as_json: Json = False) -> None:
    """Ask an engine's own parser afresh, and look for the libraries that it needs."""
    found = EngineEnvironments().check(wiring.launcher_of(engine), at)
    environment = found.environment
    if as_json:
        render.print_json(
            {
                "id": environment.engine,
                "version": environment.version,
                "device": environment.kind,
                "executable": str(environment.executable),
                "flags": len(environment.flags),
                "missing_libraries": list(found.missing_libraries),
            }
        )
    else:
        render.print_plain(
            f"{environment.engine} {environment.version} for {environment.kind}, "
            f"{len(environment.flags)} flags: {environment.executable}"
        )
    if found.remedy:
        render.print_plain(f"missing: {', '.join(found.missing_libraries)}; remedy: {found.remedy}")
        raise typer.Exit(1)
