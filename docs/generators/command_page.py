"""The command line's reference: what typer tells of the app, with its examples as code."""

from __future__ import annotations

import re

import typer
from typer.cli import get_docs_for_click

from autotune.cli.app import app

NAME = "autotune"
_FIRST_EXAMPLE = re.compile(r"^Examples?:(?: |$)", re.MULTILINE)
_HEADING = re.compile(r"^(#+ `)", re.MULTILINE)
_DESCRIBED = re.compile(r"^(\* `.*?`:) (.*)$", re.MULTILINE)


def markdown() -> str:
    """Every command with its arguments, options and examples, a heading below the page's own."""
    command = typer.main.get_command(app)
    told = get_docs_for_click(obj=command, ctx=command.context_class(command, info_name=NAME), name=NAME)
    return _HEADING.sub(r"#\1", _examples_as_code(told))


def _examples_as_code(told: str) -> str:
    """An epilog that gives examples, as code; it ends at the next heading or list of commands."""
    parts = _FIRST_EXAMPLE.split(told)
    return parts[0] + "".join(_as_code(part) for part in parts[1:])


def _as_code(part: str) -> str:
    end = re.search(r"^(?:\*\*Commands|#)", part, re.MULTILINE)
    given, rest = (part[: end.start()], part[end.start() :]) if end else (part, "")
    lines = [line.strip() for line in given.replace(" · ", "\n").splitlines() if line.strip()]
    return "```sh\n" + "\n".join(lines) + "\n```\n\n" + rest
