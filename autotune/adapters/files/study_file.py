"""Study files: YAML with positions, so that every mistake is reported by file and line, with its remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from autotune.domain.basics.errors import InputError, InputProblem
from autotune.domain.configs.config import SEARCHABLE, Value
from autotune.domain.configs.space import SearchSpace
from autotune.domain.hardware.hardware import Hardware
from autotune.domain.judging.sla import Sla
from autotune.domain.studies.study import StudySpec

Path_ = tuple[str | int, ...]

PARALLELISM = frozenset({"tensor_parallel", "pipeline_parallel", "data_parallel"})

_INSTEAD = {
    "prefix_hits": "write `prefix_hits: {expected: 0.5}`",
    "number": "write a whole number above 0, or a distribution {median, sigma, high}",
}
"""What to write instead, by the last of pydantic's location: a key, or the tag of a union's member."""


class SourceFile:
    """A parsed YAML file that knows on which line each of its keys stands."""

    def __init__(self, path: Path, model: type[BaseModel] = StudySpec) -> None:
        """Parse a file that is to fit ``model``; raises InputError for one not there, or no YAML mapping."""
        self.path, self.model = path, model
        try:
            self.data = YAML(typ="rt").load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as missing:
            what = f"cannot be read: {getattr(missing, 'strerror', None) or missing}"
            remedy = "name a study file, such as search_spaces/quickstart.yaml"
            raise InputError(InputProblem(str(path), what, remedy)) from missing
        except YAMLError as broken:
            raise InputError(_yaml_problem(path, broken)) from broken
        if not isinstance(self.data, CommentedMap):
            raise InputError(InputProblem(f"{path}:1", "is no YAML mapping", "write `key: value` lines"))

    def line(self, where: Sequence[str | int]) -> int:
        """Line of a key, or of the nearest that is there, counted from 1."""
        node, line = self.data, 1
        for step in where:
            try:
                if isinstance(node, CommentedMap):
                    line = node.lc.key(step)[0] + 1
                elif isinstance(node, CommentedSeq):
                    line = node.lc.item(step)[0] + 1
                node = node[step]
            except (KeyError, IndexError, TypeError):
                break
        return line

    def problem(self, where: Sequence[str | int], what: str, remedy: str = "") -> InputProblem:
        """A problem at a key."""
        dotted = ".".join(str(step) for step in where)
        return InputProblem(
            f"{self.path}:{self.line(where)}", f"{dotted}: {what}" if dotted else what, remedy
        )


def read_study(path: Path, spaces: Path, overrides: Mapping[str, Any] | None = None) -> StudySpec:
    """Read a study file; a space given by name comes from the folder ``spaces``.

    ``overrides`` take the place of top-level keys. Raises InputError that lists every problem.
    """
    source = SourceFile(path)
    data = _plain(source.data) | dict(overrides or {})
    data.setdefault("name", path.stem)
    for part in _space_holders(data):
        if isinstance(part.get("space"), str):
            part["space"] = _named_space(source, part["space"], spaces).model_dump()
    try:
        return StudySpec.model_validate(data)
    except ValidationError as invalid:
        raise InputError(_problems(source, invalid)) from invalid


def read_slas(path: Path) -> tuple[Sla, ...]:
    """Read a file with a list of SLAs under ``slas``; raises InputError."""
    source = SourceFile(path)
    data = _plain(source.data)

    class SlaFile(BaseModel, extra="forbid"):
        slas: tuple[Sla, ...]

    try:
        return SlaFile.model_validate(data).slas
    except ValidationError as invalid:
        raise InputError(_problems(source, invalid)) from invalid


def study_schema() -> dict[str, Any]:
    """JSON Schema of study files: that of the study, whose space may be a name."""
    schema = StudySpec.model_json_schema()
    by_name = {"type": "string", "description": "name of a space, such as vllm"}
    for part in (schema, schema["$defs"]["EngineSpec"]):
        space = part["properties"]["space"]
        space["anyOf"] = [*space["anyOf"], by_name]
    return schema


def check_against_hardware(path: Path, study: StudySpec, hardware: Hardware) -> None:
    """Raise InputError for parallelism written in the study file that this hardware cannot carry.

    A space taken by name serves machines of many sizes: what is too large in it is refused on paper.
    """
    source = SourceFile(path)
    given: dict[Path_, Sequence[Value]] = {}
    places: list[tuple[Path_, Any, SearchSpace | None]] = [((), source.data, study.space)]
    listed = source.data.get("engines") or []
    for at, (engine, written) in enumerate(zip(study.engines, listed, strict=False)):
        places.append((("engines", at), written, engine.space))
        for name in PARALLELISM & engine.fixed.keys():
            given["engines", at, "fixed", name] = (engine.fixed[name],)
    for place, written, space in places:
        if space is not None and not isinstance(written.get("space"), str):
            for name in PARALLELISM & space.dimensions.keys():
                given[*place, "space", "dimensions", name] = space.choices(name)
    problems = []
    for where, values in given.items():
        most = max((value for value in values if isinstance(value, int)), default=0)
        if most > hardware.count:
            what = f"{most} is more than the {hardware.describe()} there are"
            remedy = f"leave out values above {hardware.count}, or run where there are more devices"
            problems.append(source.problem(where, what, remedy))
    if problems:
        raise InputError(problems)


def _space_holders(data: dict[str, Any]) -> list[dict[str, Any]]:
    """The parts of a file that may have a space: the study, and each engine."""
    engines = data.get("engines")
    listed = engines if isinstance(engines, list) else []
    return [data, *(engine for engine in listed if isinstance(engine, dict))]


def _plain(node: Any) -> Any:
    """The same data without ruamel's types."""
    if isinstance(node, Mapping):
        return {key: _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


def _named_space(source: SourceFile, name: str, spaces: Path) -> SearchSpace:
    known = sorted(p.stem for p in spaces.glob("*.yaml") if "dimensions" in SourceFile(p).data)
    if name not in known:
        remedy = f"known: {', '.join(known)}" if known else "write its `dimensions:` in this file"
        raise InputError(source.problem(("space",), f"no space is named {name!r}", remedy))
    space = SourceFile(spaces / f"{name}.yaml", SearchSpace)
    try:
        return SearchSpace.model_validate(_plain(space.data))
    except ValidationError as invalid:
        raise InputError(_problems(space, invalid)) from invalid


def _problems(source: SourceFile, invalid: ValidationError) -> list[InputProblem]:
    """One problem per mistake, of which pydantic tells some several times.

    A misspelt key would be told again as one that is missing, a wrong item as a list that is too short, and
    a value that fits no member of a union once for each.
    """
    errors: dict[Path_, list[Mapping[str, Any]]] = {}
    for error in invalid.errors():
        errors.setdefault(_place(source, error), []).append(error)
    meant = {
        (*at[:-1], _meant(source, at)) for at, (e, *_) in errors.items() if e["type"] == "extra_forbidden"
    }
    inner = {at[:length] for at in errors for length in range(1, len(at))}
    return [_problem(source, at, told) for at, told in errors.items() if at not in meant | inner]


def _problem(source: SourceFile, at: Path_, told: Sequence[Mapping[str, Any]]) -> InputProblem:
    error, context = told[0], told[0].get("ctx", {})
    instead = next((_INSTEAD[step] for step in error["loc"][-1:] if step in _INSTEAD), "")
    match error["type"]:
        case "extra_forbidden":
            known = ", ".join(sorted(_known_keys(source, at)))
            meant = _meant(source, at)
            what, remedy = "unknown key", f"did you mean {meant!r}?" if meant else f"known here: {known}"
        case "missing":
            what, remedy = "is missing", f"add `{at[-1]}:`"
        case "value_error" | "no_arrivals":
            what, _, remedy = str(error["msg"]).removeprefix("Value error, ").partition("; ")
        case "union_tag_invalid":
            what, remedy = f"{context['tag']!r} is no contract", f"known: {context['expected_tags']}"
        case "model_type" | "dict_type":
            what, remedy = "is no mapping", instead or "write `key: value` lines under it"
        case "tuple_type":
            what, remedy = "is no list", "write [a, b], or a line `- a` for each"
        case "too_short":
            what, remedy = "is empty", "give at least one"
        case "too_long":
            what, remedy = f"has {context['actual_length']} items", f"leave {context['max_length']}"
        case "string_pattern_mismatch":
            what, remedy = f"{error['input']!r} is no name", "use letters, digits, `.`, `_` and `-`"
        case _:
            what, remedy = f"should be {' or '.join(map(_wanted, told))}, not {error['input']!r}", instead
    return source.problem(at, what, remedy or "`autotune schema` shows what may stand here")


def _wanted(error: Mapping[str, Any]) -> str:
    """What a value should be, without pydantic's words for how it tried to read it."""
    wanted = str(error["msg"]).removeprefix("Input should be ").partition(", unable to")[0]
    return "a mapping" if error["type"] in {"model_type", "dict_type"} else wanted


def _place(source: SourceFile, error: Mapping[str, Any]) -> Path_:
    """Where a problem is told: at the key; also at one that is missing."""
    where = _existing(source, error["loc"])
    match error["type"]:
        case "missing":
            return (*where, error["loc"][-1])
        case "union_tag_invalid":
            return (*where, "contract")
        case _:
            return where


def _meant(source: SourceFile, where: Path_) -> str:
    """The known key that an unknown one most resembles, '' for none."""
    close = difflib.get_close_matches(str(where[-1]), _known_keys(source, where), 1)
    return close[0] if close else ""


def _existing(source: SourceFile, loc: Iterable[str | int]) -> Path_:
    """Drop from pydantic's location what stands in no file: the names of union members."""
    node, path = source.data, []
    for step in loc:
        inside = step in node if isinstance(node, Mapping) else _is_index(node, step)
        if inside:
            node = node[step]
            path.append(step)
    return tuple(path)


def _is_index(node: Any, step: str | int) -> bool:
    return isinstance(node, list) and isinstance(step, int) and step < len(node)


def _known_keys(source: SourceFile, where: Path_) -> set[str]:
    """Keys that the schema has at the place of an unknown one."""
    if where[-2:-1] in {("dimensions",), ("fixed",)} or where[:1] == ("try_first",):
        return set(SEARCHABLE)
    model: type[BaseModel] = source.model
    for step in where[:-1]:
        # Places in lists, and keys of the user's own choosing, are no fields.
        field = model.model_fields.get(str(step))
        models = list(_models_in(field.annotation)) if field else []
        if models:
            model = models[0] if len(models) == 1 else _chosen(source, where, models)
    return set(model.model_fields)


def _models_in(annotation: Any) -> Iterable[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _chosen(source: SourceFile, where: Path_, models: list[type[BaseModel]]) -> type[BaseModel]:
    """Of a union's members without the unknown key, the one that has most keys of the file's mapping."""
    node: Any = source.data
    for step in where[:-1]:
        node = node[step]
    possible = [m for m in models if where[-1] not in m.model_fields]
    return max(possible, key=lambda m: len(set(m.model_fields) & set(node)))


def _yaml_problem(path: Path, broken: YAMLError) -> InputProblem:
    line = 1
    what = str(broken).splitlines()[0]
    if isinstance(broken, MarkedYAMLError):
        mark = broken.problem_mark or broken.context_mark
        line = mark.line + 1 if mark else 1
        what = str(broken.problem or what)
    return InputProblem(
        f"{path}:{line}", f"is no YAML: {what}", "mend the line; indent with spaces, not tabs"
    )
