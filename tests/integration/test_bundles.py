"""Bundles as people use them: real uv and real pip over a folder of small wheels, no network."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from autotune.adapters.bundles import packing
from autotune.adapters.bundles.packing import Order, Packed, Packer
from autotune.adapters.bundles.unpacking import SUMS, BundleError
from autotune.adapters.engines.environments import COMPLETE
from autotune.adapters.engines.install import Installer
from autotune.domain.basics.errors import InputError

HERE = f"py{sys.version_info[0]}.{sys.version_info[1]}-linux-x86_64"


def wheel(folder: Path, name: str, version: str, *requires: str, script: str = "") -> Path:
    """A wheel of one module that knows its version."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"version = {version!r}\n{script}\n",
        f"{info}/METADATA": "".join(
            [
                f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
                *(f"Requires-Dist: {r}\n" for r in requires),
            ]
        ),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if script:
        files[f"{info}/entry_points.txt"] = f"[console_scripts]\nautotune = {name}:main\n"
    files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that uv and pip look into, and nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in ("UV", "PIP"):
        monkeypatch.setenv(f"{name}_NO_INDEX", "1")
        monkeypatch.setenv(f"{name}_FIND_LINKS", str(folder))
    wheel(folder, "toy", "1.0", "base>=1", "shared<2", "huge", 'ancient; python_version < "3.0"')
    wheel(folder, "base", "1.2", "deep")
    wheel(folder, "deep", "1.0")
    wheel(folder, "shared", "1.5")
    wheel(folder, "shared", "2.0")
    wheel(folder, "huge", "1.0")
    return folder


@pytest.fixture
def destination(tmp_path: Path, index: Path) -> Path:
    """The Python of a machine where some of it is installed, in the one version that does and another."""
    python = tmp_path / "destination" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(python.parents[1])], check=True, timeout=120)
    own = [wheel(tmp_path, "base", "1.7"), index / "shared-2.0-py3-none-any.whl"]
    pip = [str(python), "-m", "pip", "install", "-qq", "--no-deps", *map(str, own)]
    subprocess.run(pip, check=True, timeout=120)
    return python


def packed(tmp_path: Path, python: Path | None, *, tool: bool = False) -> tuple[Packed, Path]:
    """A bundle of the toy for a machine."""
    there = HERE
    if python is not None:
        inspected = subprocess.run(
            [str(python), "-m", "pip", "inspect"], check=True, capture_output=True, text=True, timeout=120
        )
        (tmp_path / "there.json").write_text(inspected.stdout)
        there = str(tmp_path / "there.json")
    order = Order.of("toy==1.0", there, left_out=["huge"], tool=tool, piece="4KB")
    folder = tmp_path / "toy-1.0"
    return Packer(echo=print).pack(order, folder), folder


def said(python: Path, program: str) -> str:
    return subprocess.run(
        [str(python), "-c", program], check=True, capture_output=True, text=True, timeout=60
    ).stdout.strip()


def test_an_engine_is_carried_less_what_is_there_and_put_together(tmp_path: Path, destination: Path) -> None:
    made, folder = packed(tmp_path, destination)
    # base is there, and with it what it needs; shared is there in a version that does not do.
    assert list(made.wheels) == ["shared-1.5-py3-none-any.whl", "toy-1.0-py3-none-any.whl"]
    assert made.bundle.there == {"base": "1.7"}
    assert len(made.pieces) > 1
    assert max(made.pieces.values()) <= 4000
    check = subprocess.run(["sha256sum", "--quiet", "-c", SUMS], cwd=folder, check=False, timeout=60)
    assert check.returncode == 0

    lines: list[str] = []
    installer = Installer(home=tmp_path / "engines", echo=lines.append)
    path = installer.install_bundle(folder, destination)
    assert path.name == "toy-1.0"
    program = "import toy, base, shared; print(toy.version, base.version, shared.version)"
    assert said(path / "bin" / "python", program) == "1.0 1.7 1.5"
    assert installer.install_bundle(folder, destination) == path
    assert "is installed in" in lines[-1]

    (path / COMPLETE).unlink()  # as an interruption leaves it
    (path / "bin" / "python").unlink()
    installer.install_bundle(folder, destination)
    assert said(path / "bin" / "python", program) == "1.0 1.7 1.5"


def test_for_a_bare_platform_all_is_carried(tmp_path: Path, index: Path) -> None:
    made, folder = packed(tmp_path, None)
    assert [name.split("-")[0] for name in made.wheels] == ["base", "deep", "shared", "toy"]
    path = Installer(home=tmp_path / "engines", echo=print).install_bundle(folder, Path(sys.executable))
    assert said(path / "bin" / "python", "import toy, deep; print(deep.version)") == "1.0"


def test_the_same_wheels_are_the_same_pieces(tmp_path: Path, index: Path) -> None:
    (tmp_path / "again").mkdir()
    _, first = packed(tmp_path, None)
    _, second = packed(tmp_path / "again", None)
    assert (first / SUMS).read_text() == (second / SUMS).read_text()


def test_a_damaged_or_missing_piece_is_named_and_nothing_is_installed(tmp_path: Path, index: Path) -> None:
    _, folder = packed(tmp_path, None)
    piece = folder / "wheels.tar.001"
    piece.write_bytes(piece.read_bytes()[:-1] + b"!")
    installer = Installer(home=tmp_path / "engines", echo=print)
    with pytest.raises(InputError, match=r"(?s)wheels\.tar\.001 is damaged.*copy it again"):
        installer.install_bundle(folder, Path(sys.executable))
    piece.unlink()
    with pytest.raises(InputError, match=r"wheels\.tar\.001 has not arrived"):
        installer.install_bundle(folder, Path(sys.executable))
    with pytest.raises(InputError, match="no bundle"):
        installer.install_bundle(tmp_path / "elsewhere", Path(sys.executable))
    assert not (tmp_path / "engines").exists()


def test_a_python_without_what_the_bundle_counts_on_is_refused(tmp_path: Path, destination: Path) -> None:
    _, folder = packed(tmp_path, destination)
    with pytest.raises(InputError, match=r"(?s)base 1\.7 \(found: none\).*name the Python that has them"):
        Installer(home=tmp_path / "engines", echo=print).install_bundle(folder, Path(sys.executable))


def test_a_bundle_for_another_python_is_refused(tmp_path: Path, index: Path) -> None:
    order = Order.of("toy==1.0", "py3.99-linux-x86_64", left_out=["huge"], tool=False, piece="1MB")
    Packer(echo=print).pack(order, tmp_path / "other")
    with pytest.raises(InputError, match=r"it is for Python 3\.99"):
        Installer(home=tmp_path / "engines", echo=print).install_bundle(
            tmp_path / "other", Path(sys.executable)
        )


def test_what_cannot_be_resolved_is_said_and_leaves_nothing(tmp_path: Path, index: Path) -> None:
    (index / "deep-1.0-py3-none-any.whl").unlink()
    with pytest.raises(InputError, match=r"(?s)resolving toy.*deep"):
        packed(tmp_path, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index"]


def test_a_folder_that_holds_something_is_left_as_it_is(tmp_path: Path, index: Path) -> None:
    packed(tmp_path, None)
    with pytest.raises(InputError, match="is there already"):
        packed(tmp_path, None)


@pytest.mark.parametrize("engine", ["toy", "toy>=1", "no package"])
def test_an_engine_without_its_release_is_refused(tmp_path: Path, engine: str) -> None:
    order = Order.of(engine, HERE, left_out=[], tool=False, piece="1MB")
    with pytest.raises(InputError, match=r"=="):
        Packer(echo=print).pack(order, tmp_path / "bundle")


def test_the_tool_comes_along_and_installs_itself_and_the_engine(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A stand-in for this very package, installed from an index.
    monkeypatch.setattr(packing, "TOOL", "toytool")
    info = tmp_path / "site" / "toytool-3.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toytool\nVersion: 3.0\n")
    monkeypatch.syspath_prepend(str(info.parent))
    wheel(
        index,
        "toytool",
        "3.0",
        "shared",
        'pages; extra == "web"',
        script="def main():\n    import json, sys, pages\n    print(json.dumps(sys.argv[1:]))",
    )
    wheel(index, "pages", "1.0")
    made, folder = packed(tmp_path, None, tool=True)
    # The tool takes what the engine has, in its version.
    assert made.bundle.tool_wheels == (
        "pages-1.0-py3-none-any.whl",
        "shared-1.5-py3-none-any.whl",
        "toytool-3.0-py3-none-any.whl",
    )
    command = [sys.executable, str(folder / "install.py"), str(tmp_path / "tool")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    asked = json.loads(done.stdout.splitlines()[-1])
    assert asked == ["engines", "install", "--from", str(folder), "--python", sys.executable]


def test_a_bundle_without_the_tool_says_so_at_its_own_installation(tmp_path: Path, index: Path) -> None:
    _, folder = packed(tmp_path, None)
    command = [sys.executable, str(folder / "install.py"), str(tmp_path / "tool")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "--tool" in done.stderr


def test_errors_of_bundles_carry_their_remedy() -> None:
    assert str(BundleError("broken", "mend it")) == "broken\n  remedy: mend it"
