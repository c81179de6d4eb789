"""``autotune engines``: install, list and check the engines that studies launch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from autotune import wiring
from autotune.adapters.engine_env import EngineEnvironments, engines_home
from autotune.adapters.engine_install import install_engine
from autotune.cli import render
from autotune.domain.errors import InputError

app = typer.Typer(help="Install, list and check engines; each lives in an environment of its own.")

EngineName = Annotated[str, typer.Argument(metavar="ENGINE", help="Engine id, such as vllm.")]
At = Annotated[Path | None, typer.Option(help="Virtual environment to look into.")]
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
def list_engines(as_json: Json = False) -> None:
    """List every engine that a launcher knows, installed or not."""
    rows = [_row(engine) for engine in wiring.launchers()]
    if as_json:
        render.print_json(rows)
    else:
        render.wide_console().print(render.engines(rows))


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


def _row(engine: str) -> dict[str, Any]:
    launcher = wiring.launcher_of(engine)
    try:
        environment = EngineEnvironments().find(launcher, None)
    except InputError:
        environment = None
    return {
        "id": engine,
        "installed": environment is not None,
        "version": environment.version if environment else None,
        "device": environment.kind if environment else None,
        "evidence": "checked" if environment else "rendered",
        "dimensions": sorted(launcher.traits.dimensions),
        "path": str(environment.executable) if environment else None,
    }
