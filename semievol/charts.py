"""Where the marks of the report's pictures go: figures of a report as positions. Pure; the template draws them.

Positions are percent of a chart's width or height, so that charts stretch and their text does not.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from semievol import wording
from semievol.wording import Report

MAX_ANSWERS = 20
"""Answers shown one by one; the rarer ones are summed."""
MAX_CELLS = 12
"""Classes up to which a confusion matrix has room for numbers."""
MAX_SHADES = 60
"""Classes up to which it is drawn at all."""
MISTAKES = 8


# --- answers ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AnswerShare:
    """How often an answer occurs among the labels and among the accepted pseudo-labels, as shares of each."""

    answer: str
    labeled: float
    accepted: float
    accepted_rows: int


def answer_shares(report: Report) -> list[AnswerShare]:
    """The labeled mix of answers beside that of the accepted rows; empty without both or where the task is open."""
    labeled = Counter[str](report["answer_mix"])
    if not labeled or not wording.evolves(report):
        return []
    accepted = Counter[str]()
    for one in report["rounds"][: report["best_round"]]:
        accepted.update(one["answers"])
    order = sorted(labeled.keys() | accepted.keys(), key=lambda answer: (-labeled[answer], -accepted[answer], answer))
    groups = [(answer, [answer]) for answer in order[:MAX_ANSWERS]]
    if rest := order[MAX_ANSWERS:]:
        groups.append((f"{len(rest):,} more", rest))
    return [
        AnswerShare(
            answer=name,
            labeled=sum(labeled[one] for one in members) / labeled.total(),
            accepted=sum(accepted[one] for one in members) / max(1, accepted.total()),
            accepted_rows=sum(accepted[one] for one in members),
        )
        for name, members in groups
    ]


@dataclass(frozen=True, slots=True)
class Cell:
    """Rows of one right answer that got one answer.

    `shade`: the root of their share of the rows of that right answer, so that rare mistakes can still be seen.
    """

    rows: int
    shade: float
    right: bool
    given: str


@dataclass(frozen=True, slots=True)
class MatrixLine:
    """The rows of one right answer. `unread`: rows whose reply could not be read."""

    number: int
    answer: str
    rows: int
    cells: list[Cell]
    unread: int
    unread_shade: float


@dataclass(frozen=True, slots=True)
class Matrix:
    """The delivered model's answers against the right ones, classes in the same order both ways."""

    lines: list[MatrixLine]
    unread: int

    @property
    def numbered(self) -> bool:
        """Whether the cells have room for numbers."""
        return len(self.lines) <= MAX_CELLS


def matrix(report: Report) -> Matrix | None:
    """The delivered model's confusion matrix; None for open answers and where there are too many classes to draw."""
    entries = report["confusion"][report["delivered"]] if "confusion" in report else []
    classes = sorted({name for wanted, given, _ in entries for name in (wanted, given) if name is not None})
    if not 2 <= len(classes) <= MAX_SHADES:
        return None
    counts: dict[str, Counter[str | None]] = defaultdict(Counter)
    for wanted, given, rows in entries:
        counts[wanted][given] += rows
    lines = [_matrix_line(number, name, counts[name], classes) for number, name in enumerate(classes, start=1)]
    return Matrix(lines, sum(line.unread for line in lines))


def _matrix_line(number: int, name: str, counts: Counter[str | None], classes: Sequence[str]) -> MatrixLine:
    total = counts.total()

    def shade(rows: int) -> float:
        return math.sqrt(rows / max(1, total))

    cells = [Cell(counts[given], shade(counts[given]), given == name, given) for given in classes]
    return MatrixLine(number, name, total, cells, counts[None], shade(counts[None]))


@dataclass(frozen=True, slots=True)
class Mistake:
    """Rows of one right answer that the delivered model answered wrongly in the same way."""

    wanted: str
    given: str | None
    rows: int


def mistakes(report: Report) -> list[Mistake]:
    """The delivered model's most frequent mistakes among closed answers."""
    entries = report["confusion"][report["delivered"]] if "confusion" in report else []
    return [Mistake(*entry) for entry in entries if entry[0] != entry[1]][:MISTAKES]


@dataclass(frozen=True, slots=True)
class ClassScore:
    """The part of a class's rows that each model gets right, by model."""

    answer: str
    rows: int
    right: Mapping[str, float]


def class_scores(report: Report) -> list[ClassScore]:
    """The classes with the most held-out rows, the most frequent first."""
    totals, right = Counter[str](), dict[str, Counter[str]]()
    for model, entries in report.get("confusion", {}).items():
        totals = Counter[str]()
        right[model] = Counter[str]()
        for wanted, given, rows in entries:
            totals[wanted] += rows
            right[model][wanted] += rows if wanted == given else 0
    order = sorted(totals, key=lambda name: (-totals[name], name))[:MAX_ANSWERS]
    return [
        ClassScore(name, totals[name], {model: counts[name] / totals[name] for model, counts in right.items()})
        for name in order
    ]


# --- how sure the pseudo-labels are -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a histogram: position and width, then how high its accepted and its rejected part are."""

    x: float
    width: float
    accepted: float
    rejected: float


@dataclass(frozen=True, slots=True)
class Histogram:
    """Accepted and rejected rows by some value. `tallest`: rows of the highest bar."""

    key: str
    bars: list[Bar]
    accepted: int
    rejected: int
    tallest: int


def certainty_histograms(report: Report) -> list[Histogram]:
    """One histogram for each way in which collaborators came to an answer, the most frequent way first."""
    found = [histogram(key, sides) for key, sides in report["pseudo_labels"]["certainty"].items()]
    return sorted(found, key=lambda one: (-one.accepted - one.rejected, one.key))


def entropy_histogram(report: Report) -> Histogram | None:
    """All answered rows by the entropy of their reply; None without any."""
    found = histogram("entropy", report["pseudo_labels"]["entropy"])
    return found if found.tallest else None


def histogram(key: str, sides: Mapping[str, Sequence[int]]) -> Histogram:
    """`sides`: counts by bin for `accept` and `reject`."""
    pairs = list(zip(sides["accept"], sides["reject"], strict=True))
    tallest = max(sum(pair) for pair in pairs)
    width = 100 / len(pairs)
    bars = [
        Bar(round(place * width, 2), round(0.86 * width, 2), 100 * accepted / tallest, 100 * rejected / tallest)
        for place, (accepted, rejected) in enumerate(pairs)
        if accepted or rejected
    ]
    return Histogram(key, bars, sum(sides["accept"]), sum(sides["reject"]), tallest)


@dataclass(frozen=True, slots=True)
class SelectionChart:
    """Certainty by the share of rows kept. Points: share kept, and certainty from `bottom` (y 100) to 1 (y 0)."""

    mean: list[tuple[float, float]]
    least: list[tuple[float, float]]
    kept: tuple[float, float] | None
    bottom: float


def selection_chart(report: Report) -> SelectionChart | None:
    """How sure rows are on average, and the least sure of them, if more or fewer were kept; None without answers."""
    told = report["pseudo_labels"]
    if not told["curve"]:
        return None
    kept = told["kept"]
    lowest = min([told["curve"][-1][2], *([kept["mean"]] if kept else [])])
    bottom = min(0.75, math.floor(4 * lowest) / 4)

    def at(share: float, sure: float) -> tuple[float, float]:
        return round(100 * share, 2), round(100 * (1 - sure) / (1 - bottom), 2)

    return SelectionChart(
        mean=[at(share, mean) for share, mean, _ in told["curve"]],
        least=[at(share, least) for share, _, least in told["curve"]],
        kept=at(kept["share"], kept["mean"]) if kept else None,
        bottom=bottom,
    )


# --- training ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LossCurve:
    """One training's losses. `points`: x and y from 0 to 100, y downwards, as SVG wants them."""

    name: str
    key: str
    points: list[tuple[float, float]]
    last: float


@dataclass(frozen=True, slots=True)
class LossChart:
    """Curves over the same axes: steps from 0 to `steps`, losses from 0 to `top`."""

    curves: list[LossCurve]
    steps: int
    top: float


def loss_chart(report: Report) -> LossChart | None:
    """The trainings over the same axes; None where no loss was logged."""
    logged = [one for one in wording.trainings(report) if one.facts.get("losses")]
    if not logged:
        return None
    steps = max(step for one in logged for step, _ in one.facts["losses"])
    top = max(loss for one in logged for _, loss in one.facts["losses"]) or 1.0
    curves = [
        LossCurve(
            name=one.name,
            key=one.key,
            points=[
                (round(100 * step / steps, 2), round(100 - 100 * loss / top, 2)) for step, loss in one.facts["losses"]
            ],
            last=one.facts["losses"][-1][1],
        )
        for one in logged
    ]
    return LossChart(curves, steps, top)
