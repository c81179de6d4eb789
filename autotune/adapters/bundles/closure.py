"""Which packages an environment needs, and whether those at hand fit together; pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name


@dataclass(frozen=True, slots=True)
class Package:
    """A package in one version, with all that it requires under whatever conditions."""

    name: NormalizedName
    version: str
    requires: tuple[Requirement, ...] = ()


@dataclass(frozen=True, slots=True)
class Unmet:
    """A requirement that what is at hand does not meet; ``by`` is None where it was asked for itself."""

    by: NormalizedName | None
    requirement: Requirement
    found: str | None

    def __str__(self) -> str:
        found = f"there is {self.found}" if self.found else "there is none"
        return f"{self.by or 'the bundle'} wants {self.requirement}, {found}"


@dataclass(frozen=True, slots=True)
class Closure:
    """All that roots need: names that were come by, and requirements that nothing meets."""

    needed: frozenset[NormalizedName]
    unmet: tuple[Unmet, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AtHand:
    """Packages in a bundle, those already at the destination, and those nobody wants there.

    ``environment`` are the values of PEP 508's markers at the destination.
    """

    carried: Mapping[NormalizedName, Package]
    there: Mapping[NormalizedName, Package]
    left_out: Collection[NormalizedName] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def closure(self, roots: Iterable[Requirement]) -> Closure:
        """Follow requirements from ``roots`` to the end."""
        waiting: list[tuple[NormalizedName | None, Requirement]] = [(None, root) for root in roots]
        seen: set[tuple[NormalizedName, frozenset[str]]] = set()
        unmet: list[Unmet] = []
        while waiting:
            by, requirement = waiting.pop()
            name = canonicalize_name(requirement.name)
            if name in self.left_out:
                continue
            package = self.carried.get(name) or self.there.get(name)
            if package is None:
                unmet.append(Unmet(by, requirement, None))
                continue
            if not requirement.specifier.contains(package.version, prereleases=True):
                unmet.append(Unmet(by, requirement, package.version))
            key = name, frozenset(requirement.extras)
            if key not in seen:
                seen.add(key)
                wanted = (each for each in package.requires if self._applies(each, requirement.extras))
                waiting += [(name, each) for each in wanted]
        return Closure(frozenset(name for name, _ in seen), tuple(unmet))

    def _applies(self, requirement: Requirement, extras: Iterable[str]) -> bool:
        marker = requirement.marker
        return marker is None or any(
            marker.evaluate({**self.environment, "extra": extra}) for extra in ("", *extras)
        )


def to_carry_instead(unmet: Iterable[Unmet], there: Collection[NormalizedName]) -> frozenset[NormalizedName]:
    """Packages of the destination that a bundle must bring itself, for requirements to be met.

    That is one in a version that does not do, else one that asks for what the bundle does not bring.
    """
    names = ((canonicalize_name(each.requirement.name), each.by) for each in unmet)
    return frozenset(name if name in there else by for name, by in names if name in there or by in there)  # type: ignore[misc]
