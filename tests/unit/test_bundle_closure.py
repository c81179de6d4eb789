"""What an engine needs, and whether a bundle and its destination together have it."""

from __future__ import annotations

import pytest
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

from autotune.adapters.bundles.closure import AtHand, Package, to_carry_instead
from autotune.adapters.bundles.destination import Platform
from autotune.domain.basics.errors import InputError

Packages = dict[NormalizedName, Package]


def packages(**of: str) -> Packages:
    """Packages by name: a version, then what it requires, separated by semicolons."""
    found = {}
    for name, text in of.items():
        version, *requires = text.split(" | ")
        key = canonicalize_name(name)
        found[key] = Package(key, version, tuple(map(Requirement, requires)))
    return found


def closure(carried: Packages, there: Packages | None = None, **more: object) -> tuple[set[str], list[str]]:
    at_hand = AtHand(carried=carried, there=there or {}, **more)  # type: ignore[arg-type]
    found = at_hand.closure([Requirement("engine==1.0")])
    return set(found.needed), sorted(map(str, found.unmet))


def test_requirements_are_followed_to_the_end_and_what_nobody_needs_is_not() -> None:
    carried = packages(engine="1.0 | middle>=2", middle="2.1 | Leaf_Package", leaf_package="3.0", idle="1.0")
    assert closure(carried) == ({"engine", "middle", "leaf-package"}, [])


def test_what_is_there_counts_in_a_version_that_does() -> None:
    carried = packages(engine="1.0 | torch==2.11.0 | numpy<2.5")
    there = packages(torch="2.11.0+cu130", numpy="2.5.2")
    assert closure(carried, there) == (
        {"engine", "torch", "numpy"},
        ["engine wants numpy<2.5, there is 2.5.2"],
    )


def test_what_is_carried_goes_before_what_is_there() -> None:
    assert closure(packages(engine="1.0 | numpy<2.5", numpy="2.4"), packages(numpy="2.5.2"))[1] == []


def test_an_extra_brings_its_requirements_and_a_marker_is_asked_of_the_destination() -> None:
    carried = packages(
        engine='1.0 | web[fast] | old; python_version < "3.12" | new; python_version >= "3.12"',
        web='1.0 | loop; extra == "fast" | docs; extra == "docs"',
        loop="1.0",
        new="1.0",
    )
    markers = Platform.parse("py3.12-linux-x86_64").markers
    assert closure(carried, environment=markers) == ({"engine", "web", "loop", "new"}, [])
    markers = Platform.parse("py3.11-linux-x86_64").markers
    assert closure(carried, environment=markers)[1] == [
        'engine wants old; python_version < "3.12", there is none'
    ]


def test_what_is_left_out_is_not_missed_nor_what_it_alone_needs() -> None:
    carried = packages(engine="1.0 | cubin", cubin="1.0 | huge")
    assert closure(carried, left_out={canonicalize_name("cubin")}) == ({"engine"}, [])


def test_packages_that_require_one_another_end() -> None:
    assert closure(packages(engine="1.0 | other", other="1.0 | engine"))[1] == []


@pytest.mark.parametrize(
    ("carried", "there", "instead"),
    [
        # The destination's version does not do.
        ({"engine": "1.0 | numpy<2.5"}, {"numpy": "2.5.2"}, {"numpy"}),
        # The destination's package wants another version of what is carried.
        (
            {"engine": "1.0 | torch | tokenizers<0.23", "tokenizers": "0.22"},
            {"torch": "2 | tokenizers>=0.23"},
            {"torch"},
        ),
        # The destination's package is broken there.
        ({"engine": "1.0 | torch"}, {"torch": "2 | sympy"}, {"torch"}),
        # Nothing that the destination could be blamed for.
        ({"engine": "1.0 | gone"}, {"torch": "2"}, set()),
    ],
)
def test_what_does_not_fit_there_is_carried_instead(
    carried: dict[str, str], there: dict[str, str], instead: set[str]
) -> None:
    own = packages(**there)
    found = AtHand(carried=packages(**carried), there=own).closure([Requirement("engine==1.0")])
    assert to_carry_instead(found.unmet, own) == instead


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("py3.12-linux-x86_64", Platform("3.12", "x86_64", 35)),
        ("py3.11-manylinux_2_28_aarch64", Platform("3.11", "aarch64", 28)),
    ],
)
def test_a_platform_is_read(text: str, said: Platform) -> None:
    assert Platform.parse(text) == said


@pytest.mark.parametrize("text", ["linux", "py2.7-linux-x86_64", "py3.12-win_amd64", "py3.12-linux-riscv"])
def test_what_is_no_platform_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InputError, match=r"py3\.12-linux-x86_64"):
        Platform.parse(text)


def test_pip_is_offered_wheels_for_older_libraries_and_none_for_newer() -> None:
    options = Platform.parse("py3.12-manylinux_2_28_x86_64").pip_options
    assert "manylinux_2_28_x86_64" in options
    assert "manylinux2014_x86_64" in options
    assert "manylinux_2_29_x86_64" not in options
