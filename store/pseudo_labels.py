"""Rows of decided pseudo-labels: loaded in bulk by the worker, read in keyset pages, edited by people."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, and_, or_, select, text
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.orm import InstrumentedAttribute, Session

from store.models import PseudoLabel

CHUNK_ROWS = 1000


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


def labels_after(session: Session, job_id: str, wanted: LabelFilter, after: int, limit: int) -> list[PseudoLabel]:
    """The next rows that match, by line."""
    query = _matching(job_id, wanted).where(PseudoLabel.line > after).order_by(PseudoLabel.line).limit(limit)
    return list(session.scalars(query))


def _matching(job_id: str, wanted: LabelFilter) -> Select[PseudoLabel]:
    asked = [_CONDITIONS[name](value) for name, value in wanted._asdict().items() if value is not None]
    return select(PseudoLabel).where(PseudoLabel.job_id == job_id, *asked)


def _reviewed(
    edited: InstrumentedAttribute[Any], decided: InstrumentedAttribute[Any], value: Any
) -> ColumnElement[bool]:
    """As a person left it. Not `coalesce`, of which PostgreSQL's planner does not know how many rows match."""
    return or_(edited == value, and_(edited.is_(None), decided == value))


_CONDITIONS: Mapping[str, Callable[[Any], ColumnElement[bool]]] = {
    "decision": lambda value: _reviewed(PseudoLabel.reviewed_decision, PseudoLabel.decision, value),
    "reason": lambda value: PseudoLabel.reason == value,
    "answer": lambda value: _reviewed(PseudoLabel.reviewed_answer, PseudoLabel.answer, value),
    "min_entropy": lambda value: PseudoLabel.entropy >= value,
    "max_entropy": lambda value: PseudoLabel.entropy <= value,
    "round": lambda value: PseudoLabel.round == value,
    "consistent": lambda value: PseudoLabel.outcome == "consistent" if value else PseudoLabel.outcome != "consistent",
    "q": lambda value: PseudoLabel.question.contains(value, autoescape=True),
}


# --- what people changed ----------------------------------------------------------------------------------------------


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
