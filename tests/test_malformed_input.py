"""Files that cannot be used, through the real command: exit code 2, where and what is wrong, what would be right.

Every message fits on a screen, no traceback is shown, no data is echoed, and nothing is left in the output folder.
"""

import gzip
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from semievol import cli
from semievol.fakes import FakeBackend
from semievol.formats.strict_json import MAX_DEPTH, MAX_LINE_BYTES

SCREEN_LINES = 24
SECRET = "hunter2"
"""Stands where data is; no message may show it."""
ROW = json.dumps({"messages": [{"role": "user", "content": SECRET}, {"role": "assistant", "content": SECRET}]})
PAIR = json.dumps({"prompt": SECRET, "completion": "a"})
QUESTIONS = b"question,answer\n"

Content = bytes | str | Callable[[], bytes]


def turns(*given: tuple[Any, Any], **more: Any) -> str:
    return json.dumps({"messages": [{"role": role, "content": content} | more for role, content in given]})


def parquet(**columns: Any) -> Callable[[], bytes]:
    """A table of these columns."""

    def write() -> bytes:
        sink = io.BytesIO()
        pq.write_table(pa.table(columns), sink)
        return sink.getvalue()

    return write


def repeated_parquet(text_bytes: int, rows: int) -> bytes:
    """One long text that every row refers to."""
    index = pa.array([0] * rows, pa.int32())
    texts = pa.DictionaryArray.from_arrays(index, pa.array(["x" * text_bytes]))
    sink = io.BytesIO()
    pq.write_table(pa.table({"question": texts, "answer": ["a"] * rows}), sink, store_schema=False)
    return sink.getvalue()


def damaged_parquet() -> bytes:
    whole = parquet(question=[f"{SECRET} {number}" for number in range(1000)], answer=["a"] * 1000)()
    return whole[:200] + b"\xff" * 200 + whole[400:]


def packed_blanks(mebibytes: int) -> bytes:
    """Zstandard, whose blocks of one repeated byte shrink thousands of times."""
    packer = zstandard.ZstdCompressor(level=19).compressobj()
    packed = [packer.compress(PAIR.encode() + b" " * 1024**2 + b"\n") for _ in range(mebibytes)]
    return b"".join([*packed, packer.flush()])


def wide_window() -> bytes:
    settings = zstandard.ZstdCompressionParameters(window_log=30)
    packer = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    return packer.compress(ROW.encode()) + packer.flush()


def nested(depth: int) -> str:
    return '{"question": ' + "[" * depth + "]" * depth + "}"


CASES: dict[str, tuple[str, Content, int, str]] = {
    # name: the file's name, what it holds, the line that is named (0: none), words of the message
    # --- the file itself
    "empty": ("x.jsonl", "", 0, "the file holds no rows; at least one labeled row is needed"),
    "only blank lines": ("x.jsonl", "\n  \n\n", 0, "the file holds no rows"),
    "empty csv": ("x.csv", "", 0, "the file holds no rows"),
    "csv header only": ("x.csv", QUESTIONS, 0, "the file holds no rows"),
    "blank csv": ("x.csv", "\n\n", 1, "must name the columns question and answer"),
    "empty gz": ("x.jsonl.gz", b"", 0, "the file holds no rows"),
    "gz of nothing": ("x.jsonl.gz", lambda: gzip.compress(b""), 0, "the file holds no rows"),
    "parquet without rows": (
        "x.parquet",
        parquet(question=pa.array([], "string"), answer=pa.array([], "string")),
        0,
        "no rows",
    ),
    "unknown ending": ("x.txt", ROW, 0, "the ending .txt is not known; JSON lines (.jsonl, .ndjson), CSV (.csv)"),
    "no ending": ("rows", ROW, 0, "the ending (none) is not known"),
    "packed what": ("x.gz", lambda: gzip.compress(ROW.encode()), 0, "the ending .gz is not known"),
    "one row": ("x.jsonl", ROW, 0, "one labeled row cannot be both trained on and held out; give more rows"),
    # --- encodings
    "utf-16": ("x.jsonl", ROW.encode("utf-16"), 1, "save the file as UTF-8"),
    "utf-16 without mark": ("x.jsonl", ROW.encode("utf-16-le"), 1, "save the file as UTF-8"),
    "utf-32": ("x.csv", "question,answer\nq,a\n".encode("utf-32"), 1, "save the file as UTF-8"),
    "utf-16 csv": ("x.csv", "question,answer\nq,a\n".encode("utf-16"), 1, "save the file as UTF-8"),
    "latin-1": (
        "x.jsonl",
        turns(("user", "q"), ("assistant", "a")).replace("q", "\xe9").encode("latin-1"),
        1,
        "is not UTF-8",
    ),
    "latin-1 csv": ("x.csv", QUESTIONS + "caf\xe9,a\n".encode("latin-1"), 2, "save the file as UTF-8"),
    "byte order mark in the middle": ("x.jsonl", f"{ROW}\n\ufeff\ufeff{ROW}", 2, "not JSON at column 1"),
    "surrogate bytes": ("x.jsonl", b'{"prompt": "\xed\xa0\x80", "completion": "a"}', 1, "is not UTF-8"),
    "binary": ("x.jsonl", bytes(range(256)) * 100, 1, "save the file as UTF-8"),
    # --- JSON
    "not json": ("x.jsonl", f"{ROW}\n{SECRET}\n", 2, "each line is one whole JSON object"),
    "a list of rows": (
        "x.jsonl",
        f"[{ROW}, {ROW}]",
        1,
        "this one is a list; write each of its rows on a line of its own",
    ),
    "indented json": ("x.jsonl", json.dumps(json.loads(ROW), indent=1), 1, "each line is one whole JSON object"),
    "two rows on a line": ("x.jsonl", ROW + ROW, 1, "Extra data"),
    "cut off": ("x.jsonl", f"{ROW}\n{ROW[:-20]}", 2, "not JSON"),
    "single quotes": ("x.jsonl", ROW.replace('"', "'"), 1, "in double quotes"),
    "duplicate keys": ("x.jsonl", '{"prompt": "p", "prompt": "q", "completion": "a"}', 1, "same key twice; keep one"),
    "nan": ("x.jsonl", '{"prompt": "p", "completion": NaN}', 1, "NaN is not JSON; use null or a string"),
    "infinity": ("x.jsonl", '{"prompt": "p", "completion": "a", "score": Infinity}', 1, "Infinity is not JSON"),
    "minus infinity": ("x.jsonl", '{"prompt": "p", "completion": "a", "score": -Infinity}', 1, "-Infinity is not JSON"),
    "nul": ("x.jsonl", '{"prompt": "p\\u0000", "completion": "a"}', 1, "prompt holds a NUL character; remove it"),
    "raw nul": ("x.jsonl", '{"prompt": "p\0", "completion": "a"}', 1, "not JSON"),
    "lone surrogate": ("x.jsonl", '{"prompt": "\\ud800", "completion": "a"}', 1, "half of a surrogate pair"),
    "long line": ("x.jsonl", b'{"prompt": "' + b"x" * MAX_LINE_BYTES + b'"}', 1, "longer than 4,194,304 bytes"),
    "endless line": ("x.jsonl", b"x" * (3 * MAX_LINE_BYTES), 1, "longer than 4,194,304 bytes"),
    "deep": ("x.jsonl", nested(MAX_DEPTH), 1, f"nested deeper than {MAX_DEPTH} levels"),
    "very deep": ("x.jsonl", nested(100_000), 1, f"nested deeper than {MAX_DEPTH} levels"),
    "long number": ("x.jsonl", f'{{"prompt": "p", "completion": {"9" * 5000}}}', 1, "more than 400 digits"),
    "many values": ("x.jsonl", f'{{"prompt": "p", "x": [{"0," * 100_000}0]}}', 1, "more than 100,000 values"),
    "a number": ("x.jsonl", "7", 1, "each line is one JSON object"),
    "many bad lines": ("x.jsonl", "{\n" * 5000, 20, "… and 4980 more"),
    "unknown keys": (
        "x.jsonl",
        '{"text": "hunter2"}',
        1,
        "messages, prompt and completion, instruction and output, or",
    ),
    # --- chat
    "no messages": ("x.jsonl", '{"messages": []}', 1, "a labeled row ends with the assistant's reply"),
    "messages are text": ("x.jsonl", '{"messages": "hunter2"}', 1, "messages is a list of turns"),
    "no reply": ("x.jsonl", turns(("user", "q")), 1, "a labeled row ends with the assistant's reply"),
    "only a reply": ("x.jsonl", turns(("assistant", "a")), 1, "must follow a user message"),
    "wrong role": ("x.jsonl", turns(("human", "q"), ("gpt", "a")), 1, "turn 1: role is system, user or assistant"),
    "system in between": (
        "x.jsonl",
        turns(("user", "q"), ("system", "s"), ("user", "q"), ("assistant", "a")),
        1,
        "comes first",
    ),
    "content parts": (
        "x.jsonl",
        turns(("user", [{"type": "text"}]), ("assistant", "a")),
        1,
        "turn 1: content must be a string",
    ),
    "no content": ("x.jsonl", '{"messages": [{"role": "user"}]}', 1, "turn 1: content is missing"),
    "blank reply": ("x.jsonl", turns(("user", "q"), ("assistant", " ")), 1, "turn 2: content is empty"),
    "weight": ("x.jsonl", turns(("user", "q"), ("assistant", "a"), weight=0.5), 1, "turn 1: weight is 0 or 1"),
    "weight 0": (
        "x.jsonl",
        turns(("user", "q"), ("assistant", "a"), weight=0),
        1,
        "would teach nothing; remove the row",
    ),
    # --- prompt and completion
    "no completion": ("x.jsonl", '{"prompt": "p"}', 1, "completion is missing; it must be a string"),
    "null completion": ("x.jsonl", '{"prompt": "p", "completion": null}', 1, "completion is missing"),
    "empty completion": ("x.jsonl", '{"prompt": "p", "completion": " "}', 1, "completion is empty"),
    "prompt of turns": ("x.jsonl", '{"prompt": [{"role": "user"}], "completion": "a"}', 1, "prompt must be a string"),
    "completion is a number": ("x.jsonl", '{"prompt": "p", "completion": 7}', 1, "completion must be a string"),
    # --- Alpaca
    "no output": ("x.jsonl", '{"instruction": "i", "input": ""}', 1, "output is missing"),
    "empty instruction": ("x.jsonl", '{"instruction": "", "input": "x", "output": "a"}', 1, "instruction is empty"),
    "input is a list": ("x.jsonl", '{"instruction": "i", "input": ["x"], "output": "a"}', 1, "input must be a string"),
    "system is a number": ("x.jsonl", '{"instruction": "i", "system": 7, "output": "a"}', 1, "system must be a string"),
    # --- questions
    "options are an object": (
        "x.jsonl",
        '{"question": "q", "options": {"A": "x"}, "answer": "A"}',
        1,
        "list of 2 to 26",
    ),
    "one option": ("x.jsonl", '{"question": "q", "options": ["x"], "answer": "A"}', 1, "list of 2 to 26"),
    "unknown answer": (
        "x.jsonl",
        '{"question": "q", "options": ["x", "y"], "answer": "C"}',
        1,
        "answer is one of A to B or",
    ),
    "null answer": ("x.jsonl", '{"question": "q", "options": ["x", "y"], "answer": null}', 1, "answer is missing"),
    "option is a number": (
        "x.jsonl",
        '{"question": "q", "options": ["x", 2], "answer": "A"}',
        1,
        "option 2 must be a string",
    ),
    # --- CSV
    "csv without answer": ("x.csv", "question,options\nq,\n", 1, "must name the columns question and answer"),
    "csv without header": ("x.csv", "hunter2,A\nhunter2,B\n", 1, "must name the columns question and answer"),
    "semicolons": ("x.csv", "question;answer\nq;a\n", 1, "must name the columns question and answer"),
    "a column twice": ("x.csv", "question,answer,Answer\nq,a,b\n", 1, "names a column twice; rename or remove one"),
    "many columns": ("x.csv", "question,answer" + ",c" * 1000, 1, "names more than 1,000 columns"),
    "cells": ("x.csv", QUESTIONS + b"q,a\nhunter2, really,a\n", 3, "has 3 cells, the first line names 2; quote cells"),
    "open quote": ("x.csv", QUESTIONS + b'q,a\n"hunter2,a\nr,b\n', 3, "look at its quotes"),
    "endless quote": ("x.csv", QUESTIONS + b'"' + b"x\n" * MAX_LINE_BYTES, 2, "shorten it or close its quotes"),
    "options no json": ("x.csv", "question,options,answer\nq,cat|dog,A\n", 2, "in options: not JSON at column 1"),
    "empty answer": ("x.csv", QUESTIONS + b"q,\n", 2, "answer is empty; fill it in or remove the row"),
    "csv nul": ("x.csv", QUESTIONS + b"q\0,a\n", 2, "question holds a NUL character"),
    "json as csv": ("x.csv", ROW, 1, "must name the columns question and answer"),
    # --- packed
    "truncated gz": (
        "x.jsonl.gz",
        lambda: gzip.compress(os.urandom(100_000).hex().encode())[:-100],
        0,
        "gzip data ends too early",
    ),
    "truncated zst": (
        "x.jsonl.zst",
        lambda: zstandard.compress(ROW.encode() * 9)[:-9],
        0,
        "Zstandard data ends too early",
    ),
    "gz of garbage": ("x.jsonl.gz", lambda: gzip.compress(b"\x80hunter2" * 50), 1, "is not UTF-8"),
    "damaged gz": ("x.csv.gz", lambda: gzip.compress(QUESTIONS)[:-8] + bytes(8), 0, "gzip data is damaged"),
    "damaged zst": (
        "x.csv.zst",
        lambda: zstandard.compress(QUESTIONS)[:6] + b"\xff" * 20,
        0,
        "Zstandard data is damaged",
    ),
    "tail of gz": ("x.jsonl.gz", lambda: gzip.compress(ROW.encode()) + b"hunter2", 0, "or something else follows it"),
    "plain text as gz": ("x.jsonl.gz", ROW, 0, "this is not gzip; rename the file or pack it with gzip"),
    "zst as gz": ("x.jsonl.gz", lambda: zstandard.compress(ROW.encode()), 0, "this is not gzip"),
    "gz as zst": ("x.jsonl.zst", lambda: gzip.compress(ROW.encode()), 0, "this is not Zstandard; rename the file"),
    "packed twice": ("x.jsonl.gz", lambda: gzip.compress(gzip.compress(ROW.encode())), 1, "or no text at all"),
    "wide window": ("x.jsonl.zst", wide_window, 0, "pack it again without --long"),
    "zst bomb": ("x.jsonl.zst", lambda: packed_blanks(64), 0, "holds more than 33,554,432 bytes when unpacked"),
    "gz bomb": (
        "x.jsonl.gz",
        lambda: gzip.compress(b"x" * 64 * 1024**2),
        0,
        "holds more than 33,554,432 bytes when unpacked",
    ),
    "gz of one long line": (
        "x.csv.gz",
        lambda: gzip.compress(QUESTIONS + b"x" * 9_000_000),
        2,
        "is longer than 4,194,304",
    ),
    # --- Parquet
    "no parquet": ("x.parquet", ROW, 0, "this is not Parquet; rename the file or write it as Parquet"),
    "csv as parquet": ("x.parquet.gz", lambda: gzip.compress(QUESTIONS), 0, "this is not Parquet"),
    "truncated parquet": (
        "x.parquet",
        lambda: parquet(question=["q"], answer=["a"])()[:-9],
        0,
        "Parquet data ends too early",
    ),
    "magic only": ("x.parquet", b"PAR1PAR1", 0, "Parquet data is damaged"),
    "magic once": ("x.parquet", b"PAR1", 0, "Parquet data is damaged"),
    "damaged parquet": ("x.parquet", damaged_parquet, 0, "Parquet data is damaged"),
    "other columns": ("x.parquet", parquet(text=["hunter2"], label=[1]), 0, "none of the columns messages, prompt"),
    "no answer column": ("x.parquet", parquet(question=["q"]), 0, "has the column question but not answer"),
    "no output column": ("x.parquet", parquet(instruction=["q"], input=["x"]), 0, "but not output"),
    "same column": (
        "x.parquet",
        parquet(question=["q"], Question=["q"], answer=["a"]),
        0,
        "two columns of the same name",
    ),
    "question is a number": ("x.parquet", parquet(question=[1], answer=["a"]), 0, "column question is of another type"),
    "question is binary": ("x.parquet", parquet(question=[b"q"], answer=["a"]), 0, "each of its values is a string"),
    "question is nested": (
        "x.parquet",
        parquet(question=[{"text": "q"}], answer=["a"]),
        0,
        "each of its values is a string",
    ),
    "options are numbers": (
        "x.parquet",
        parquet(question=["q"], options=[[1, 2]], answer=["a"]),
        0,
        "a list of strings, or its JSON",
    ),
    "options are a struct": (
        "x.parquet",
        parquet(question=["q"], options=[{"A": "x"}], answer=["a"]),
        0,
        "a list of strings",
    ),
    "messages are text column": ("x.parquet", parquet(messages=[ROW]), 0, "a list of structs (role, content)"),
    "null question": ("x.parquet", parquet(question=["q", None], answer=["a", "b"]), 2, "question is missing"),
    "parquet answer": (
        "x.parquet",
        parquet(question=["q"], options=[["x", "y"]], answer=["z"]),
        1,
        "answer is one of A to B",
    ),
    "parquet options": (
        "x.parquet",
        parquet(question=["q"], options=["cat|dog"], answer=["z"]),
        1,
        "in options: not JSON",
    ),
    "parquet not utf-8": (
        "x.parquet",
        lambda: parquet(question=["qqqqqqq"], answer=["a"])().replace(b"qqqqqqq", b"qqqqqq\xff"),
        1,
        "UTF-8",
    ),
    "parquet role": (
        "x.parquet",
        parquet(messages=[[{"role": "human", "content": "q"}]]),
        1,
        "role is system, user or assistant",
    ),
    "parquet bomb": (
        "x.parquet",
        lambda: repeated_parquet(1024**2, 1000),
        0,
        "holds more than 33,554,432 bytes when unpacked",
    ),
    "parquet row bomb": ("x.parquet", lambda: repeated_parquet(40 * 1024**2, 100), 0, "write it with smaller rows"),
    "parquet gz bomb": (
        "x.parquet.gz",
        lambda: gzip.compress(b"PAR1" + bytes(64 * 1024**2)),
        0,
        "holds more than 33,554,432",
    ),
}


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Arguments of a run whose files are fine but for those that are given."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    fine = [{"prompt": f"{word} {number}", "completion": word} for word in ("yes", "no") for number in range(6)]
    for role in ("labeled", "unlabeled", "test"):
        (tmp_path / f"{role}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in fine))
    monkeypatch.setattr(cli, "build_backend", lambda *given: FakeBackend())

    def arguments(**files: Path) -> list[str]:
        given = {role: tmp_path / f"{role}.jsonl" for role in ("labeled", "unlabeled", "test")} | files
        options = [f"--{role}={path}" for role, path in given.items()]
        return ["run", f"--model={tmp_path / 'model'}", f"--output={tmp_path / 'out'}", *options, "--quiet"]

    return arguments


def check(message: str, path: Path, line: int, words: str) -> None:
    """Of a message on a terminal of 80 columns that wraps long lines."""
    assert message.startswith("semievol: ")
    assert words in message
    assert not line or f"line {line}:" in message or f" {line}: " in message
    assert SECRET not in message
    assert "Traceback" not in message
    assert len(message.splitlines()) <= SCREEN_LINES
    assert not (path.parent / "out").exists()


@pytest.mark.parametrize("case", CASES)
def test_a_malformed_labeled_file_is_refused(
    case: str, command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, content, line, words = CASES[case]
    path = write(tmp_path / name, content)
    assert cli.main(command(labeled=path)) == 2
    message = capsys.readouterr().err
    check(message, path, line, words)
    assert str(path) in message or case == "one row"  # which is no fault of the file


def write(path: Path, content: Content) -> Path:
    made = content() if callable(content) else content
    path.write_bytes(made.encode() if isinstance(made, str) else made)
    return path


UNLABELED: dict[str, tuple[str, Content, int, str]] = {
    "answered chat": ("u.jsonl", f"{turns(('user', 'q'))}\n{ROW}", 2, "an unlabeled row ends with the user's message"),
    "no question": ("u.csv", "answer\nhunter2\n", 1, "must name the column question, separated by commas; options"),
    "empty": ("u.parquet", parquet(question=pa.array([], "string")), 0, "at least one unlabeled row is needed"),
    "no question column": ("u.parquet", parquet(answer=["hunter2"]), 0, "none of the columns messages, prompt"),
    "late fault": (
        "u.jsonl.zst",
        lambda: zstandard.compress(b'{"prompt": "p"}\n' * 5000 + b"hunter2"),
        5001,
        "not JSON",
    ),
}


@pytest.mark.parametrize("case", UNLABELED)
def test_a_malformed_unlabeled_file_is_refused(
    case: str, command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, content, line, words = UNLABELED[case]
    path = write(tmp_path / name, content)
    assert cli.main(command(unlabeled=path)) == 2
    message = capsys.readouterr().err
    check(message, path, line, words)
    assert str(path) in message


@pytest.mark.parametrize("role", ["validation", "test"])
def test_answers_that_no_labeled_row_has_are_refused(
    role: str, command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"{SECRET} {number}", "completion": f"{SECRET} {number % 3}"} for number in range(50)]
    path = write(tmp_path / "other.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert cli.main(command(**{role: path})) == 2
    message = capsys.readouterr().err
    check(message, path, 20, "set answers.options to name all classes")
    assert str(path) in message


def test_what_is_no_file_is_refused(
    command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    told = {
        "none.jsonl": "there is no such file",
        "folder.jsonl": "this is a folder; give one file",
        "pipe.jsonl": "this is a pipe or a device; write the rows into a file",
        "loop.jsonl": "it cannot be opened: Too many levels of symbolic links",
        f"{'x' * 300}.jsonl": "it cannot be opened: File name too long",
        "none.jsonl/x.jsonl": "there is no such file",
    }
    for name, words in told.items():
        assert cli.main(command(labeled=tmp_path / name)) == 2
        message = capsys.readouterr().err
        check(message, tmp_path / "labeled.jsonl", 0, words)
        assert name in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_refused(
    command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "x.jsonl", ROW)
    path.chmod(0)
    assert cli.main(command(labeled=path)) == 2
    check(capsys.readouterr().err, path, 0, "reading it is not permitted; change its owner or mode")


@pytest.mark.parametrize("case", ["not json", "truncated gz", "damaged parquet", "zst bomb"])
def test_the_command_as_a_process_says_the_same(
    case: str, command: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, content, line, words = CASES[case]
    path = write(tmp_path / name, content)
    done = subprocess.run(
        [sys.executable, "-m", "semievol", *command(labeled=path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    check(done.stderr, path, line, words)
