"""Which pseudo-labels are trained on: every row ends with a decision and a reason. Pure.

The rule is the paper's: keep the rows whose uncertainty lies below its theta-quantile. It is applied by rank, with
ties in the order of row ids, because a sure model gives many rows an entropy of exactly 0, and "strictly below" a
quantile of 0 would keep none. Where all values differ, both readings keep the same rows.
"""

import math
from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from semievol.agreement import Label
from semievol.answers import Answers
from semievol.histograms import Measure
from semievol.recipe import Recipe, SelectionSettings
from semievol.replies import scores_options
from semievol.seeds import seed_of

Reason = Literal[
    "confident",
    "not_confident",
    "drawn",
    "not_drawn",
    "kept_all",
    "unparsable",
    "justification_unparsable",
    "too_long",
]


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a row. `confidence` is what it was ranked by (the higher the surer; NaN without an answer)."""

    accepted: bool
    reason: Reason
    confidence: float


def confidence_of(label: Label, settings: SelectionSettings) -> float:
    """How sure a label is: one number, the higher the surer.

    `entropy`: minus the response entropy. `answer`: the probability of a scored answer; for a sampled one the vote
    share, and among equal shares the response's mean token probability (the second term stays below one vote).
    """
    if label.answer is None:
        return math.nan
    if settings.confidence == "entropy":
        return -label.entropy
    if not math.isnan(label.probability):
        return label.probability
    return label.vote_share + math.exp(-label.entropy) / 1000


def measure_of(answers: Answers, recipe: Recipe) -> Measure:
    """What the confidence of a row is, once it is between 0 and 1 (`histograms.certainty`)."""
    if recipe.selection.confidence == "entropy":
        return "token_probability"
    return "probability" if scores_options(answers, recipe.generation) else "vote_share"


def select(
    row_ids: Sequence[str], labels: Sequence[Label], settings: SelectionSettings, *, closed: bool, seed: int
) -> Iterator[Decision]:
    """Decide every row. `closed`: the answers are classes, so `per_answer` can apply."""
    confidences = array("d")
    groups: dict[str, list[int]] = defaultdict(list)
    for index, label in enumerate(labels):
        confidences.append(confidence_of(label, settings))
        if label.answer is not None:
            groups[label.answer if closed and settings.per_answer else ""].append(index)
    kept = bytearray(len(labels))
    for group in groups.values():
        if settings.rule == "random":
            group.sort(key=lambda index: seed_of(seed, "selection", row_ids[index]))
        else:
            group.sort(key=lambda index: (-confidences[index], row_ids[index]))
        for index in group[: _count(len(group), settings)]:
            kept[index] = True
    good, bad = _REASONS[settings.rule]
    return (
        Decision(bool(accepted), good if accepted else _reason(label, bad), confidence)
        for label, accepted, confidence in zip(labels, kept, confidences, strict=True)
    )


_REASONS: dict[str, tuple[Reason, Reason]] = {
    "quantile": ("confident", "not_confident"),
    "random": ("drawn", "not_drawn"),
    "all": ("kept_all", "not_confident"),
}


def _reason(label: Label, unselected: Reason) -> Reason:
    match label.outcome:
        case "unparsable" | "justification_unparsable" | "too_long":
            return label.outcome
        case _:
            return unselected


def _count(rows: int, settings: SelectionSettings) -> int:
    """Rows strictly below the theta-quantile (linear interpolation) of `rows` distinct values; at least one."""
    if settings.rule == "all" or settings.theta == 1:
        return rows
    return max(1, math.ceil(settings.theta * (rows - 1)))
