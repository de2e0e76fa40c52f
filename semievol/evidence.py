"""What a report shows beside its totals: examples, how sure the labels are, and which answers are mixed up.

All of it has a fixed size. Pseudo-labels are watched one by one as they are written, so a million of them need no
memory and no second reading. Examples are those with the lowest ids: ids are hashes of the content, so this is a blind
draw that comes out the same each time.
"""

import math
from bisect import insort
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from semievol.answers import Answers
from semievol.evaluation import Prediction
from semievol.generation import scores_options
from semievol.prompts import Message, question_of
from semievol.recipe import Recipe
from semievol.tables import read_rows

SHOWN = 4
"""Examples of each kind."""
LONGEST = 700
"""Characters of a question or reply that a report quotes."""
LONGEST_VOTE = 60
BINS = 20
"""Bars of a histogram of certainty, which goes from 0 to 1."""
ENTROPY_BIN_NATS = 0.1
ENTROPY_BINS = 30
"""The last bar also holds what is above."""
_FINE = 2000
"""Certainties are counted this finely to draw the curve."""

Measure = Literal["probability", "vote_share", "token_probability"]


def shortened(text: str, longest: int = LONGEST) -> str:
    """The beginning of a long text."""
    return text if len(text) <= longest else text[: longest - 2].rstrip() + " …"


# --- pseudo-labels ----------------------------------------------------------------------------------------------------


def measure_of(answers: Answers, recipe: Recipe) -> Measure:
    """What the confidence of a row is, once it is between 0 and 1."""
    if recipe.selection.confidence == "entropy":
        return "token_probability"
    return "probability" if scores_options(answers, recipe.generation) else "vote_share"


def certainty(confidence: float, measure: Measure) -> float:
    """A confidence between 0 and 1: entropies become the reply's mean token probability (geometric)."""
    return min(1.0, math.exp(confidence) if measure == "token_probability" else confidence)


class Draw:
    """Keeps the `SHOWN` things with the lowest keys; `make` is called for those alone that are kept at the time."""

    def __init__(self) -> None:
        self._kept: list[tuple[str, dict[str, Any]]] = []

    def offer(self, key: str, make: Callable[[], dict[str, Any]]) -> None:
        """Consider one thing."""
        if len(self._kept) < SHOWN or key < self._kept[-1][0]:
            insort(self._kept, (key, make()), key=lambda one: one[0])
            del self._kept[SHOWN:]

    def drawn(self) -> list[dict[str, Any]]:
        """What was kept, the lowest key first."""
        return [thing for _, thing in self._kept]


@dataclass
class Watched:
    """What passes by while pseudo-labels are written."""

    measure: Measure
    certainties: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    entropies: dict[str, list[int]] = field(
        default_factory=lambda: {side: [0] * ENTROPY_BINS for side in ("accept", "reject")}
    )
    fine: list[int] = field(default_factory=lambda: [0] * _FINE)
    kept_rows: int = 0
    kept_sum: float = 0.0
    kept_least: float = 1.0
    examples: dict[str, dict[str, Draw]] = field(
        default_factory=lambda: {side: defaultdict(Draw) for side in ("accept", "reject")}
    )

    def watch(self, records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The records, unchanged."""
        for record in records:
            self._see(record)
            yield record

    def _see(self, record: Mapping[str, Any]) -> None:
        side: str = record["decision"]
        self.examples[side][record["reason"]].offer(record["id"], partial(label_example, record, self.measure))
        if math.isnan(record["confidence"]):
            return
        sure = certainty(record["confidence"], self.measure)
        self.fine[_bin(sure, _FINE)] += 1
        if side == "accept":
            self.kept_rows += 1
            self.kept_sum += sure
            self.kept_least = min(self.kept_least, sure)
        empty = {name: [0] * BINS for name in ("accept", "reject")}
        self.certainties.setdefault(record["outcome"], empty)[side][_bin(sure, BINS)] += 1
        if math.isfinite(record["entropy"]):
            self.entropies[side][min(ENTROPY_BINS - 1, int(record["entropy"] / ENTROPY_BIN_NATS))] += 1

    def told(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "measure": self.measure,
            "answered": sum(self.fine),
            "certainty": self.certainties,
            "entropy": {"bin_nats": ENTROPY_BIN_NATS, **self.entropies},
            "curve": selection_curve(self.fine),
            "kept": self._kept(),
            "examples": {
                side: {reason: draw.drawn() for reason, draw in sorted(draws.items())}
                for side, draws in self.examples.items()
            },
        }

    def _kept(self) -> dict[str, float] | None:
        if not self.kept_rows:
            return None
        mean = round(self.kept_sum / self.kept_rows, 4)
        return {"share": round(self.kept_rows / sum(self.fine), 4), "mean": mean, "least": round(self.kept_least, 4)}


def _bin(value: float, bins: int) -> int:
    return max(0, min(bins - 1, int(value * bins)))


def selection_curve(fine: Sequence[int]) -> list[list[float]]:
    """[share kept, mean certainty of the kept, the least of them] in steps of 2 %, the surest rows kept first.

    `fine`: rows by certainty in equal bins from 0 to 1; a row counts with the middle of its bin.
    """
    answered, points = sum(fine), list[list[float]]()
    taken, total, place = 0, 0.0, len(fine)
    middle = 0.0
    for percent in range(2, 101, 2) if answered else ():
        wanted = math.ceil(answered * percent / 100)
        while taken < wanted:  # whole bins: rows of one bin are equally sure
            place -= 1
            middle = (place + 0.5) / len(fine) if fine[place] else middle
            taken += fine[place]
            total += fine[place] * (place + 0.5) / len(fine)
        share = wanted / answered
        points.append([round(share, 4), round((total - (taken - wanted) * middle) / wanted, 4), round(middle, 4)])
    return points


def label_example(record: Mapping[str, Any], measure: Measure) -> dict[str, Any]:
    """A pseudo-label as a report quotes it. `votes`: the collaborators' answers, the most frequent first."""
    votes = Counter(trial["answer"] for trial in record["trials"] or ())
    confidence = record["confidence"]
    return {
        "line": record["line"],
        "question": _question(record),
        "answer": None if record["answer"] is None else shortened(record["answer"]),
        "reply": None if record["reply"] is None else shortened(record["reply"]),
        "outcome": record["outcome"],
        "certainty": None if math.isnan(confidence) else round(certainty(confidence, measure), 4),
        "votes": [[answer and shortened(answer, LONGEST_VOTE), number] for answer, number in votes.most_common(SHOWN)],
    }


# --- held-out rows ----------------------------------------------------------------------------------------------------


def held_out_examples(rows: Path, models: Mapping[str, Sequence[Prediction]]) -> dict[str, list[dict[str, Any]]]:
    """Held-out rows by what became of them: `gained` and `lost` by SemiEvol against SFT, and `wrong` of the last model.

    `rows`: the Parquet file that the predictions of all models were made over, in the same order.
    """
    draws: dict[str, Draw] = {"gained": Draw(), "lost": Draw(), "wrong": Draw()}
    for record, *predictions in zip(read_rows(rows), *models.values(), strict=True):
        told = dict(zip(models, predictions, strict=True))
        kind = _what_became(told)
        if kind is not None:
            draws[kind].offer(record["id"], partial(_held_out_example, record, told))
    return {kind: draw.drawn() for kind, draw in draws.items()}


def _what_became(told: Mapping[str, Prediction]) -> str | None:
    sft, last = told["sft"], told.get("semievol", told["sft"])
    if last.correct:
        return None if sft.correct else "gained"
    return "lost" if sft.correct else "wrong"


def _held_out_example(record: Mapping[str, Any], told: Mapping[str, Prediction]) -> dict[str, Any]:
    return {
        "line": record["line"],
        "question": _question(record),
        "wanted": shortened(told["sft"].wanted),
        "answers": {name: shortened(one.reply if one.answer is None else one.answer) for name, one in told.items()},
    }


def _question(record: Mapping[str, Any]) -> str:
    return shortened(question_of(tuple(Message(**message) for message in record["messages"])))


def confusion(predictions: Sequence[Prediction]) -> list[list[Any]]:
    """[right answer, given answer (None: unreadable), rows], the most frequent first."""
    counts = Counter((one.wanted, one.answer) for one in predictions)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0][0], item[0][1] or ""))
    return [[wanted, answer, number] for (wanted, answer), number in ordered]
