"""Reads a model's ``config.json`` from a directory or from the hub's local cache; never from a network."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from autotune.domain.errors import InputError, InputProblem
from autotune.domain.model import ModelShape


class ModelFiles:
    """Models on the file system; ``environ`` says where the hub's cache is."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        self._environ = os.environ if environ is None else environ

    def shape(self, model: str) -> ModelShape | None:
        """Read the shape of a local directory or a cached hub model; None where it is not at hand.

        Raises InputError for a path that is no model directory and for a file that cannot be read.
        """
        directory = Path(model).expanduser()
        if directory.is_dir():
            return _read_shape(directory / "config.json")
        if directory.is_file():
            return None  # a single-file checkpoint has no config.json
        if _is_path(model):
            raise InputError(
                InputProblem(
                    f"model {model}",
                    "there is no such directory",
                    f"mend the path, or make a tiny model to try with: autotune models make {model}",
                )
            )
        snapshot = self._snapshot(model)
        return _read_shape(snapshot / "config.json") if snapshot else None

    def tokenizer(self, model: str) -> Path | None:
        """The model's tokenizer.json; None where it is not at hand."""
        directory = Path(model).expanduser()
        folder = directory if directory.is_dir() else self._snapshot(model)
        file = folder / "tokenizer.json" if folder else None
        return file if file and file.is_file() else None

    def _snapshot(self, model: str) -> Path | None:
        """The cached snapshot that ``main`` points to, else the newest one that has a config.json."""
        cached = self._hub_cache() / f"models--{model.replace('/', '--')}"
        main = cached / "refs" / "main"
        if main.is_file():
            pointed = cached / "snapshots" / main.read_text(encoding="utf-8").strip()
            if (pointed / "config.json").is_file():
                return pointed
        found = cached.glob("snapshots/*/config.json")
        newest = max(found, key=lambda config: config.stat().st_mtime, default=None)
        return newest.parent if newest else None

    def _hub_cache(self) -> Path:
        """Where the hub's client keeps models, by the variables that it reads itself."""
        environ = self._environ
        if cache := environ.get("HF_HUB_CACHE"):
            return Path(cache).expanduser()
        caches = Path(environ.get("XDG_CACHE_HOME") or "~/.cache")
        return Path(environ.get("HF_HOME") or caches / "huggingface").expanduser() / "hub"


def _is_path(model: str) -> bool:
    """Whether a name can only be meant as a path: names on the hub are ``name`` or ``organisation/name``."""
    return model.startswith(("/", "~", ".")) or model.endswith("/") or model.count("/") > 1


def _read_shape(path: Path) -> ModelShape:
    remedy = "name a directory that holds a model in Hugging Face layout, or fetch the model again"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict) or not isinstance(config.get("text_config") or {}, dict):
            raise InputError(InputProblem(str(path), "does not describe a model", remedy))
        return ModelShape.from_config(config)
    except OSError as error:
        raise InputError(InputProblem(str(path), f"cannot be read: {error.strerror}", remedy)) from error
    except (ValueError, TypeError) as error:  # not UTF-8, not JSON, or a size that is no number
        raise InputError(InputProblem(str(path), f"is damaged: {error}", remedy)) from error
