"""The console in a real browser: by keyboard, light and dark, wide and narrow."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Loop
from console_cases import Visitor, console_of, server_of
from test_console import free_ports

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
playwright = pytest.importorskip(
    "playwright.sync_api", reason="needs playwright: pip install 'cascade-ranking[browser]'"
)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs a Chromium on PATH (Debian: the package chromium)")
POOR_CONTRAST = """() => {
  const light = text => {
    const rgb = text.match(/[\\d.]+/g).slice(0, 3).map(x => x / 255)
      .map(x => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * rgb[0] + 0.7152 * rgb[1] + 0.0722 * rgb[2];
  };
  const behind = node => {
    for (; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor;
      if (colour !== 'rgba(0, 0, 0, 0)' && colour !== 'transparent') return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  const found = [];
  for (const node of document.querySelectorAll('body *')) {
    const own = [...node.childNodes].some(each => each.nodeType === 3 && each.textContent.trim());
    if (!own || !node.checkVisibility()) continue;
    const [one, other] = [light(getComputedStyle(node).color), light(behind(node))].sort((a, b) => b - a);
    const ratio = (one + 0.05) / (other + 0.05);
    if (ratio < 4.5) found.push(`${node.tagName} ${node.textContent.trim().slice(0, 30)}: ${ratio.toFixed(2)}`);
  }
  return found;
}"""
"""Texts whose contrast is below 4.5 to 1 (WCAG 2.2, 1.4.3)."""
FOCUS = """() => {
  const node = document.activeElement, box = node.getBoundingClientRect();
  const seen = box.bottom > 0 && box.top < innerHeight && box.width > 0;
  return {name: node.id || node.name || node.className || node.textContent.trim(),
          outlined: getComputedStyle(node).outlineStyle !== 'none' && seen};
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        made = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture(scope="module")
def visitor(loop: Loop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visitor]:
    with (
        server_of(loop, tmp_path_factory.mktemp("console")) as server,
        console_of(server.target, server.admin_target) as made,
    ):
        yield made


def opened(browser: Any, visitor: Visitor, path: str = "/", *, scheme: str = "light", width: int = 1280) -> Any:
    """A page that fails the test by what it writes to the browser's console, and where a resource cannot be had."""
    page = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800}).new_page()
    page.said = []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.goto(visitor.url.rstrip("/") + path)
    return page


def tab_to(page: Any, name: str) -> None:
    """By the Tab key alone; whatever has the focus on the way shows it."""
    for _ in range(120):
        page.keyboard.press("Tab")
        focus = page.evaluate(FOCUS)
        assert focus["outlined"], focus
        if focus["name"] == name:
            return
    raise AssertionError(f"{name} is not reached by Tab")


def test_everything_is_done_by_keyboard(browser: Any, visitor: Visitor, loop: Loop) -> None:
    page = opened(browser, visitor)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the look-up"
    page.keyboard.press("Enter")
    tab_to(page, "user")
    page.keyboard.type("u1")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=As it is served now")
    before = page.inner_text(".sides")
    tab_to(page, "policy.temperature")
    page.keyboard.type("0")
    tab_to(page, "policy.epsilon")
    page.keyboard.type("0")
    page.keyboard.press("Enter")
    page.wait_for_selector("h3:text-is('What if')")
    assert "exp(0.00)" in page.inner_text(".sides > .card:nth-child(2)").replace("-0.00", "0.00")
    page.go_back()
    assert page.inner_text(".sides") == before, "the address holds all there is, and the same draw is drawn again"
    tab_to(page, "reason")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.validity.valueMissing"), "a reason is asked for"
    page.keyboard.type("by keyboard")
    page.keyboard.press("Enter")
    page.wait_for_selector("td:text-is('by keyboard')")
    assert f"{loop.first.id}\nserves" in page.inner_text("#generations + .card").replace("\t", "\n")
    tab_to(page, "rollback-reason")
    page.keyboard.type("back again")
    page.keyboard.press("Enter")
    page.wait_for_selector("td:text-is('back again')")
    assert page.said == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_can_be_read(browser: Any, visitor: Visitor, scheme: str) -> None:
    page = opened(browser, visitor, "/?user=u1&policy.temperature=0&policy.warmth=1", scheme=scheme)
    for summary in page.query_selector_all("summary"):
        summary.click()
    assert page.evaluate(POOR_CONTRAST) == []
    page = opened(browser, visitor, "/?user=u1&policy.diversity=2", scheme=scheme)
    assert page.evaluate(POOR_CONTRAST) == []
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    darkness = sum(int(each) for each in re.findall(r"\d+", colour)[:3])
    assert (darkness < 200) == (scheme == "dark")
    assert page.said == []


@pytest.mark.parametrize("path", ["/", "/?user=u1&policy.temperature=0", "/?text=the+story"])
def test_a_narrow_screen_holds_the_page_and_a_thumb_its_controls(browser: Any, visitor: Visitor, path: str) -> None:
    page = opened(browser, visitor, path, width=390)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for each in page.query_selector_all("input:not([type=hidden]), select, button, summary"):
        box = each.bounding_box()
        if box is not None:
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 390
            assert box["height"] >= 24
    assert page.said == []


@pytest.mark.slow
def test_a_page_that_found_no_server_goes_on_by_itself(browser: Any, loop: Loop, tmp_path: Path) -> None:
    port, admin_port = free_ports(2)
    with console_of(f"127.0.0.1:{port}", f"127.0.0.1:{admin_port}") as visitor:
        page = opened(browser, visitor, "/?user=u1")
        assert "No server answers" in page.inner_text("main")
        with server_of(loop, tmp_path, port=port, admin_port=admin_port):
            page.wait_for_selector("text=As it is served now", timeout=30_000)
