"""What a command, or a figure, rests on."""

from __future__ import annotations

from enum import StrEnum


class EvidenceLevel(StrEnum):
    """How far something was tried; only what ran may be recommended."""

    RAN = "ran"
    """Measured here, with this version of the engine."""
    CHECKED = "checked"
    """The engine's own parser was asked, and takes it."""
    RENDERED = "rendered"
    """Written from the engine's documentation and source; the engine is not here to be asked."""
