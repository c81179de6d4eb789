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

from autotune.domain.config import SEARCHABLE
from autotune.domain.errors import InputError, InputProblem
from autotune.domain.hardware import Hardware
from autotune.domain.sla import Sla
from autotune.domain.study import StudySpec

Path_ = tuple[str | int, ...]


class SourceFile:
    """A parsed YAML file that knows on which line each of its keys stands."""

    def __init__(self, path: Path) -> None:
        """Parse; raises InputError for a file that is not there, or no YAML mapping."""
        self.path = path
        try:
            self.data = YAML(typ="rt").load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as missing:
            remedy = "name a study file, such as search_spaces/quickstart.yaml"
            raise InputError(InputProblem(str(path), f"cannot be read: {missing}", remedy)) from missing
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
    if isinstance(data.get("space"), str):
        data["space"] = _named_space(source, data["space"], spaces)
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


def check_against_hardware(path: Path, study: StudySpec, hardware: Hardware) -> None:
    """Raise InputError for parallelism in the space that no configuration on this hardware could have."""
    source = SourceFile(path)
    problems = []
    for name in ("tensor_parallel", "pipeline_parallel", "data_parallel"):
        if name not in study.space.dimensions:
            continue
        for value in study.space.choices(name):
            if isinstance(value, int) and value > hardware.count:
                what = f"{value} is more than the {hardware.describe()} there are"
                remedy = f"leave out values above {hardware.count}, or run where there are more devices"
                problems.append(source.problem(("space", "dimensions", name), what, remedy))
    if problems:
        raise InputError(problems)


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


def _named_space(source: SourceFile, name: str, spaces: Path) -> Any:
    at = spaces / f"{name}.yaml"
    known = sorted(p.stem for p in spaces.glob("*.yaml") if "dimensions" in SourceFile(p).data)
    if name not in known:
        raise InputError(
            source.problem(("space",), f"no space is named {name!r}", f"known: {', '.join(known)}")
        )
    return _plain(SourceFile(at).data)


def _problems(source: SourceFile, invalid: ValidationError) -> list[InputProblem]:
    """One problem per mistake: a misspelt key is not told a second time as the one that is missing."""
    errors = invalid.errors()
    meant = {_meant(source, e["loc"]) for e in errors if e["type"] == "extra_forbidden"}
    told = [e for e in errors if e["type"] != "missing" or e["loc"][-1] not in meant]
    return [_problem(source, error) for error in told]


def _problem(source: SourceFile, error: Mapping[str, Any]) -> InputProblem:
    where = _existing(source, error["loc"])
    what = str(error["msg"]).removeprefix("Value error, ")
    match error["type"]:
        case "extra_forbidden":
            meant = _meant(source, error["loc"])
            known = ", ".join(sorted(_known_keys(source, where)))
            remedy = f"did you mean {meant!r}?" if meant else f"known here: {known}"
            return source.problem(where, "unknown key", remedy)
        case "missing":
            key = error["loc"][-1]
            return source.problem(where, f"{key!r} is missing", f"add `{key}:`")
        case _ if "duration" in what:
            what, _, remedy = what.partition("; ")
            return source.problem(where, what, remedy)
        case _:
            return source.problem(where, what, "`autotune schema` shows what may stand here")


def _meant(source: SourceFile, loc: Sequence[str | int]) -> str:
    """The known key that an unknown one most resembles, '' for none."""
    where = _existing(source, loc)
    close = difflib.get_close_matches(str(where[-1]), _known_keys(source, where), 1) if where else []
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
    model: Any = StudySpec
    for step in where[:-1]:
        if isinstance(step, int) or not isinstance(model, type) or not issubclass(model, BaseModel):
            continue
        if step == "dimensions":
            return set(SEARCHABLE)
        models = list(_models_in(model.model_fields[step].annotation)) if step in model.model_fields else []
        if not models:
            return set()
        model = models[0] if len(models) == 1 else _chosen(source, where, models)
    return set(model.model_fields)


def _models_in(annotation: Any) -> Iterable[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _chosen(source: SourceFile, where: Path_, models: list[type[BaseModel]]) -> type[BaseModel]:
    """Of a union's members, the one whose keys the file's mapping mostly has."""
    node: Any = source.data
    for step in where[:-1]:
        node = node[step]
    return max(models, key=lambda m: len(set(m.model_fields) & set(node)))


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
