"""``autotune models``: small models to try the whole of it without a download."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from autotune.adapters.files.synthetic_model import make_tiny_model

app = typer.Typer(help="Make small models with random weights, for first studies and tests.")


class TinyModel(StrEnum):
    """Models that can be made."""

    DENSE = "tiny-dense"
    MOE = "tiny-moe"
    DENSE_INT8 = "tiny-dense-int8"


@app.callback()
def group() -> None:
    """Make small models with random weights, for first studies and tests."""


@app.command(epilog="Example: autotune models make tiny-moe .models/tiny-moe")
def make(
    model: Annotated[TinyModel, typer.Argument(help="Which to make.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make it in.")],
    seed: Annotated[int, typer.Option(help="Seed of the weights: the same seed, the same bytes.")] = 0,
) -> None:
    """Make a model of 5-8 M parameters with random weights and a tokenizer."""
    written = make_tiny_model(
        folder, moe=model is TinyModel.MOE, seed=seed, int8=model is TinyModel.DENSE_INT8
    )
    typer.echo(f"{model} {'made' if written else 'is there'}: {folder}")
