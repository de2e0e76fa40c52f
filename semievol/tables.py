"""Parquet files between stages: rows, answered rows, pseudo-labels. One row group is one shard."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from semievol.agreement import Label, Trial
from semievol.examples import Example
from semievol.generation import Answered
from semievol.prompts import Message
from semievol.selection import Decision

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("weight", pa.int8())]))
_EXAMPLE = [
    ("id", pa.string()),
    ("line", pa.int64()),
    ("messages", _MESSAGES),
    ("options", pa.list_(pa.string())),
]
_TRIAL = pa.struct(
    [
        ("collaborator", pa.int32()),
        ("seed", pa.int64()),
        ("worked_examples", pa.list_(pa.string())),
        ("similarities", pa.list_(pa.float32())),
        ("reply", pa.string()),
        ("answer", pa.string()),
        ("logprobs", pa.list_(pa.float32())),
        ("tokens", pa.list_(pa.string())),
        ("option_logprobs", pa.list_(pa.float32())),
    ]
)
_TRIALS = [("trials", pa.list_(_TRIAL)), ("justification", _TRIAL)]

EXAMPLES = pa.schema([*_EXAMPLE, ("reply", pa.string())])
ANSWERED = pa.schema([*_EXAMPLE, *_TRIALS])
PSEUDO_LABELS = pa.schema(
    [
        ("round", pa.int32()),
        ("shard", pa.int32()),
        *_EXAMPLE,
        ("answer", pa.string()),
        ("reply", pa.string()),
        ("decision", pa.string()),
        ("reason", pa.string()),
        ("outcome", pa.string()),
        ("confidence", pa.float64()),
        ("probability", pa.float64()),
        ("vote_share", pa.float64()),
        ("entropy", pa.float64()),
        ("answer_entropy", pa.float64()),
        *_TRIALS,
    ]
)
"""The public `pseudo_labels.parquet`: one row for each unlabeled row, with all that led to its decision."""

READ_ROWS = 32
"""Records that are made of a file's columns at a time: where many files are read at once, there are so many of each."""
_MESSAGE_FIELDS = [field.name for field in fields(Message)]
_TRIAL_FIELDS = [field.name for field in fields(Trial)]


def write_rows(path: Path, schema: pa.Schema, records: Iterable[dict[str, Any]], group_rows: int) -> int:
    """Stream records into a file with `group_rows` rows a row group; returns how many there were."""
    count, group = 0, list[dict[str, Any]]()
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for record in records:
            group.append(record)
            count += 1
            if len(group) == group_rows:
                writer.write_table(pa.Table.from_pylist(group, schema=schema))
                group = []
        if group:
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
    return count


def read_rows(path: Path, group: int | None = None) -> Iterator[dict[str, Any]]:
    """Records of one row group, or of all, a few in memory at a time."""
    with _opened(path) as file:
        groups = None if group is None else [group]
        for batch in file.iter_batches(READ_ROWS, row_groups=groups, use_threads=False):
            yield from batch.to_pylist()


def take_rows(path: Path, places: Sequence[int], group_rows: int) -> Iterator[dict[str, Any]]:
    """Records at these places, which ascend, of a file with `group_rows` rows a row group; one group at a time."""
    with _opened(path) as file:
        for group, some in groupby(places, lambda place: place // group_rows):
            within = [place - group * group_rows for place in some]
            yield from file.read_row_group(group).take(within).to_pylist()


def _opened(path: Path) -> pq.ParquetFile:
    stat = path.stat()
    return pq.ParquetFile(path, metadata=_footer(path, stat.st_mtime_ns, stat.st_size))


@lru_cache(maxsize=2)
def _footer(path: Path, changed: int, size: int) -> pq.FileMetaData:
    """What is where in a file. Of a file with thousands of groups that are read one by one, it is read once."""
    return pq.read_metadata(path)


def row_count(path: Path) -> int:
    """Rows of a file."""
    with pq.ParquetFile(path) as file:
        return int(file.metadata.num_rows)


def example_record(example: Example) -> dict[str, Any]:
    """A row for the schema EXAMPLES."""
    return {
        "id": example.id,
        "line": example.line,
        "messages": [_fields(message, _MESSAGE_FIELDS) for message in example.prompt],
        "options": list(example.options) if example.options else None,
        "reply": example.reply,
    }


def example_of(record: dict[str, Any]) -> Example:
    """The row of a record with the columns of EXAMPLES; a file without replies gives rows without."""
    return Example(
        id=record["id"],
        line=record["line"],
        prompt=tuple(Message(**message) for message in record["messages"]),
        reply=record.get("reply"),
        options=tuple(record["options"]) if record["options"] else None,
    )


def read_examples(path: Path, group: int | None = None) -> list[Example]:
    """The rows of one row group, or of all."""
    return [example_of(record) for record in read_rows(path, group)]


def write_examples(path: Path, examples: Sequence[Example]) -> None:
    """All rows of a small file."""
    write_rows(path, EXAMPLES, map(example_record, examples), max(1, len(examples)))


def answered_record(answered: Answered) -> dict[str, Any]:
    """A row for the schema ANSWERED."""
    record = example_record(answered.row)
    del record["reply"]
    justification = _fields(answered.justification, _TRIAL_FIELDS) if answered.justification else None
    trials = [_fields(trial, _TRIAL_FIELDS) for trial in answered.trials]
    return record | {"trials": trials, "justification": justification}


def answered_of(record: dict[str, Any]) -> Answered:
    """The answered row of a record."""
    row = example_of({key: record[key] for key in ("id", "line", "messages", "options")})
    justification = _trial(record["justification"]) if record["justification"] else None
    return Answered(row, tuple(_trial(trial) for trial in record["trials"]), justification)


def pseudo_label_record(
    round_number: int, answered: dict[str, Any], label: Label, decision: Decision
) -> dict[str, Any]:
    """A row for the schema PSEUDO_LABELS from a record of ANSWERED, which says its shard too."""
    return answered | {
        "round": round_number,
        "answer": label.answer,
        "reply": label.reply,
        "decision": "accept" if decision.accepted else "reject",
        "reason": decision.reason,
        "outcome": label.outcome,
        "confidence": decision.confidence,
        "probability": label.probability,
        "vote_share": label.vote_share,
        "entropy": label.entropy,
        "answer_entropy": label.answer_entropy,
    }


def _fields(value: Message | Trial, names: Sequence[str]) -> dict[str, Any]:
    """The value's own fields. `asdict` would copy all that is in them, and take most of the time of a large job."""
    return {name: getattr(value, name) for name in names}


def _trial(record: dict[str, Any]) -> Trial:
    lists = ("worked_examples", "similarities", "logprobs", "option_logprobs")
    values: dict[str, Any] = record | {key: tuple(record[key]) for key in lists if record[key] is not None}
    return Trial(**values | {"tokens": tuple(record.get("tokens") or ())})
