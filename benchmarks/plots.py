"""Draws docs/images/benchmarks/*.svg from the tables and printed blocks of benchmarks/README.md, and from nothing else.

    python -m benchmarks.plots

Tables are found by the heading above them and their columns, lines of printed blocks by what they begin with. Figures
that are not found, or in another form, are an error that says which.
"""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.charts import Chart, Limit, Segment
from benchmarks.figures import FiguresMissing, Section, section_of

README = Path(__file__).parent / "README.md"
FOLDER = README.parent.parent / "docs" / "images" / "benchmarks"

OURS, SEMIEVOL, PUBLISHED = "SemiEvol (default)", "semievol", "published"
TRAINERS = (SEMIEVOL, "TRL, packing", "TRL, padded")
TASKS = {"demo": "the demo", "random": "a random Llama"}
"""Models of the published schedule's comparison, in the order of their blocks."""
KINDS = {"seconds": "Seconds", "seconds of CPU": "Seconds of CPU, all processes"}
PARTS = {"warm-up": "sft", "generation": "ours", "training": "good", "retrieval, selection, start": "other"}
"""Of a loop, with their colours."""
WHOLE = "whole loop"
BARS = {WHOLE: "the whole loop", "generation": "generation"}
"""Parts with a bar, as the text calls them."""


def charts(readme: str) -> dict[str, Chart]:
    """Every plot by the name of its file."""
    training = section_of(readme, "Tokens per second of training")
    clinic = "Clinical notes to departments (48 labels), settings of the demo"
    bank = "Financial PhraseBank, settings of the demo but for the number of steps"
    return {
        "accuracy-demo": accuracy(section_of(readme, "The demo"), "The demo"),
        "accuracy-clinic": accuracy(section_of(readme, clinic), "Clinical notes"),
        "accuracy-fpb": accuracy(section_of(readme, bank), "Financial PhraseBank"),
        "generation": generation(section_of(readme, "Rows per second of generation")),
        **published(section_of(readme, "The schedule of the published pipeline")),
        "training-speed": training_speed(training),
        "training-memory": training_memory(training),
        "estimates": estimates(section_of(readme, "Estimates")),
    }


def image(name: str, chart: Chart) -> str:
    """The line that shows a plot in the README. The width is said, as the pictures have none of their own."""
    return f'<img width="100%" alt="{chart.title}" src="../docs/images/benchmarks/{name}.svg">'


# --- accuracy, speed, memory, estimates -------------------------------------------------------------------------------


def accuracy(section: Section, task: str) -> Chart:
    """Mean accuracies with their standard deviations."""
    _, rows = section.table("row", "accuracy")
    if all(name != OURS for name, *_ in rows):
        raise FiguresMissing(section.heading, f"a row {OURS!r}")
    chart = Chart(
        f"{task}: test accuracy in %", "Mean (standard deviation) over seeds; the thin line is one of it either way."
    )
    for name, cell, *_ in rows:
        mean, deviation = (number / 100 for number in section.numbers(cell, 2))
        spread = max(0, mean - deviation), min(1, mean + deviation)
        _bar(chart, name, cell, mean, ours=name == OURS, spread=spread)
    return chart


def generation(section: Section) -> Chart:
    """Rows per second beside those of the peers."""
    lines = section.printed()
    rates = {cells[0]: section.number(cells[1]) for cells in lines if cells[-1].endswith(" rows/s")}
    if SEMIEVOL not in rates or len(rates) < 2:
        raise FiguresMissing(section.heading, f"printed lines '{SEMIEVOL}  NUMBER rows/s' and the like of peers")
    notes = [cells[0] for cells in lines if re.match(r"\d+ rows, |semievol / ", cells[0])]
    chart = Chart("Rows per second of generation", *notes)
    for name, rate in rates.items():
        _bar(chart, name, f"{rate:.1f}", rate / max(rates.values()), ours=name == SEMIEVOL)
    return chart


def training_speed(section: Section) -> Chart:
    """Tokens per second by case, then the ratios to the peers with the bars to meet."""
    head, rows = section.table("tokens/s", *TRAINERS)
    bars = [re.fullmatch(r"(to .+) \(bar ([\d.]+)\)", column) for column in head[1 + len(TRAINERS) :]]
    if not bars or not all(bars):
        raise FiguresMissing(section.heading, f"columns 'to PEER (bar NUMBER)' after {TRAINERS[-1]!r}")
    chart = Chart(
        "Tokens per second of training", "Median (range of rounds: the thin line). Each case has a scale of its own."
    )
    ratios = {}
    for case, *cells in rows:
        chart.heading(case)
        found = [section.numbers(cell, 3) for cell in cells[: len(TRAINERS)]]
        top = max(high for _, _, high in found)
        for trainer, cell, (middle, low, high) in zip(TRAINERS, cells, found, strict=False):
            _bar(chart, trainer, cell, middle / top, ours=trainer == SEMIEVOL, spread=(low / top, high / top))
        pairs = zip(bars, cells[len(TRAINERS) :], strict=True)
        ratios[case] = [Ratio(bar[1], cell, section.number(cell), float(bar[2])) for bar, cell in pairs if bar]
    chart.heading("How many times TRL's tokens per second")
    chart.note("The upright line is the bar to meet.")
    top = top_of(one for of_case in ratios.values() for one in of_case)
    for case, of_case in ratios.items():
        chart.heading(case.partition(" (")[0], strong=False)
        for one in of_case:
            one.draw(chart, top)
    return chart


def training_memory(section: Section) -> Chart:
    """Peak memory by case, and how much of it came with the training."""
    _, rows = section.table("", *TRAINERS)
    chart = Chart("Peak memory of one training, MB", "Outlined: there before the training. Filled: came with it.")
    found = {case: [section.numbers(cell, 2) for cell in cells] for case, *cells in rows}
    top = max(peak for of_case in found.values() for peak, _ in of_case)
    for case, of_case in found.items():
        chart.heading(case)
        for trainer, (peak, grown) in zip(TRAINERS, of_case, strict=True):
            kind = "ours" if trainer == SEMIEVOL else "other"
            segments = [Segment((peak - grown) / top, kind, hollow=True), Segment(grown / top, kind)]
            chart.row(trainer, f"{peak:.0f}, {grown:.0f} of it", segments, strong=trainer == SEMIEVOL)
    return chart


def estimates(section: Section) -> Chart:
    """CPU time of jobs as expected and as it came."""
    _, rows = section.table("job", "CPU s expected", "took", "off")
    factor = section.told("'within a factor of NUMBER'", r"within a factor of (\d+(?:\.\d+)?)")
    chart = Chart(
        "Estimates: CPU seconds of a job",
        f"Expected → took, and how far off. Outlined: within a factor of {factor:g}, the bar to meet.",
    )
    found = [[section.number(cell) for cell in row[1:3]] for row in rows]
    top = max(max(expected * factor, took) for expected, took in found)
    for (job, *cells), (expected, took) in zip(rows, found, strict=True):
        within = expected / factor / top, expected * factor / top
        value = f"{cells[0]} → {cells[1]}, off {cells[2]}"
        chart.row(job, value, [Segment(took / top, "ours")], within=within)
    return chart


def _bar(
    chart: Chart, name: str, value: str, length: float, *, ours: bool, spread: tuple[float, float] | None = None
) -> None:
    chart.row(name, value, [Segment(length, "ours" if ours else "other")], strong=ours, spread=spread)


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times as fast as a peer. `value`: as the README has it; `spread`: least and most of the rounds."""

    label: str
    value: str
    times: float
    bar: float | None
    spread: tuple[float, float] | None = None

    def draw(self, chart: Chart, top: float) -> None:
        """A row of a chart that is `top` wide."""
        limit = Limit(self.bar / top, f"bar {self.bar:g}") if self.bar else None
        spread = (self.spread[0] / top, self.spread[1] / top) if self.spread else None
        chart.row(self.label, self.value, [Segment(self.times / top, "ours")], spread=spread, limit=limit)


def top_of(ratios: Iterable[Ratio]) -> float:
    """The largest number that is drawn of them."""
    return max(max(one.times, one.bar or 0.0, *(one.spread or ())) for one in ratios)


# --- the published schedule -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds by part of `peers`, in their order, and how many times as long as ours the published schedule takes."""

    peers: list[str]
    parts: list[list[float]]
    whole: list[str]
    ratios: list[Ratio]


def published(section: Section) -> dict[str, Chart]:
    """Seconds by part, a chart for each model that was compared.

    A line "demo: ..." or "random: ..." above a block says which it is; without one the demo is the first.
    """
    loops: dict[str, dict[str, Timing]] = {}
    told: dict[str, str] = {}
    lines, name = section.printed(), "demo"
    for place, (begin, *others) in enumerate(lines):
        if named := re.match(rf"({'|'.join(TASKS)}): (.*)", begin):
            name = named[1]
            told[name] = named[2]
        elif begin in KINDS and others[:2] == [PUBLISHED, SEMIEVOL]:
            if begin in loops.get(name, {}):
                name = "random"
            loops.setdefault(name, {})[begin] = timing_of(section, lines[place:])
    if not loops or any("seconds" not in timings for timings in loops.values()):
        raise FiguresMissing(section.heading, f"a printed block with the line 'seconds  {PUBLISHED}  {SEMIEVOL}  ...'")
    return {f"published-{name}": loop_chart(name, told.get(name), timings) for name, timings in loops.items()}


def timing_of(section: Section, lines: Sequence[Sequence[str]]) -> Timing:
    """The lines from the head of a block to that of the whole loop."""
    head, body = lines[0], lines[1 : len(PARTS) + 2]
    names = [*PARTS, WHOLE]
    if "ratio" not in head or [cells[0] for cells in body] != names or any(len(cells) != len(head) for cells in body):
        expected = f"lines {', '.join(map(repr, names))} below the printed {head[0]!r}, whose columns have a 'ratio'"
        raise FiguresMissing(section.heading, expected)
    at = head.index("ratio")
    *parts, whole = [cells[1:at] for cells in body]
    return Timing(
        peers=list(head[1:at]),
        parts=[[section.number(cell) for cell in cells] for cells in parts],
        whole=list(whole),
        ratios=[ratio_of(section, cells[0], *cells[at:]) for cells in body],
    )


def ratio_of(section: Section, part: str, times: str, by_round: str = "") -> Ratio:
    """The ratio of a part of the loop. Its bar is as the benchmark prints it or as the text says it."""
    low_high = section.numbers(by_round, 2) if by_round else []
    bar = None
    if part in BARS:
        printed = rf"{part}: [\d.]+ times as fast \(at least ([\d.]+)\)"
        said = rf"(?i)\bbars\b.*?\b([\d.]+) for {BARS[part]}"
        bar = section.told(f"'The bars are ... NUMBER for {BARS[part]}'", printed, said)
    value = f"{times} ({by_round})" if by_round else times
    return Ratio(part, value, section.number(times), bar, (low_high[0], low_high[1]) if low_high else None)


def loop_chart(name: str, told: str | None, timings: Mapping[str, Timing]) -> Chart:
    """Stacked seconds of each kind, then the ratios of those by the clock. `told`: what the block says of itself."""
    chart = Chart(
        f"The published schedule on {TASKS[name]}", *([told] if told else []), "Each stripe is a whole loop, by part."
    )
    chart.key([(colour, part) for part, colour in PARTS.items()])
    for kind, title in KINDS.items():
        if kind in timings:
            chart.heading(title)
            _stacks(chart, timings[kind])
    chart.heading("Seconds, published / semievol")
    ratios = timings["seconds"].ratios
    spread = " The thin line is the range of rounds." if any(one.spread for one in ratios) else ""
    chart.note(f"The upright line is the bar to meet.{spread}")
    for one in ratios:
        one.draw(chart, top_of(ratios))
    return chart


def _stacks(chart: Chart, timing: Timing) -> None:
    by_peer = list(zip(*timing.parts, strict=True))
    top = max(sum(seconds) for seconds in by_peer)
    for peer, whole, seconds in zip(timing.peers, timing.whole, by_peer, strict=True):
        parts = list(zip(PARTS.items(), seconds, strict=True))
        segments = [Segment(taken / top, colour) for (_, colour), taken in parts]
        chart.row(peer, whole, segments, strong=peer == SEMIEVOL)
        chart.values([(colour, part, f"{taken:.1f}") for (part, colour), taken in parts])


def main() -> None:
    """Command line."""
    try:
        drawn = charts(README.read_text(encoding="utf-8"))
    except FiguresMissing as error:
        sys.exit(str(error))
    FOLDER.mkdir(parents=True, exist_ok=True)
    for old in FOLDER.glob("*.svg"):
        if old.stem not in drawn:
            old.unlink()
    for name, chart in drawn.items():
        path = FOLDER / f"{name}.svg"
        path.write_text(chart.svg(), encoding="utf-8")
        print(path.relative_to(FOLDER.parents[2]))


if __name__ == "__main__":
    main()
