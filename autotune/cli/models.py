"""``autotune models``: models to try the whole of it without a download."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from autotune.adapters.files.synthetic_model import make_tiny_model, make_weightless_model

app = typer.Typer(help="Make models without a download, for first studies and tests.")


class Made(StrEnum):
    """Models that can be made."""

    DENSE = "tiny-dense"
    MOE = "tiny-moe"
    DENSE_INT8 = "tiny-dense-int8"
    DENSE_8B = "dense-8b"
    MOE_30B = "moe-30b-a3b"


@app.callback()
def group() -> None:
    """Make models without a download, for first studies and tests."""


@app.command(epilog="Example: autotune models make tiny-moe .models/tiny-moe")
def make(
    model: Annotated[Made, typer.Argument(help="Which to make.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make it in.")],
    seed: Annotated[int, typer.Option(help="Seed of the weights: the same seed, the same bytes.")] = 0,
) -> None:
    """Make a model with a tokenizer.

    tiny-…: 5-8 M parameters, random. dense-8b, moe-30b-a3b: of real size and without weights, which the
    engine makes up (vLLM: args: [--load-format, dummy]); speed, memory and watts are real, answers are not.
    """
    match model:
        case Made.DENSE_8B | Made.MOE_30B:
            written = make_weightless_model(folder, moe=model is Made.MOE_30B)
        case _:
            moe, int8 = model is Made.MOE, model is Made.DENSE_INT8
            written = make_tiny_model(folder, moe=moe, seed=seed, int8=int8)
    typer.echo(f"{model} {'made' if written else 'is there'}: {folder}")
