"""Reads a model's ``tokenizer.json``."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from autotune.domain.basics.errors import InputError, InputProblem


def read_tokenizer(path: Path) -> Tokenizer:
    """Read the file, or that of a model's folder; raises InputError."""
    file = path / "tokenizer.json" if path.is_dir() else path
    remedy = "name a model's folder with its tokenizer.json, or fetch the model again"
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        what = f"cannot be read: {getattr(error, 'strerror', None) or error}"
        raise InputError(InputProblem(str(file), what, remedy)) from error
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as broken:  # the library raises nothing narrower
        raise InputError(InputProblem(str(file), f"is no tokenizer: {broken}", remedy)) from broken
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
