"""The report's page as Chromium lays it out: nothing cut, nothing on top of something else, readable in both themes."""

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from semievol import page as report_page
from tests.browser.layout import THEMES, WIDTHS, look
from tests.reports import CASES

LAID_OUT = ("hostile", "supervised", "free_text", "many_classes", "several_rounds", "all_thrown_out")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of each kind of run, every fold open."""
    folder = tmp_path_factory.mktemp("pages")
    written = {}
    for name in LAID_OUT:
        written[name] = folder / f"{name}.html"
        html = (
            report_page.render_html(CASES[name](folder / name))
            .replace("<details", "<details open")
            .replace("open open", "open")
        )
        written[name].write_text(html, encoding="utf-8")
    return written


@pytest.fixture(scope="module")
def tab(chromium: Browser) -> Page:
    return chromium.new_page()


Seen = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def seen(tab: Page, pages: dict[str, Path]) -> Seen:
    """What each check says of each page, width and theme."""
    told: Seen = {}
    for name, path in pages.items():
        tab.goto(path.as_uri())
        told |= {f"{name} {how}": found for how, found in look(tab).items()}
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


def test_the_checks_see_what_they_look_for(tab: Page, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<body style='background: #fff'><p style='position: absolute; top: 9px; color: #aaa'>pale</p>"
        "<p style='position: absolute; top: 12px'>above</p><pre style='margin-top: 99px'>" + "wide " * 99
    )
    tab.goto(bad.as_uri())
    found = look(tab)["390 light"]
    assert found["overlaps"] == [["pale", "above"]]
    assert found["pale"] == ["pale: 2.32"]
    assert len(found["cut"]) == 1
    assert found["wide"]


def test_nothing_is_fetched(tab: Page, pages: dict[str, Path]) -> None:
    requested: list[str] = []
    tab.on("request", lambda request: requested.append(request.url))
    for path in pages.values():
        tab.goto(path.as_uri())
    assert sorted(requested) == sorted(path.as_uri() for path in pages.values())
