"""Every page in both themes, on a phone and on a desk: readable, whole, without what axe finds, and all our own."""

import re
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.browser.layout import HEIGHT, THEMES, WIDTHS, look
from tests.deployments import RECIPE, Deployment, input_files
from tests.servers import wait_for

pytestmark = pytest.mark.slow

MOST_SCRIPT_BYTES = 100_000
"""Of JavaScript that the first page may load, compressed."""


@pytest.fixture(scope="module")
def jobs(deployment: Deployment) -> dict[str, str]:
    """A finished job and one that waits for review, by what they are."""
    quick = {"evolution": {**RECIPE["evolution"], "steps": 8}}
    done = deployment.post_job("finished", recipe=quick)
    waiting = deployment.post_job("waiting", recipe={"review": True})
    deployment.wait_for_success(done)

    def waits() -> bool:
        return bool(deployment.job(waiting)["semievol"]["review"]["waiting"])

    wait_for(waits, "the review", 240)
    return {"done": done, "waiting": waiting}


@pytest.fixture(scope="module")
def tab(chromium: Browser, deployment: Deployment) -> Iterator[Page]:
    """A signed-in page that all tests of this module share."""
    context = chromium.new_context(base_url=deployment.url)
    context.request.post("/v1/session", data={"api_key": deployment.key})
    yield context.new_page()
    context.close()


def open_page(tab: Page, name: str, jobs: dict[str, str], deployment: Deployment) -> None:
    """Show one of the pages with what is worth looking at on it."""
    done, waiting = jobs["done"], jobs["waiting"]
    places = {
        "jobs": "/",
        "new": "/new",
        "files": "/files",
        "models": "/models",
        "workers": "/workers",
        "keys": "/keys",
        "watch": f"/jobs/{done}",
        "labels": f"/jobs/{done}/labels",
        "label": f"/jobs/{done}/labels",
        "review": f"/jobs/{waiting}/labels",
        "verdict": f"/jobs/{done}/verdict",
        "nothing": "/jobs/ftjob-nothing",
    }
    tab.goto(places[name])
    tab.get_by_role("heading").first.wait_for()
    if name == "new":
        for role, path in input_files(deployment.folder / "in").items():
            tab.set_input_files(f"#file-{role}", path)
        tab.get_by_text("ready", exact=True).wait_for()
        tab.get_by_text("of GPU memory").wait_for()  # what the job would take
        tab.get_by_text("All other settings").click()
    if name == "label":
        tab.locator("tbody tr button").first.click()
        tab.get_by_role("dialog").get_by_text("Worked examples").wait_for()
    if name in {"labels", "review", "files", "keys", "workers"}:
        tab.locator("tbody tr").first.wait_for()
    if name == "watch":
        tab.get_by_text("Decisions", exact=True).wait_for()
    if name == "verdict":
        tab.frame_locator("iframe").get_by_role("heading", name="Provenance").wait_for()
        tab.get_by_text("vllm serve").wait_for()
    tab.wait_for_timeout(200)


PAGES = (
    "jobs",
    "new",
    "files",
    "models",
    "workers",
    "keys",
    "watch",
    "labels",
    "label",
    "review",
    "verdict",
    "nothing",
)


@pytest.mark.parametrize("name", PAGES)
def test_page(name: str, tab: Page, jobs: dict[str, str], deployment: Deployment) -> None:
    refused: list[str] = []
    tab.on("console", lambda message: refused.append(message.text) if "Content Security" in message.text else None)
    open_page(tab, name, jobs, deployment)
    for how, found in look(tab).items():
        assert not found["wide"], how
        assert found["overlaps"] == [], how
        assert broken(tab) == [], how
    for theme in THEMES:
        tab.emulate_media(color_scheme=theme)
        assert violations(tab) == [], theme
    assert refused == []


def violations(tab: Page) -> list[str]:
    """What axe-core finds against WCAG 2.2 A and AA and its own best practices, with where."""
    found: list[dict[str, Any]] = Axe().run(tab).response["violations"]
    return [f"{one['id']}: {[node['target'] for node in one['nodes']][:4]}" for one in found]


def broken(tab: Page) -> list[str]:
    """Words that say that something was not there: undefined, null, NaN, [object Object]."""
    text = tab.inner_text("body")
    return re.findall(r".{0,40}\b(?:undefined|NaN|\[object Object\]).{0,40}", text)


def test_sign_in_page(context: BrowserContext) -> None:
    page = context.new_page()
    page.goto("/")
    page.get_by_label("API key").wait_for()
    for how, found in look(page).items():
        assert not found["wide"], how
        assert found["overlaps"] == [], how
    assert violations(page) == []


def test_everything_by_keyboard(tab: Page, jobs: dict[str, str], deployment: Deployment) -> None:
    """The navigation can be skipped; a row opens and closes, and the focus is where it was."""
    open_page(tab, "labels", jobs, deployment)
    tab.get_by_text("Skip to the page").focus()
    expect(tab.get_by_text("Skip to the page")).to_be_in_viewport()
    tab.keyboard.press("Enter")
    expect(tab.locator("main")).to_be_focused()
    tab.locator("tbody tr button").first.focus()
    tab.keyboard.press("Enter")
    expect(tab.get_by_role("dialog")).to_be_visible()
    tab.keyboard.press("Escape")
    expect(tab.get_by_role("dialog")).to_be_hidden()
    expect(tab.locator("tbody tr button").first).to_be_focused()


def test_first_page_is_small_quick_and_our_own(chromium: Browser, deployment: Deployment) -> None:
    seconds, scripts = [], 0
    for _ in range(5):
        context = chromium.new_context(base_url=deployment.url, viewport={"width": WIDTHS[1], "height": HEIGHT})
        context.request.post("/v1/session", data={"api_key": deployment.key})
        page = context.new_page()
        begun = time.monotonic()
        page.goto("/")
        page.get_by_role("heading", name="Jobs").wait_for()
        seconds.append(time.monotonic() - begun)
        loaded = page.evaluate("performance.getEntriesByType('resource').map(one => [one.name, one.encodedBodySize])")
        scripts = sum(size for name, size in loaded if name.endswith(".js"))
        assert all(name.startswith(deployment.url) and deployment.key not in name for name, _ in loaded)
        context.close()
    print(f"{scripts:,} bytes of JavaScript, compressed; first page after {median(seconds):.2f} s (median of 5)")
    assert 0 < scripts < MOST_SCRIPT_BYTES


def test_assets_are_known_to_the_document(deployment: Deployment) -> None:
    """What is preloaded exists, and no inline script or style is in the document."""
    document = deployment.get("/").text
    for path in re.findall(r'(?:href|src)="(/assets/[^"]+)"', document):
        assert deployment.get(path).status_code == 200
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon\w+=", document)
