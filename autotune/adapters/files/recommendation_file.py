"""Recommendation documents and exports as files: JSON and YAML."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.scalarstring import LiteralScalarString

from autotune.domain.basics.errors import InputError, InputProblem
from autotune.domain.recommending.contract import VERSION, RecommendationDocument

SUFFIXES = {".yaml": "yaml", ".yml": "yaml", ".json": "json"}
MOST_BYTES = 64 << 20


def read_recommendation(path: Path) -> RecommendationDocument:
    """Read a document, JSON or YAML; raises InputError with every place that does not fit."""
    remedy = "write one with `autotune recommend STUDY -o rec.yaml`"
    data = _load(path, remedy)
    if not isinstance(data, dict) or "schema_version" not in data:
        raise InputError(InputProblem(str(path), "is no recommendation document", remedy))
    if data["schema_version"] != VERSION:
        what = f"is of schema version {data['schema_version']!r}; this package reads {VERSION!r}"
        raise InputError(InputProblem(str(path), what, remedy))
    try:
        return RecommendationDocument.model_validate(data)
    except ValidationError as wrong:
        raise InputError(
            [
                InputProblem(str(path), f"{'.'.join(map(str, e['loc']))}: {e['msg']}")
                for e in wrong.errors(include_url=False)
            ]
        ) from wrong


def written(document: RecommendationDocument, form: str) -> str:
    """A document as text: ``json`` or ``yaml``."""
    data = document.model_dump(mode="json")
    return json.dumps(data, indent=2, allow_nan=False) + "\n" if form == "json" else yaml_text([data])


def form_of(path: Path) -> str:
    """The form that a file's name asks for; raises InputError."""
    if (form := SUFFIXES.get(path.suffix.lower())) is None:
        what = f"{path.suffix or 'no suffix'} tells no form"
        raise InputError(InputProblem(str(path), what, "name it .yaml or .json"))
    return form


def yaml_text(documents: Iterable[Any]) -> str:
    """Plain data as YAML, one document after the other; texts of several lines stay readable."""
    yaml = YAML(typ="rt")
    yaml.default_flow_style = False
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.ignore_aliases = lambda *_: True
    out = io.StringIO()
    yaml.dump_all([_readable(each) for each in documents], out)
    return out.getvalue()


def read_templates(folder: Path, form: str) -> list[dict[str, Any]]:
    """Every YAML document of ``FOLDER/FORM.yaml``, one's own additions to a form; raises InputError."""
    path = folder / f"{form}.yaml"
    remedy = f"put your additions to --form {form} into {path.name} in that folder"
    documents = _load(path, remedy, several=True)
    if wrong := [each for each in documents if not isinstance(each, dict)]:
        raise InputError(InputProblem(str(path), f"{wrong[0]!r} is no mapping", remedy))
    return list(documents)


def write_file(path: Path, text: str) -> None:
    """Write a file whole or not at all; raises InputError."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        problem = InputProblem(str(path), f"cannot be written: {error.strerror}", "name another -o FILE")
        raise InputError(problem) from error


def _load(path: Path, remedy: str, *, several: bool = False) -> Any:
    yaml = YAML(typ="safe", pure=True)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InputError(InputProblem(str(path), f"is larger than {MOST_BYTES >> 20} MiB", remedy))
        text = path.read_text(encoding="utf-8")
        if several:
            return [each for each in yaml.load_all(text) if each is not None]
        return json.loads(text) if path.suffix.lower() == ".json" else yaml.load(text)
    except (OSError, UnicodeDecodeError) as missing:
        what = f"cannot be read: {getattr(missing, 'strerror', None) or missing}"
        raise InputError(InputProblem(str(path), what, remedy)) from missing
    except (YAMLError, ValueError, RecursionError) as broken:
        what = f"is no {'JSON' if path.suffix.lower() == '.json' else 'YAML'}: {str(broken).splitlines()[0]}"
        raise InputError(InputProblem(str(path), what, remedy)) from broken


def _readable(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _readable(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_readable(each) for each in data]
    if isinstance(data, str) and "\n" in data:
        return LiteralScalarString(data)
    return data
