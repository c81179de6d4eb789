"""Islands of GPUs: those that reach one another over links of their own."""

from __future__ import annotations

from collections.abc import Iterable


def islands(count: int, linked: Iterable[tuple[int, int]]) -> list[int]:
    """Number the islands of ``count`` GPUs by the lowest position in each; a GPU without links is one."""
    island = list(range(count))
    for one, other in linked:
        low, high = sorted((island[one], island[other]))
        island = [low if each == high else each for each in island]
    return island
