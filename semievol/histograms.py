"""How sure pseudo-labels are, counted: certainty and entropy by outcome and decision, and what keeping fewer would do.

All of it has a fixed size and adds up: shards, rounds and whole jobs are told in the same form. Pure, and free of heavy
imports, as the service reads what the stages write.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

BINS = 20
"""Bars of a histogram of certainty, which goes from 0 to 1."""
ENTROPY_BIN_NATS = 0.1
ENTROPY_BINS = 30
"""The last bar also holds what is above."""
MAX_ANSWERS = 50
"""Answers that are counted by name, the most frequent ones."""
_FINE = 2000
"""Certainties are counted this finely to draw the curve."""

Measure = Literal["probability", "vote_share", "token_probability"]
"""What a certainty is: of the answer, of the votes, or of the reply's tokens (geometric mean)."""
Sides = dict[str, list[int]]
"""Counts by bin for `accept` and for `reject`."""


def certainty(confidence: float, measure: Measure) -> float:
    """A confidence between 0 and 1: entropies become the reply's mean token probability (geometric)."""
    return min(1.0, math.exp(confidence) if measure == "token_probability" else confidence)


def confidence_at(sure: float, measure: Measure) -> float:
    """The confidence of this certainty (above 0): the inverse of `certainty`."""
    return math.log(sure) if measure == "token_probability" else sure


def bin_of(value: float, bins: int = BINS) -> int:
    """The place of a value from 0 to 1 among so many equal bins."""
    return max(0, min(bins - 1, int(value * bins)))


def entropy_bin(entropy: float) -> int:
    """The place of an entropy in nats."""
    return min(ENTROPY_BINS - 1, int(entropy / ENTROPY_BIN_NATS))


def added(left: Sequence[int], right: Sequence[int]) -> list[int]:
    """Two histograms as one; the shorter one goes on with zeros."""
    longer, shorter = (left, right) if len(left) >= len(right) else (right, left)
    return [one + (shorter[place] if place < len(shorter) else 0) for place, one in enumerate(longer)]


def trimmed(counts: Sequence[int]) -> list[int]:
    """A histogram without the zeros at its end, of which most have many."""
    last = max((place for place, count in enumerate(counts) if count), default=-1)
    return list(counts[: last + 1])


# --- what the collaborators said of a shard ---------------------------------------------------------------------------


@dataclass
class Agreement:
    """Rows by how far their collaborators agree, before anything is decided, and the entropies of those answered."""

    outcomes: Counter[str] = field(default_factory=Counter)
    entropies: dict[str, list[int]] = field(default_factory=dict)

    def see(self, outcome: str, entropy: float) -> None:
        """Count a row. `entropy`: nats per token; not finite where there is none."""
        self.outcomes[outcome] += 1
        if math.isfinite(entropy):
            counts = self.entropies.setdefault(outcome, [0] * ENTROPY_BINS)
            counts[entropy_bin(entropy)] += 1

    def add(self, told: Mapping[str, Any]) -> None:
        """Count the rows of another one, as it told of them. Facts of versions that did not count say nothing."""
        self.outcomes.update(told.get("agreement", {}))
        for outcome, counts in told.get("entropy", {}).items():
            self.entropies[outcome] = added(self.entropies.get(outcome, [0] * ENTROPY_BINS), counts)

    def told(self) -> dict[str, Any]:
        """Short, as there is one for each of a job's shards."""
        entropies = {outcome: trimmed(counts) for outcome, counts in self.entropies.items()}
        return {"agreement": dict(self.outcomes.most_common()), "entropy": entropies}


# --- decided rows -----------------------------------------------------------------------------------------------------


@dataclass
class Histograms:
    """Decided rows by outcome and decision: how sure they are, and the entropies of their replies."""

    certainties: dict[str, Sides] = field(default_factory=dict)
    entropies: dict[str, Sides] = field(default_factory=dict)
    fine: list[int] = field(default_factory=lambda: [0] * _FINE)
    """Answered rows by certainty."""

    def see(self, outcome: str, side: str, sure: float, entropy: float) -> None:
        """Count an answered row. `side`: its decision; `sure`: 0 to 1; `entropy`: nats per token, or not finite."""
        self.fine[bin_of(sure, _FINE)] += 1
        self._sides(self.certainties, outcome, BINS)[side][bin_of(sure)] += 1
        if math.isfinite(entropy):
            self._sides(self.entropies, outcome, ENTROPY_BINS)[side][entropy_bin(entropy)] += 1

    @staticmethod
    def _sides(counts: dict[str, Sides], outcome: str, bins: int) -> Sides:
        if outcome not in counts:
            counts[outcome] = {side: [0] * bins for side in ("accept", "reject")}
        return counts[outcome]

    def add(self, other: Self) -> None:
        """Count the rows of another one."""
        self.fine = added(self.fine, other.fine)
        for mine, theirs, bins in (
            (self.certainties, other.certainties, BINS),
            (self.entropies, other.entropies, ENTROPY_BINS),
        ):
            for outcome, sides in theirs.items():
                known = self._sides(mine, outcome, bins)
                for side, counts in sides.items():
                    known[side] = added(known[side], counts)

    def answered(self) -> int:
        """Rows with an answer."""
        return sum(self.fine)

    def by_decision(self) -> Sides:
        """Entropies of all outcomes together."""
        found = {side: [0] * ENTROPY_BINS for side in ("accept", "reject")}
        for sides in self.entropies.values():
            found = {side: added(counts, sides[side]) for side, counts in found.items()}
        return found

    def curve(self) -> list[list[float]]:
        """See `selection_curve`."""
        return selection_curve(self.fine)


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


# --- the summary of a round -------------------------------------------------------------------------------------------


@dataclass
class Decided:
    """Counts over some decided rows."""

    decisions: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    """Of accepted rows."""
    histograms: Histograms = field(default_factory=Histograms)

    def see(self, record: Mapping[str, Any], measure: Measure) -> None:
        """Count a row with the columns of pseudo_labels.parquet."""
        side: str = record["decision"]
        self.decisions[side] += 1
        self.reasons[record["reason"]] += 1
        self.outcomes[record["outcome"]] += 1
        if side == "accept":
            self.answers[record["answer"]] += 1
        if not math.isnan(record["confidence"]):
            sure = certainty(record["confidence"], measure)
            self.histograms.see(record["outcome"], side, sure, record["entropy"])

    def add(self, other: Self) -> None:
        """Count the rows of another one."""
        self.decisions.update(other.decisions)
        self.reasons.update(other.reasons)
        self.outcomes.update(other.outcomes)
        self.answers.update(other.answers)
        self.histograms.add(other.histograms)

    def facts(self) -> dict[str, Any]:
        """The counts without the histograms."""
        return {
            "decisions": {side: self.decisions[side] for side in ("accept", "reject")},
            "reasons": dict(self.reasons.most_common()),
            "outcomes": dict(self.outcomes.most_common()),
            "answers": dict(self.answers.most_common(MAX_ANSWERS)),
        }

    def told(self) -> dict[str, Any]:
        """All of it as plain values. `fine`: [place, rows] of the places that have any."""
        seen = self.histograms
        return self.facts() | {
            "certainty": seen.certainties,
            "entropy": seen.entropies,
            "fine": [[place, rows] for place, rows in enumerate(seen.fine) if rows],
        }

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Self:
        """What was told. The counts alone (facts of versions that made no histograms) are enough."""
        seen = Histograms(certainties=dict(told.get("certainty", {})), entropies=dict(told.get("entropy", {})))
        for place, rows in told.get("fine", ()):
            seen.fine[place] = rows
        return cls(
            Counter(told["decisions"]),
            Counter(told["reasons"]),
            Counter(told["outcomes"]),
            Counter(told["answers"]),
            seen,
        )


@dataclass
class RoundSummary:
    """What a round decided: the rows that no later round asks again, and the others."""

    measure: Measure
    settled: Decided = field(default_factory=Decided)
    asked_again: Decided = field(default_factory=Decided)

    def see(self, record: Mapping[str, Any], *, settled: bool) -> None:
        """Count a row."""
        (self.settled if settled else self.asked_again).see(record, self.measure)

    def told(self) -> dict[str, Any]:
        """As `summary.json` holds it."""
        return {"measure": self.measure, "settled": self.settled.told(), "asked_again": self.asked_again.told()}

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Self:
        """What `summary.json` holds."""
        return cls(told["measure"], Decided.of(told["settled"]), Decided.of(told["asked_again"]))


def so_far(rounds: Sequence[RoundSummary]) -> Decided:
    """All rows once, as their last round decided them. `rounds`: those that are decided, in order."""
    found = Decided()
    for one in rounds:
        found.add(one.settled)
    if rounds:
        found.add(rounds[-1].asked_again)
    return found
