"""CSV with the columns question, options and answer: the paper's own files."""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from semievol.errors import Problem
from semievol.formats.problems import FileFault, RowFault, check_empty_lines
from semievol.formats.rows import Row, has_surrogate, question_row
from semievol.formats.strict_json import MAX_LINE_BYTES

MAX_COLUMNS = 1000


def csv_rows(stream: BinaryIO, *, labeled: bool) -> Iterator[Row | Problem]:
    """Rows and problems in order, one row in memory at a time. Raises FileFault where no row can be told any more."""
    csv.field_size_limit(MAX_LINE_BYTES)
    lines = _Lines(stream)
    rows = csv.reader(lines, strict=True)
    read = empty = 0  # lines that earlier rows took, and that had none
    try:
        header = next(rows, None)
        if header is None:
            return
        columns, read = _columns(header, labeled=labeled), rows.line_num
        for cells in _each(rows, lines):
            first, read = read + 1, rows.line_num
            if not cells:
                empty += 1
                check_empty_lines(empty, first)
                continue
            try:
                yield _row(cells, columns, first, labeled=labeled)
            except RowFault as fault:
                yield fault.at(first)
    except csv.Error as error:
        message = f"the row that begins here is not CSV ({error}); look at its quotes"
        raise FileFault("not_csv", message, read + 1) from None
    except _TooLong:
        message = (
            f"the row that begins here is longer than {MAX_LINE_BYTES:,} characters; shorten it or close its quotes"
        )
        raise FileFault("line_too_long", message, read + 1) from None
    finally:
        lines.text.detach()  # the stream is its owner's to close


class _TooLong(Exception):
    """A row that does not end."""


class _Lines:
    """Lines of text, of which one row may take so much. `taken`: characters of the row that is being read."""

    def __init__(self, stream: BinaryIO) -> None:
        # Bytes that are not UTF-8 become lone surrogates, so that they are noticed in the cell that holds them.
        self.text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        self.taken = 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self.text.readline(MAX_LINE_BYTES + 1)
        self.taken += len(line)
        if self.taken > MAX_LINE_BYTES:
            raise _TooLong
        if not line:
            raise StopIteration
        return line


def _each(rows: Iterator[list[str]], lines: _Lines) -> Iterator[list[str]]:
    lines.taken = 0
    for cells in rows:
        yield cells
        lines.taken = 0


@dataclass(frozen=True, slots=True)
class _Columns:
    width: int
    question: int
    options: int | None
    answer: int | None

    def of(self, cells: list[str]) -> tuple[str, str | None, str | None]:
        """Question, options and answer of a row."""
        options = None if self.options is None else cells[self.options]
        return cells[self.question], options, None if self.answer is None else cells[self.answer]


def _columns(header: list[str], *, labeled: bool) -> _Columns:
    names = [name.strip().lower() for name in header]
    if any(map(has_surrogate, names)):
        raise FileFault("not_utf8", "the first line is not UTF-8; save the file as UTF-8", 1)
    if len(names) > MAX_COLUMNS:
        raise FileFault(
            "too_many_columns", f"the first line names more than {MAX_COLUMNS:,} columns; remove what is unused", 1
        )
    if "question" not in names or (labeled and "answer" not in names):
        needed = "columns question and answer" if labeled else "column question"
        message = f"the first line must name the {needed}, separated by commas; options (a JSON list) is optional"
        raise FileFault("missing_column", message, 1)
    if len(set(names)) != len(names):
        raise FileFault("duplicate_column", "the first line names a column twice; rename or remove one", 1)
    return _Columns(
        width=len(names),
        question=names.index("question"),
        options=names.index("options") if "options" in names else None,
        answer=names.index("answer") if labeled else None,
    )


def _row(cells: list[str], columns: _Columns, line: int, *, labeled: bool) -> Row:
    if len(cells) != columns.width:
        message = f"the row has {len(cells)} cells, the first line names {columns.width}; quote cells that hold a comma"
        raise RowFault("wrong_width", message)
    question, options, answer = columns.of(cells)
    if any(has_surrogate(cell) for cell in (question, options, answer) if cell is not None):
        raise RowFault("not_utf8", "the row is not UTF-8; save the file as UTF-8")
    return question_row(line, question, options, answer, labeled=labeled)
