"""The plots of benchmarks/README.md: they are what its tables say, and fail where those are not as expected."""

import re
from xml.etree import ElementTree

import pytest

from benchmarks import charts, plots
from benchmarks.figures import FiguresMissing, section_of

README = plots.README.read_text(encoding="utf-8")
PUBLISHED = "The schedule of the published pipeline"
SVG = "{http://www.w3.org/2000/svg}"
BLOCK = """\
{name}: 300 unlabeled rows, 200 to test on; medians of 5 alternating rounds
  seconds                             published   semievol      ratio  by round
  warm-up                                  36.7        9.2       3.97  3.50 to 4.10
  generation                              167.1       22.9       7.31  6.50 to 8.25
  training                                 29.8        7.8       3.83  3.80 to 3.90
  retrieval, selection, start              15.4       13.3       1.16  1.10 to 1.20
  whole loop                              249.0       53.2       4.68  4.50 to 4.75
  evaluations, report                       9.0        9.0       1.00  1.00 to 1.00
  means                               published   semievol
  rows kept                                50.0       50.0
  whole loop: 4.68 times as fast (at least 4.5): met
  generation: 7.31 times as fast (at least 6.5): met
"""


def said(chart: charts.Chart) -> str:
    """What the picture says to those who cannot see it."""
    return ElementTree.fromstring(chart.svg()).findtext(f"{SVG}desc") or ""


def section(*blocks: str) -> str:
    return f"## {PUBLISHED}\n\n" + "".join(f"```\n{block}```\n\n" for block in blocks)


def test_the_plots_are_up_to_date() -> None:
    committed = {path.stem: path.read_text(encoding="utf-8") for path in plots.FOLDER.glob("*.svg")}
    drawn = {name: chart.svg() for name, chart in plots.charts(README).items()}
    outdated = {name for name in committed | drawn if committed.get(name) != drawn.get(name)}
    assert not outdated, "make plots"


@pytest.mark.parametrize("name", plots.charts(README))
def test_a_plot_stands_below_the_figures_it_is_drawn_from(name: str) -> None:
    line = plots.image(name, plots.charts(README)[name])
    assert README.count(line) == 1, f"benchmarks/README.md needs, below the table: {line}"
    above = [one for one in README[: README.index(line)].splitlines() if one and not one.startswith("<img")]
    assert above[-1].startswith(("|", "```"))


def test_a_plot_says_what_it_is_and_every_value() -> None:
    root = ElementTree.fromstring(plots.charts(README)["accuracy-demo"].svg())
    assert root.get("role") == "img"
    assert [root.find(f"{SVG}{name}[@id='{name}']") is not None for name in ("title", "desc")] == [True, True]
    assert root.get("aria-labelledby") == "title desc"
    _, rows = section_of(README, "The demo").table("row", "accuracy")
    shown = [text.text for text in root.iter(f"{SVG}text")]
    for name, value, *_ in rows:
        assert f"{name}: {value}" in (root.findtext(f"{SVG}desc") or "")
        assert {name, value} <= set(shown)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("## The demo\n", "## Demo\n", "section 'The demo': expected the section itself"),
        (
            "| row | accuracy |",
            "| row | mean |",
            r"'The demo': expected a table with the columns \| row \| accuracy \|",
        ),
        ("| SemiEvol (default) |", "| SemiEvol |", r"'The demo': expected a row 'SemiEvol \(default\)'"),
        ("(bar 1.3)", "(at least 1.3)", "'Tokens per second of training': expected columns 'to PEER"),
        ("| long tail | ", "| long tail | 1 | ", "'Tokens per second of training': .* rows of as many cells"),
        ("  semievol     ", "  ours     ", "'Rows per second of generation': expected printed lines 'semievol"),
        ("  training    ", "  trainings    ", "expected lines 'warm-up', 'generation', 'training'"),
        ("published   semievol", "semievol   published", "expected a printed block with the line 'seconds"),
        ("CPU s expected", "expected", "'Estimates': expected a table"),
        ("within a factor", "up to a factor", "'Estimates': expected 'within a factor of NUMBER'"),
    ],
)
def test_figures_that_are_not_as_expected_are_named(old: str, new: str, message: str) -> None:
    assert old in README
    with pytest.raises(FiguresMissing, match=message):
        plots.charts(README.replace(old, new))


def test_the_published_schedule_has_a_plot_for_each_model_with_ranges_and_bars() -> None:
    both = section(BLOCK.format(name="demo"), BLOCK.format(name="random").replace("53.2", "54.3"))
    drawn = plots.published(section_of(both, PUBLISHED))
    assert list(drawn) == ["published-demo", "published-random"]
    demo, random = (said(chart) for chart in drawn.values())
    assert "300 unlabeled rows, 200 to test on; medians of 5 alternating rounds" in demo
    assert "generation: 7.31 (6.50 to 8.25); bar 6.5" in demo
    assert "whole loop: 4.68 (4.50 to 4.75); bar 4.5" in demo
    assert ("semievol: 53.2" in demo, "semievol: 54.3" in random) == (True, True)


def test_blocks_without_a_name_are_the_demo_and_then_the_random_model() -> None:
    nameless = BLOCK.partition("\n")[2]
    cpu = nameless.replace("seconds       ", "seconds of CPU")
    drawn = plots.published(section_of(section(cpu + nameless, cpu + nameless), PUBLISHED))
    assert list(drawn) == ["published-demo", "published-random"]
    assert all("Seconds of CPU" in said(chart) for chart in drawn.values())


def test_bars_are_also_read_from_the_text() -> None:
    block = "".join(line for line in BLOCK.format(name="demo").splitlines(keepends=True) if "at least" not in line)
    text = section(block) + "The bars are 4 for the whole loop and 6 for generation, in seconds.\n"
    chart = plots.published(section_of(text, PUBLISHED))["published-demo"]
    assert re.findall(r"bar \d", said(chart)) == ["bar 6", "bar 4"]
    with pytest.raises(FiguresMissing, match=r"expected 'The bars are \.\.\. NUMBER for generation'"):
        plots.published(section_of(section(block), PUBLISHED))


@pytest.mark.parametrize("theme", [0, 1])
def test_colours_have_the_contrast_of_wcag_aa(theme: int) -> None:
    card = charts.PALETTE["card"][theme]
    for name, colours in charts.PALETTE.items():
        if name != "card":
            assert contrast(colours[theme], card) >= (4.5 if name in {"ink", "soft"} else 3), name


def contrast(one: str, other: str) -> float:
    dark, light = sorted(luminance(color) for color in (one, other))
    return (light + 0.05) / (dark + 0.05)


def luminance(color: str) -> float:
    parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
