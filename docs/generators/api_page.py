"""The HTTP API's reference, from the OpenAPI document that ``autotune serve`` answers with."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from schema_tables import sections_of, value_of

from autotune.web.app import bare_app
from autotune.web.security import ServeOptions
from autotune.wiring import open_store
from autotune.wiring.reading import StudyReader

_KINDS = "#/components/schemas/"


def markdown() -> str:
    """Every address with its parameters, body and answers, then the kinds of objects in them."""
    document = openapi()
    kinds = document["components"]["schemas"]
    parts = [_operation(path, method, told, kinds) for path, method, told in _operations(document)]
    bodies = {kind: kinds[kind] for *_, told in _operations(document) if (kind := _body(told))}
    return "\n\n".join([*parts, "## Bodies", sections_of(bodies, kinds, level=3)])


def openapi() -> dict[str, Any]:
    """The document, of an empty store."""
    with tempfile.TemporaryDirectory() as folder:
        reader = StudyReader(open_store(f"sqlite:///{Path(folder) / 'studies.db'}"))
        try:
            document = bare_app(reader, ServeOptions()).openapi()
        finally:
            reader.close()
    return _with_short_references(document)


def _operations(document: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, told in methods.items():
            yield path, method.upper(), told


def _operation(path: str, method: str, told: Mapping[str, Any], kinds: Mapping[str, Any]) -> str:
    lines = [f"## `{method} {path}`", "", " ".join(told.get("description", "").replace("``", "`").split())]
    if parameters := told.get("parameters"):
        lines += ["", "| parameter | in | value | default |", "| --- | --- | --- | --- |"]
        lines += [_parameter(each, kinds) for each in parameters]
    if body := _body(told):
        lines += ["", f"Body: [{body}](#{body.lower()}), JSON."]
    codes = [f"{code}: {answer['description']}" for code, answer in told.get("responses", {}).items()]
    lines += ["", "Answers: " + "; ".join(codes) + "."]
    return "\n".join(lines)


def _parameter(told: Mapping[str, Any], kinds: Mapping[str, Any]) -> str:
    schema = told["schema"]
    default = f"`{schema['default']}`" if schema.get("default") is not None else ""
    needed = "**required**" if told.get("required") else default
    return f"| `{told['name']}` | {told['in']} | {value_of(schema, kinds)} | {needed} |"


def _body(told: Mapping[str, Any]) -> str:
    content = told.get("requestBody", {}).get("content", {}).get("application/json", {})
    return str(content.get("schema", {}).get("$ref", "")).removeprefix("#/$defs/")


def _with_short_references(document: dict[str, Any]) -> dict[str, Any]:
    """The same with references as JSON Schema has them."""

    def mended(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: mended(value) for key, value in part.items()}
        if isinstance(part, list):
            return [mended(value) for value in part]
        return part.replace(_KINDS, "#/$defs/") if isinstance(part, str) else part

    whole: dict[str, Any] = mended(document)
    return whole
