"""Fills in the parts of pages that are made of the code itself, while MkDocs builds.

A page asks for one by a line ``<!-- generated: NAME -->``. Nothing of it is kept in a file: none goes stale.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import api_page
import command_page
import recommendation_page
import study_file_page
import words_page

PARTS: Mapping[str, Callable[[], str]] = {
    "api": api_page.markdown,
    "command line": command_page.markdown,
    "recommendation": recommendation_page.markdown,
    "study file": study_file_page.markdown,
    "words": words_page.markdown,
}
_ASKED = re.compile(r"^<!-- generated: (.+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_mkdocs: Any) -> str:
    """Put generated parts in their places; raises KeyError for one that is not known."""
    return _ASKED.sub(lambda asked: PARTS[asked[1]](), markdown)
