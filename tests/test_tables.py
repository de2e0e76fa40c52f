"""Parquet between stages: what goes in comes out, shard by shard."""

import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semievol.agreement import JUSTIFICATION, Label, Trial
from semievol.examples import Example
from semievol.generation import Answered
from semievol.prompts import Message
from semievol.selection import Decision
from semievol.tables import (
    ANSWERED,
    EXAMPLES,
    PSEUDO_LABELS,
    answered_of,
    answered_record,
    example_record,
    pseudo_label_record,
    read_examples,
    read_rows,
    write_examples,
    write_rows,
)

ROW = Example(
    "id-2", 7, (Message("system", "s"), Message("user", "ü\n😀"), Message("assistant", "a", 0), Message("user", "q"))
)
LETTERS = Example("x", 1, (Message("user", "q"),), "B", ("A", "B"))
SCORED = Trial(0, 2**63 - 1, ("L1", "L2"), (0.5, 0.25), "A", "A", (-0.5,), ("A",), (-0.5, -1.5))
SAMPLED = Trial(1, 0, (), (), "", None, (), ())


@given(st.lists(st.sampled_from([ROW, LETTERS]), max_size=12), st.integers(1, 5))
def test_rows_come_back_as_they_were_in_groups_of_the_shard_size(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Example], size: int
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    assert write_rows(path, EXAMPLES, map(example_record, rows), size) == len(rows)
    assert read_examples(path) == rows
    groups = pq.read_metadata(path).num_row_groups
    assert groups == math.ceil(len(rows) / size)
    shards = [read_examples(path, group) for group in range(groups)]
    assert [row for shard in shards for row in shard] == rows
    assert all(len(shard) == size for shard in shards[:-1])


def test_a_small_file_is_one_group(tmp_path: Path) -> None:
    write_examples(tmp_path / "rows.parquet", [ROW, LETTERS])
    assert pq.read_metadata(tmp_path / "rows.parquet").num_row_groups == 1


@pytest.mark.parametrize(
    "answered",
    [
        Answered(ROW, (), None),
        Answered(ROW, (SCORED, SAMPLED), None),
        Answered(
            LETTERS,
            (SAMPLED,),
            Trial(JUSTIFICATION, 5, ("L1",), (1.0,), "why: B", "B", (-0.25, -0.5), ("why", "<end>")),
        ),
    ],
    ids=["too long", "scored and sampled", "justified"],
)
def test_answered_rows_come_back_without_a_reply(tmp_path: Path, answered: Answered) -> None:
    path = tmp_path / "answered.parquet"
    write_rows(path, ANSWERED, [answered_record(answered)], 1)
    (record,) = read_rows(path)
    back = answered_of(record)
    assert (back.trials, back.justification) == (answered.trials, answered.justification)
    assert (back.row.id, back.row.prompt, back.row.reply) == (answered.row.id, answered.row.prompt, None)


def test_a_pseudo_label_can_be_traced(tmp_path: Path) -> None:
    path = tmp_path / "labels.parquet"
    label = Label("consistent", "A", "A", 1.0, 0.5, 0.0, 0.6)
    record = pseudo_label_record(
        2, answered_record(Answered(ROW, (SCORED,), None)), label, Decision(True, "drawn", 0.6)
    )
    write_rows(path, PSEUDO_LABELS, [record], 1)
    (back,) = read_rows(path)
    assert {key: back[key] for key in ("round", "id", "answer", "reply", "decision", "reason", "outcome")} == {
        "round": 2,
        "id": "id-2",
        "answer": "A",
        "reply": "A",
        "decision": "accept",
        "reason": "drawn",
        "outcome": "consistent",
    }
    assert [message["content"] for message in back["messages"]] == [turn.content for turn in ROW.prompt]
    assert back["trials"][0]["seed"] == 2**63 - 1
    assert back["trials"][0]["worked_examples"] == ["L1", "L2"]
    assert back["justification"] is None


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_examples(tmp_path / name, [ROW, LETTERS] * 50)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
