"""One table of failure rules out of several, for engines that run others inside."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from autotune.domain.launches.launch import FailureClass
from launchers.failures import FailureRules

_ByClass = Mapping[FailureClass, tuple[str, ...]]


def combined(*rules: FailureRules) -> FailureRules:
    """The rules together, those of the first before those of the next."""
    return FailureRules(
        at_start=_by_class(each.at_start for each in rules),
        stages=_by_class(each.stages for each in rules),
        prefixes=_texts(rules, lambda each: each.prefixes),
        harmless=_texts(rules, lambda each: each.harmless),
        hollow=_texts(rules, lambda each: each.hollow),
        dead=_texts(rules, lambda each: each.dead),
    )


def _texts(
    rules: tuple[FailureRules, ...], part: Callable[[FailureRules], tuple[str, ...]]
) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for each in rules for text in part(each)))


def _by_class(tables: Iterable[_ByClass]) -> _ByClass:
    joined: dict[FailureClass, tuple[str, ...]] = {}
    for table in tables:
        for failure_class, texts in table.items():
            joined[failure_class] = (*joined.get(failure_class, ()), *texts)
    return joined
