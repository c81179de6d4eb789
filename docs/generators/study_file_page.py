"""The study file's reference, from the JSON Schema that ``autotune schema`` prints."""

from __future__ import annotations

from schema_tables import sections

from autotune.adapters.files.study_file import study_schema


def markdown() -> str:
    """Every object of a study file with its keys, values, defaults and meanings."""
    return sections(study_schema(), "Study")
