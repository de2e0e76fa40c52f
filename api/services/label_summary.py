"""All pseudo-labels of a job in a fixed size: from its shards while answers are generated, then from its rounds."""

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.schemas.labels import (
    Certainties,
    Counts,
    Entropies,
    LabelSummary,
    Precision,
    ReviewCounts,
)
from semievol import histograms
from semievol.histograms import Agreement, Decided, Measure, RoundSummary
from semievol.precision import Stratum, estimate
from store.models import Job, StageRow
from store.objects import ObjectStore
from store.pseudo_labels import Judged, judged

SUMMARY = "summary.json"
_ROUNDS_KEPT, _JOBS_KEPT = 64, 256
Key = TypeVar("Key")
Value = TypeVar("Value")


@dataclass
class Tally:
    """What the committed shards of a round hold. All shards below `first` are counted, and those of `beyond`."""

    rows: int = 0
    agreement: Agreement = field(default_factory=Agreement)
    first: int = 0
    beyond: set[int] = field(default_factory=set)

    def add(self, shard: int, facts: Mapping[str, Any]) -> None:
        """Count a shard, once."""
        if shard < self.first or shard in self.beyond:
            return
        self.rows += facts["rows"]
        self.agreement.add(facts)
        self.beyond.add(shard)
        while self.first in self.beyond:
            self.beyond.remove(self.first)
            self.first += 1

    def counts(self) -> "Tally":
        """A copy for reading, without what was counted."""
        seen = self.agreement
        return Tally(self.rows, Agreement(seen.outcomes.copy(), dict(seen.entropies)))


class Summaries:
    """What was read before, for the jobs asked for last: objects never change, and committed shards stay."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects
        self._lock = threading.Lock()
        self._rounds: OrderedDict[str, RoundSummary] = OrderedDict()
        self._tallies: OrderedDict[tuple[str, str], Tally] = OrderedDict()

    def round(self, sha256: str) -> RoundSummary:
        """A round's `summary.json`; not to be changed. Raises ObjectMissing."""
        with self._lock:
            known = self._rounds.get(sha256)
        if known is None:
            known = RoundSummary.of(json.loads(b"".join(self._objects.read(sha256))))
        with self._lock:
            _keep(self._rounds, sha256, known, _ROUNDS_KEPT)
        return known

    def tally(self, session: Session, job_id: str, name: str) -> Tally:
        """What the shards of the round `name` hold by now; only those that are new are read."""
        with self._lock:
            tally = self._tallies.get((job_id, name)) or Tally()
            # Shards are committed in any order, and one may become visible after a later one: so not by their number
            # of commit, but all from the first that is missing. Names are text, and digits alike long sort as numbers.
            first, last = f"{name}/generate-{tally.first:05d}", f"{name}/generate-99999999"
            new = select(StageRow.name, StageRow.facts).where(
                StageRow.job_id == job_id, StageRow.name >= first, StageRow.name <= last
            )
            for shard, facts in session.execute(new.execution_options(yield_per=500)):
                tally.add(int(shard.rpartition("-")[2]), facts)
            _keep(self._tallies, (job_id, name), tally, _JOBS_KEPT)
            return tally.counts()


def _keep(known: OrderedDict[Key, Value], key: Key, value: Value, most: int) -> None:
    known[key] = value
    known.move_to_end(key)
    while len(known) > most:
        known.popitem(last=False)


def label_summary(session: Session, summaries: Summaries, job: Job) -> LabelSummary:
    """As the rounds decided by now left the rows; before the first one, what its shards hold."""
    names = [f"round-{number}" for number in range(1, int(job.recipe.get("rounds", 1)) + 1)]
    wanted = ["prepare", *(f"{name}/{stage}" for name in names for stage in ("select", "review"))]
    query = select(StageRow).where(StageRow.job_id == job.id, StageRow.name.in_(wanted))
    stages = {row.name: row for row in session.scalars(query)}
    prepared = stages.get("prepare")
    total = prepared.facts.get("rows", {}).get("unlabeled") if prepared else None
    selected = [stages[f"{name}/select"] for name in names if f"{name}/select" in stages]
    if not selected:
        return _generating(summaries.tally(session, job.id, names[0]), total)
    left = [stages.get(row.name.replace("/select", "/review"), row) for row in selected]
    return _decided(session, summaries, job, selected, left, total)


def _generating(tally: Tally, total: int | None) -> LabelSummary:
    return LabelSummary(
        state="generating" if tally.rows else "none",
        round=1 if tally.rows else 0,
        rows=tally.rows,
        total=total,
        outcomes=dict(tally.agreement.outcomes),
        entropy=Entropies(outcomes=dict(tally.agreement.entropies)),
        review=_review([], [], None),
    )


def _decided(
    session: Session,
    summaries: Summaries,
    job: Job,
    selected: Sequence[StageRow],
    left: Sequence[StageRow],
    total: int | None,
) -> LabelSummary:
    """`selected`: the rounds as selection decided them, `left`: as people left them."""
    found, measure = _so_far(summaries, left)
    as_selected, _ = _so_far(summaries, selected)
    seen = found.histograms
    borders = [
        histograms.confidence_at(place / histograms.BINS, measure or "probability")
        for place in range(1, histograms.BINS)
    ]
    entropies = {
        outcome: histograms.added(sides["accept"], sides["reject"]) for outcome, sides in seen.entropies.items()
    }
    facts = found.facts()
    return LabelSummary(
        state="decided",
        round=len(selected),
        rows=sum(found.decisions.values()),
        total=total,
        entropy=Entropies(outcomes=entropies),
        certainty=Certainties(measure=measure, outcomes=seen.certainties) if measure and seen.certainties else None,
        curve=[(share, mean, least) for share, mean, least in seen.curve()],
        review=_review(judged(session, job.id, borders), _accepted(as_selected), measure),
        **facts,
    )


def _so_far(summaries: Summaries, stages: Sequence[StageRow]) -> tuple[Decided, Measure | None]:
    """All rows once. Rounds decided before there were summaries have their counts alone, and the last one's only."""
    if any(SUMMARY not in row.files for row in stages):
        return Decided.of(stages[-1].facts), None
    rounds = [summaries.round(row.files[SUMMARY]["sha256"]) for row in stages]
    return histograms.so_far(rounds), rounds[-1].measure


def _accepted(decided: Decided) -> list[int]:
    """Accepted rows by certainty."""
    found = [0] * histograms.BINS
    for sides in decided.histograms.certainties.values():
        found = histograms.added(found, sides["accept"])
    return found


def _review(groups: Sequence[Judged], accepted: Sequence[int], measure: Measure | None) -> ReviewCounts:
    """`accepted`: rows that selection accepted, by certainty."""
    sides = {side: Counts(kept=0, changed=0) for side in ("accept", "reject")}
    strata = [Stratum(rows) for rows in accepted]
    added = 0
    for one in groups:
        kept = one.decision == "accept" and one.same
        side = sides[one.decided]
        side.kept, side.changed = side.kept + kept * one.rows, side.changed + (not kept) * one.rows
        if one.decided == "reject":
            added += one.rows if one.decision == "accept" else 0
        elif one.place is not None and strata:
            strata[one.place] = _with(strata[one.place], one)
    found = estimate(strata, added) if measure else None
    return ReviewCounts(
        rows=sum(one.rows for one in groups),
        accept=sides["accept"],
        reject=sides["reject"],
        precision=Precision(value=found.value, low=found.low, high=found.high) if found else None,
    )


def _with(stratum: Stratum, one: Judged) -> Stratum:
    """The stratum with rows that a person judged."""
    kept, corrected, thrown_out = stratum.kept, stratum.corrected, stratum.thrown_out
    if one.decision == "reject":
        thrown_out += one.rows
    elif one.same:
        kept += one.rows
    else:
        corrected += one.rows
    return Stratum(stratum.rows, kept, corrected, thrown_out)
