"""The bulk load of pseudo-labels and its queries, on SQLite and on a real PostgreSQL."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from store.database import Database
from store.models import PseudoLabel
from store.pseudo_labels import LabelFilter, LabelRow, labels_after, load, write_edits
from tests.store.conftest import JOB


def row(line: int, **values: Any) -> LabelRow:
    base: dict[str, Any] = {
        "row_id": f"r{line}",
        "question": f"question {line}",
        "answer": "A",
        "reply": "A",
        "decision": "accept",
        "reason": "selected",
        "outcome": "consistent",
        "entropy": line / 10,
    }
    return LabelRow(line=line, **(base | values))


def put(database: Database, rows: list[LabelRow], round_number: int = 1) -> int:
    with database.write() as session:
        return load(session, JOB, round_number, rows)


def lines(database: Database, after: int = 0, limit: int = 100, **wanted: Any) -> list[int]:
    with database.read() as session:
        return [label.line for label in labels_after(session, JOB, LabelFilter(**wanted), after, limit)]


def one(database: Database, line: int) -> PseudoLabel:
    with database.read() as session:
        return session.get_one(PseudoLabel, (JOB, line))


def test_a_repeated_load_changes_nothing(database: Database) -> None:
    assert put(database, [row(n) for n in range(1, 2502)]) == 2501
    put(database, [row(n, answer="other") for n in range(1, 2502)])
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(PseudoLabel)) == 2501
    assert one(database, 7).answer == "A"


def test_a_later_round_decides_a_row_anew_and_an_earlier_one_does_not(database: Database) -> None:
    put(database, [row(1, decision="reject"), row(2)])
    put(database, [row(1, decision="accept", answer="B")], round_number=2)
    put(database, [row(1, decision="reject", answer="C")])
    assert (one(database, 1).round, one(database, 1).answer, one(database, 1).decision) == (2, "B", "accept")
    assert one(database, 2).round == 1


def test_two_rounds_in_one_transaction(database: Database) -> None:
    with database.write() as session:
        load(session, JOB, 1, [row(1)])
        load(session, JOB, 2, [row(1, answer="B")])
    assert one(database, 1).answer == "B"


def test_what_a_database_cannot_hold_is_left_out(database: Database) -> None:
    put(database, [row(1, question="a\0b\tc\\n\n", reply=None, entropy=math.nan, probability=math.inf, confidence=0.5)])
    label = one(database, 1)
    assert (label.question, label.reply, label.entropy, label.probability) == ("ab\tc\\n\n", None, None, None)
    assert label.confidence == 0.5


def test_a_failed_transaction_leaves_nothing(database: Database) -> None:
    def broken() -> Iterator[LabelRow]:
        yield row(1)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), database.write() as session:
        load(session, JOB, 1, broken())
    assert lines(database) == []


def test_filters(database: Database) -> None:
    put(
        database,
        [
            row(1),
            row(2, decision="reject", reason="low_confidence", outcome="majority"),
            row(3, answer="B", question="100 % of it"),
            row(4, entropy=None),
        ],
    )
    assert lines(database) == [1, 2, 3, 4]
    assert lines(database, after=1, limit=2) == [2, 3]
    assert lines(database, decision="reject") == [2]
    assert lines(database, reason="low_confidence") == [2]
    assert lines(database, answer="B") == [3]
    assert lines(database, min_entropy=0.15) == [2, 3]
    assert lines(database, max_entropy=0.15) == [1]
    assert lines(database, consistent=True) == [1, 3, 4]
    assert lines(database, consistent=False) == [2]
    assert lines(database, round=2) == []
    assert lines(database, q="0 %") == [3]
    assert lines(database, q="question") == [1, 2, 4]


def test_edits_count_in_filters_and_are_written_by_line(database: Database, tmp_path: Path) -> None:
    put(database, [row(n) for n in (1, 2, 3)])
    with database.write() as session:
        for line, decision, answer in ((3, "reject", None), (1, "accept", "ß")):
            label = session.get_one(PseudoLabel, (JOB, line))
            label.reviewed_decision, label.reviewed_answer, label.reviewed_at = decision, answer, 1.0
    assert lines(database, decision="reject") == [3]
    assert lines(database, answer="ß") == [1]
    with database.read() as session:
        assert write_edits(session, JOB, tmp_path / "edits") == 2
    written = [json.loads(line) for line in (tmp_path / "edits").read_text(encoding="utf-8").splitlines()]
    assert written == [
        {"round": 1, "id": "r1", "decision": "accept", "answer": "ß"},
        {"round": 1, "id": "r3", "decision": "reject"},
    ]
