"""JSON Schema as Markdown: a section with a table of keys for each kind of object."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]

_PLAIN = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}
_BOUNDS = {
    "exclusiveMinimum": "above",
    "minimum": "at least",
    "exclusiveMaximum": "below",
    "maximum": "at most",
}
_REF = "#/$defs/"
_NO_BOUND = 2**31 - 1
"""Bounds from here on only keep numbers within 32 bits."""


def sections(schema: Schema, title: str, level: int = 2) -> str:
    """The root under ``title``, then every object that it refers to, in the order of reference."""
    return sections_of({title: schema}, schema.get("$defs", {}), level)


def sections_of(roots: Mapping[str, Schema], parts: Schema, level: int = 2) -> str:
    """The roots by their names, then every object that they refer to, in the order of reference."""
    kinds = dict(roots)
    places: dict[str, list[str]] = {}
    waiting = [*kinds]
    for kind in waiting:  # grows while it is read: breadth first
        for key, told in kinds[kind].get("properties", {}).items():
            for name in _referred(told, parts):
                places.setdefault(name, []).append(key)
                if name not in kinds:
                    kinds[name] = parts[name]
                    waiting.append(name)
    return "\n\n".join(_section(name, kinds[name], parts, places.get(name, []), level) for name in kinds)


def value_of(told: Schema, parts: Schema) -> str:
    """What may stand there, in words; objects as links to their sections."""
    words = list(dict.fromkeys(_alternatives(told, parts)))
    if {*_PLAIN.values()} <= {*words}:
        words = ["value", *(word for word in words if word not in _PLAIN.values())]
    return " or ".join(words)


def _section(name: str, schema: Schema, parts: Schema, places: list[str], level: int) -> str:
    lines = [f"{'#' * level} {name}", ""]
    lines += [" ".join(schema.get("description", "").replace("``", "`").split()), ""]
    if places:
        lines += ["Stands under " + ", ".join(f"`{place}`" for place in dict.fromkeys(places)) + ".", ""]
    lines += ["| key | value | default | meaning |", "| --- | --- | --- | --- |"]
    required = schema.get("required", [])
    for key, told in schema.get("properties", {}).items():
        default = "**required**" if key in required else _default(told)
        meaning = (told.get("description") or _described_by(told, parts)).replace("|", "\\|")
        lines.append(f"| `{key}` | {value_of(told, parts)} | {default} | {meaning} |")
    return "\n".join(lines)


def _described_by(told: Schema, parts: Schema) -> str:
    """What the object says of itself, for a key that says nothing and takes one kind of object alone."""
    kinds = [*_referred(told, parts)]
    said = parts[kinds[0]].get("description", "") if len(kinds) == 1 else ""
    return " ".join(said.partition("\n\n")[0].replace("``", "`").split())


def _default(told: Schema) -> str:
    """The default as YAML writes it; nothing for one that is empty, or is the object's own defaults."""
    default = told.get("default")
    if default is None or default == "" or isinstance(default, dict | list):
        return ""
    return f"`{default if isinstance(default, str) else json.dumps(default)}`"


def _alternatives(told: Schema, parts: Schema) -> Iterator[str]:
    if "$ref" in told:
        name = told["$ref"].removeprefix(_REF)
        yield from _named(name, parts)
    for choice in (*told.get("anyOf", ()), *told.get("oneOf", ())):
        yield from _alternatives(choice, parts)
    if "const" in told:
        yield f"`{told['const']}`"
    elif "enum" in told:
        yield from (f"`{value}`" for value in told["enum"])
    elif told.get("type") == "array":
        yield _list(told, parts)
    elif told.get("type") == "object":
        yield _mapping(told, parts)
    elif told.get("type") in _PLAIN:
        yield _scalar(told)


def _named(name: str, parts: Schema) -> Iterator[str]:
    if "properties" in parts[name]:
        yield f"[{name}](#{name.lower()})"
    else:
        yield from _alternatives(parts[name], parts)


def _list(told: Schema, parts: Schema) -> str:
    if "prefixItems" in told:
        return "[" + ", ".join(value_of(item, parts) for item in told["prefixItems"]) + "]"
    return f"list of {value_of(told.get('items', {}), parts) or 'values'}"


def _mapping(told: Schema, parts: Schema) -> str:
    inner = told.get("additionalProperties")
    return f"mapping to {value_of(inner, parts)}" if isinstance(inner, dict) else "mapping"


def _scalar(told: Schema) -> str:
    if examples := told.get("examples"):
        return "such as " + ", ".join(f"`{example}`" for example in examples)
    bounds = [
        f"{word} {told[key]:g}" for key, word in _BOUNDS.items() if key in told and told[key] < _NO_BOUND
    ]
    return " ".join([_PLAIN[told["type"]], ", ".join(bounds)]).strip()


def _referred(told: Any, parts: Schema) -> Iterator[str]:
    """Names of the objects that a part of a schema refers to, through lists and alternatives."""
    if isinstance(told, Mapping):
        name = str(told.get("$ref", "")).removeprefix(_REF)
        if name in parts and "properties" in parts[name]:
            yield name
        for key, value in told.items():
            if key != "default":
                yield from _referred(value, parts)
    elif isinstance(told, list):
        for value in told:
            yield from _referred(value, parts)
