"""The door: a path, and its rows and problems as a stream, in whatever form they are written and packed."""

import io
import os
import stat
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from semievol.errors import Problem
from semievol.formats.jsonl import jsonl_rows
from semievol.formats.naming import ENDINGS, HEAD_BYTES, Format, format_of
from semievol.formats.problems import MAX_PROBLEMS, FileFault
from semievol.formats.rows import Row
from semievol.formats.separated import csv_rows
from semievol.formats.unpacking import unpacked


def read_rows(path: Path, *, labeled: bool) -> Generator[Row | Problem]:
    """Rows and problems in order, one in memory at a time. After a problem that ends the reading nothing follows.

    `line` counts lines of the unpacked text, and rows in Parquet, from 1.
    """
    problems = 0
    try:
        for item in _rows(path, labeled=labeled):
            problems += isinstance(item, Problem)
            if problems > MAX_PROBLEMS:
                message = f"more than {MAX_PROBLEMS:,} rows cannot be used; is the file what its name says?"
                raise FileFault("too_many_problems", message, item.line)
            yield item
    except FileFault as fault:
        yield fault.problem()


def _rows(path: Path, *, labeled: bool) -> Iterator[Row | Problem]:
    """Raises FileFault."""
    with _opened(path) as file:
        how = _format(path, file)
        if not os.fstat(file.fileno()).st_size:
            return  # without rows, whatever it is
        if how.packing or how.form == "parquet":
            with unpacked(file, how, labeled=labeled) as text:
                rows = _text_rows(text, how, labeled=labeled)
                yield from rows if how.form != "parquet" else map(_without_offset, rows)
        else:
            yield from _text_rows(file, how, labeled=labeled)


def _text_rows(text: io.BufferedReader, how: Format, *, labeled: bool) -> Iterator[Row | Problem]:
    _check_encoding(text)
    return (csv_rows if how.form == "csv" else jsonl_rows)(text, labeled=labeled)


def _without_offset(item: Row | Problem) -> Row | Problem:
    """Bytes of Parquet's rows as JSON are nowhere to be found."""
    return replace(item, byte_offset=None) if isinstance(item, Problem) else item


@contextmanager
def _opened(path: Path) -> Iterator[io.BufferedReader]:
    """Raises FileFault if there is nothing that can be read."""
    try:
        mode = path.stat().st_mode  # before it is opened: opening a pipe would wait for its writer
        if stat.S_ISDIR(mode):
            raise FileFault("not_a_file", "this is a folder; give one file")
        if not stat.S_ISREG(mode):
            raise FileFault("not_a_file", "this is a pipe or a device; write the rows into a file, which is read twice")
        file = path.open("rb")
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a path that holds NUL
        raise FileFault("no_such_file", "there is no such file") from None
    except PermissionError:
        raise FileFault("no_permission", "reading it is not permitted; change its owner or mode") from None
    except OSError as error:
        raise FileFault("cannot_open", f"it cannot be opened: {error.strerror}") from None
    with file:
        yield file


def _format(path: Path, file: io.BufferedReader) -> Format:
    how = format_of(path.name, file.read(HEAD_BYTES))
    file.seek(0)
    if how is None:
        raise FileFault("unknown_format", f"the ending {path.suffix or '(none)'} is not known; {ENDINGS}")
    return how


def _check_encoding(text: io.BufferedReader) -> None:
    """Raises FileFault for what would otherwise be wrong in every line."""
    start = text.peek(4)[:4]
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in start:
        raise FileFault("not_utf8", "the text is UTF-16 or UTF-32, or no text at all; save the file as UTF-8", 1)
