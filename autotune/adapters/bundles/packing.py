"""Packs an engine's wheels for another machine: resolved by uv for its platform, fetched by pip, in pieces.

uv resolves for a Python and a platform that are not this one's, markers included, which pip does not; pip
fetches, so that mirrors and certificates are those that it is configured with.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, BinaryIO

from packaging.metadata import parse_email
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import NormalizedName, canonicalize_name
from packaging.version import Version
from pydantic import ByteSize, Field, TypeAdapter, ValidationError

from autotune.adapters.bundles import unpacking
from autotune.adapters.bundles.closure import AtHand, Package, to_carry_instead
from autotune.adapters.bundles.destination import Destination, Platform
from autotune.adapters.commands import Echo, Run, check_result, run_command
from autotune.domain.basics.errors import InputError, InputProblem

_SIZE = TypeAdapter(Annotated[ByteSize, Field(gt=0)])
TOOL = "autotune-inference"
PIECE_BYTES = 2_000_000_000
_RESOLVE_TIMEOUT_S, _FETCH_TIMEOUT_S = 300.0, 3600.0
_MOST_ROUNDS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to pack: ``engine`` as ``vllm==0.22.1``, for whom, without what, in pieces of how many bytes.

    ``tool``: the tuner's own wheels too.
    """

    engine: str
    platform: Platform
    there: Destination | None = None
    left_out: Collection[str] = ()
    tool: bool = False
    piece_bytes: int = PIECE_BYTES

    @classmethod
    def of(cls, engine: str, destination: str, *, left_out: Collection[str], tool: bool, piece: str) -> Order:
        """Read what people write: a platform or a file of ``pip inspect``, and a size; raises InputError."""
        there = Destination.read(Path(destination)) if Path(destination).is_file() else None
        platform = there.platform if there else Platform.parse(destination)
        try:
            piece_bytes = int(_SIZE.validate_python(piece))
        except ValidationError as error:
            raise InputError(InputProblem("--piece", f"{piece!r} is no size", "write it as 60MB")) from error
        return cls(
            engine=engine,
            platform=platform,
            there=there,
            left_out=left_out,
            tool=tool,
            piece_bytes=piece_bytes,
        )


@dataclass(frozen=True, slots=True)
class Packed:
    """A bundle that was made; bytes by file name."""

    bundle: unpacking.Bundle
    wheels: Mapping[str, int]
    pieces: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class _Part:
    """One environment that a bundle makes: what it is for, and its wheels by file."""

    root: Requirement
    wheels: Mapping[str, Package]


@dataclass(frozen=True, slots=True)
class Packer:
    """Makes bundles; tests replace ``run``."""

    echo: Echo
    run: Run = field(default_factory=lambda: run_command)

    def pack(self, order: Order, folder: Path) -> Packed:
        """Resolve, fetch and pack into ``folder``, which appears whole or not at all.

        Raises InputError for what cannot be resolved or fetched, and for a folder that holds something.
        """
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(InputProblem(str(folder), "is there already", "remove it, or name another"))
        root = _requirement(order.engine)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
            wheels, made = Path(scratch, "wheels"), Path(scratch, "bundle")
            wheels.mkdir()
            made.mkdir()
            roots = [root, self._tool(wheels)] if order.tool else [root]
            parts, there = self._fitting(order, roots, wheels)
            bundle = _bundle(order, made, parts, there)
            packed = _written(bundle, wheels, order.piece_bytes)
            if folder.exists():
                folder.rmdir()
            made.rename(folder)
        return packed

    def _fitting(
        self, order: Order, roots: Sequence[Requirement], wheels: Path
    ) -> tuple[list[_Part], dict[NormalizedName, Package]]:
        """What to carry, and what it needs of the destination's own, less what does not fit there."""
        there = dict(order.there.packages) if order.there else {}
        for _ in range(_MOST_ROUNDS):
            parts = self._parts(order, roots, there, wheels)
            closures = [_at_hand(order, there, part).closure([part.root]) for part in parts]
            unmet = [each for closure in closures for each in closure.unmet]
            instead = to_carry_instead(unmet, there)
            if not instead:
                break
            self.echo(f"  there in a version that does not do: {', '.join(sorted(instead))}")
            there = {name: package for name, package in there.items() if name not in instead}
        if unmet:
            remedy = "leave out less, or pack another version of the engine"
            raise InputError([InputProblem(order.engine, str(each), remedy) for each in unmet])
        needed = frozenset[NormalizedName]().union(*(closure.needed for closure in closures))
        return parts, {name: package for name, package in there.items() if name in needed}

    def _parts(
        self,
        order: Order,
        roots: Sequence[Requirement],
        there: Collection[NormalizedName],
        wheels: Path,
    ) -> list[_Part]:
        """Resolve and fetch; what a part needs it takes in the version that those before it take."""
        pins: dict[str, None] = {}
        chosen = []
        for root in roots:
            chosen.append(self._resolved(root, order, exclude=there, constraints=pins, scratch=wheels.parent))
            pins |= dict.fromkeys(chosen[-1])
        self.echo(f"  fetching {len(pins)} wheels")
        pinned = [pin for pin in pins if "@" not in pin]
        fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--progress-bar", "off"]
        only = ["--no-deps", "--only-binary", ":all:", *order.platform.pip_options, "--dest", str(wheels)]
        self._must([*fetch, *only, *pinned], _FETCH_TIMEOUT_S, "fetching the wheels")
        fetched = {f"{p.name}=={Version(p.version)}": (file, p) for file, p in _packages(wheels).items()}
        return [
            _Part(root, dict(fetched[_pin(each, fetched)] for each in own))
            for root, own in zip(roots, chosen, strict=True)
        ]

    def _resolved(
        self,
        root: Requirement,
        order: Order,
        *,
        exclude: Collection[NormalizedName],
        constraints: Collection[str],
        scratch: Path,
    ) -> list[str]:
        """``name==version`` of all that ``root`` needs beside what is excluded."""
        self.echo(f"  resolving {root.name} for {order.platform}")
        names = {"excludes": [*exclude, *order.left_out], "constraints": constraints, "roots": [str(root)]}
        files = {name: scratch / f"{name}.txt" for name in names}
        for name, lines in names.items():
            files[name].write_text("\n".join(lines), encoding="utf-8")
        pins = scratch / "pins.txt"
        pins.unlink(missing_ok=True)  # uv keeps to versions that it finds there
        uv = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate"]
        how = ["--only-binary", ":all:", *order.platform.uv_options, "--output-file", str(pins)]
        about = ["--excludes", str(files["excludes"]), "--constraints", str(files["constraints"])]
        self._must([*uv, *how, *about, str(files["roots"])], _RESOLVE_TIMEOUT_S, f"resolving {root.name}")
        return [line.strip() for line in pins.read_text(encoding="utf-8").splitlines() if line.strip()]

    def _tool(self, wheels: Path) -> Requirement:
        """The tuner itself, with its pages: from where it was installed, else from the index."""
        installed = importlib.metadata.distribution(TOOL)
        origin = json.loads(installed.read_text("direct_url.json") or "{}")
        if not origin.get("url", "").startswith("file:"):
            return Requirement(f"{TOOL}[web]=={installed.version}")
        self.echo(f"  making a wheel of {origin['url']}")
        make = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(wheels)]
        self._must([*make, origin["url"]], _RESOLVE_TIMEOUT_S, "making the tool's wheel")
        (wheel,) = wheels.glob("*.whl")
        return Requirement(f"{TOOL}[web] @ {wheel.as_uri()}")

    def _must(self, command: Sequence[str], timeout_s: float, what: str) -> None:
        result = self.run(command, timeout_s)
        needs_uv = "No module named uv" in result.output
        remedy = f"pip install '{TOOL}[bundle]'" if needs_uv else "mend what is said above, and pack again"
        check_result(result, what, remedy)


def _requirement(text: str) -> Requirement:
    """One release of a package; raises InputError."""
    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        raise InputError(InputProblem(text, "is no package", "write it as vllm==0.22.1")) from error
    if not str(requirement.specifier).startswith("=="):
        raise InputError(InputProblem(text, "names no release", f"write it as {requirement.name}==0.22.1"))
    return requirement


def _pin(line: str, fetched: Collection[str]) -> str:
    """A line of uv's answer by its canonical name and version."""
    requirement = Requirement(line)
    name = canonicalize_name(requirement.name)
    if requirement.url:
        return next(pin for pin in fetched if pin.startswith(f"{name}=="))
    (wanted,) = requirement.specifier
    return f"{name}=={Version(wanted.version)}"


def _at_hand(order: Order, there: Mapping[NormalizedName, Package], part: _Part) -> AtHand:
    return AtHand(
        carried={package.name: package for package in part.wheels.values()},
        there=there,
        left_out={canonicalize_name(name) for name in order.left_out},
        environment={**order.platform.markers, **(order.there.environment if order.there else {})},
    )


def _bundle(
    order: Order, folder: Path, parts: Sequence[_Part], there: Mapping[NormalizedName, Package]
) -> unpacking.Bundle:
    engine, *tools = parts
    name = canonicalize_name(engine.root.name)
    return unpacking.Bundle(
        folder=folder,
        engine=name,
        version=next(package.version for package in engine.wheels.values() if package.name == name),
        python=order.platform.python,
        platform=str(order.platform),
        engine_wheels=tuple(sorted(engine.wheels)),
        tool_wheels=tuple(sorted(file for tool in tools for file in tool.wheels)),
        there={name: package.version for name, package in sorted(there.items())},
        left_out=tuple(sorted(order.left_out)),
    )


def _packages(wheels: Path) -> dict[str, Package]:
    """Every wheel of a folder by its file name, read from its metadata."""
    found = {}
    for path in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(path) as wheel:
            (name,) = (n for n in wheel.namelist() if n.count("/") == 1 and n.endswith(".dist-info/METADATA"))
            said, _ = parse_email(wheel.read(name))
        requires = tuple(map(Requirement, said.get("requires_dist", ())))
        found[path.name] = Package(canonicalize_name(said["name"]), said["version"], requires)
    return found


def _written(bundle: unpacking.Bundle, wheels: Path, piece_bytes: int) -> Packed:
    """Write a bundle's files into its folder."""
    folder, names = bundle.folder, sorted({*bundle.engine_wheels, *bundle.tool_wheels})
    with _Pieces(folder, piece_bytes) as pieces, tarfile.open(fileobj=pieces, mode="w|") as tar:
        for name in names:
            member = tarfile.TarInfo(name)  # of no date and no owner: the same wheels, the same pieces
            member.size = (wheels / name).stat().st_size
            with (wheels / name).open("rb") as wheel:
                tar.addfile(member, wheel)
    said = {key: value for key, value in asdict(bundle).items() if key != "folder"}
    text = json.dumps({"format": unpacking.FORMAT, **said}, indent=1)
    (folder / unpacking.MANIFEST).write_text(text, encoding="utf-8")
    shutil.copyfile(unpacking.__file__, folder / unpacking.SCRIPT)
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    sums = [f"{unpacking.sha256_of(folder / name)}  {name}\n" for name in sizes]
    (folder / unpacking.SUMS).write_text("".join(sums), encoding="utf-8")
    return Packed(
        bundle=bundle,
        wheels={name: (wheels / name).stat().st_size for name in names},
        pieces={name: size for name, size in sizes.items() if name.startswith(unpacking.PIECE)},
    )


class _Pieces(io.RawIOBase):
    """Takes bytes, and writes them to files of a certain size."""

    def __init__(self, folder: Path, piece_bytes: int) -> None:
        super().__init__()
        self._folder, self._piece_bytes = folder, piece_bytes
        self._number, self._left = 0, 0
        self._file: BinaryIO | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data)
        whole = len(view)
        while view:
            if self._file is None or not self._left:
                self._end()
                self._file = (self._folder / f"{unpacking.PIECE}{self._number:03}").open("wb")
                self._number, self._left = self._number + 1, self._piece_bytes
            taken = view[: self._left]
            self._file.write(taken)
            self._left -= len(taken)
            view = view[len(taken) :]
        return whole

    def close(self) -> None:
        self._end()
        super().close()

    def _end(self) -> None:
        if self._file is not None:
            self._file.close()
