"""The main paths clicked through in a real browser, with not one complaint on its console."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, expect, sync_playwright
from small_study import own_env

CHROMIUM = shutil.which("chromium") or ""
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
]
NAMED = "e => Boolean(e.labels?.length || e.textContent.trim() || e.getAttribute('aria-label'))"
pytestmark = pytest.mark.skipif(
    not CHROMIUM, reason="no chromium is installed; run: sudo apt-get install -y chromium"
)


@pytest.fixture(scope="module")
def served(finished: Path) -> Iterator[str]:
    """The address of a server of its own process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "autotune", "serve", "--port", str(port)]
    with (finished / "serve.log").open("wb") as log:
        server = subprocess.Popen(command, cwd=finished, env=own_env(finished), stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}"
        _wait(address, server)
        yield address
    finally:
        server.terminate()
        assert server.wait(timeout=15) in {0, -15, 143}


def _wait(address: str, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/healthz", timeout=2):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the server did not come up")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrowserContext]:
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("browser"),
            executable_path=CHROMIUM,
            args=FLAGS,
            env={**os.environ, "HOME": str(tmp_path_factory.mktemp("home"))},
            viewport={"width": 1280, "height": 900},
        )
        context.set_default_timeout(20_000)
        yield context
        context.close()


@pytest.fixture
def page(browser: BrowserContext) -> Iterator[Page]:
    """A page whose console must stay silent, and which asks no other host."""
    page, complaints = browser.new_page(), []
    page.on("console", lambda m: complaints.append(m.text) if m.type in {"error", "warning"} else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda r: None if "127.0.0.1" in r.url or _local(r.url) else complaints.append(r.url))
    yield page
    page.close()
    assert not complaints


def _local(url: str) -> bool:
    return url.startswith(("data:", "blob:", "file:"))


def test_from_the_list_to_a_trials_log(page: Page, served: str) -> None:
    page.goto(served)
    page.get_by_role("link", name="small", exact=True).click()
    expect(page.get_by_role("heading", name="small", level=1)).to_be_visible()
    expect(page.locator(".picture .scatterlayer .trace").first).to_be_attached()
    page.get_by_text("Command that serves it").first.click()
    expect(page.get_by_text("vllm serve").first).to_be_visible()
    page.get_by_role("link", name="Trials", exact=True).click()
    page.get_by_role("row").nth(1).get_by_role("link").click()
    expect(page.get_by_role("heading", name="Trial 0")).to_be_visible()
    expect(page.locator("#latencies .scatterlayer .trace").first).to_be_attached()
    expect(page.locator("#timeline .scatterlayer .trace").first).to_be_attached()
    page.get_by_role("link", name=".log").first.click()
    expect(page.get_by_role("region", name="Log")).to_be_visible()


def test_a_point_says_what_it_is_and_opens_its_trial(page: Page, served: str) -> None:
    page.goto(f"{served}/studies/small")
    chart = page.locator(".chart.picture")
    expect(chart.locator(".scatterlayer .point").first).to_be_attached()
    chart.scroll_into_view_if_needed()
    dot = chart.locator(".scatterlayer .trace .point").first.bounding_box()
    assert dot is not None
    page.mouse.move(dot["x"] + dot["width"] / 2, dot["y"] + dot["height"] / 2)
    expect(chart.locator(".hovertext").first).to_contain_text("trial")
    page.mouse.click(dot["x"] + dot["width"] / 2, dot["y"] + dot["height"] / 2)
    page.wait_for_url("**/studies/small/trials/*")


def test_menus_and_sliders_change_picture_and_answer(page: Page, served: str) -> None:
    page.goto(f"{served}/studies/small")
    chart = page.locator(".chart.picture")
    expect(chart.locator(".scatterlayer .trace").first).to_be_attached()
    page.get_by_label("Upwards").select_option("device")
    expect(chart.locator(".ytitle")).to_contain_text("per accelerator")
    page.get_by_label("Colour by").select_option("engine")
    expect(chart.locator(".legendtext").first).to_have_text("vllm")
    slider = page.get_by_label("ttft", exact=True).first
    slider.focus()
    # By keyboard alone: far to the left, the bound is too tight for any configuration.
    slider.press("Home")
    expect(page.locator("#moved")).to_contain_text("scored from the archive")
    page.get_by_role("button", name="Back to the study's own").click()
    expect(page.locator("#moved")).to_contain_text("own SLAs")


def test_what_mattered_comparison_and_the_dashboard(page: Page, served: str) -> None:
    page.goto(f"{served}/studies/small/insight")
    expect(page.get_by_text("died at first request").first).to_be_visible()
    page.goto(f"{served}/compare")
    page.get_by_label("this").fill("small:0")
    page.get_by_label("with").fill("small:1")
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("heading", name="Configuration")).to_be_visible()
    page.get_by_role("link", name="Optuna dashboard").click()
    expect(page.get_by_text("small").first).to_be_visible()


def test_the_keyboard_finds_the_content_and_pages_have_landmarks(page: Page, served: str) -> None:
    page.goto(f"{served}/studies/small")
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to content")).to_be_focused()
    assert page.get_by_role("main").count() == 1
    assert page.get_by_role("banner").count() == 1
    controls = page.locator("input, select, button").all()
    unnamed = [c.get_attribute("id") for c in controls if not c.evaluate(NAMED)]
    assert unnamed == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_a_narrow_screen_in_both_schemes(page: Page, served: str, scheme: str) -> None:
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page.set_viewport_size({"width": 390, "height": 800})
    for path in ("", "/studies/small", "/studies/small/trials", "/studies/small/trials/0", "/compare"):
        page.goto(served + path)
        expect(page.get_by_role("main")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path


def test_a_report_draws_offline_and_prints(page: Page, finished: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "autotune", "report", "small", "-o", str(tmp_path / "report.html")]
    subprocess.run(command, cwd=finished, env=own_env(finished), check=True, timeout=60, capture_output=True)
    page.context.set_offline(True)
    try:
        page.goto((tmp_path / "report.html").as_uri())
        expect(page.locator("#report-picture .scatterlayer .trace").first).to_be_attached()
        page.get_by_label("Upwards").select_option("device")
        expect(page.locator("#report-picture .ytitle")).to_contain_text("per accelerator")
        assert page.pdf().startswith(b"%PDF")
    finally:
        page.context.set_offline(False)
