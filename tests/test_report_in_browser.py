"""The report's page as Chromium lays it out: nothing cut, nothing on top of something else, readable in both themes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from semievol import page
from tests.chromium import CHROMIUM, Browser, browser
from tests.reports import CASES

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

LAID_OUT = ("hostile", "supervised", "free_text", "many_classes", "several_rounds", "all_thrown_out")
THEMES = ("light", "dark")
WIDTHS = (390, 1280)

LINES = """
var linesOf = () => {
  const lines = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, parent = node.parentElement;
    if (!node.data.trim() || parent.closest("title, desc, style, .unseen")) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const box of range.getClientRects())
      if (box.width > 1) lines.push({parent, box, text: node.data.trim().slice(0, 40)});
  }
  return lines;
};
"""
"""JavaScript: every line of text that is shown, with its box."""

CUT = """
(() => {
  const lines = linesOf();
  return lines.filter(({box}) => box.left < 0 || box.right > innerWidth + 0.5).map(({text}) => text);
})()"""

OVERLAPS = """
(() => {
  const lines = linesOf();
  const found = [];
  lines.sort((a, b) => a.box.top - b.box.top);
  for (let i = 0; i < lines.length; i++)
    for (let j = i + 1; j < lines.length && lines[j].box.top < lines[i].box.bottom - 4; j++) {
      const a = lines[i].box, b = lines[j].box;
      if (Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1) found.push([lines[i].text, lines[j].text]);
    }
  return found;
})()"""

PALE = """
(() => {
  const lines = linesOf();
  const channels = (color) => {
    const values = color.match(/[\\d.]+/g).map(Number);
    return color.startsWith("color(") ? values.map((v, i) => i < 3 ? 255 * v : v) : values;
  };
  const light = (color) => {
    const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = channels(color).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    const color = getComputedStyle(element).backgroundColor;
    return (channels(color)[3] ?? 1) > 0 ? color : ground(element.parentElement);
  };
  const found = new Set();
  for (const {parent, text} of lines) {
    const style = getComputedStyle(parent);
    const ink = light(parent.closest("svg") ? style.fill : style.color), paper = light(ground(parent));
    const contrast = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    if (contrast < 4.5) found.add(`${text}: ${contrast.toFixed(2)}`);
  }
  return [...found];
})()"""
"""JavaScript: texts whose contrast is below WCAG AA's 4.5."""


CHECKS = {
    "wide": "document.documentElement.scrollWidth > innerWidth",
    "cut": LINES + CUT,
    "overlaps": LINES + OVERLAPS,
    "pale": LINES + PALE,
    "ground": "getComputedStyle(document.body).backgroundColor",
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of each kind of run, every fold open."""
    folder = tmp_path_factory.mktemp("pages")
    written = {}
    for name in LAID_OUT:
        written[name] = folder / f"{name}.html"
        html = (
            page.render_html(CASES[name](folder / name))
            .replace("<details", "<details open")
            .replace("open open", "open")
        )
        written[name].write_text(html, encoding="utf-8")
    return written


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


Seen = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def seen(chromium: Browser, pages: dict[str, Path]) -> Seen:
    """What each check says of each page, width and theme."""
    return {name: told for page_name, path in pages.items() for name, told in look(chromium, page_name, path).items()}


def look(chromium: Browser, name: str, path: Path) -> Seen:
    chromium.open(path)
    told = {}
    for width in WIDTHS:
        for theme in THEMES:
            chromium.set(width, theme)
            told[f"{name} {width} {theme}"] = {check: chromium.run(script) for check, script in CHECKS.items()}
    return told


def said(seen: Seen, check: str) -> dict[str, Any]:
    return {where: told[check] for where, told in seen.items() if told[check]}


def test_nothing_is_wider_than_the_window(seen: Seen) -> None:
    assert len(seen) == len(LAID_OUT) * len(WIDTHS) * len(THEMES)
    assert said(seen, "wide") == {}
    assert said(seen, "cut") == {}


def test_no_text_lies_on_another(seen: Seen) -> None:
    assert said(seen, "overlaps") == {}


def test_every_text_stands_out_from_its_ground(seen: Seen) -> None:
    assert said(seen, "pale") == {}


def test_the_themes_differ(seen: Seen) -> None:
    assert len({told["ground"] for told in seen.values()}) == len(THEMES)


def test_the_checks_see_what_they_look_for(chromium: Browser, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<body style='background: #fff'><p style='position: absolute; top: 9px; color: #aaa'>pale</p>"
        "<p style='position: absolute; top: 12px'>above</p><pre style='margin-top: 99px'>" + "wide " * 99
    )
    found = look(chromium, "bad", bad)["bad 390 light"]
    assert found["overlaps"] == [["pale", "above"]]
    assert found["pale"] == ["pale: 2.32"]
    assert len(found["cut"]) == 1
    assert found["wide"]


def test_nothing_is_fetched(chromium: Browser, pages: dict[str, Path]) -> None:
    chromium.requested.clear()
    for path in pages.values():
        chromium.open(path)
    chromium.run("0")
    assert sorted(chromium.requested) == sorted(path.as_uri() for path in pages.values())
