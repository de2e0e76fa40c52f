"""Draws docs/images/dashboard-*.png: every page of the dashboard, in both themes, on a desk and on a phone.

    python -m tests.browser.pictures

Runs the demo's job and one that waits for review through the real service, which takes a few minutes.
"""

import tempfile
from pathlib import Path

from playwright.sync_api import FloatRect, Page, sync_playwright

from demo.generate import draw, write
from demo.tasks import HELPDESK
from tests.browser.conftest import CHROMIUM
from tests.browser.layout import HEIGHT, THEMES, WIDTHS
from tests.browser.test_pages import PAGES, open_page
from tests.deployments import JOBS, MODEL, Deployment, one_machine
from tests.servers import ROOT

FOLDER = ROOT / "docs" / "images"
NAMES = dict(zip(WIDTHS, ("phone", "desk"), strict=True))
TALLEST = 1800
"""Pixels of a page that are shown."""
SHORTEN = """(prefix) => {
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) walker.currentNode.data = walker.currentNode.data.replaceAll(prefix, "");
}"""
"""JavaScript: paths in the pictures are those within the repository, not those of the machine that drew them."""


def main() -> None:
    """Command line."""
    with tempfile.TemporaryDirectory() as folder, one_machine(Path(folder, "service")) as deployment:
        write(Path(folder, "service", "in"), HELPDESK, draw(HELPDESK, 7001, 64, 400, 100))
        deployment.upload()
        jobs = {"done": post(deployment, "help desk"), "waiting": post(deployment, "with review", review=True)}
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page(base_url=deployment.url)
            page.goto("/")
            page.get_by_label("API key").wait_for()
            take(page, "sign-in")
            page.context.request.post("/v1/session", data={"api_key": deployment.key})
            page.goto(f"/jobs/{jobs['done']}")
            page.get_by_text("rows answered").wait_for(timeout=240_000)
            take(page, "live")
            deployment.wait_for_success(jobs["done"])
            page.goto(f"/jobs/{jobs['waiting']}")
            page.get_by_role("link", name="review them").wait_for(timeout=240_000)
            post(deployment, "next")
            for name in PAGES:
                if name != "nothing":
                    open_page(page, name, jobs, deployment)
                    take(page, name)


def post(deployment: Deployment, name: str, *, review: bool = False) -> str:
    """A job with the demo's own settings, but smaller shards, so that there is more to see."""
    files = deployment.files
    block = {"unlabeled_file": files["unlabeled"], "test_file": files["test"], "review": review}
    method = {"type": "semievol", "semievol": block | {"generation": {"shard_size": 50}}}
    body = {"model": MODEL, "training_file": files["labeled"], "seed": 7, "suffix": name, "method": method}
    return str(deployment.post(JOBS, body)["id"])


def take(page: Page, name: str) -> None:
    """Pictures of the page as it is now."""
    for frame in page.frames:
        frame.evaluate(SHORTEN, f"{ROOT}/")
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": HEIGHT})
        for theme in THEMES:
            page.emulate_media(color_scheme=theme)
            page.wait_for_timeout(250)
            path = FOLDER / f"dashboard-{name}-{theme}-{NAMES[width]}.png"
            tall = page.evaluate("document.documentElement.scrollHeight")
            clip = FloatRect(x=0, y=0, width=width, height=min(TALLEST, max(HEIGHT, tall)))
            page.screenshot(path=path, full_page=True, clip=clip)
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
