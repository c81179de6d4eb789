"""Reads a model's files from a directory or from the hub's local cache; never from a network."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from autotune.domain.basics.errors import InputError, InputProblem
from autotune.domain.models.checkpoint import StoredWeights
from autotune.domain.models.model import ModelShape

_REMEDY = "name a directory that holds a model in Hugging Face layout, or fetch the model again"
_QUANTIZATION_FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")
"""Where older and other tools (ModelOpt, AutoGPTQ, AutoAWQ) write what config.json says of quantisation."""

_LARGEST_HEADER_BYTES = 100_000_000
"""The format's own limit."""


class ModelFiles:
    """Models on the file system; ``environ`` says where the hub's cache is."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        self._environ = os.environ if environ is None else environ

    def shape(self, model: str) -> ModelShape | None:
        """Read the shape of a local directory or a cached hub model; None where it is not at hand.

        Raises InputError for a path that is no model directory and for a file that cannot be read.
        """
        folder = self._folder(model)
        return _read_shape(folder) if folder else None

    def weights(self, model: str) -> StoredWeights | None:
        """Read what the headers of all safetensors files say; None where one of them is not at hand.

        Raises InputError as ``shape`` does, and for a file that is no safetensors file.
        """
        folder = self._folder(model)
        shape = _read_shape(folder) if folder else None
        files = _safetensors_files(folder) if folder else ()
        if shape is None or not files or not all(file.is_file() for file in files):
            return None
        return _stored(files, layers=shape.layers)

    def tokenizer(self, model: str) -> Path | None:
        """The model's tokenizer.json; None where it is not at hand."""
        directory = Path(model).expanduser()
        folder = directory if directory.is_dir() else self._snapshot(model)
        file = folder / "tokenizer.json" if folder else None
        return file if file and file.is_file() else None

    def _folder(self, model: str) -> Path | None:
        """Where a model's files are; None for a single file, and for a hub model that was never fetched."""
        directory = Path(model).expanduser()
        if directory.is_dir():
            return directory
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
        return self._snapshot(model)

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


def _read_shape(folder: Path) -> ModelShape:
    path = folder / "config.json"
    config = _read_object(path)
    if not isinstance(config.get("text_config") or {}, dict):
        raise InputError(InputProblem(str(path), "does not describe a model", _REMEDY))
    beside = next((folder / name for name in _QUANTIZATION_FILES if (folder / name).is_file()), None)
    if beside and "quantization_config" not in config:
        told = _read_object(beside)
        quantization = told.get("quantization") or told
        config["quantization_config"] = quantization if isinstance(quantization, dict) else told
    try:
        return ModelShape.from_config(config)
    except (ValueError, TypeError, AttributeError, LookupError) as error:  # a size that is no number
        raise InputError(InputProblem(str(path), f"is damaged: {error}", _REMEDY)) from error


def _read_object(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(InputProblem(str(path), f"cannot be read: {error.strerror}", _REMEDY)) from error
    except ValueError as error:  # not UTF-8, not JSON
        raise InputError(InputProblem(str(path), f"is damaged: {error}", _REMEDY)) from error
    if not isinstance(read, dict):
        raise InputError(InputProblem(str(path), "does not describe a model", _REMEDY))
    return read


def _safetensors_files(folder: Path) -> tuple[Path, ...]:
    """The files of a checkpoint: those that its index names, else the one there is."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return tuple(sorted(folder.glob("model*.safetensors")))
    placed = _read_object(index).get("weight_map")
    if not isinstance(placed, dict):
        raise InputError(InputProblem(str(index), "does not say where the weights are", _REMEDY))
    return tuple(folder / name for name in sorted({str(name) for name in placed.values()}))


def _stored(files: tuple[Path, ...], *, layers: int) -> StoredWeights:
    sizes: Counter[str] = Counter()
    numbers: Counter[str] = Counter()
    draft_bytes = 0
    for file in files:
        for name, tensor in _read_header(file).items():
            begin, end = tensor["data_offsets"]
            sizes[tensor["dtype"]] += end - begin
            numbers[tensor["dtype"]] += prod(tensor["shape"])
            draft_bytes += end - begin if _only_drafts(name, layers) else 0
    return StoredWeights(bytes_by_dtype=dict(sizes), numbers_by_dtype=dict(numbers), draft_bytes=draft_bytes)


def _read_header(file: Path) -> dict[str, Any]:
    """Tensors of a safetensors file by name.

    The format (huggingface/safetensors, README): eight bytes of length, little-endian, then JSON. The
    format's own library does not tell sizes in bytes, and the hub's would have its whole client imported.
    """
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            # A length beyond the limit is no length: nothing is read then, which is no JSON either.
            header = json.loads(stream.read(length) if length <= _LARGEST_HEADER_BYTES else b"")
        return {name: tensor for name, tensor in header.items() if name != "__metadata__"}
    except OSError as error:
        raise InputError(InputProblem(str(file), f"cannot be read: {error.strerror}", _REMEDY)) from error
    except (ValueError, AttributeError) as error:
        raise InputError(InputProblem(str(file), f"is no safetensors file: {error}", _REMEDY)) from error


def _only_drafts(name: str, layers: int) -> bool:
    """Whether a tensor belongs to layers that only draft: beyond the last layer, or under ``mtp``."""
    if "mtp" in name.split("."):
        return True
    numbered = re.search(r"\blayers\.(\d+)\.", name)
    return numbered is not None and int(numbered[1]) >= layers > 0
