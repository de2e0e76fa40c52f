"""Read labeled and unlabeled rows from chat JSONL and from the paper's CSV, as streams, with problems by line.

A labeled file is small and is read whole. An unlabeled file may hold millions of rows: `stream_unlabeled` never holds
more than one, and never looks at an answer, even where the file has an answer column.
"""

import csv
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NoReturn

from semievol.errors import DataError, Problem
from semievol.prompts import Message, Prompt

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MAX_LINE_BYTES = 4 * 1024 * 1024
MAX_PROBLEMS_SHOWN = 20
ROWS_LOOKED_AT = 1000
_SURROGATE = re.compile("[\ud800-\udfff]")
CHOICE_INSTRUCTION = "Answer with the letter of the right option."


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


class _RowProblem(ValueError):
    """A row cannot be used; carries the stable code and the remedy."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def read_labeled(path: Path) -> list[Example]:
    """All rows of a labeled file.

    Raises DataError with problems by line if any row cannot be used or the file holds none.
    """
    rows, problems, total = [], list[Problem](), 0
    for item in _rows(path, labeled=True):
        if isinstance(item, Problem):
            total += 1
            problems += [item] if len(problems) < MAX_PROBLEMS_SHOWN else []
        else:
            rows.append(item)
    if not rows and not problems:
        problems, total = [Problem(0, "empty_file", "the file holds no rows; at least one labeled row is needed")], 1
    if problems:
        raise DataError(str(path), problems, total)
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
    """What a file is: all of its rows are of this kind."""

    kind: Literal["labeled", "unlabeled"]
    rows: int


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
    return FileFacts("labeled" if labeled else "unlabeled", _count(path, labeled=labeled))


def _looks_labeled(path: Path) -> bool:
    """Whether the first row that can be used has a reply."""
    first = _first_line(path, labeled=True), _first_line(path, labeled=False)
    return first[1] is None or (first[0] is not None and first[0] <= first[1])


def _first_line(path: Path, *, labeled: bool) -> int | None:
    """Line of the first row that can be used as this kind, within the first rows; None if there is none."""
    try:
        items = islice(_rows(path, labeled=labeled), ROWS_LOOKED_AT)
        return next((item.line for item in items if isinstance(item, Example)), None)
    except DataError:
        return None


def _count(path: Path, *, labeled: bool) -> int:
    count, problems, total = 0, list[Problem](), 0
    for item in _rows(path, labeled=labeled):
        if isinstance(item, Problem):
            total += 1
            problems += [item] if len(problems) < MAX_PROBLEMS_SHOWN else []
        else:
            count += 1
    if not count and not problems:
        kind = "labeled" if labeled else "unlabeled"
        problems, total = [Problem(0, "empty_file", f"the file holds no rows; at least one {kind} row is needed")], 1
    if problems:
        raise DataError(str(path), problems, total)
    return count


def _identified(rows: Iterable[Example]) -> Iterator[Example]:
    """Give identical rows a counter, so that every id is unique and does not depend on the order of different rows."""
    seen = Counter[str]()
    for row in rows:
        seen[row.id] += 1
        yield row if seen[row.id] == 1 else replace(row, id=f"{row.id}-{seen[row.id]}")


def _rows(path: Path, *, labeled: bool) -> Iterator[Example | Problem]:
    if not path.exists():
        raise DataError(str(path), [Problem(0, "no_such_file", "there is no such file")])
    if not path.is_file():
        raise DataError(str(path), [Problem(0, "not_a_file", "this is a folder; give one JSONL or CSV file")])
    readers: dict[str, Callable[..., Iterator[Example | Problem]]] = {
        ".jsonl": _jsonl_rows,
        ".ndjson": _jsonl_rows,
        ".csv": _csv_rows,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        hint = f"the ending {path.suffix or '(none)'} is not known; chat JSONL (.jsonl) and CSV (.csv) are read"
        raise DataError(str(path), [Problem(0, "unknown_format", hint)])
    return reader(path, labeled=labeled)


# --- chat JSONL -------------------------------------------------------------------------------------------------------


def _jsonl_rows(path: Path, *, labeled: bool) -> Iterator[Example | Problem]:
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(raw) > MAX_LINE_BYTES:
                while raw and not raw.endswith(b"\n"):
                    raw = file.readline(MAX_LINE_BYTES)
                yield Problem(number, "line_too_long", f"the line is longer than {MAX_LINE_BYTES:,} bytes")
                continue
            if not raw.strip():
                continue
            try:
                yield _chat_row(_parse_json(raw), number, labeled=labeled)
            except _RowProblem as problem:
                yield Problem(number, problem.code, str(problem))


def _parse_json(raw: bytes) -> Any:
    try:
        text = raw.decode("utf-8-sig")
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_reject_constant)
    except UnicodeDecodeError as error:
        raise _RowProblem("not_utf8", f"byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise _RowProblem("not_json", f"not JSON at column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise _RowProblem("too_deep", "the JSON is nested too deeply") from None
    except ValueError as error:  # int() refuses numbers of thousands of digits
        if isinstance(error, _RowProblem):
            raise
        raise _RowProblem("not_json", "a number in the JSON is too long") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) != len(pairs):
        raise _RowProblem("duplicate_key", "a JSON object gives the same key twice; keep one of them")
    return keys


def _reject_constant(name: str) -> NoReturn:
    raise _RowProblem("not_json", f"{name} is not JSON; use null or a string")


def _chat_row(row: Any, line: int, *, labeled: bool) -> Example:
    if not isinstance(row, dict) or not isinstance(row.get("messages"), list):
        raise _RowProblem("no_messages", 'each line is {"messages": [...]}, a list of turns with role and content')
    messages = [_message(turn, index) for index, turn in enumerate(row["messages"], start=1)]
    wanted = "assistant" if labeled else "user"
    if not messages or messages[-1].role != wanted:
        what = (
            "labeled row ends with the assistant's reply" if labeled else "unlabeled row ends with the user's message"
        )
        raise _RowProblem("wrong_last_turn", f"a {what} (role {wanted!r})")
    prompt = tuple(messages[:-1] if labeled else messages)
    if not prompt or prompt[-1].role != "user":
        raise _RowProblem("no_question", "the assistant's reply must follow a user message")
    if any(turn.role == "system" for turn in prompt[1:]):
        raise _RowProblem("late_system", "a system message comes first or not at all")
    if not labeled:
        return _example(line, prompt, None, None)
    if messages[-1].weight == 0:
        raise _RowProblem("zero_weight", "the last assistant turn has weight 0: it would teach nothing; remove the row")
    return _example(line, prompt, messages[-1].content, None)


def _message(turn: Any, index: int) -> Message:
    if not isinstance(turn, dict):
        raise _RowProblem("bad_turn", f"turn {index} is not an object with role and content")
    role, content, weight = turn.get("role"), turn.get("content"), turn.get("weight", 1)
    if role == "developer":
        role = "system"
    if role not in ("system", "user", "assistant"):
        raise _RowProblem("bad_role", f"turn {index}: role is system, user or assistant")
    if isinstance(weight, bool) or weight not in (0, 1):
        raise _RowProblem("bad_weight", f"turn {index}: weight is 0 or 1")
    return Message(role, _text(content, f"turn {index}: content"), int(weight))


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise _RowProblem("not_text", f"{where} must be a string")
    if not value.strip():
        raise _RowProblem("empty_text", f"{where} is empty")
    if "\0" in value:
        raise _RowProblem("nul", f"{where} holds a NUL character; remove it")
    if _has_surrogate(value):
        raise _RowProblem("lone_surrogate", f"{where} holds half of a surrogate pair; it is not valid Unicode")
    return value


def _has_surrogate(value: str) -> bool:
    return _SURROGATE.search(value) is not None


# --- CSV with question, options, answer (the paper's own files) -------------------------------------------------------


def _csv_rows(path: Path, *, labeled: bool) -> Iterator[Example | Problem]:
    csv.field_size_limit(min(sys.maxsize, MAX_LINE_BYTES))
    # Bytes that are not UTF-8 become lone surrogates, so that they are noticed in the cell that holds them.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = csv.reader(file, strict=True)
        read = 0  # lines that earlier rows took
        try:
            columns = _columns(path, next(rows, None), labeled=labeled)
            read = rows.line_num
            for cells in rows:
                first, read = read + 1, rows.line_num
                if not cells:
                    continue
                try:
                    yield _csv_row(cells, columns, first, labeled=labeled)
                except _RowProblem as problem:
                    yield Problem(first, problem.code, str(problem))
        except csv.Error as error:
            yield Problem(read + 1, "not_csv", f"the row that begins here is not CSV: {error}")


@dataclass(frozen=True, slots=True)
class _Columns:
    width: int
    question: int
    options: int | None
    answer: int | None


def _columns(path: Path, header: list[str] | None, *, labeled: bool) -> _Columns:
    names = [name.strip().lower() for name in header or []]
    if any(map(_has_surrogate, names)):
        raise DataError(str(path), [Problem(1, "not_utf8", "the first line is not UTF-8; save the file as UTF-8")])
    if "question" not in names or (labeled and "answer" not in names):
        needed = "question and answer" if labeled else "question"
        message = f"the first line must name the columns {needed}; options (a JSON list) is optional"
        raise DataError(str(path), [Problem(1, "missing_column", message)])
    if len(set(names)) != len(names):
        raise DataError(str(path), [Problem(1, "duplicate_column", "the first line names a column twice")])
    return _Columns(
        width=len(names),
        question=names.index("question"),
        options=names.index("options") if "options" in names else None,
        answer=names.index("answer") if labeled else None,
    )


def _csv_row(cells: list[str], columns: _Columns, line: int, *, labeled: bool) -> Example:
    if len(cells) != columns.width:
        raise _RowProblem("wrong_width", f"the row has {len(cells)} cells, the first line names {columns.width}")
    if any(_has_surrogate(cells[at]) for at in (columns.question, columns.options, columns.answer) if at is not None):
        raise _RowProblem("not_utf8", "the row is not UTF-8; save the file as UTF-8")
    question = _text(cells[columns.question], "question").strip()
    options = _options(cells[columns.options]) if columns.options is not None else None
    answer = None
    if columns.answer is not None:
        answer = _text(cells[columns.answer], "answer").strip()
        if options is not None:
            answer = _letter(answer, options)
    if options is None:
        return _example(line, (Message("user", question),), answer, None)
    letters = tuple(LETTERS[: len(options)])
    lines = [f"{letter}. {option}" for letter, option in zip(letters, options, strict=True)]
    content = "\n".join([question, *lines, CHOICE_INSTRUCTION])
    return _example(line, (Message("user", content),), answer, letters)


def _options(cell: str) -> list[str] | None:
    if not cell.strip():
        return None
    options = _parse_json(cell.encode())
    if not isinstance(options, list) or not 2 <= len(options) <= len(LETTERS):
        raise _RowProblem("bad_options", f"options is a JSON list of 2 to {len(LETTERS)} answers")
    return [_text(option, f"option {index}").strip() for index, option in enumerate(options, start=1)]


def _letter(answer: str, options: list[str]) -> str:
    letters = LETTERS[: len(options)]
    if len(answer) == 1 and answer.upper() in letters:
        return answer.upper()
    if answer in options:
        return letters[options.index(answer)]
    raise _RowProblem("unknown_answer", f"answer is one of {letters[0]} to {letters[-1]} or the text of an option")


def _example(line: int, prompt: Prompt, reply: str | None, options: tuple[str, ...] | None) -> Example:
    content = json.dumps([(m.role, m.content) for m in prompt], ensure_ascii=False)
    digest = hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    return Example(digest, line, prompt, reply, options)
