"""``autotune engines``: install, list and check the engines that studies launch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from autotune import wiring
from autotune.adapters.bundles.packing import Order, Packer
from autotune.adapters.engines.environments import EngineEnvironments, engines_home
from autotune.adapters.engines.install import Installer
from autotune.cli import render, render_engines
from autotune.domain.basics.errors import InputError, InputProblem

app = typer.Typer(help="Install, list and check engines; each lives in an environment of its own.")

EngineName = Annotated[str, typer.Argument(metavar="ENGINE", help="Engine id, such as vllm.")]
At = Annotated[Path | None, typer.Option(help="Virtual environment to look into.")]
Storage = Annotated[str, typer.Option(help="SQLAlchemy URL of the studies that count as run.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


@app.command(
    epilog="Examples: autotune engines install vllm · autotune engines install --from build/vllm-0.22.1"
)
def install(
    engine: Annotated[str | None, typer.Argument(metavar="[ENGINE]", help="Engine id, such as vllm.")] = None,
    bundle: Annotated[
        Path | None, typer.Option("--from", metavar="DIR", help="Bundle to install from, without network.")
    ] = None,
    python: Annotated[
        Path | None,
        typer.Option(help="With --from: the Python whose packages the bundle counts on; else this one."),
    ] = None,
    home: Annotated[Path | None, typer.Option(help="Folder to install under.")] = None,
) -> None:
    """Install an engine into an environment of its own, unless it is there.

    By name it is the CPU build (2.5 GB), fetched by pip; from a bundle whatever was packed, with no network.
    """
    installer = Installer(home=home or engines_home(), echo=typer.echo)
    match engine, bundle:
        case str(), None:
            path = installer.install(engine)
        case None, Path():
            path = installer.install_bundle(bundle, python or Path(sys.executable))
        case _:
            remedy = "autotune engines install vllm, or autotune engines install --from DIR"
            raise InputError(InputProblem("install", "takes an engine or a bundle, one of them", remedy))
    # Asking the parser now spares the first study the wait.
    EngineEnvironments(home).find(wiring.launcher_of(engine or path.name.rpartition("-")[0]), path)


@app.command(
    epilog="Example: autotune engines bundle vllm==0.22.1 --for there.json --without flashinfer-cubin "
    "--tool --piece 60MB"
)
def bundle(
    engine: Annotated[str, typer.Argument(metavar="ENGINE==VERSION", help="Release to pack.")],
    for_: Annotated[
        str,
        typer.Option(
            "--for",
            metavar="PLATFORM|FILE",
            help="As py3.12-linux-x86_64, or a file of what `python3 -m pip inspect` prints at the "
            "destination: what is installed there already is left out.",
        ),
    ],
    to: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to pack into [build/ENGINE-VERSION].")
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option(metavar="PACKAGE", help="Package that nobody needs there; repeat it.")
    ] = None,
    tool: Annotated[bool, typer.Option(help="Pack autotune too, to be installed with it there.")] = False,
    piece: Annotated[str, typer.Option(metavar="SIZE", help="Size of a piece at most.")] = "2GB",
) -> None:
    """Pack an engine's wheels for a machine without network, in pieces with checksums.

    There: autotune engines install --from DIR; where the tool was packed too, python3 DIR/install.py PATH.
    """
    order = Order.of(engine, for_, left_out=without or (), tool=tool, piece=piece)
    wiring.launcher_of(engine.partition("==")[0])  # before it is fetched: nobody could launch it
    folder = to or Path("build") / engine.replace("==", "-")
    made = Packer(echo=typer.echo).pack(order, folder)
    render.print_plain(render_engines.packed(made, folder))


@app.command("list", epilog="Example: autotune engines list --json")
def list_engines(storage: Storage = wiring.DEFAULT_STORAGE, as_json: Json = False) -> None:
    """List every engine that a launcher knows, installed or not, and how far each was tried here.

    ran: measured in a study of the storage, in this version; checked: its own parser answers; rendered:
    written from documentation alone.
    """
    statuses = wiring.engine_statuses(wiring.versions_run(wiring.read_store(storage)))
    if as_json:
        render.print_json([render_engines.engine_document(status) for status in statuses])
    else:
        render.wide_console().print(render_engines.engines(statuses))


@app.command(epilog="Example: autotune engines recipes --engine vllm --json")
def recipes(
    engine: Annotated[str | None, typer.Option(help="Of this engine alone.")] = None, as_json: Json = False
) -> None:
    """Write the commands of the recipes for large models, each with the evidence that it rests on."""
    written = [each for each in wiring.written_recipes() if engine in {None, each.recipe.engine}]
    if as_json:
        render.print_json([render_engines.recipe_document(each) for each in written])
    else:
        render.print_plain(render_engines.recipes_markdown(written))


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
