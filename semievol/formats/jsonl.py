"""JSON lines: one row a line, of any form."""

from collections.abc import Iterator
from typing import BinaryIO

from semievol.errors import Problem
from semievol.formats.problems import RowFault, check_empty_lines
from semievol.formats.rows import Row, row_of
from semievol.formats.strict_json import MAX_LINE_BYTES, parse

WANTED = "each line is one whole JSON object"


def jsonl_rows(stream: BinaryIO, *, labeled: bool) -> Iterator[Row | Problem]:
    """Rows and problems in order, one line in memory at a time. Empty lines are skipped."""
    number = empty = start_bytes = 0
    while raw := stream.readline(MAX_LINE_BYTES + 1):
        number, length = number + 1, len(raw)
        if length > MAX_LINE_BYTES:
            length += _skip_rest(stream, raw)
            message = f"the row is longer than {MAX_LINE_BYTES:,} bytes; shorten it"
            yield Problem(number, "line_too_long", message, byte_offset=start_bytes)
        elif raw.strip():
            try:
                yield row_of(parse(raw, WANTED), number, labeled=labeled)
            except RowFault as fault:
                yield fault.at(number, start_bytes)
        else:
            empty += 1
            check_empty_lines(empty, number)
        start_bytes += length


def _skip_rest(stream: BinaryIO, raw: bytes) -> int:
    """Bytes of the line that were not read yet."""
    skipped = 0
    while raw and not raw.endswith(b"\n"):
        raw = stream.readline(MAX_LINE_BYTES)
        skipped += len(raw)
    return skipped
