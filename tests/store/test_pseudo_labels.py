"""The bulk load of pseudo-labels and its queries, on SQLite and on a real PostgreSQL."""

import json
import math
import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, get_args

import pytest
from sqlalchemy import event, func, select

from store.database import Database
from store.models import Job, Project, PseudoLabel
from store.pseudo_labels import (
    LabelFilter,
    LabelRow,
    Order,
    UnknownLine,
    judged,
    labels_after,
    load,
    write_edits,
)
from tests.store.conftest import EMPTY, JOB


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


# --- orders -----------------------------------------------------------------------------------------------------------

ORDERS = get_args(Order)
FILTERS: list[dict[str, Any]] = [
    {},
    {"decision": "accept"},
    {"decision": "reject"},
    {"outcome": "majority"},
    {"reviewed": True},
    {"reviewed": False, "decision": "reject"},
    {"reviewed": True, "decision": "reject", "answer": "B"},
    {"answer": "B"},
    {"min_entropy": 0.2, "max_entropy": 0.4, "consistent": True},
    {"decision": "accept", "answer": "A", "q": "question 1"},
]


@pytest.fixture
def mixed(database: Database) -> list[PseudoLabel]:
    """Rows with ties, without values and changed by people; all of them as they are stored."""
    draw = random.Random(7)
    rows = [
        row(
            line,
            answer=draw.choice("AB"),
            decision=draw.choice(["accept", "reject"]),
            outcome=draw.choice(["consistent", "majority"]),
            entropy=draw.choice([None, 0.0, 0.1, 0.2, 0.3, 0.5]),
            confidence=draw.choice([None, 0.5, 0.9, 1.0]),
        )
        for line in sorted(draw.sample(range(1, 400), 150))
    ]
    put(database, rows)
    with database.write() as session:
        for label in session.scalars(select(PseudoLabel)):
            if draw.random() < 0.3:
                label.reviewed_decision, label.reviewed_answer = draw.choice(["accept", "reject"]), draw.choice("AB")
                label.reviewed_at = 1.0
    with database.read() as session:
        return list(session.scalars(select(PseudoLabel)))


def matches(label: PseudoLabel, wanted: LabelFilter) -> bool:
    """The filter in plain Python."""
    entropy = math.nan if label.entropy is None else label.entropy
    return (
        wanted.decision in {None, label.reviewed_decision or label.decision}
        and wanted.answer in {None, label.reviewed_answer or label.answer}
        and wanted.outcome in {None, label.outcome}
        and wanted.reviewed in {None, label.reviewed_at is not None}
        and wanted.consistent in {None, label.outcome == "consistent"}
        and (wanted.min_entropy is None or entropy >= wanted.min_entropy)
        and (wanted.max_entropy is None or entropy <= wanted.max_entropy)
        and (wanted.q is None or wanted.q in label.question)
    )


def in_order(labels: list[PseudoLabel], order: Order) -> list[int]:
    """Lines by value and line, those without value last, in plain Python."""
    if order == "line":
        return sorted(label.line for label in labels)
    name, sign = order.removeprefix("-"), -1 if order.startswith("-") else 1
    valued = [(sign * getattr(label, name), sign * label.line, label.line) for label in labels if known(label, name)]
    return [line for _, _, line in sorted(valued)] + sorted(label.line for label in labels if not known(label, name))


def known(label: PseudoLabel, name: str) -> bool:
    return getattr(label, name) is not None


@pytest.mark.parametrize("order", ORDERS)
def test_every_order_goes_through_all_rows_once(database: Database, mixed: list[PseudoLabel], order: Order) -> None:
    for wanted in (LabelFilter(**values) for values in FILTERS):
        expected = in_order([label for label in mixed if matches(label, wanted)], order)
        assert expected
        seen, after = list[int](), 0
        with database.read() as session:
            while page := labels_after(session, JOB, wanted, after, 7, order):
                seen += [label.line for label in page]
                after = seen[-1]
        assert seen == expected, wanted


def test_orders_by_value_need_the_row_before(database: Database) -> None:
    put(database, [row(n) for n in (1, 3)])
    with database.read() as session:
        assert [label.line for label in labels_after(session, JOB, LabelFilter(), 2, 10)] == [3]
        with pytest.raises(UnknownLine):
            labels_after(session, JOB, LabelFilter(), 2, 10, "entropy")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "wanted",
    [
        LabelFilter(),
        LabelFilter(decision="reject"),
        LabelFilter(reviewed=False),
        LabelFilter(reviewed=True, outcome="x"),
    ],
)
def test_no_row_is_sorted_for_a_page(tmp_path: Path, wanted: LabelFilter, order: Order) -> None:
    """SQLite tells how it would read: from an index in that order, but for the few rows that people changed."""
    with closing(Database(f"sqlite:///{tmp_path / 'plans.db'}")) as database:
        database.migrate()
        with database.write() as session:
            session.add(Project(id="p"))
            session.flush()
            session.add(Job(id=JOB, project_id="p", created_by="k", method="semievol", model="m", seed=0, **EMPTY))
        put(database, [row(1, confidence=0.5)])
        asked: list[tuple[str, Any]] = []
        event.listen(database.engine, "before_cursor_execute", lambda *given: asked.append((given[2], given[3])))
        for after in (0, 1):
            with database.read() as session:
                labels_after(session, JOB, wanted, after, 100, order)
                judged(session, JOB, [0.5])
        queries = [(text, values) for text, values in asked if "ORDER BY" in text or "GROUP BY" in text]
        assert len(queries) >= 3
        for query, values in queries:
            with database.engine.connect() as connection:
                plan = str(connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}", values).all())
            if "reviewed_at IS NOT NULL" in query:
                assert "job_id_reviewed" in plan
            else:
                assert "TEMP B-TREE" not in plan
                assert order == "line" or order.removeprefix("-") in plan


def test_what_people_made_of_rows_is_counted(database: Database) -> None:
    put(
        database,
        [
            row(1, confidence=0.95),
            row(2, confidence=0.4),
            row(3, confidence=0.4, decision="reject"),
            row(4, answer=None, decision="reject"),
            row(5, confidence=0.5),
            row(6, confidence=0.5),
        ],
    )
    edits = {1: ("accept", None), 2: ("reject", None), 3: ("accept", "B"), 4: ("accept", "A"), 5: ("accept", "A")}
    with database.write() as session:
        for line, (decision, answer) in edits.items():
            label = session.get_one(PseudoLabel, (JOB, line))
            label.reviewed_decision, label.reviewed_answer, label.reviewed_at = decision, answer, 1.0
    with database.read() as session:
        assert set(judged(session, JOB, [0.5, 0.9])) == {
            ("accept", "accept", True, 2, 1),
            ("accept", "reject", True, 0, 1),
            ("reject", "accept", False, 0, 1),
            ("reject", "accept", False, None, 1),
            ("accept", "accept", True, 1, 1),
        }
