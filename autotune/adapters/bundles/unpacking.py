"""Puts a bundle together on a machine without network: checks its pieces, makes environments of its wheels.

A bundle is a folder::

    bundle.json        what it holds, for which Python, and what it counts on at the destination
    wheels.tar.000 …   pieces of one tar of wheels: cat wheels.tar.* | tar x
    install.py         this module; brings the tool where it is not installed yet
    SHA256SUMS         of all of them: sha256sum -c SHA256SUMS

Only the standard library is used and nothing of this package is imported: a bundle carries this very file.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

MANIFEST, SUMS, PIECE, SCRIPT = "bundle.json", "SHA256SUMS", "wheels.tar.", "install.py"
FORMAT = 1
_CHUNK_BYTES = 1 << 20
_ASK_TIMEOUT_S = 120.0
_PIP_TIMEOUT_S = 1200.0
_TAIL_LINES = 15
_MEND = "mend what is said above, and install again"

_ABOUT = """
import importlib.metadata, json, sys
def version(name):
    try: return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError: return None
folders = [f for f in sys.path if f.endswith("-packages")]
print(json.dumps(["%d.%d" % sys.version_info[:2], folders, {n: version(n) for n in sys.argv[1:]}]))
"""


class BundleError(Exception):
    """A bundle that cannot be put together here, and what to do."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what}\n  remedy: {remedy}")
        self.what, self.remedy = what, remedy


@dataclass(frozen=True)
class Bundle:
    """What a bundle's manifest says; wheels are file names, ``there`` versions by package."""

    folder: Path
    engine: str
    version: str
    python: str
    platform: str
    engine_wheels: tuple[str, ...]
    tool_wheels: tuple[str, ...]
    there: Mapping[str, str]
    left_out: tuple[str, ...]

    @classmethod
    def read(cls, folder: Path) -> Bundle:
        """The manifest of a folder whose every file is as it was packed; raises BundleError."""
        _check_sums(folder)
        said = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if said.pop("format") != FORMAT:
            raise BundleError(f"{folder} was packed by another version of the tool", "pack it again")
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in said.items()}
        return cls(folder=folder, **fields)


def make_environment(bundle: Bundle, wheels: Sequence[str], *, path: Path, python: Path) -> None:
    """Make a virtual environment of some of a bundle's wheels, without network.

    What the bundle counts on at the destination is ``python``'s: its packages are behind the environment's
    own. Raises BundleError for a Python that is not the bundle's, or has not what it counts on.
    """
    shared = _shared(bundle, python)
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as scratch:
        _unpack(bundle.folder, Path(scratch))
        # Without pip of its own: Debian splits off what brings it, and the destination's can do it.
        _run([str(python), "-m", "venv", "--without-pip", str(path)], _ASK_TIMEOUT_S)
        own = str(path / "bin" / "python")
        files = [str(Path(scratch, wheel)) for wheel in wheels]
        pip = [str(python), "-m", "pip", "--python", own, "install", "--quiet", "--no-input", "--no-compile"]
        _run([*pip, "--no-index", "--no-deps", "--disable-pip-version-check", *files], _PIP_TIMEOUT_S)
    if bundle.there:
        (site,) = path.glob("lib/python3*/site-packages")
        lines = [f"import site; site.addsitedir({folder!r})" for folder in shared]
        (site / "destination.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _shared(bundle: Bundle, python: Path) -> list[str]:
    """Folders with the packages of the destination's Python."""
    about = _run([str(python), "-c", _ABOUT, *bundle.there], _ASK_TIMEOUT_S)
    version, folders, found = json.loads(about)
    if version != bundle.python:
        raise BundleError(
            f"it is for Python {bundle.python}, {python} is {version}", "name another: --python"
        )
    other = {name: found[name] for name, wanted in bundle.there.items() if found[name] != wanted}
    if other:
        wanted = ", ".join(f"{name} {bundle.there[name]} (found: {other[name] or 'none'})" for name in other)
        remedy = "name the Python that has them, or pack the bundle again for this one"
        raise BundleError(f"it counts on what {python} has not: {wanted}", remedy)
    return list(folders)


def _check_sums(folder: Path) -> None:
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise BundleError(f"no bundle: {error}", f"name its folder, with {SUMS} in it") from error
    for wanted, name in (line.split("  ", 1) for line in lines):
        try:
            found = sha256_of(folder / name)
        except OSError as error:
            raise BundleError(f"{name} has not arrived: {error}", "copy it here") from error
        if found != wanted:
            raise BundleError(f"{name} is damaged: its SHA-256 is not that of {SUMS}", "copy it again")


def sha256_of(path: Path) -> str:
    """A file's SHA-256 in hexadecimal, as ``sha256sum`` writes it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unpack(folder: Path, into: Path) -> None:
    pieces = io.BufferedReader(_Joined(sorted(folder.glob(f"{PIECE}*"))))
    with tarfile.open(fileobj=pieces, mode="r|") as tar:
        tar.extractall(into, filter="data")


class _Joined(io.RawIOBase):
    """Files read as one."""

    def __init__(self, files: Sequence[Path]) -> None:
        super().__init__()
        self._chunks = self._read(files)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._rest = self._rest or memoryview(next(self._chunks, b""))
        taken = self._rest[: len(buffer)]
        buffer[: len(taken)] = taken
        self._rest = self._rest[len(taken) :]
        return len(taken)

    def _read(self, files: Sequence[Path]) -> Iterator[bytes]:
        for path in files:
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK_BYTES):
                    yield chunk


def _run(command: Sequence[str], timeout_s: float) -> str:
    """What a command prints; raises BundleError if it fails or is not done in time."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BundleError(f"{command[0]}: {error}", _MEND) from error
    if done.returncode != 0:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-_TAIL_LINES:])
        what = f"{' '.join(command[:4])} ended with exit code {done.returncode}:\n{tail}"
        raise BundleError(what, _MEND)
    return done.stdout


def main() -> None:
    """Install the tool, and with it the engine."""
    parser = argparse.ArgumentParser(
        description="Installs autotune from this folder, and with it the engine that the folder brings.",
        epilog="Example: python3 install.py ~/autotune-env",
    )
    parser.add_argument("path", type=Path, help="folder to make the tool's environment in")
    path = parser.parse_args().path.absolute()
    folder, python = Path(__file__).resolve().parent, Path(sys.executable)
    try:
        bundle = Bundle.read(folder)
        if not bundle.tool_wheels:
            remedy = "pack it with --tool, or install autotune first: autotune engines install --from DIR"
            raise BundleError("this bundle brings an engine alone", remedy)  # noqa: TRY301
        make_environment(bundle, bundle.tool_wheels, path=path, python=python)
    except BundleError as error:
        sys.exit(f"error: {error}")
    tool = path / "bin" / "autotune"
    print(f"{tool} is installed", flush=True)  # noqa: T201 - a program of its own
    command = [str(tool), "engines", "install", "--from", str(folder), "--python", str(python)]
    sys.exit(subprocess.run(command, check=False).returncode)


if __name__ == "__main__":
    main()
