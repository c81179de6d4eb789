"""The documentation builds, its links lead somewhere, and what it says of commands and study files is so."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import typer

from autotune import wiring
from autotune.adapters.files.study_file import read_study, study_schema
from autotune.cli.app import app
from autotune.domain.basics.errors import BenchError
from autotune.domain.configs.config import EngineConfig
from autotune.domain.measuring.power import EnergyVerdict, Window, energy_in
from autotune.domain.recommending.contract import recommendation_schema
from autotune.web.app import bare_app
from autotune.web.security import ServeOptions
from autotune.wiring.reading import StudyReader

ROOT = Path(__file__).parents[2]
PAGES = sorted(page for page in (ROOT / "docs").rglob("*.md"))
README = ROOT / "README.md"
FENCE = re.compile(r"^( *)```(\w+)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}


class Page(HTMLParser):
    """What a built page says, loads and links to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "link" and given.get("rel") in {"prev", "next", "canonical"}:
            return
        if tag in LOADED:
            self.loads.append(given.get(LOADED[tag], ""))
        elif tag == "a":
            self.links.append(given.get("href", ""))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; any warning of MkDocs fails it: of a link or an anchor that leads nowhere, too."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_pages_load_nothing_from_other_servers_and_external_links_are_well_formed(site: Path) -> None:
    pages = [Page(path.read_text()) for path in site.rglob("*.html")]
    assert len(pages) >= len(PAGES)
    assert [url for page in pages for url in page.loads if urlsplit(url).netloc] == []
    links = [url for page in pages for url in page.links] + LINK.findall(README.read_text())
    external = {url for url in links if urlsplit(url).netloc}
    assert external
    assert {url for url in external if not _is_sound(url)} == set()


def _is_sound(url: str) -> bool:
    parts = urlsplit(url)
    host = parts.hostname or ""
    return parts.scheme == "https" and "." in host and not re.search(r"\s", url)


def test_examples_stand_in_the_pages(site: Path) -> None:
    engine, meter = (Page((site / f"howto/add-{what}.html").read_text()) for what in ("an-engine", "a-meter"))
    assert "refuse_words(" in engine.text
    assert "read_supply(" in meter.text
    assert [
        path.name for path in site.rglob("*.html") if re.search(r"--8\s*<", Page(path.read_text()).text)
    ] == []


def test_search_knows_the_pages(site: Path) -> None:
    assert "good tokens per joule" in (site / "search/search_index.json").read_text().lower()


def test_the_reference_has_every_key_word_and_command(site: Path) -> None:
    study = (site / "reference/study-file.html").read_text()
    schema = study_schema()
    for part in (schema, *schema["$defs"].values()):
        for key in part.get("properties", {}):
            assert f"<code>{key}</code>" in study
    words = (site / "reference/words.html").read_text()
    for word in EngineConfig.model_fields.keys() - {"engine", "prefill", "decode"}:
        assert f"<code>{word}</code>" in words
    document = (site / "reference/recommendation.html").read_text()
    for key in recommendation_schema()["properties"]:
        assert f"<code>{key}</code>" in document
    commands = (site / "reference/cli.html").read_text()
    for path, options in commands_of(typer.main.get_command(app), "autotune"):
        assert f"<code>{path}</code>" in commands
        for option in options:
            assert re.search(rf"<code>(-\w, )?{option}\b", commands)


def test_the_reference_has_every_address_of_the_api(site: Path, tmp_path: Path) -> None:
    reader = StudyReader(wiring.open_store(f"sqlite:///{tmp_path / 'studies.db'}"))
    paths = bare_app(reader, ServeOptions()).openapi()["paths"]
    reader.close()
    told = (site / "reference/http-api.html").read_text()
    assert paths
    for path, methods in paths.items():
        for method in methods:
            assert f"<code>{method.upper()} {path}</code>" in told


def commands_of(command: object, path: str) -> Iterator[tuple[str, list[str]]]:
    """Every command by its words, with its long options."""
    options = [option for each in command.params for option in each.opts if option.startswith("--")]  # type: ignore[attr-defined]
    yield path, options
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands_of(inner, f"{path} {name}")


def fences(page: Path, language: str) -> list[str]:
    return [body for _, kind, body in FENCE.findall(page.read_text()) if kind == language]


def shown_commands() -> Iterator[tuple[str, str]]:
    """Lines of pages that call ``autotune``, with the page."""
    for page in (*PAGES, README):
        for body in (
            *fences(page, "sh"),
            *fences(page, "console"),
            *re.findall(r"`(autotune [^`]+)`", page.read_text()),
        ):
            for line in body.replace("\\\n", " ").splitlines():
                if line.removeprefix("$ ").startswith("autotune "):
                    yield page.name, line.removeprefix("$ ")


def test_commands_of_pages_are_commands_with_options_that_there_are() -> None:
    known = dict(commands_of(typer.main.get_command(app), "autotune"))
    shown = [*shown_commands()]
    assert len(shown) > 10
    for page, line in shown:
        tokens = shlex.split(line, comments=True)
        words = tokens[:1]
        while f"{' '.join(words)} {tokens[len(words)] if len(words) < len(tokens) else ''}" in known:
            words.append(tokens[len(words)])
        path = " ".join(words)
        assert path != "autotune" or tokens[1].startswith("-"), f"{page}: no such command: {line}"
        given = [token.partition("=")[0] for token in tokens if token.startswith("--")]
        assert {*given} <= {*known[path], "--help"}, f"{page}: no such option: {line}"


def test_links_of_the_readme_lead_to_files() -> None:
    local = [link.partition("#")[0] for link in LINK.findall(README.read_text()) if not urlsplit(link).netloc]
    assert local
    assert [link for link in local if not (ROOT / link).exists()] == []


def test_study_files_of_pages_are_sound() -> None:
    studies = sorted((ROOT / "docs/examples").rglob("*.study.yaml"))
    assert studies
    for path in studies:
        assert read_study(path, wiring.SPACES).branches


def test_the_meter_of_the_how_to_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs/examples")
    example = importlib.import_module("power_supply_meter")
    file = tmp_path / "power_now"
    file.write_text("12500000\n")
    with example.PowerSupplyMeter(file=file, period_s=30.0).window(()) as recording:
        start_s = time.monotonic()
        window = Window(start_s, time.monotonic())
        energy = energy_in(recording.trace(), window)
    assert energy.verdict is EnergyVerdict.UNCHECKED
    assert energy.mean_w == pytest.approx(12.5)
    for broken in ("much", None):
        file.unlink() if broken is None else file.write_text(broken)
        with (
            pytest.raises(BenchError, match="power meter lost"),
            example.PowerSupplyMeter(file=file).window(()),
        ):
            pass
