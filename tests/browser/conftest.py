"""A real Chromium before the real service. Without a Chromium these tests are skipped, and say so."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.deployments import Deployment, one_machine

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TIMEOUT_MS = 30_000
expect.set_options(timeout=TIMEOUT_MS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip all that is here where no Chromium is found."""
    if CHROMIUM is None:
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="no Chromium is installed"))


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The service on one machine, its files uploaded."""
    with one_machine(tmp_path_factory.mktemp("dashboard") / "service") as started:
        started.upload()
        yield started


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def context(chromium: Browser, deployment: Deployment) -> Iterator[BrowserContext]:
    """A fresh profile that knows nobody."""
    made = chromium.new_context(base_url=deployment.url, viewport={"width": 1280, "height": 900})
    made.set_default_timeout(TIMEOUT_MS)
    yield made
    made.close()


@pytest.fixture
def page(context: BrowserContext, deployment: Deployment) -> Iterator[Page]:
    """A page signed in with the admin's key. The test fails if a script of the page does."""
    answer = context.request.post("/v1/session", data={"api_key": deployment.key})
    assert answer.ok, answer.text()
    made = context.new_page()
    errors: list[str] = []
    made.on("pageerror", lambda error: errors.append(str(error)))
    yield made
    assert not errors
