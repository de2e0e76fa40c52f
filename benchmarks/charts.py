"""Bar charts as SVG: below one another labels, values and bars. Knows nothing of benchmarks.

Horizontal positions are percent and vertical ones pixels, as in the report's pictures: a chart fills the width of the
page, from 390 px on, and its text does not stretch. Colours are those of the report and of the dashboard.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from textwrap import wrap

PALETTE = {
    "card": ("#ffffff", "#1c1e21"),
    "ink": ("#1b1c1e", "#e9e9e6"),
    "soft": ("#5a5d62", "#a6aab0"),
    "ours": ("#1f5fc4", "#6ea3f7"),
    "other": ("#7d8288", "#8d9299"),
    "sft": ("#b06f12", "#e0a24c"),
    "good": ("#1a6b3c", "#7fd3a0"),
}
"""Classes of text and marks: their colour in the light theme and in the dark one."""
STYLE = """text { font: 13px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif }
text { font-variant-numeric: tabular-nums }
text.title { font-size: 16px }
text.title, text.strong { font-weight: 600 }
rect, text { stroke-width: 0 }
rect.hollow { fill-opacity: 0; stroke-width: 1.5 }
line { stroke-width: 2 }
line.halo { stroke-width: 4 }
"""
TITLE_CHARACTERS, LINE_CHARACTERS = 34, 44
"""What fits beside the margins at 390 px in a wide typeface."""
LINE, THICK, GAP = 18, 10, 12
"""Pixels: a line of text, a bar, what is between rows."""


@dataclass(frozen=True, slots=True)
class Limit:
    """An upright line across a bar, with its name below."""

    at: float
    name: str


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a bar. `kind`: its colour, a name of the palette; `hollow` ones are outlined."""

    length: float
    kind: str
    hollow: bool = False


class Chart:
    """A picture that grows downwards. Lengths and positions are shares of its width, from 0 to 1."""

    def __init__(self, title: str, *notes: str) -> None:
        self.title = title
        self._said: list[str] = []
        self._marks: list[str] = []
        self._height = 14
        self._lines(wrap(title, TITLE_CHARACTERS), "ink title", height=22)
        for said in notes:
            self.note(said)
        self._height += GAP - 2

    def note(self, said: str) -> None:
        """A remark."""
        self._said.append(said)
        self._lines(wrap(said, LINE_CHARACTERS), "soft")
        self._height += 2

    def heading(self, said: str, *, strong: bool = True) -> None:
        """What the rows below have in common."""
        self._said.append(said)
        self._height += GAP // 2
        self._lines(wrap(said, LINE_CHARACTERS - 4), "ink strong" if strong else "ink")
        self._height += 2

    def key(self, names: Sequence[tuple[str, str]]) -> None:
        """What colours mean. `names`: colour, meaning."""
        for kind, name in names:
            self._swatch(0, kind)
            self._lines([name], "ink", indent=18)
        self._height += GAP // 2

    def row(
        self,
        label: str,
        value: str,
        segments: Sequence[Segment],
        *,
        strong: bool = False,
        spread: tuple[float, float] | None = None,
        limit: Limit | None = None,
        within: tuple[float, float] | None = None,
    ) -> None:
        """A label and a value above a bar. `spread`: ends of a thin line on it; `within`: of an outline around it."""
        self._said.append(f"{label}: {value}")
        weight = "ink strong" if strong else "ink"
        self._text(value, weight, at=1)
        self._lines(wrap(label, LINE_CHARACTERS - len(value)), weight)
        self._height += 7 if within else 3
        self._bar(segments)
        middle = self._height + THICK / 2
        if within:
            self._rect("soft hollow", within[0], within[1] - within[0], self._height - 4, THICK + 8)
        if spread:
            for kind in ("card halo", "ink"):
                self._line(kind, *spread, middle, middle)
        self._height += THICK
        if limit:
            for kind in ("card halo", "ink"):
                self._line(kind, limit.at, limit.at, middle - 9, middle + 9)
            self._said.append(limit.name)
            self._height += 4
            self._text(limit.name, "soft", at=limit.at, after=limit.at < 0.7)
            self._height += LINE
        self._height += GAP

    def values(self, named: Sequence[tuple[str, str, str]]) -> None:
        """Below a row, what its segments stand for: colour, name for those who cannot see it, value."""
        self._height -= GAP - 3
        for place, (kind, name, value) in enumerate(named):
            self._said.append(f"{name} {value}")
            self._swatch(place / len(named), kind)
            self._text(value, "ink", at=place / len(named), after=True, indent=16)
        self._height += LINE + GAP

    def svg(self) -> str:
        """The whole picture."""
        marks, height = "\n".join(self._marks), self._height + 4
        size = f'width="100%" height="{height}"'
        return f"""<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-labelledby="title desc">
<title id="title">{escape(self.title)}</title>
<desc id="desc">{escape("; ".join(self._said))}</desc>
<style>
{STYLE}{_colours(0)}@media (prefers-color-scheme: dark) {{
{_colours(1)}}}
</style>
<rect class="card" width="100%" height="100%" rx="10"/>
<svg x="3%" width="94%" overflow="visible">
{marks}
</svg>
</svg>
"""

    def _lines(self, lines: Sequence[str], kind: str, *, height: int = LINE, indent: int = 0) -> None:
        for line in lines:
            self._text(line, kind, at=0, after=True, indent=indent)
            self._height += height

    def _bar(self, segments: Sequence[Segment]) -> None:
        begin = 0.0
        for one in segments:
            self._rect(f"{one.kind} hollow" if one.hollow else one.kind, begin, one.length, self._height, THICK)
            begin += one.length
            if one is not segments[-1]:
                self._line("card", begin, begin, self._height, self._height + THICK)

    def _swatch(self, at: float, kind: str) -> None:
        self._marks.append(
            f'<rect class="{kind}" x="{_percent(at)}" y="{self._height + 2}" width="11" height="11" rx="2"/>'
        )

    def _text(self, said: str, kind: str, *, at: float, after: bool = False, indent: int = 0) -> None:
        """A line that begins at `at`, or ends there."""
        anchor = "" if after else ' text-anchor="end"'
        shift = f' dx="{indent}"' if indent else ""
        place = f'x="{_percent(at)}" y="{self._height + 13}"'
        self._marks.append(f'<text class="{kind}" {place}{shift}{anchor}>{escape(said)}</text>')

    def _rect(self, kind: str, begin: float, length: float, top: float, height: float) -> None:
        self._marks.append(
            f'<rect class="{kind}" x="{_percent(begin)}" y="{top:g}" width="{_percent(length)}" height="{height:g}" '
            'rx="2"/>'
        )

    def _line(self, kind: str, begin: float, end: float, top: float, bottom: float) -> None:
        ends = f'x1="{_percent(begin)}" x2="{_percent(end)}" y1="{top:g}" y2="{bottom:g}"'
        self._marks.append(f'<line class="{kind}" {ends}/>')


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _colours(theme: int) -> str:
    return "".join(f".{name} {{ fill: {both[theme]}; stroke: {both[theme]} }}\n" for name, both in PALETTE.items())
