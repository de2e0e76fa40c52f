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
from typing import Any

from semievol.evaluation import Prediction
from semievol.histograms import ENTROPY_BIN_NATS, Histograms, Measure, certainty
from semievol.prompts import Message, question_of
from semievol.tables import read_rows

SHOWN = 4
"""Examples of each kind."""
LONGEST = 700
"""Characters of a question or reply that a report quotes."""
LONGEST_VOTE = 60


def shortened(text: str, longest: int = LONGEST) -> str:
    """The beginning of a long text."""
    return text if len(text) <= longest else text[: longest - 2].rstrip() + " …"


# --- pseudo-labels ----------------------------------------------------------------------------------------------------


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
    histograms: Histograms = field(default_factory=Histograms)
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
        self.histograms.see(record["outcome"], side, sure, record["entropy"])
        if side == "accept":
            self.kept_rows += 1
            self.kept_sum += sure
            self.kept_least = min(self.kept_least, sure)

    def told(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "measure": self.measure,
            "answered": self.histograms.answered(),
            "certainty": self.histograms.certainties,
            "entropy": {"bin_nats": ENTROPY_BIN_NATS, **self.histograms.by_decision()},
            "curve": self.histograms.curve(),
            "kept": self._kept(),
            "examples": {
                side: {reason: draw.drawn() for reason, draw in sorted(draws.items())}
                for side, draws in self.examples.items()
            },
        }

    def _kept(self) -> dict[str, float] | None:
        if not self.kept_rows:
            return None
        share, mean = self.kept_rows / self.histograms.answered(), self.kept_sum / self.kept_rows
        return {"share": round(share, 4), "mean": round(mean, 4), "least": round(self.kept_least, 4)}


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
