"""Engines, recipes and bundles for people, and as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from autotune.adapters.bundles.packing import Packed
from autotune.domain.launches.commands import shell_commands
from autotune.wiring import EngineStatus, WrittenRecipe


def engines(statuses: Sequence[EngineStatus]) -> RenderableType:
    """One line per engine."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for heading in ("engine", "installed", "version", "device", "evidence", "path"):
        table.add_column(heading, overflow="fold")
    for each in statuses:
        installed = "yes" if each.installed else "no"
        cells = (each.id, installed, each.version, each.device, each.evidence, each.path)
        table.add_row(*(Text(str(cell or "-")) for cell in cells))
    return table


def engine_document(status: EngineStatus) -> dict[str, Any]:
    """An engine's standing on this machine as plain data."""
    return {**asdict(status), "path": status.path and str(status.path)}


def recipe_document(written: WrittenRecipe) -> dict[str, Any]:
    """A recipe and its commands as plain data."""
    return {
        **written.recipe.model_dump(),
        "evidence": written.evidence,
        "commands": shell_commands(written.launch),
    }


def recipes_markdown(written: Sequence[WrittenRecipe]) -> str:
    """The commands of recipes, for people: a heading, what it is, and a block for each process."""
    parts = []
    for each in written:
        recipe = each.recipe
        nodes = f"{recipe.hosts} nodes, " if recipe.hosts > 1 else ""
        where = f"{nodes}{recipe.config.devices} x {recipe.accelerator}"
        parts.append(
            f"### {recipe.id}\n\n{recipe.model} on {where}: {each.evidence}. After {recipe.source}.\n"
        )
        for role, command in shell_commands(each.launch).items():
            parts.append(f"```sh\n# {role}\n{command}\n```\n")
    return "\n".join(parts)


def packed(made: Packed, folder: Path) -> str:
    """What a bundle holds, and how it is installed."""
    bundle = made.bundle
    largest = sorted(made.wheels.items(), key=lambda item: -item[1])[:3]
    heavy = ", ".join(f"{name.split('-')[0]} {size / 1e6:.0f} MB" for name, size in largest)
    megabytes = sum(made.pieces.values()) / 1e6
    lines = [
        f"{folder}: {bundle.engine} {bundle.version} for {bundle.platform}",
        f"  {len(made.wheels)} wheels in {len(made.pieces)} pieces, {megabytes:.0f} MB ({heavy})",
    ]
    if bundle.there:
        there = ", ".join(f"{name} {version}" for name, version in bundle.there.items())
        lines.append(f"  of the destination's own: {there}")
    if bundle.left_out:
        lines.append(f"  left out: {', '.join(bundle.left_out)}")
    command = (
        f"python3 {folder.name}/install.py ~/autotune-env"
        if bundle.tool_wheels
        else f"autotune engines install --from {folder.name}"
    )
    return "\n".join([*lines, f"there: {command}"])
