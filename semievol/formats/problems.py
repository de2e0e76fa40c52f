"""What can be wrong while a file is read: with one row, or with all that follows."""

from semievol.errors import Problem

MAX_EMPTY_LINES = 10_000_000
MAX_PROBLEMS = 100_000
"""More than that is no file of rows, and reading on would only cost time."""


class RowFault(Exception):
    """A row cannot be used; the next one may. `offset_bytes` counts from the start of its line."""

    def __init__(self, code: str, message: str, field: str | None = None, offset_bytes: int = 0) -> None:
        super().__init__(message)
        self.code, self.field, self.offset_bytes = code, field, offset_bytes

    def at(self, line: int, start_bytes: int | None = None) -> Problem:
        """The fault in a line, which starts at this byte of the text where that is known."""
        offset = None if start_bytes is None else start_bytes + self.offset_bytes
        return Problem(line, self.code, str(self), self.field, offset)


class FileFault(Exception):
    """The file cannot be read (on). `line` is 0 where it is the whole file."""

    def __init__(self, code: str, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.code, self.line = code, line

    def problem(self) -> Problem:
        """As a problem to show."""
        return Problem(self.line, self.code, str(self))


def check_empty_lines(count: int, line: int) -> None:
    """Raises FileFault if there are too many."""
    if count > MAX_EMPTY_LINES:
        message = f"more than {MAX_EMPTY_LINES:,} lines are empty; remove them"
        raise FileFault("empty_lines", message, line)
