"""The plots of benchmarks/README.md as Chromium lays them out."""

from pathlib import Path

import pytest
from playwright.sync_api import Browser

from benchmarks import plots
from benchmarks.charts import PALETTE
from tests.browser.layout import look

LIGHT, DARK = PALETTE["card"]
PAGE = f"""<!doctype html><style>
body {{ margin: 8px; background: {LIGHT} }}
@media (prefers-color-scheme: dark) {{ body {{ background: {DARK} }} }}
</style>"""


@pytest.fixture(scope="module")
def svgs() -> dict[str, str]:
    return {path.stem: path.read_text(encoding="utf-8") for path in plots.FOLDER.glob("*.svg")}


def test_the_texts_of_a_plot_fit_and_can_be_read(chromium: Browser, svgs: dict[str, str]) -> None:
    tab = chromium.new_page()
    for name, svg in svgs.items():
        tab.set_content(PAGE + svg)
        for how, found in look(tab).items():
            assert not any(found[check] for check in ("wide", "cut", "overlaps", "pale")), (name, how, found)


def test_a_plot_in_the_readme_is_as_wide_as_the_page_and_its_text_does_not_shrink(
    chromium: Browser, tmp_path: Path
) -> None:
    tab = chromium.new_page()
    name, chart = next(iter(plots.charts(plots.README.read_text(encoding="utf-8")).items()))
    page = tmp_path / "page.html"
    page.write_text(PAGE + plots.image(name, chart).replace("../docs/images/benchmarks", plots.FOLDER.as_uri()))
    tab.goto(page.as_uri())
    heights = set()
    for width in (390, 900):
        tab.set_viewport_size({"width": width, "height": 900})
        shown = tab.locator("img").bounding_box()
        assert shown is not None
        assert shown["width"] == width - 16
        heights.add(shown["height"])
    assert len(heights) == 1
    assert heights.pop() > 500
