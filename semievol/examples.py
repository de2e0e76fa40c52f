"""Labeled and unlabeled rows of input files, as streams, with problems by line. `formats` knows how they are written.

A labeled file is small and is read whole. An unlabeled file may hold millions of rows: `stream_unlabeled` never holds
more than one, and never looks at an answer, even where the file has an answer column.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal

from semievol.errors import DataError, Problem
from semievol.formats.opening import read_rows
from semievol.formats.rows import Row
from semievol.prompts import Prompt

MAX_PROBLEMS_SHOWN = 20
ROWS_LOOKED_AT = 1000


@dataclass(frozen=True, slots=True)
class Example:
    """One row: what is asked and, where it is known, the assistant's reply.

    `id` comes from the content alone (plus a counter among identical rows), so it survives reordering and so do the
    seeds made from it. `options` are the row's own letters where the file gives options row by row.
    """

    id: str
    line: int
    prompt: Prompt
    reply: str | None = None
    options: tuple[str, ...] | None = None

    @property
    def labeled_reply(self) -> str:
        """The reply of a labeled row."""
        assert self.reply is not None, f"row {self.id} has no reply"
        return self.reply


def content_id(row_id: str) -> str:
    """What a row and its duplicates share: the id without the counter that tells them apart."""
    return row_id.split("-", maxsplit=1)[0]


def read_labeled(path: Path) -> list[Example]:
    """All rows of a labeled file.

    Raises DataError with problems by line if any row cannot be used or the file holds none.
    """
    rows = list(_usable(path, labeled=True))
    # Numbered by reply, so that rows that ask the same and are answered differently keep their ids in any order.
    by_reply = sorted(rows, key=lambda row: row.labeled_reply)
    ids = {row.line: numbered.id for row, numbered in zip(by_reply, _identified(by_reply), strict=True)}
    return [replace(row, id=ids[row.line]) for row in rows]


def stream_unlabeled(path: Path) -> Iterator[Example]:
    """Rows of an unlabeled file one at a time, never with an answer.

    Raises DataError at the first row that cannot be used: check a file with `check_unlabeled` first.
    """

    def usable() -> Iterator[Example]:
        for item in _rows(path, labeled=False):
            if isinstance(item, Problem):
                raise DataError(str(path), [item])
            yield item

    return _identified(usable())


def check_unlabeled(path: Path) -> int:
    """Number of rows of an unlabeled file. Raises DataError with problems by line, as `read_labeled` does."""
    return _count(path, labeled=False)


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What a file is: all of its rows are of this kind.

    `answers_apart`: a labeled file whose answers stand beside the question, so that it is read as an unlabeled one too.
    """

    kind: Literal["labeled", "unlabeled"]
    rows: int
    answers_apart: bool = False


def check_file(path: Path) -> FileFacts:
    """What a file is, without holding more than one row. Raises DataError with the problems of the likelier kind."""
    likely_labeled = _looks_labeled(path)
    try:
        return _facts(path, labeled=likely_labeled)
    except DataError:
        try:
            return _facts(path, labeled=not likely_labeled)
        except DataError:
            pass  # the problems of the likelier kind say more
        raise


def _facts(path: Path, *, labeled: bool) -> FileFacts:
    if not labeled:
        return FileFacts("unlabeled", _count(path, labeled=False))
    return FileFacts("labeled", _count(path, labeled=True), _first_line(path, labeled=False) is not None)


def _looks_labeled(path: Path) -> bool:
    """Whether the first row that can be used has a reply."""
    first = _first_line(path, labeled=True), _first_line(path, labeled=False)
    return first[1] is None or (first[0] is not None and first[0] <= first[1])


def _first_line(path: Path, *, labeled: bool) -> int | None:
    """Line of the first row that can be used as this kind, within the first rows; None if there is none."""
    items = islice(_rows(path, labeled=labeled), ROWS_LOOKED_AT)
    return next((item.line for item in items if isinstance(item, Example)), None)


def _count(path: Path, *, labeled: bool) -> int:
    return sum(1 for _ in _usable(path, labeled=labeled))


def _usable(path: Path, *, labeled: bool) -> Iterator[Example]:
    """Rows up to the first problem. Raises DataError after the last row if there were problems, or no rows."""
    count, problems, total = 0, list[Problem](), 0
    for item in _rows(path, labeled=labeled):
        if isinstance(item, Problem):
            total += 1
            problems += [item] if len(problems) < MAX_PROBLEMS_SHOWN else []
        elif not problems:
            count += 1
            yield item
    if not count and not problems:
        kind = "labeled" if labeled else "unlabeled"
        problems, total = [Problem(0, "empty_file", f"the file holds no rows; at least one {kind} row is needed")], 1
    if problems:
        raise DataError(str(path), problems, total)


def _identified(rows: Iterable[Example]) -> Iterator[Example]:
    """Give identical rows a counter, so that every id is unique and does not depend on the order of different rows."""
    seen = Counter[str]()
    for row in rows:
        seen[row.id] += 1
        yield row if seen[row.id] == 1 else replace(row, id=f"{row.id}-{seen[row.id]}")


def _rows(path: Path, *, labeled: bool) -> Iterator[Example | Problem]:
    with closing(read_rows(path, labeled=labeled)) as rows:  # packed files are read through a process, which ends then
        for item in rows:
            yield item if isinstance(item, Problem) else _example(item)


def _example(row: Row) -> Example:
    content = json.dumps([(turn.role, turn.content) for turn in row.prompt], ensure_ascii=False)
    digest = hashlib.blake2b(content.encode(), digest_size=8).hexdigest()
    return Example(digest, row.line, row.prompt, row.reply, row.options)
