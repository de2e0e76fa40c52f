"""Rows of decided pseudo-labels: loaded in bulk by the worker, read in keyset pages, edited by people."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sqlalchemy import ColumnElement, Select, case, func, or_, select, text, tuple_
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.orm import InstrumentedAttribute, Session

from store.models import PseudoLabel

CHUNK_ROWS = 1000
Order = Literal["line", "entropy", "-entropy", "confidence", "-confidence"]
"""What pages go by; with a minus the highest value comes first."""


class LabelRow(NamedTuple):
    """One decided row as the worker knows it. Numbers that have no value may be None or NaN."""

    line: int
    row_id: str
    question: str
    answer: str | None
    reply: str | None
    decision: str
    reason: str
    outcome: str
    confidence: float | None = None
    probability: float | None = None
    vote_share: float | None = None
    entropy: float | None = None
    answer_entropy: float | None = None
    shard: int | None = None


COLUMNS = ("job_id", "round", *LabelRow._fields)
_REPLACED = [name for name in COLUMNS if name not in ("job_id", "line")]


class LabelFilter(NamedTuple):
    """Which rows are asked for; None asks for any. `decision` and `answer` are compared as a person left them."""

    decision: str | None = None
    reason: str | None = None
    answer: str | None = None
    min_entropy: float | None = None
    max_entropy: float | None = None
    round: int | None = None
    consistent: bool | None = None
    q: str | None = None
    outcome: str | None = None
    reviewed: bool | None = None


class UnknownLine(LookupError):
    """A page is to begin after a row that the job does not have."""


# --- the bulk load ----------------------------------------------------------------------------------------------------


def load(session: Session, job_id: str, round_number: int, rows: Iterable[LabelRow]) -> int:
    """Write what a round decided, in the caller's transaction; returns how many rows were given.

    A later round decides a row anew, an equal or earlier one changes nothing, so a repeated load does no harm.
    """
    records = (_record(job_id, round_number, row) for row in rows)
    if session.get_bind().dialect.name == "postgresql":
        return _copy(session, records)
    return _insert(session, records)


def _record(job_id: str, round_number: int, row: LabelRow) -> tuple[Any, ...]:
    return (job_id, round_number, *map(_storable, row))


def _storable(value: Any) -> Any:
    """PostgreSQL refuses NUL in text, and NaN is no JSON."""
    if isinstance(value, str):
        return value.replace("\0", "")
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _copy(session: Session, records: Iterable[tuple[Any, ...]]) -> int:
    columns = ", ".join(COLUMNS)
    changes = ", ".join(f"{name} = EXCLUDED.{name}" for name in _REPLACED)
    session.execute(text("CREATE TEMPORARY TABLE loading (LIKE pseudo_labels) ON COMMIT DROP"))
    driver: Any = session.connection().connection.driver_connection
    count = 0
    with driver.cursor() as cursor, cursor.copy(f"COPY loading ({columns}) FROM STDIN") as copy:
        for record in records:
            copy.write_row(record)
            count += 1
    session.execute(
        text(
            f"INSERT INTO pseudo_labels ({columns}) SELECT {columns} FROM loading "
            f"ON CONFLICT (job_id, line) DO UPDATE SET {changes} WHERE pseudo_labels.round < EXCLUDED.round"
        )
    )
    session.execute(text("DROP TABLE loading"))  # a second load of the same transaction makes its own
    return count


def _insert(session: Session, records: Iterable[tuple[Any, ...]]) -> int:
    statement = insert(PseudoLabel)
    statement = statement.on_conflict_do_update(
        index_elements=["job_id", "line"],
        set_={name: statement.excluded[name] for name in _REPLACED},
        where=PseudoLabel.round < statement.excluded["round"],
    )
    count, waiting = 0, iter(records)
    while chunk := list(islice(waiting, CHUNK_ROWS)):
        session.connection().execute(statement, [dict(zip(COLUMNS, record, strict=True)) for record in chunk])
        count += len(chunk)
    return count


# --- reading ----------------------------------------------------------------------------------------------------------


def labels_after(
    session: Session, job_id: str, wanted: LabelFilter, after: int, limit: int, order: Order = "line"
) -> list[PseudoLabel]:
    """The next rows that match. `after`: line of the last row before them, 0 at the beginning.

    Equal values come by line, in the direction of the order; rows without a value come last, by line. A page costs the
    same wherever it is and however many rows there are, with any of `decision` and `reviewed`; with `outcome` or
    `answer` too in the order of lines. Other filters read until they have found enough. Raises UnknownLine if the order
    is by value and there is no row `after`.
    """
    parts, found = _parts(wanted, order), list[PseudoLabel]()
    for span in _spans(session, job_id, after, order):
        left = limit - len(found)
        if left:
            queries = (_query(job_id, part, span).limit(left) for part in parts)
            rows = [label for query in queries for label in session.scalars(query)]
            found += sorted(rows, key=span.key, reverse=span.descending)[:left]
    return found


@dataclass(frozen=True, slots=True)
class _Span:
    """A part of an order that an index has as it stands."""

    conditions: list[ColumnElement[bool]]
    columns: list[InstrumentedAttribute[Any]]
    descending: bool = False

    def key(self, label: PseudoLabel) -> tuple[Any, ...]:
        return tuple(getattr(label, column.key) for column in self.columns if getattr(label, column.key) is not None)


def _spans(session: Session, job_id: str, after: int, order: Order) -> Iterator[_Span]:
    line = PseudoLabel.line
    if order == "line":
        yield _Span([line > after], [line])
        return
    column, descending = _VALUES[order.removeprefix("-")], order.startswith("-")
    value = None
    if after:
        row = session.execute(select(column).where(PseudoLabel.job_id == job_id, line == after)).one_or_none()
        if row is None:
            raise UnknownLine(after)
        (value,) = row
    if value is not None or not after:
        here, last = tuple_(column, line), tuple_(value, after)
        beyond = [] if value is None else [here < last if descending else here > last]
        yield _Span([column.is_not(None), *beyond], [column, line], descending)
    begin = after if value is None else 0
    yield _Span([column.is_(None), line > begin], [column, line])


def _query(job_id: str, part: list[ColumnElement[bool]], span: _Span) -> Select[PseudoLabel]:
    ordered = [column.desc() if span.descending else column for column in span.columns]
    return select(PseudoLabel).where(PseudoLabel.job_id == job_id, *part, *span.conditions).order_by(*ordered)


def _parts(wanted: LabelFilter, order: Order) -> list[list[ColumnElement[bool]]]:
    """Conditions that exclude one another and together are the filter, so that each of them has an index.

    What a person changed is apart: those rows are few and have an index of their own, and in the others `decision` and
    `answer` are the columns.
    """
    apart = {"decision", "answer", "reviewed", "outcome"}
    asked = {name: value for name, value in wanted._asdict().items() if value is not None}
    other = [_CONDITIONS[name](value) for name, value in asked.items() if name not in apart]
    by_decision = order != "line" or wanted.min_entropy is not None or wanted.max_entropy is not None
    columns = [(getattr(PseudoLabel, name), asked[name]) for name in ("answer", "outcome") if name in asked]
    if not by_decision and not asked.keys() & {"decision", "answer", "reviewed"}:
        return [[*other, *(column == value for column, value in columns)]]
    parts = []
    if wanted.reviewed is not True:
        plain = [PseudoLabel.reviewed_at.is_(None), *other, *(column == value for column, value in columns)]
        sides = [wanted.decision] if wanted.decision or not by_decision else ["accept", "reject"]
        parts += [plain if side is None else [PseudoLabel.decision == side, *plain] for side in sides]
    if wanted.reviewed is not False:
        named = {"decision": wanted.decision, "answer": wanted.answer, "outcome": wanted.outcome}
        left = [_AS_LEFT[name] == value for name, value in named.items() if value is not None]
        parts.append([*(_changed() if order != "line" else _changed()[:1]), *other, *left])
    return parts


def _changed() -> list[ColumnElement[bool]]:
    """Rows that people changed. SQLite keeps no statistics and takes their index for the second condition's sake."""
    return [PseudoLabel.reviewed_at.is_not(None), PseudoLabel.line > 0]


_AS_LEFT = {
    "decision": func.coalesce(PseudoLabel.reviewed_decision, PseudoLabel.decision),
    "answer": func.coalesce(PseudoLabel.reviewed_answer, PseudoLabel.answer),
    "outcome": func.coalesce(PseudoLabel.outcome, ""),  # so that no other index is taken
}
_VALUES = {"entropy": PseudoLabel.entropy, "confidence": PseudoLabel.confidence}
_CONDITIONS: Mapping[str, Callable[[Any], ColumnElement[bool]]] = {
    "reason": lambda value: PseudoLabel.reason == value,
    "min_entropy": lambda value: PseudoLabel.entropy >= value,
    "max_entropy": lambda value: PseudoLabel.entropy <= value,
    "round": lambda value: PseudoLabel.round == value,
    "consistent": lambda value: PseudoLabel.outcome == "consistent" if value else PseudoLabel.outcome != "consistent",
    "q": lambda value: PseudoLabel.question.contains(value, autoescape=True),
}


# --- what people changed ----------------------------------------------------------------------------------------------


class Judged(NamedTuple):
    """Rows that a person judged alike. `place`: their bin of confidence, None without one."""

    decided: str
    """What selection had decided."""
    decision: str
    """What the person did."""
    same: bool
    """Whether the answer is the one that the row had."""
    place: int | None
    rows: int


def judged(session: Session, job_id: str, borders: Sequence[float]) -> list[Judged]:
    """What people made of the rows, counted. `borders`: between the bins of confidence, from below."""
    same = or_(PseudoLabel.reviewed_answer.is_(None), PseudoLabel.reviewed_answer == PseudoLabel.answer)
    confidence = PseudoLabel.confidence
    bins = [(confidence < border, place) for place, border in enumerate(borders)]
    changed = select(
        PseudoLabel.decision.label("decided"),
        func.coalesce(PseudoLabel.reviewed_decision, "accept").label("decision"),
        case((same, 1), else_=0).label("same"),
        case((confidence.is_(None), -1), *bins, else_=len(borders)).label("place"),
    ).where(PseudoLabel.job_id == job_id, *_changed())
    rows = changed.subquery().c
    found: Iterable[Any] = session.execute(select(*rows, func.count()).group_by(*rows))
    return [
        Judged(decided, decision, bool(same), place if place >= 0 else None, count)
        for decided, decision, same, place, count in found
    ]


def write_edits(session: Session, job_id: str, path: Path) -> int:
    """Write every person's change as JSON lines, by line; returns how many. What the stage `review` reads."""
    query = (
        select(PseudoLabel)
        .where(PseudoLabel.job_id == job_id, PseudoLabel.reviewed_at.is_not(None))
        .order_by(PseudoLabel.line)
        .execution_options(yield_per=CHUNK_ROWS)
    )
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for edit in _edits(session.scalars(query)):
            file.write(json.dumps(edit, ensure_ascii=False) + "\n")
            count += 1
    return count


def _edits(labels: Iterable[PseudoLabel]) -> Iterator[dict[str, Any]]:
    for label in labels:
        edit: dict[str, Any] = {"round": label.round, "id": label.row_id}
        if label.reviewed_decision is not None:
            edit["decision"] = label.reviewed_decision
        if label.reviewed_answer is not None:
            edit["answer"] = label.reviewed_answer
        yield edit
