"""The recommendation document's reference, from its JSON Schema."""

from __future__ import annotations

from schema_tables import sections

from autotune.domain.recommending.contract import recommendation_schema


def markdown() -> str:
    """Every object of the document with its keys, values and meanings."""
    return sections(recommendation_schema(), "Recommendation")
